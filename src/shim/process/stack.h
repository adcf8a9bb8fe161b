// stack.h - one INS, as this process sees it.
//
// A session outlives its INSs and may have several side by side. A stack keeps what is true of one of
// them: its region, its doorbells, the way to hand it placeholders, and whether it broke the protocol.
// An INS that takes a dead one's place serves the same stack, in the next epoch.
//
// A socket's number counts through the slots of all stacks: stack k has the numbers from k * slots on.
// So table entries, identities and the session region need not know about stacks. What crosses a
// channel counts from 0: place_of() and number_of() translate, here and nowhere else.
//
// TRUST       As regions.h. A number that came from the INS is checked against geometry() first.
// INVARIANTS  A stack is complete before process.attached is set, and stays. slot() is for numbers
//             that has() was true for.
// THREADS     Any, and signal handlers.
#pragma once

#include <cassert>
#include <cstdint>
#include <span>

#include "shim/process/process.h"

namespace mw::shim {

void ring_bell(int fd);

class Stack {
 public:
  // Errors: as ChannelView's.
  Status open(const SealedFile& file, const mw_geometry& geometry, uint32_t first);
  void close() { channel_.close(); }
  // Descriptors of this process for good: where placeholders are handed over, a bell for each worker.
  // Requires: no more bells than MW_MAX_WORKERS.
  void use(int drop_fd, std::span<const int> bells);

  const mw_geometry& geometry() const { return channel_.geometry(); }
  const SealedFile& file() const { return channel_.file(); }
  uint32_t first() const { return first_; }
  uint32_t place_of(uint32_t number) const { return number - first_; }
  uint32_t number_of(uint32_t place) const { return first_ + place; }

  // Maps what this process needs of a slot. False: there is no memory for it.
  bool has(uint32_t number) { return channel_.has_slot(place_of(number)); }
  mw_slot& slot(uint32_t number) const { return channel_.slot(place_of(number)); }
  // One that is not there: no memory. For whoever holds the slot's lock, until it is given back.
  RingBytes rx(uint32_t number) { return channel_.rx(place_of(number)); }
  RingBytes tx(uint32_t number) { return channel_.tx(place_of(number)); }
  uint32_t worker_of(uint32_t number) const { return channel_.worker_of(place_of(number)); }
  mw_call& call(uint32_t cell) const { return channel_.call(cell); }

  ReadySet sock_news(uint32_t worker) const { return channel_.sock_news(worker); }
  ReadySet call_news(uint32_t worker) const { return channel_.call_news(worker); }
  bool has_group(uint32_t group) { return channel_.has_group(group); }
  // Its members are places.
  ReadySet group_news(uint32_t group) const { return channel_.group_news(group); }
  void ring(uint32_t worker) const { ring_bell(bells_[worker]); }
  int drop_fd() const { return drop_fd_; }

  RingWindow& rings() { return channel_.rings(); }
  uint64_t piece_bytes() const { return channel_.piece_bytes(); }
  // For a program that is about to forbid itself to map memory.
  void map_all() { channel_.map_all(); }

  // An INS serves.
  bool is_up() const {
    return StdAtomics::load_relaxed(process.session.header().state) == kSessionUp;
  }
  // Grows by one with each INS.
  uint32_t epoch() const { return StdAtomics::load_acquire(process.session.header().epoch); }
  // Sockets of an older generation (modulo 2^32) belong to dead INSs.
  uint32_t first_gen() const {
    return StdAtomics::load_acquire(process.session.header().first_gen);
  }

  // The INS of this epoch broke the protocol: its sockets fail until another one serves.
  bool is_poisoned() { return StdAtomics::load_relaxed(poisoned_) && still_poisoned(); }
  // False: it was already.
  bool poison();
  uint32_t poisoned_epoch() const { return StdAtomics::load_relaxed(poisoned_epoch_); }

 private:
  bool still_poisoned();

  ChannelView channel_;
  uint32_t first_ = 0;
  int drop_fd_ = -1;
  int bells_[MW_MAX_WORKERS] = {};
  bool poisoned_ = false;
  mutable uint32_t poisoned_epoch_ = 0;  // load_relaxed() takes no const
};

// The stacks of a session, all with as many slots.
constexpr uint32_t kMostStacks = 8;
class Stacks {
 public:
  // The stack that serves a socket.
  // Requires: number < slots().
  Stack& of(uint32_t number) {
    // A session with one stack, as they all are today, pays no division.
    return all_[count_ <= 1 ? 0 : number / slots_of_one_];
  }
  // Errors: as Stack::open(); limit (there are kMostStacks).
  // Requires: before the first use of it; the same number of slots as its sisters.
  Status add(const SealedFile& file, const mw_geometry& geometry);
  // Requires: no thread is in them.
  void close();

  // Numbers that sockets of the session can have: all below.
  uint32_t slots() const { return slots_of_one_ * count_; }
  Stack* begin() { return all_; }
  Stack* end() { return all_ + count_; }

 private:
  Stack all_[kMostStacks];
  uint32_t count_ = 0;
  uint32_t slots_of_one_ = 0;
};
extern Stacks stacks;

inline Stack& stack_of(uint32_t number) {
  return stacks.of(number);
}
// The stack that executes what belongs to no socket yet: a new socket, a look-up of a name.
inline Stack& stack_for_new() {
  return *stacks.begin();
}
// The stack whose news an epoll group has. A group that watches sockets of several stacks will have a
// set in each.
inline Stack& stack_of_group() {
  return *stacks.begin();
}

// Maps what this process needs of a socket's slot in its stack and in the session. False: there is no
// memory for it.
bool has_slot(uint32_t number);
// The tables of all stacks and of the session that this process has mapped in pieces.
uint64_t mapped_table_bytes();
// DescriptorHooks::on_unnamed.
void trim_rings(uint32_t number);

}  // namespace mw::shim
