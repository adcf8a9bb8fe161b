// relay.h - what an INS prints, passed on to our stderr line by line.
//
// TRUST       An INS faces the attacker, and our stderr may be a terminal or a log on a disk. What
//             is not printable is shown as '?', lines are cut, and only so many a second are shown.
// INVARIANTS  Never blocks, and holds at most one line. The INS's end does not block either: what
//             finds no room is lost.
// THREADS     One.
#pragma once

#include <chrono>
#include <string>

#include "base/unique_fd.h"
#include "frontend/failure.h"

namespace mw {

class Relay {
 public:
  static constexpr size_t kLongestLine = 1000;
  static constexpr unsigned kLinesASecond = 40;
  // Lines that begin so are for people, and worth saying once, whichever INS says it.
  static constexpr const char* kHint = "mwins: hint: ";

  // `out`: where the lines go; borrowed.
  explicit Relay(int out) : out_(out) {}

  // Makes a new pipe and returns the end that the INS gets as its stderr.
  Outcome<UniqueFd> open();
  // To be polled for input; -1 while there is nothing to wait for.
  int fd() const;
  // Passes on what is there.
  void take();

 private:
  using Clock = std::chrono::steady_clock;

  void add(char c);
  void end_line();

  int out_;
  UniqueFd pipe_;
  std::string line_;
  bool cut_ = false;
  bool hinted_ = false;
  Clock::time_point second_{};
  unsigned lines_ = 0;  // in this second
};

// Text that a terminal takes for what it looks like: printable ASCII, the rest as '?'.
std::string printable(std::string text);

}  // namespace mw
