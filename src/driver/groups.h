// groups.h - the epoll instances of the application that watch protected sockets.
//
// The shim keeps the read end of a group's life pipe in every process that has the epoll instance;
// we hold the write end. EPOLLERR on it says that no process has the read end any more.
//
// TRUST       Descriptors come from the application: their kind is checked, and a doorbell is made
//             non-blocking, as one that is full would stop us.
// INVARIANTS  A group of ours is in_use in region B; one that is in_use there and not ours belongs
// to a
//             driver before us that had no store, and is not given out again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "base/unique_fd.h"
#include "driver/fd_store.h"
#include "driver/poller.h"
#include "driver/session_state.h"

namespace mw {

class Groups {
 public:
  struct Group {
    UniqueFd bell;
    UniqueFd life;
  };

  Groups(Poller& poller, SessionMemory& memory, FdStore& store)
      : poller_(poller), memory_(memory), store_(store) {}

  // Takes over a group that an earlier driver left in the store.
  void restore(uint32_t group, StoreEntry entry);
  // Frees what no restored group uses; only right if the earlier driver had a store.
  void free_unknown();

  // Errors: peer (not an eventfd and a pipe's write end), limit (no group is free), sys.
  Result<uint32_t> open(UniqueFd bell, UniqueFd life);
  // True if the group is gone now: the INS is to be told.
  bool on_life_event(uint32_t group, uint32_t events);
  void ring_all();
  const std::map<uint32_t, Group>& all() const { return groups_; }

 private:
  Poller& poller_;
  SessionMemory& memory_;
  FdStore& store_;
  std::map<uint32_t, Group> groups_;
  uint32_t next_ = 0;
};

}  // namespace mw
