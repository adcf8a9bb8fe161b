#include "shim/process/descriptors.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <utility>

#include "abi/mw_region.h"
#include "ring/atomics.h"
#include "shim/process/file_limit.h"
#include "shim/process/libc_calls.h"

namespace mw::shim {

uint64_t* descriptor_table = nullptr;

namespace {

using A = StdAtomics;

constexpr int kHiddenBase = 1100;  // above what select() can name

constinit DescriptorHooks hooks{};
uint32_t slots_named = 0;  // by at least one descriptor
// Of each slot, the newest socket there that this process saw: gen << 32 | descriptors.
uint64_t* gens_and_counts = nullptr;
int highest_epoll = -1;

void count_reference(const Entry& e, int delta) {
  if (e.kind == Kind::epoll && e.slot != 0) hooks.on_group_reference(e.slot - 1, delta);
  if (e.kind != Kind::socket || gens_and_counts == nullptr) return;
  std::atomic_ref word(gens_and_counts[e.slot]);
  uint64_t old = word.load(std::memory_order_relaxed);
  for (;;) {
    const auto gen = static_cast<uint32_t>(old >> 32);
    const bool same = gen == e.gen;
    // A descriptor of an earlier socket there.
    if (!same && (delta < 0 || (gen != 0 && static_cast<int32_t>(e.gen - gen) < 0))) return;
    const uint64_t fresh =
        (same ? old : uint64_t{e.gen} << 32) + static_cast<uint64_t>(int64_t{delta});
    if (!word.compare_exchange_weak(old, fresh, std::memory_order_relaxed)) continue;
    const bool was_named = static_cast<uint32_t>(old) != 0;
    const bool is_named = static_cast<uint32_t>(fresh) != 0;
    if (was_named == is_named) return;
    A::fetch_add(slots_named, is_named ? 1u : ~0u);
    if (!is_named) hooks.on_unnamed(e.slot);
    return;
  }
}

}  // namespace

DescriptorHooks set_hooks(const DescriptorHooks& all) {
  return std::exchange(hooks, all);
}

bool open_descriptors() {
  const size_t table_bytes = kTableSize * sizeof *descriptor_table;
  void* const memory =
      ::mmap(nullptr, table_bytes + MW_MAX_SLOTS * sizeof *gens_and_counts, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  gens_and_counts = reinterpret_cast<uint64_t*>(static_cast<char*>(memory) + table_bytes);
  descriptor_table = static_cast<uint64_t*>(memory);
  return true;
}

void set_entry(int fd, Entry e) {
  if (fd < 0 || fd >= kTableSize || descriptor_table == nullptr) return;
  if (e.kind == Kind::epoll && fd > A::load_relaxed(highest_epoll))
    A::store_relaxed(highest_epoll, fd);
  const uint64_t old =
      std::atomic_ref(descriptor_table[fd]).exchange(pack(e), std::memory_order_acq_rel);
  count_reference(e, 1);
  count_reference(unpack(old), -1);
}

void forget(int fd) {
  const Entry e = peek(fd);
  if (e.kind == Kind::unknown || e.kind == Kind::kernel) return;
  if (e.kind == Kind::socket && references(e.slot, e.gen) == 1) hooks.on_last_close(fd, e);
  if (e.kind == Kind::epoll) hooks.on_epoll_close(fd, e);
  set_entry(fd, Entry{});
}

bool take_entry(int fd, const Entry& e) {
  // What another thread still does with the number is between it and the kernel.
  uint64_t old = pack(e);
  if (!std::atomic_ref(descriptor_table[fd])
           .compare_exchange_strong(old, pack({Kind::kernel, 0, 0})))
    return false;
  count_reference(e, -1);
  return true;
}

uint32_t references(uint32_t slot, uint32_t gen) {
  const uint64_t use = A::load_relaxed(gens_and_counts[slot]);
  return use >> 32 == gen ? static_cast<uint32_t>(use) : 0;
}
uint32_t references(uint32_t slot) {
  return static_cast<uint32_t>(A::load_relaxed(gens_and_counts[slot]));
}
uint32_t sockets_in_use() {
  return A::load_relaxed(slots_named);
}
int highest_epoll_fd() {
  return A::load_relaxed(highest_epoll);
}

int hide(int fd) {
  if (fd < 0) return -1;
  int high = beyond_limit([fd] { return libc.fcntl(fd, F_DUPFD_CLOEXEC, kHiddenBase); });
  if (high < 0) high = libc.fcntl(fd, F_DUPFD_CLOEXEC, 64);  // a small hard limit
  if (high < 0) {
    // No room at all out of the way: it stays where it is.
    set_entry(fd, {Kind::hidden, 0, 0});
    return fd;
  }
  libc.close(fd);
  set_entry(high, {Kind::hidden, 0, 0});
  return high;
}

int hidden_copy(int fd) {
  const int high = beyond_limit([fd] { return libc.fcntl(fd, F_DUPFD_CLOEXEC, kHiddenBase); },
                                FileLimit::Raise::unless_copying);
  if (high >= 0) set_entry(high, {Kind::hidden, 0, 0});
  return high;
}

void unhide_and_close(int fd) {
  set_entry(fd, Entry{});
  libc.close(fd);
}

}  // namespace mw::shim
