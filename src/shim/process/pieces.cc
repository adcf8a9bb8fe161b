#include "shim/process/pieces.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "shim/process/process.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

uint64_t address_of(const std::byte* p) {
  return reinterpret_cast<uintptr_t>(p);
}

// Another file would be written to if the program closed our descriptor with a raw system call.
bool still_names(const SealedFile& file) {
  if (process.confined) return true;
  struct stat st {};
  return ::fstat(file.fd, &st) == 0 && st.st_dev == file.device && st.st_ino == file.inode;
}

std::byte* map_of(const SealedFile& file, uint64_t from, uint64_t bytes, uint64_t wish) {
  const int saved = errno;
  std::byte* p = nullptr;
  if (still_names(file))
    if (auto mapping =
            map_range(file, from, bytes, process.locks_memory, reinterpret_cast<void*>(wish)))
      p = mapping->release();
  errno = saved;
  return p;
}

}  // namespace

Status Pieces::open(const SealedFile& file, uint64_t offset, uint64_t bytes, uint64_t stride,
                    Fork fork) {
  file_ = file;
  fork_ = fork;
  offset_ = offset;
  bytes_ = bytes;
  stride_ = stride;
  count_ = static_cast<uint32_t>((bytes + stride - 1) / stride);
  void* list = ::mmap(nullptr, count_ * sizeof *bases_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (list == MAP_FAILED) return Error{Fault::sys, errno, "list of pieces"};
  bases_ = static_cast<uint64_t*>(list);
  // Far below what the program maps from now on, with room for all. Small tables have few pieces.
  constexpr uint64_t kFar = uint64_t{1} << 40;
  constexpr uint64_t kSmall = uint64_t{1} << 26;
  const uint64_t near = address_of(static_cast<std::byte*>(list));
  if (bytes > kSmall && near > 2 * kFar) wish_ = near - kFar;
  return Ok{};
}

void Pieces::close() {
  if (bases_ == nullptr) return;
  const Range all = range_of(offset_, bytes_);
  const uint64_t whole = whole_;
  for (uint32_t i = 0; i < used_end_; ++i) {
    std::byte* const piece = find(i);
    if (piece != nullptr && (whole == 0 || address_of(piece) - whole >= bytes_)) unmap(i, piece);
  }
  if (whole != 0) ::munmap(reinterpret_cast<void*>(whole - all.before), all.bytes);
  ::munmap(bases_, count_ * sizeof *bases_);
  *this = Pieces{};
}

Pieces::Range Pieces::range_of(uint64_t offset, uint64_t bytes) const {
  const uint64_t from = offset / MW_PAGE * MW_PAGE;
  return {from, offset - from, offset - from + bytes};
}
Pieces::Range Pieces::range_of(uint32_t i) const {
  const uint64_t at = stride_ * i;
  return range_of(offset_ + at, std::min(stride_, bytes_ - at));
}

std::byte* Pieces::map(uint32_t i) {
  const uint64_t whole = A::load_acquire(whole_);
  const Range range = range_of(i);
  std::byte* mine = nullptr;
  if (whole == 0) {
    mine = map_of(file_, range.from, range.bytes, wish_ == 0 ? 0 : wish_ + stride_ * i);
    if (mine == nullptr) return nullptr;
    if (fork_ == Fork::without && !process.confined)
      (void)::madvise(mine, range.bytes, MADV_DONTFORK);
  }
  uint64_t base = whole != 0 ? whole + stride_ * i : address_of(mine) + range.before;
  uint64_t other = 0;
  if (!std::atomic_ref(bases_[i]).compare_exchange_strong(other, base)) {
    // Another thread, or a signal handler, was first.
    if (mine != nullptr) ::munmap(mine, range.bytes);
    base = other;
  } else {
    if (whole == 0) A::fetch_add(mapped_, 1u);
    uint32_t end = A::load_relaxed(used_end_);
    while (end <= i && !std::atomic_ref(used_end_).compare_exchange_weak(end, i + 1)) {
    }
  }
  return reinterpret_cast<std::byte*>(base);
}

bool Pieces::map_all() {
  if (A::load_acquire(whole_) != 0) return true;
  const Range range = range_of(offset_, bytes_);
  std::byte* const all = map_of(file_, range.from, range.bytes, 0);
  if (all == nullptr) return false;
  uint64_t none = 0;
  if (!std::atomic_ref(whole_).compare_exchange_strong(none, address_of(all) + range.before))
    ::munmap(all, range.bytes);
  // A child could not map its own.
  for (uint32_t i = 0; fork_ == Fork::without && i < used_end(); ++i) {
    const Range piece = range_of(i);
    if (std::byte* const mapped = find(i); mapped != nullptr)
      (void)::madvise(mapped - piece.before, piece.bytes, MADV_DOFORK);
  }
  return true;
}

void Pieces::forget() {
  std::fill_n(bases_, used_end_, uint64_t{0});
  mapped_ = used_end_ = 0;
  whole_ = 0;
}

std::byte* Pieces::take(uint32_t i) {
  if (A::load_acquire(whole_) != 0) return nullptr;
  return reinterpret_cast<std::byte*>(A::exchange(bases_[i], uint64_t{0}));
}

void Pieces::unmap(uint32_t i, std::byte* taken) const {
  const Range range = range_of(i);
  const int saved = errno;
  ::munmap(taken - range.before, range.bytes);
  errno = saved;
  A::fetch_add(mapped_, ~uint32_t{0});
}

}  // namespace mw::shim
