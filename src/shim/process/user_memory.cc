#include "shim/process/user_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "shim/process/process.h"
#include "shim/process/stack.h"

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

namespace {

struct MapsLine {
  uint64_t first, end;
  bool own_data;  // private and writable: it can be locked, unless a limit forbids it
  uint64_t device, inode;
};

// "FIRST-END rwxp OFFSET MAJOR:MINOR INODE ...", in hexadecimal, but for the inode.
MapsLine parse_maps_line(const char* text) {
  MapsLine line{};
  char* at = nullptr;
  line.first = ::strtoull(text, &at, 16);
  line.end = *at == '-' ? ::strtoull(at + 1, &at, 16) : 0;
  line.own_data = std::strncmp(at, " rw", 3) == 0 && at[4] == 'p';
  if (std::strlen(at) < 6) return line;
  (void)::strtoull(at + 6, &at, 16);  // the offset
  const auto major = static_cast<unsigned>(::strtoul(at, &at, 16));
  const auto minor = *at == ':' ? static_cast<unsigned>(::strtoul(at + 1, &at, 16)) : 0;
  line.device = makedev(major, minor);
  line.inode = ::strtoull(at, nullptr, 10);
  return line;
}

bool is_region(const MapsLine& line) {
  const auto is_of = [&line](const SealedFile& file) {
    return line.inode == file.inode && line.device == file.device;
  };
  if (!process.attached) return false;
  return is_of(process.session.file()) ||
         std::any_of(stacks.begin(), stacks.end(), [&](const Stack& s) { return is_of(s.file()); });
}

// 0, or the errno that mlockall() would give. What cannot be locked, as a page behind the end of its
// file, it passes over too.
int lock_mapping(const MapsLine& line, unsigned how) {
  if (line.end <= line.first || is_region(line)) return 0;
  if (libc.syscall(SYS_mlock2, line.first, line.end - line.first, how) == 0) return 0;
  return errno == EPERM || (errno == ENOMEM && line.own_data) ? errno : 0;
}

int lock_current(unsigned how) {
  const long maps = libc.syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return errno;
  char text[2 * PATH_MAX];
  size_t held = 0;
  int error = 0;
  long n = 0;
  while (error == 0 &&
         (n = libc.syscall(SYS_read, maps, text + held, sizeof text - 1 - held)) > 0) {
    held += static_cast<size_t>(n);
    text[held] = 0;
    char* line = text;
    for (char* end = nullptr; error == 0 && (end = std::strchr(line, '\n')) != nullptr;
         line = end + 1)
      error = lock_mapping(parse_maps_line(line), how);
    held -= static_cast<size_t>(line - text);
    std::memmove(text, line, held);
  }
  libc.syscall(SYS_close, maps);
  return error;
}

}  // namespace

int lock_all(int flags) {
  constexpr int kAll = MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT;
  const bool known = (flags & ~kAll) == 0 && (flags & (MCL_CURRENT | MCL_FUTURE)) != 0;
  if (!known) return static_cast<int>(libc.syscall(SYS_mlockall, flags));
  // What is mapped from now on of the regions must not be locked either.
  if ((flags & MCL_FUTURE) != 0) process.locks_memory = true;
  if ((flags & MCL_CURRENT) == 0) return static_cast<int>(libc.syscall(SYS_mlockall, flags));
  if ((flags & MCL_FUTURE) != 0 && libc.syscall(SYS_mlockall, flags & ~MCL_CURRENT) != 0) return -1;
  const int saved = errno;
  const int error = lock_current((flags & MCL_ONFAULT) != 0 ? MLOCK_ONFAULT : 0);
  errno = error != 0 ? error : saved;
  return error != 0 ? -1 : 0;
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
