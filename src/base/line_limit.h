// line_limit.h - log lines that a peer can cause: so many of each kind, and no more.
//
// PROBLEM     Whoever may connect may connect 5000 times a second. One line each fills the disk, and
//             hides what matters.
// PROMISE     Ten lines of a kind in a second; those left out are counted, and the next line tells how
//             many there were.
// THREADS     One thread an object.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "base/clock.h"
#include "base/log.h"

namespace mw {

class LineLimit {
 public:
  static constexpr uint32_t kLinesASecond = 10;

  constexpr explicit LineLimit(const char* who) : who_(who) {}

  // log_line(), if there may be another one.
  [[gnu::format(printf, 2, 3)]] void say(const char* format, ...) {
    const int64_t now = monotonic_ms() / 1000;
    if (now != second_) {
      second_ = now;
      lines_ = 0;
    }
    if (lines_ >= kLinesASecond) {
      ++left_out_;
      return;
    }
    ++lines_;
    char text[900];
    va_list ap;
    va_start(ap, format);
    (void)std::vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (left_out_ == 0)
      log_line(who_, "%s", text);
    else
      log_line(who_, "%s (%llu more of this kind were left out)", text,
               static_cast<unsigned long long>(left_out_));
    left_out_ = 0;
  }

 private:
  const char* const who_;
  int64_t second_ = -1;
  uint32_t lines_ = 0;  // in this second
  uint64_t left_out_ = 0;
};

}  // namespace mw
