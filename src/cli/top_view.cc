#include "cli/top_view.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "cli/engine.h"
#include "cli/sample_text.h"
#include "netflow/address.h"

namespace mw {

using namespace netflow;

namespace {

template <auto Member>
bool more(const Sample& a, const Sample& b) {
  return a.*Member > b.*Member;
}

std::string worker_seconds(const Sample& s) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", static_cast<double>(s.worker_us) / 1e6);
  return text;
}

std::string waits(const Sample& s) {
  return s.waiting_threads == 0 ? "-" : short_age(s.waiting);
}

uint32_t idle_of(const Sample& s) {
  const uint32_t last = std::min(s.last_in, s.last_out);
  return last == kNever ? s.age : last;
}

std::string padded(const std::string& text, int width) {
  const auto n = static_cast<size_t>(std::abs(width));
  if (text.size() >= n) return text.substr(0, n);
  const std::string space(n - text.size(), ' ');
  return width < 0 ? text + space : space + text;
}

// As many of the columns as fit, each by `cell`.
template <class Cell>
std::string joined(int width, Cell&& cell) {
  std::string out;
  for (const TopColumn& c : TopView::columns()) {
    const std::string text = padded(cell(c), c.width);
    if (out.size() + (out.empty() ? 0 : 1) + text.size() > static_cast<size_t>(width)) break;
    out += (out.empty() ? "" : " ") + text;
  }
  return out;
}

double share(uint64_t used_us, uint64_t before_us, const Round& now, const Round& before) {
  const uint64_t passed = now.mono_ns - before.mono_ns;
  if (used_us < before_us || now.mono_ns <= before.mono_ns) return 0;
  return 1e5 * static_cast<double>(used_us - before_us) / static_cast<double>(passed);
}

}  // namespace

// The first ones fit into 80 columns.
const std::vector<TopColumn>& TopView::columns() {
  static const std::vector<TopColumn> kColumns = {
      {"worker", "WORKER", 8, worker_seconds, more<&Sample::worker_us>},
      {"wait", "WAIT", 6, waits, more<&Sample::waiting>},
      {"socket", "SOCKET", -8, [](const Sample& s) { return name_of(s.socket); },
       more<&Sample::socket>},
      {"peer", "PEER", -21, [](const Sample& s) { return to_string(s.remote); },
       [](const Sample& a, const Sample& b) { return to_string(a.remote) > to_string(b.remote); }},
      {"state", "STATE", -6,
       [](const Sample& s) -> std::string { return s.type == 2 ? "udp" : tcp_state_of(s); },
       more<&Sample::tcp_state>},
      {"in", "IN/s", 6, [](const Sample& s) { return short_number(s.rate_in); },
       more<&Sample::rate_in>},
      {"out", "OUT/s", 6, [](const Sample& s) { return short_number(s.rate_out); },
       more<&Sample::rate_out>},
      {"unsent", "UNSENT", 6, [](const Sample& s) { return short_number(s.unsent); },
       more<&Sample::unsent>},
      {"queue", "QUEUE", 5,
       [](const Sample& s) -> std::string {
         return (s.flags & kSampleListener) != 0 ? short_number(s.queue) : "-";
       },
       more<&Sample::queue>},
      {"age", "AGE", 6, [](const Sample& s) { return short_age(s.age); }, more<&Sample::age>},
      {"idle", "IDLE", 6, [](const Sample& s) { return short_age(idle_of(s)); },
       [](const Sample& a, const Sample& b) { return idle_of(a) > idle_of(b); }},
      {"process", "PROCESS", -18, process_of, more<&Sample::pid>},
      {"unread", "UNREAD", 6, [](const Sample& s) { return short_number(s.unread); },
       more<&Sample::unread>},
      {"local", "LOCAL", -21, [](const Sample& s) { return to_string(s.local); },
       [](const Sample& a, const Sample& b) { return to_string(a.local) > to_string(b.local); }},
      {"bytes-in", "IN", 6, [](const Sample& s) { return short_number(s.bytes_in); },
       more<&Sample::bytes_in>},
      {"bytes-out", "OUT", 6, [](const Sample& s) { return short_number(s.bytes_out); },
       more<&Sample::bytes_out>},
      {"window", "WINDOW", 6, [](const Sample& s) { return short_number(s.snd_wnd); },
       more<&Sample::snd_wnd>},
  };
  return kColumns;
}

