// pieces.h - a table in a shared region, of which a process maps the pieces that it uses.
//
// PURPOSE     The regions have room for very many sockets. What a process maps of them counts
//             against its limit of address space (RLIMIT_AS), so it maps what it needs.
// INVARIANTS  A piece stays where it is until take() and unmap(), and while it is there every
//             thread finds the same one.
// THREADS     Any, and signal handlers; take() requires that no other thread is in the piece.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "ring/atomics.h"
#include "transport/local/mapping.h"

namespace mw::shim {

class Pieces {
 public:
  // Whether a child of fork() has the pieces, or maps its own.
  enum class Fork : uint8_t { with, without };
  // The `bytes` from `offset` on, in pieces of `stride` bytes; the last may be shorter.
  // Requires: the range lies within the file. Errors: sys (no memory for the list of pieces).
  Status open(const SealedFile& file, uint64_t offset, uint64_t bytes, uint64_t stride,
              Fork fork = Fork::with);
  // Unmaps everything. Requires: no thread is in a piece.
  void close();

  // The piece, or null if it is not mapped.
  std::byte* find(uint32_t i) const {
    return reinterpret_cast<std::byte*>(StdAtomics::load_acquire(bases_[i]));
  }
  // Maps the piece if need be. Null: there is no memory for it.
  std::byte* get(uint32_t i) {
    std::byte* const piece = find(i);
    if (piece != nullptr) [[likely]]
      return piece;
    return map(i);
  }
  // Maps the whole table at once; pieces that are mapped stay where they are. From then on none
  // is taken. False: there is no memory for it.
  bool map_all();

  // In a child that does not have the pieces: none is mapped.
  void forget();

  // Removes the piece from the list, so that no thread finds it any more. Null: it is not there.
  std::byte* take(uint32_t i);
  void unmap(uint32_t i, std::byte* taken) const;

  uint32_t count() const { return count_; }
  uint64_t mapped_bytes() const { return mapped() * stride_; }
  uint32_t mapped() const { return StdAtomics::load_relaxed(mapped_); }
  // All mapped pieces are below.
  uint32_t used_end() const { return StdAtomics::load_relaxed(used_end_); }

 private:
  // Where a piece begins in the file, and how many bytes of the mapping are before and in it.
  struct Range {
    uint64_t from, before, bytes;
  };
  Range range_of(uint64_t offset, uint64_t bytes) const;
  Range range_of(uint32_t i) const;
  std::byte* map(uint32_t i);

  SealedFile file_{};
  uint64_t offset_ = 0;
  uint64_t bytes_ = 0;
  uint64_t stride_ = 1;
  uint64_t* bases_ = nullptr;  // [count_] addresses; 0: not mapped
  // Where piece 0 would like to be, so that neighbours are one mapping to the kernel, which has a
  // limit of their number (vm.max_map_count); 0: anywhere.
  uint64_t wish_ = 0;
  uint64_t whole_ = 0;  // where piece 0 is once all are mapped; 0: they are not
  Fork fork_ = Fork::with;
  uint32_t count_ = 0;
  mutable uint32_t mapped_ = 0;
  mutable uint32_t used_end_ = 0;
};

}  // namespace mw::shim
