// clock.h - the clocks that are asked for.
#pragma once

#include <cstdint>
#include <ctime>

namespace mw {

inline int64_t monotonic_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}
inline int64_t monotonic_ms() {
  return monotonic_ns() / 1'000'000;
}

// A few milliseconds late, and cheaper.
inline uint64_t coarse_monotonic_ms() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000 + static_cast<uint64_t>(t.tv_nsec) / 1'000'000;
}

inline uint64_t realtime_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

}  // namespace mw
