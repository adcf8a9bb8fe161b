#include "shim/memory.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <iterator>

#include "shim/process.h"

namespace mw::shim {

bool is_memory(const void* p, size_t n) {
  if (n == 0 || process.confined) return true;
  if (reinterpret_cast<uintptr_t>(p) < MW_PAGE) return false;
  const int saved = errno;
  char byte[2];
  const iovec local{byte, n > 1 ? 2u : 1u};
  // First and last byte: what control calls take never spans more than two pages.
  const iovec remote[2] = {{const_cast<void*>(p), 1},
                           {const_cast<char*>(static_cast<const char*>(p)) + n - 1, 1}};
  const long got =
      libc.syscall(SYS_process_vm_readv, process.pid, &local, 1, remote, n > 1 ? 2 : 1, 0);
  const bool fault = got < static_cast<long>(local.iov_len) && (got >= 0 || errno == EFAULT);
  errno = saved;
  return !fault;
}

namespace {
// Pages that were found good: 1 + their number, doubled, and 1 more for writable ones. Two places
// for each, so that two buffers in use at the same time do not drive each other out. Threads may
// overwrite each other's entries.
struct GoodPages {
  uint64_t newer, older;
};
GoodPages good_pages[2048];

GoodPages& good_pages_of(uint64_t page) {
  return good_pages[page % std::size(good_pages)];
}
bool tells(uint64_t entry, uint64_t page, bool write) {
  return entry >> 1 == page + 1 && (!write || (entry & 1) != 0);
}
bool is_known_good(uint64_t page, bool write) {
  GoodPages& known = good_pages_of(page);
  return tells(StdAtomics::load_relaxed(known.newer), page, write) ||
         tells(StdAtomics::load_relaxed(known.older), page, write);
}
void note_good(uint64_t page, bool write) {
  GoodPages& known = good_pages_of(page);
  const uint64_t before = StdAtomics::load_relaxed(known.newer);
  if (!tells(before, page, false)) StdAtomics::store_relaxed(known.older, before);
  StdAtomics::store_relaxed(known.newer, (page + 1) << 1 | (write ? 1 : 0));
}

// Has the kernel look at pages as its own copy would, without changing what is in them.
bool populate(uint64_t page, uint64_t count, bool write) {
  if (process.confined) return true;
  const int saved = errno;
  const auto look = [](const void* at, uint64_t bytes, int how) {
    return libc.syscall(SYS_madvise, at, bytes, how) == 0;
  };
  bool good = look(reinterpret_cast<void*>(page * MW_PAGE), count * MW_PAGE,
                   write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  if (!good && errno == EINVAL) {
    // A page of ours, to know whether the kernel can be asked so.
    const auto own = reinterpret_cast<uintptr_t>(good_pages) / MW_PAGE * MW_PAGE;
    good = !look(reinterpret_cast<void*>(own), MW_PAGE, MADV_POPULATE_READ);
    for (uint64_t i = page; good && i < page + count; ++i)
      good = is_memory(reinterpret_cast<void*>(i * MW_PAGE), 1);
  }
  errno = saved;
  return good;
}

bool is_good(const void* p, size_t n, bool write) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (n == 0) return true;
  if (at < MW_PAGE || at + n - 1 < at) return false;
  const uint64_t last = (at + n - 1) / MW_PAGE;
  for (uint64_t page = at / MW_PAGE; page <= last; ++page) {
    if (is_known_good(page, write)) [[likely]]
      continue;
    uint64_t end = page + 1;
    while (end <= last && !is_known_good(end, write)) ++end;
    if (!populate(page, end - page, write)) return false;
    for (; page < end; ++page) note_good(page, write);
  }
  return true;
}
}  // namespace

bool is_buffer(const void* p, size_t n) {
  return is_good(p, n, false);
}
bool is_room(void* p, size_t n) {
  return is_good(p, n, true);
}

void forget_pages(const void* p, size_t n) {
  if (n == 0) return;
  const auto at = reinterpret_cast<uintptr_t>(p);
  const uint64_t first = at / MW_PAGE;
  const uint64_t count = (at + n - 1) / MW_PAGE - first + 1;
  const auto forget_in = [&](GoodPages& known) {
    for (uint64_t* entry : {&known.newer, &known.older})
      if ((StdAtomics::load_relaxed(*entry) >> 1) - 1 - first < count)
        StdAtomics::store_relaxed(*entry, uint64_t{0});
  };
  if (count >= std::size(good_pages)) {
    for (GoodPages& known : good_pages) forget_in(known);
  } else {
    for (uint64_t page = first; page < first + count; ++page) forget_in(good_pages_of(page));
  }
}

void note_mapping(void* p, size_t n, int protection, int flags) {
  forget_pages(p, n);
  // Fresh memory of the program's own is good without asking; of larger pieces only parts are used.
  constexpr size_t kMost = 64 * MW_PAGE;
  constexpr int kBoth = PROT_READ | PROT_WRITE;
  if ((protection & kBoth) != kBoth || (flags & MAP_ANONYMOUS) == 0 || n > kMost) return;
  if ((flags & MAP_HUGETLB) != 0) return;  // there may be no such page when it is touched
  const uint64_t first = reinterpret_cast<uintptr_t>(p) / MW_PAGE;
  for (uint64_t page = first; page < first + (n + MW_PAGE - 1) / MW_PAGE; ++page)
    note_good(page, true);
}

}  // namespace mw::shim
