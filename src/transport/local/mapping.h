// mapping.h - a mapped, sealed memfd.
//
// TRUST       Whoever receives a region's memfd checks its seals before mapping it: a peer that
//             could shrink the file would kill us with SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

class [[nodiscard]] Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* base, uint64_t bytes) : base_(base), bytes_(bytes) {}
  Mapping(Mapping&& o) noexcept
      : base_(std::exchange(o.base_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Mapping& operator=(Mapping&& o) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }
  std::byte* release() { return std::exchange(base_, nullptr); }

 private:
  std::byte* base_ = nullptr;
  uint64_t bytes_ = 0;
};

// Makes a memfd of `bytes` (sparse: memory is used where it is touched) that can no longer be
// resized.
Result<UniqueFd> make_sealed_memfd(const char* name, uint64_t bytes);

// A received region whose seals were checked: its size stays what it is.
struct SealedFile {
  int fd = -1;
  uint64_t bytes = 0;
  uint64_t device = 0;  // with inode: the file itself, whatever the descriptor names later
  uint64_t inode = 0;
};
// Errors: peer (not sealed, or no memfd), sys.
Result<SealedFile> check_sealed(int fd);
// Maps [offset, offset + bytes) of it, at `wish` if there is room; offset is a multiple of the page
// size.
// Requires: the range lies within the file.
// Errors: sys.
Result<Mapping> map_range(const SealedFile& file, uint64_t offset, uint64_t bytes,
                          bool never_locked, void* wish = nullptr);

// Maps a received memfd after checking its seals. The mapping is left out of core dumps.
// never_locked: not even in a process that has called mlockall(), where the kernel would fill it.
// Errors: peer (not sealed, or no memfd), sys.
Result<Mapping> map_sealed(int fd, bool never_locked = false);

}  // namespace mw
