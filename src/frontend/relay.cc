#include "frontend/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace mw {
namespace {

// A flood keeps us from our own work no longer than this, and then waits for the next second.
constexpr int kReadsATurn = 16;

}  // namespace

std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

Outcome<UniqueFd> Relay::open() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
    return Failure{"make a pipe for messages", "pipe2: " + errno_text(errno),
                   "raise the limit of open files"};
  }
  pipe_.reset(ends[0]);
  line_.clear();
  cut_ = false;
  return UniqueFd{ends[1]};
}

int Relay::fd() const {
  const bool muted = lines_ > kLinesASecond && Clock::now() - second_ < std::chrono::seconds(1);
  return pipe_ && !muted ? pipe_.get() : -1;
}

void Relay::take() {
  if (!pipe_) return;
  char buffer[4096];
  for (int i = 0; i < kReadsATurn && fd() >= 0; ++i) {
    const ssize_t n = ::read(pipe_.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return;  // nothing more for now
    if (n == 0) {
      if (!line_.empty()) end_line();
      pipe_.reset();
      return;
    }
    for (ssize_t at = 0; at < n; ++at) add(buffer[at]);
  }
}

void Relay::add(char c) {
  if (c == '\n') return end_line();
  if (line_.size() < kLongestLine) {
    line_ += c;
  } else {
    cut_ = true;
  }
}

void Relay::end_line() {
  const Clock::time_point now = Clock::now();
  if (now - second_ >= std::chrono::seconds(1)) {
    second_ = now;
    lines_ = 0;
  }
  std::string text =
      printable(std::exchange(line_, {})) + (std::exchange(cut_, false) ? "..." : "");
  if (text.starts_with(kHint) && std::exchange(hinted_, true)) return;
  if (++lines_ > kLinesASecond + 1) return;
  if (lines_ == kLinesASecond + 1) text = "mw: mwins says more than is shown";
  text += '\n';
  if (::write(out_, text.data(), text.size()) < 0) return;  // nowhere left to say it
}

}  // namespace mw
