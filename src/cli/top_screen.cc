// top_screen.cc - `mw top` on a terminal.
#define NCURSES_NOMACROS 1  // erase, move and the like are names of ours
#include <ncurses.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cli/engine.h"
#include "cli/sample_text.h"
#include "cli/top.h"
#include "cli/top_view.h"
#include "netflow/address.h"

namespace mw {

using namespace netflow;

namespace {

constexpr int kEscape = 27;

// The terminal is as it was before when this ends, however it ends.
class Terminal {
 public:
  Terminal() : screen_(::newterm(nullptr, stdout, stdin)) {
    if (screen_ == nullptr) return;
    ::cbreak();
    ::noecho();
    ::keypad(stdscr, TRUE);
    ::nodelay(stdscr, TRUE);
    ::set_escdelay(25);
    ::curs_set(0);
  }
  ~Terminal() {
    if (screen_ == nullptr) return;
    ::endwin();
    ::delscreen(screen_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  explicit operator bool() const { return screen_ != nullptr; }

 private:
  SCREEN* screen_;
};

class Screen {
 public:
  Screen(Client& engine, const std::string& session, TopView& view)
      : engine_(engine), session_(session), view_(view) {}

  int run();

 private:
  enum class Mode { table, filter, sort, kill };

  Status take_rounds();
  void draw() const;
  void draw_rows(int top, int rows, int width) const;
  std::string bottom() const;
  void on_key(int key);
  void on_table_key(int key);
  void on_filter_key(int key);
  void on_sort_key(int key);
  void move(int by);
  void cut();
  size_t cursor() const;

  Client& engine_;
  const std::string session_;
  TopView& view_;
  Mode mode_ = Mode::table;
  bool done_ = false;
  bool paused_ = false;
  int64_t selected_ = 0;  // the socket; it stays chosen when its line moves
  size_t last_cursor_ = 0;
  Sample doomed_;  // who is asked about
  std::string typed_;
  size_t column_ = 0;
  std::string message_;
};

// The selected line, or the one at its place if it is gone.
size_t Screen::cursor() const {
  const auto& rows = view_.rows();
  const auto it = std::find_if(rows.begin(), rows.end(),
                               [this](const Sample& s) { return s.socket == selected_; });
  if (it != rows.end()) return static_cast<size_t>(it - rows.begin());
  return rows.empty() ? 0 : std::min(last_cursor_, rows.size() - 1);
}

void Screen::move(int by) {
  const auto& rows = view_.rows();
  if (rows.empty()) return;
  const auto last = static_cast<long>(rows.size()) - 1;
  last_cursor_ = static_cast<size_t>(std::clamp(static_cast<long>(cursor()) + by, 0L, last));
  selected_ = rows[last_cursor_].socket;
}

Status Screen::take_rounds() {
  for (;;) {
    auto round = engine_.next_round(0);
    if (!round)
      return round.error().fault == Fault::would_block ? Status(Ok{}) : Status(round.error());
    if (!paused_) view_.set_round(std::move(*round));
  }
}

std::string Screen::bottom() const {
  switch (mode_) {
    case Mode::filter:
      return "filter: " + typed_ + "_";
    case Mode::sort:
      return std::string("sort by: < ") + TopView::columns()[column_].key +
             " >  arrows choose, Enter takes it";
    case Mode::kill:
      return "cut " + name_of(doomed_.socket) + ", peer " + to_string(doomed_.remote) + "? y/n";
    case Mode::table:
      break;
  }
  if (!message_.empty()) return message_;
  return "F6/s sort  I invert  / filter  k kill  p pause  q quit";
}

void Screen::draw_rows(int top, int rows, int width) const {
  const auto& all = view_.rows();
  const size_t at = cursor();
  const auto page = static_cast<size_t>(std::max(rows, 1));
  const size_t first = at / page * page;
  for (size_t k = 0; k < page && first + k < all.size(); ++k) {
    std::string line = TopView::line(all[first + k], width);
    line.resize(static_cast<size_t>(width), ' ');
    if (first + k == at) ::attron(A_REVERSE);
    ::mvaddnstr(top + static_cast<int>(k), 0, line.c_str(), width);
    if (first + k == at) ::attroff(A_REVERSE);
  }
}

void Screen::draw() const {
  const int height = ::getmaxy(stdscr);
  const int width = ::getmaxx(stdscr);
  ::erase();
  int y = 0;
  for (const std::string& line : view_.summary(session_, width))
    if (y < height) ::mvaddnstr(y++, 0, line.c_str(), width);
  std::string state = "sorted by " + std::string(TopView::columns()[view_.sort()].key);
  if (!view_.filter().empty()) state += ", only: " + view_.filter();
  if (paused_) state += ", PAUSED";
  ::mvaddnstr(y++, 0, state.c_str(), width);
  std::string title = TopView::title(width);
  title.resize(static_cast<size_t>(width), ' ');
  ::attron(A_BOLD | A_UNDERLINE);
  ::mvaddnstr(y++, 0, title.c_str(), width);
  ::attroff(A_BOLD | A_UNDERLINE);
  if (height > y + 1) draw_rows(y, height - y - 1, width);
  ::attron(A_BOLD);
  ::mvaddnstr(height - 1, 0, bottom().c_str(), width - 1);
  ::attroff(A_BOLD);
  ::refresh();
}

void Screen::cut() {
  Request r;
  r.flags = kRequestWrite;
  r.name = static_cast<uint16_t>(Feature::is_open);
  const auto id = decode_socket(doomed_.socket);
  if (!id) return;
  name_socket(r, *id);
  auto answer = engine_.ask(r);
  message_ = name_of(doomed_.socket);
  if (!answer)
    message_ += std::string(": ") + answer.error().where;
  else if (answer->status != 0)
    message_ += std::string(" was not cut: ") + std::strerror(static_cast<int>(answer->status));
  else
    message_ += " was cut";
}

void Screen::on_key(int key) {
  switch (mode_) {
    case Mode::table:
      return on_table_key(key);
    case Mode::filter:
      return on_filter_key(key);
    case Mode::sort:
      return on_sort_key(key);
    case Mode::kill:
      if (key == 'y' || key == 'Y') cut();
      mode_ = Mode::table;
  }
}

void Screen::on_table_key(int key) {
  message_.clear();
  switch (key) {
    case 'q':
    case KEY_F(10):
      done_ = true;
      return;
    case 'p':
      paused_ = !paused_;
      return;
    case 'I':
      return view_.invert();
    case 's':
    case KEY_F(6):
      mode_ = Mode::sort;
      column_ = view_.sort();
      return;
    case '/':
    case KEY_F(4):
      mode_ = Mode::filter;
      typed_ = view_.filter();
      return;
    case 'k':
    case KEY_F(9):
      if (view_.rows().empty()) return;
      doomed_ = view_.rows()[cursor()];
      mode_ = Mode::kill;
      return;
    case KEY_UP:
      return move(-1);
    case KEY_DOWN:
      return move(1);
    case KEY_PPAGE:
      return move(-(LINES - 6));
    case KEY_NPAGE:
      return move(LINES - 6);
    case KEY_HOME:
      return move(-static_cast<int>(view_.rows().size()));
    case KEY_END:
      return move(static_cast<int>(view_.rows().size()));
    default:
      return;
  }
}

void Screen::on_filter_key(int key) {
  constexpr size_t kLongest = 64;
  if (key == '\n' || key == KEY_ENTER) {
    mode_ = Mode::table;
  } else if (key == kEscape) {
    typed_.clear();
    mode_ = Mode::table;
  } else if ((key == KEY_BACKSPACE || key == 127 || key == '\b') && !typed_.empty()) {
    typed_.pop_back();
  } else if (key >= ' ' && key < 127 && typed_.size() < kLongest) {
    typed_ += static_cast<char>(key);
  }
  view_.set_filter(typed_);
}

void Screen::on_sort_key(int key) {
  const size_t count = TopView::columns().size();
  if (key == KEY_RIGHT || key == KEY_DOWN || key == KEY_F(6) || key == 's')
    column_ = (column_ + 1) % count;
  else if (key == KEY_LEFT || key == KEY_UP)
    column_ = (column_ + count - 1) % count;
  if (key == '\n' || key == KEY_ENTER) view_.set_sort(column_);
  if (key == '\n' || key == KEY_ENTER || key == kEscape) mode_ = Mode::table;
}

int Screen::run() {
  while (!done_) {
    if (const Status sound = take_rounds(); !sound) {
      ::endwin();
      return fail(false, sound.error());
    }
    draw();
    pollfd watched[] = {{STDIN_FILENO, POLLIN, 0}, {engine_.fd(), POLLIN, 0}};
    if (::poll(watched, 2, -1) < 0 && errno != EINTR) return 1;
    if ((watched[0].revents & (POLLHUP | POLLERR)) != 0) return 0;  // the terminal is gone
    for (int key = ::getch(); key != ERR && !done_; key = ::getch()) on_key(key);
  }
  return 0;
}

}  // namespace

int run_top_screen(Client& engine, const std::string& session, TopView& view) {
  const Terminal terminal;
  if (!terminal)
    return fail(false, ExitStatus::usage, "this terminal is not known: set TERM, or use -b");
  return Screen(engine, session, view).run();
}

}  // namespace mw
