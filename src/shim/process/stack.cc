#include "shim/process/stack.h"

#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>

namespace mw::shim {

constinit Stacks stacks;

void ring_bell(int fd) {
  const int saved = errno;
  const uint64_t one = 1;
  libc.syscall(SYS_write, fd, &one, sizeof one);
  errno = saved;
}

Status Stack::open(const SealedFile& file, const mw_geometry& geometry, uint32_t first) {
  first_ = first;
  poisoned_ = false;
  std::fill_n(bells_, MW_MAX_WORKERS, -1);
  return channel_.open(file, geometry, first);
}

void Stack::use(int drop_fd, std::span<const int> bells) {
  drop_fd_ = drop_fd;
  std::copy(bells.begin(), bells.end(), bells_);
}

bool Stack::poison() {
  if (is_poisoned()) return false;
  StdAtomics::store_relaxed(poisoned_epoch_, epoch());
  StdAtomics::store_release(poisoned_, true);
  return true;
}

bool Stack::still_poisoned() {
  if (epoch() == StdAtomics::load_relaxed(poisoned_epoch_)) return true;
  StdAtomics::store_relaxed(poisoned_, false);
  return false;
}

Status Stacks::add(const SealedFile& file, const mw_geometry& geometry) {
  if (count_ == kMostStacks) return Error{Fault::limit, 0, "stacks of a session"};
  assert(count_ == 0 || geometry.slots == slots_of_one_);
  if (auto opened = all_[count_].open(file, geometry, slots()); !opened) return opened.error();
  slots_of_one_ = geometry.slots;
  ++count_;
  return Ok{};
}

void Stacks::close() {
  for (Stack& stack : *this) stack.close();
  count_ = 0;
}

bool has_slot(uint32_t number) {
  Stack& stack = stack_of(number);
  const auto both = [&] { return stack.has(number) && process.session.has_slot(number); };
  return both() || (stack.rings().drop_unused() && both());
}

uint64_t mapped_table_bytes() {
  uint64_t bytes = process.session.piece_bytes();
  for (const Stack& stack : stacks) bytes += stack.piece_bytes();
  return bytes;
}

void trim_rings(uint32_t number) {
  stack_of(number).rings().trim();
}

}  // namespace mw::shim
