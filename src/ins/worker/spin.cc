#include "ins/worker/spin.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace mw {
namespace {

constexpr int64_t kLoadHoldsNs = 250'000;

}  // namespace

void Spin::learn(int64_t slept_ns) {
  longest_ns_ =
      slept_ns < kLongestNs ? std::clamp(2 * longest_ns_, kFirstNs, kLongestNs) : longest_ns_ / 2;
}

// True if no more threads want to run than there are processors. Holds for a while.
bool Spin::processors_free(int64_t now) {
  if (now - load_read_at_ < kLoadHoldsNs) return processors_free_;
  load_read_at_ = now;
  char text[64];
  const ssize_t n = ::pread(load_.get(), text, sizeof text - 1, 0);
  text[std::max<ssize_t>(n, 0)] = 0;
  unsigned running = 0;
  processors_free_ = std::sscanf(text, "%*s %*s %*s %u", &running) == 1 && running <= cpus_;
  return processors_free_;
}

}  // namespace mw
