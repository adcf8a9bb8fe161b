// byte_ring.h - one direction of a socket's bytes.
//
// TRUST       The other end may be hostile: it can store anything, anywhere in the region, at any
//             time, also while we copy. We load its index once and use it only after it passed the
//             window check; our own index is private and the shared copy is write-only to us.
// INVARIANTS  0 <= tail - head <= capacity, capacity a power of two. Whoever sees it broken poisons
//             the channel: the functions report Fault::peer and touch nothing.
// ORDERING    Writer: copy in, then store tail with release; pairs with the reader's acquire of
//             tail. Reader: copy out, then store head with release; pairs with the writer's acquire
//             of head.
// THREADS     One writer and one reader at a time; where an end has several threads they hold a
//             lock.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/result.h"
#include "ring/atomics.h"

namespace mw {

// The memory of one ring.
class RingBytes {
 public:
  RingBytes() = default;
  RingBytes(std::byte* data, uint32_t capacity) : data_(data), mask_(capacity - 1) {}
  uint32_t capacity() const { return mask_ + 1; }
  // False: its memory could not be mapped.
  bool is_there() const { return data_ != nullptr; }

  void copy_in(uint32_t at, const void* from, uint32_t n) const {
    const uint32_t off = at & mask_;
    const uint32_t first = std::min(n, capacity() - off);
    std::memcpy(data_ + off, from, first);
    if (n > first) std::memcpy(data_, static_cast<const std::byte*>(from) + first, n - first);
  }
  void copy_out(uint32_t at, void* to, uint32_t n) const {
    const uint32_t off = at & mask_;
    const uint32_t first = std::min(n, capacity() - off);
    std::memcpy(to, data_ + off, first);
    if (n > first) std::memcpy(static_cast<std::byte*>(to) + first, data_, n - first);
  }
  // The memory of [at, at + n) as one or two pieces, for a system call that reads or fills it.
  int pieces(uint32_t at, uint32_t n, iovec out[2]) const {
    const uint32_t off = at & mask_;
    const uint32_t first = std::min(n, capacity() - off);
    out[0] = {data_ + off, first};
    if (n == first) return 1;
    out[1] = {data_, n - first};
    return 2;
  }

 private:
  std::byte* data_ = nullptr;
  uint32_t mask_ = 0;
};

// Bytes that the writer may still put in, given its private tail. Errors: peer.
template <class Atomics = StdAtomics, class Word>
Result<uint32_t> ring_room(uint32_t capacity, uint32_t my_tail, Word& shared_head) {
  const uint32_t used = my_tail - Atomics::load_acquire(shared_head);
  if (used > capacity) return Error{Fault::peer, 0, "ring head out of window"};
  return capacity - used;
}

// Bytes that the reader may take, given its private head. Errors: peer.
template <class Atomics = StdAtomics, class Word>
Result<uint32_t> ring_ready(uint32_t capacity, uint32_t my_head, Word& shared_tail) {
  const uint32_t ready = Atomics::load_acquire(shared_tail) - my_head;
  if (ready > capacity) return Error{Fault::peer, 0, "ring tail out of window"};
  return ready;
}

// A sender says OUT when a third of the ring is free, as the kernel does with its send buffer.
inline bool ring_writable(uint32_t capacity, uint32_t room) {
  return room >= capacity / 3;
}

}  // namespace mw
