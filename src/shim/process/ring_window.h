// ring_window.h - the rings of the sockets that this process uses.
//
// PURPOSE     A slot's rings are mapped when this process first copies to or from them, and
//             unmapped after its last descriptor of the slot is gone. A few stay for the slot's
//             next socket, so that a connection that comes and goes costs no mapping.
// INVARIANTS  A thread is in the rings of a slot only while it holds that slot's rx_lock or tx_lock.
//             The thread that unmaps them holds both while it takes them from the list. A lock
//             that adopt_socket() took from a living thread cannot tell, and those rings stay.
// THREADS     Any, and signal handlers.
#pragma once

#include "abi/mw_region.h"
#include "shim/process/pieces.h"

namespace mw::shim {

class RingWindow {
 public:
  // Errors: sys.
  // first: the number of the socket in its first slot (stack.h).
  Status open(const SealedFile& file, const mw_layout& layout, uint32_t slots, uint32_t first);
  void close() { pieces_.close(); }

  // The receive ring of a slot, which its send ring follows. Null: no memory. Valid until the
  // slot's lock is given back.
  // Requires: the caller holds the slot's rx_lock or tx_lock.
  std::byte* rings(uint32_t slot) {
    std::byte* const here = pieces_.find(slot);
    if (here != nullptr) [[likely]]
      return here;
    return map(slot);
  }
  bool map_all() { return pieces_.map_all(); }

  // Unmaps rings of slots without a descriptor here, until there are no more than may stay.
  void trim();
  // Unmaps all of them. False: there were none.
  bool drop_unused();

  uint32_t mapped() const { return pieces_.mapped(); }
  // How many may be mapped while this process has `sockets` of them.
  uint32_t most(uint32_t sockets) const;

  // The rings that stay without a socket, and what is mapped of the tables in pieces. An INS has up
  // to 64 connections ready for a listener, each in a slot of its own, so a server that has few at
  // a time goes round as many slots.
  static constexpr uint64_t kSpareBytes = 47 * 1024 * 1024;
  static constexpr uint32_t kFewestSpare = 2;
  // Of a limited address space they take no more than this part.
  static constexpr uint64_t kPartOfLimit = 32;

 private:
  std::byte* map(uint32_t slot);
  bool unmap(uint32_t slot);
  // Unmaps what is not used until `most` are mapped. How many it has unmapped.
  uint32_t trim_to(uint32_t most);

  Pieces pieces_;
  uint64_t stride_ = 1;
  uint64_t spare_bytes_ = kSpareBytes;
  uint32_t first_ = 0;
  uint32_t looks_ = 0;  // for unused rings
};

}  // namespace mw::shim
