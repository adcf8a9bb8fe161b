// session_state.h - what the driver does to the memory of a session.
//
// TRUST       Both regions are written by others at any time. Nothing read here is used as an index
//             or a count before it was checked; loops are bounded by the geometry, which is a
//             private copy.
// INVARIANTS  Memory that nobody touched stays untouched: walks over slots skip the holes of the
//             memfd.
// ORDERING    ins_lost(): its sockets are dead first; then the state, so that no shim starts to
//             wait for a dead INS unnoticed; then the workers' sets are emptied; then pending calls are answered. A call made
//             meanwhile is answered here or still stands in a set for the successor.
// THREADS     The driver's only thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ring/channel.h"
#include "transport/local/mapping.h"
#include "transport/local/session_region.h"

namespace mw {

class SessionMemory {
 public:
  // Checks seals and geometry of both; keeps no descriptor (the caller's stay open).
  // Errors: peer (they do not fit), sys.
  static Result<SessionMemory> open(int channel_fd, int session_fd);

  const Channel& channel() const { return channel_; }
  // Lost wake-ups that the session's INSs say they repaired.
  uint64_t repairs() const {
    uint64_t sum = 0;
    for (uint32_t w = 0; w < geometry().workers; ++w) sum += channel_.sock_news(w).repairs();
    return sum;
  }
  SessionRegion& session() { return session_; }
  const mw_geometry& geometry() const { return channel_.geometry(); }

  uint32_t state();
  uint32_t epoch();
  uint32_t first_gen();
  // The first generation that a successor may use.
  uint32_t next_first_gen();
  // Before a new INS may do anything: from here on it, and not the one before, is meant by what
  // processes say of the INS, and who had given up the one before trusts this one.
  void ins_begins(uint32_t first_gen);
  void ins_up() { publish_state(kSessionUp); }
  // Answers what the dead INS will never answer, and wakes all waiters. The groups' doorbells are
  // the caller's to ring: `ring_all` is called once for that, after the news stands in the sets.
  void ins_lost(const std::function<void()>& ring_all);

  // No INS will come any more: whoever waits for one fails.
  void session_over() { publish_state(kSessionOver); }

  bool group_in_use(uint32_t group);
  void set_group_in_use(uint32_t group, bool in_use);
  // Tells the group's present instance from earlier ones of the same number.
  uint16_t group_serial(uint32_t group);
  // After its last process: empties the set, removes its registrations from all sockets.
  void clear_group(uint32_t group);

  // Frees the cells whose owners are gone, as far as they are answered. A request that its owner
  // may not have announced any more is announced for it, save for new sockets, whose announcement
  // the caller has to send: the INS takes no request twice.
  using IsGone = std::function<bool(uint32_t cell, uint32_t pid, uint32_t seq)>;
  struct DeadCalls {
    uint32_t rings = 0;  // the workers to ring for, as bits
    std::vector<mw_drop_record> sockets;
  };
  DeadCalls free_dead_calls(const IsGone& is_gone);

  // Gives memory of the channel back to the system; false if the system does not want to.
  bool punch_channel(uint64_t at, uint64_t bytes);
  // Calls visit(index, slot) for every slot in memory that was ever used, and some around them.
  void each_touched_session_slot(const std::function<void(uint32_t, SessionSlot&)>& visit);

 private:
  SessionMemory() = default;
  void each_touched_slot(const std::function<void(uint32_t, mw_slot&)>& visit);
  void answer_pending_calls();
  void publish_state(uint32_t state);

  Mapping channel_map_, session_map_;
  Channel channel_;
  SessionRegion session_;
  int channel_fd_ = -1, session_fd_ = -1;  // borrowed
};

// Wakes everybody who waits for this word, in any process.
void wake_all(uint32_t& word);

}  // namespace mw
