// order.h - in which order news is handled.
//
// A ready set forgets when its members came. Whoever adds one stamps it, and the consumer sorts what
// it finds: sockets are then served as the kernel's lists would, first come first served.
//
// TRUST       A stamp is a hint. A wrong one changes the order within one batch and nothing else.
// THREADS     Stamps of all processes and processors compare: they are the processor's own clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mw {

// In units of 16 processor cycles, less than anything takes that adds a member, modulo 2^32: ten
// seconds or more until it comes round.
inline uint32_t order_stamp() {
  return static_cast<uint32_t>(__builtin_ia32_rdtsc() >> 4);
}

// True if a member was stamped after a batch began: it is left for the next one, because what came
// before it may not be in this one. A stamp that is far off says nothing.
inline bool came_later(uint32_t stamp, uint32_t begun) {
  constexpr uint32_t kFarOff = 1u << 19;  // some milliseconds
  return stamp - begun - 1 < kFarOff;
}

// A member of a batch. age: how long before the batch it was stamped.
struct OrderedMember {
  uint32_t age;
  uint32_t index;
};

// The oldest first. Allocates nothing.
inline void sort_by_age(OrderedMember* members, uint32_t count) {
  if (count < 2) return;
  std::sort(members, members + count, [](const OrderedMember& a, const OrderedMember& b) {
    return a.age != b.age ? a.age > b.age : a.index < b.index;
  });
}

}  // namespace mw
