// groups.h - the epoll instances of the application that watch protected sockets.
//
// The shim keeps the read end of a group's life pipe in every process that has the epoll instance;
// we hold the write end. EPOLLERR on it says that no process has the read end any more. An instance
// that leaves its process (exec, SCM_RIGHTS) may outlive that moment: before it leaves, the shim
// shows it to us, and we put it into an epoll set of our own, the witness, and let go of it. The
// kernel takes it out of there when it is gone, so the witness tells whether the group still has
// its instance.
//
// TRUST       Descriptors come from the application: their kind is checked, and a doorbell is made
//             non-blocking, as one that is full would stop us.
// INVARIANTS  A group of ours is in_use in region B; one that is in_use there and not ours belongs
//             to a driver before us that had no store, and is not given out again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

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
    UniqueFd registrations;  // memory (src/shim/socket/registrations.h); we only pass it on
    UniqueFd witness;        // only if the instance was shown to us
    bool abandoned = false;  // no process has the read end; the witness decides
  };
  struct Found {
    uint32_t group;
    int bell;           // ours
    int registrations;  // ours
    UniqueFd life;      // a new read end
  };

  Groups(Poller& poller, SessionMemory& memory, FdStore& store)
      : poller_(poller), memory_(memory), store_(store) {}

  // Takes over a group that an earlier driver left in the store.
  void restore(uint32_t group, StoreEntry entry);
  // Frees what no restored group uses; only right if the earlier driver had a store.
  void free_unknown();

  // Errors: peer (not an eventfd, a pipe's write end and sealed memory), limit (no group is free), sys.
  Result<uint32_t> open(UniqueFd bell, UniqueFd life, UniqueFd registrations);
  // The group whose doorbell stands in this epoll instance. Errors: sys (ENOENT: it has none).
  Result<Found> find(int epfd);
  // The group lasts as long as this instance from now on. Errors: as find().
  Status keep(int epfd);
  // True if the group is gone now: the INS is to be told.
  bool on_life_event(uint32_t group, uint32_t events);
  // Closes the groups whose instance went after its last process. Returns them.
  std::vector<uint32_t> sweep();
  void ring_all();
  // Those of which a process sleeps although there is news.
  void ring_those_kept_waiting();
  const std::map<uint32_t, Group>& all() const { return groups_; }

 private:
  Poller& poller_;
  SessionMemory& memory_;
  FdStore& store_;
  // The number that stands in the instance, if it is one of ours.
  Result<uint32_t> number_of(int epfd);
  void close(uint32_t group);

  std::map<uint32_t, Group> groups_;
  uint32_t next_ = 0;
};

}  // namespace mw