std::optional<size_t> TopView::find_column(const std::string& key) {
  for (size_t k = 0; k < columns().size(); ++k)
    if (key == columns()[k].key) return k;
  return std::nullopt;
}

void TopView::set_filter(const std::string& text) {
  filter_text_ = text;
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  std::string wrong;
  filter_.emplace();
  if (!filter_->parse(words, &wrong)) filter_.reset();
  arrange();
}

void TopView::set_round(SampledRound round) {
  if (has_round()) before_ = round_.round;
  processes_us_before_ = processes_us_;
  processes_us_ = 0;
  for (const ProcessSample& p : round.processes) processes_us_ += p.cpu_us;
  round_ = std::move(round);
  arrange();
}

bool TopView::is_shown(const Sample& s) const {
  if (filter_)
    return filter_->takes({type_of(s), s.local, s.remote, s.pid, s.uid, command_text(s.command)});
  return joined(10'000, [&](const TopColumn& c) { return c.text(s); }).find(filter_text_) !=
         std::string::npos;
}

void TopView::arrange() {
  rows_ = round_.samples;
  std::erase_if(rows_, [this](const Sample& s) { return !is_shown(s); });
  const auto before = columns()[sort_].before;
  // Equal ones keep their places from round to round.
  std::sort(rows_.begin(), rows_.end(), [&](const Sample& a, const Sample& b) {
    if (before(a, b)) return !inverted_;
    if (before(b, a)) return inverted_;
    return a.socket < b.socket;
  });
}

std::string TopView::title(int width) {
  return joined(width, [](const TopColumn& c) { return c.title; });
}

std::string TopView::line(const Sample& s, int width) {
  return joined(width, [&](const TopColumn& c) { return c.text(s); });
}

std::vector<std::string> TopView::summary(const std::string& session, int width) const {
  const Round& r = round_.round;
  uint64_t connections = 0;
  uint64_t listeners = 0;
  uint64_t queue = 0;
  uint64_t waiting = 0;
  uint64_t in = 0;
  uint64_t out = 0;
  for (const Sample& s : round_.samples) {
    const bool listener = (s.flags & kSampleListener) != 0;
    listeners += listener ? 1 : 0;
    connections += (s.flags & kSampleTcp) != 0 ? 1 : 0;
    waiting += s.waiting_threads;
    queue += s.queue;
    in += s.rate_in;
    out += s.rate_out;
  }
  uint64_t memory = 0;
  uint64_t threads = 0;
  for (const ProcessSample& p : round_.processes) {
    memory += p.rss_bytes;
    threads += p.threads;
  }
  const Round& then = before_ ? *before_ : r;
  char text[3][512];
  if (r.ins_pid == 0)
    std::snprintf(text[0], sizeof text[0], "%s: no stack serves; %u replaced", session.c_str(),
                  r.ins_restarts);
  else
    std::snprintf(text[0], sizeof text[0],
                  "%s: stack %u (pid %u) cpu %.1f%% mem %sB fds %u, alive %s ago, %u replaced",
                  session.c_str(), r.ins, r.ins_pid,
                  then.ins == r.ins ? share(r.ins_cpu_us, then.ins_cpu_us, r, then) : 0,
                  short_number(r.ins_rss_bytes).c_str(), r.ins_fds, short_age(r.heartbeat).c_str(),
                  r.ins_restarts);
  std::snprintf(text[1], sizeof text[1],
                "%u sockets, %lu connections, %lu listeners, %lu queued; in %sB/s, out %sB/s",
                r.sockets, connections, listeners, queue, short_number(in).c_str(),
                short_number(out).c_str());
  std::snprintf(text[2], sizeof text[2],
                "%u processes, %lu threads, %lu waits; cpu %.1f%% mem %sB; %lu samples missed",
                r.processes, threads, waiting,
                before_ ? share(processes_us_, processes_us_before_, r, then) : 0,
                short_number(memory).c_str(), r.missed);
  std::vector<std::string> lines;
  for (const char* t : text) lines.push_back(std::string(t).substr(0, static_cast<size_t>(width)));
  return lines;
}

}  // namespace mw
