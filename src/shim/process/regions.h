// regions.h - the session's two regions, as one process of the application has them mapped.
//
// The small tables are mapped when the process joins. What is there once for each slot or group is
// mapped in pieces when it is first needed, and stays; the rings come and go (ring_window.h).
//
// TRUST       As ring/channel.h: the geometry is a private, checked copy; indexes are range-checked
//             by the caller.
// INVARIANTS  slot(i) and group_news(i) are for slots and groups that has_slot() and has_group()
//             were true for. Whatever brings a number into this process asks once: a socket that is
//             made, accepted or found, a group that is made or found, news of a group.
// THREADS     Any.
#pragma once

#include <cassert>

#include "ring/channel.h"
#include "shim/process/ring_window.h"
#include "transport/local/session_region.h"

namespace mw::shim {

constexpr uint32_t kSlotsAPiece = 1024;
constexpr uint32_t kGroupsAPiece = 16;

class ChannelView {
 public:
  // Errors: peer (unacceptable geometry), limit (the file is too small for it), sys.
  // first: the number of the socket in its first slot (stack.h).
  Status open(const SealedFile& file, const mw_geometry& geometry, uint32_t first);
  void close();

  const mw_geometry& geometry() const { return g_; }
  const mw_layout& layout() const { return l_; }
  const SealedFile& file() const { return file_; }

  bool has_slot(uint32_t i) { return slots_.get(i / kSlotsAPiece) != nullptr; }
  mw_slot& slot(uint32_t i) const {
    assert(i < g_.slots);
    return reinterpret_cast<mw_slot*>(slots_.find(i / kSlotsAPiece))[i % kSlotsAPiece];
  }
  mw_call& call(uint32_t i) const {
    assert(i < g_.calls);
    return reinterpret_cast<mw_call*>(calls_)[i];
  }
  // One that is not there: no memory. For whoever holds the slot's lock, until it is given back.
  RingBytes rx(uint32_t i) { return ring_at(rings_.rings(i), g_.rx_ring); }
  RingBytes tx(uint32_t i) {
    std::byte* const rings = rings_.rings(i);
    return ring_at(rings == nullptr ? nullptr : rings + g_.rx_ring, g_.tx_ring);
  }
  RingWindow& rings() { return rings_; }

  uint32_t worker_of(uint32_t slot) const { return slot % g_.workers; }
  ReadySet sock_news(uint32_t worker) const {
    return set_at(head_ + l_.sock_news + l_.sock_news_stride * worker, g_.slots);
  }
  ReadySet call_news(uint32_t worker) const {
    return set_at(head_ + l_.call_news + l_.call_news_stride * worker, g_.calls);
  }
  bool has_group(uint32_t group) { return groups_.get(group / kGroupsAPiece) != nullptr; }
  ReadySet group_news(uint32_t group) const {
    assert(group < g_.groups);
    return set_at(
        groups_.find(group / kGroupsAPiece) + l_.group_news_stride * (group % kGroupsAPiece),
        g_.slots);
  }
  uint64_t piece_bytes() const { return slots_.mapped_bytes() + groups_.mapped_bytes(); }
  // For a program that is about to forbid itself to map memory.
  void map_all();

 private:
  static ReadySet set_at(std::byte* at, uint32_t bits) {
    return {reinterpret_cast<mw_ready_set*>(at),
            reinterpret_cast<uint64_t*>(at + sizeof(mw_ready_set)), bits};
  }
  static RingBytes ring_at(std::byte* at, uint32_t bytes) {
    return at == nullptr ? RingBytes{} : RingBytes{at, bytes};
  }

  SealedFile file_{};
  mw_geometry g_{};
  mw_layout l_{};
  Pieces first_, second_;  // the small tables before and behind the groups'
  std::byte* head_ = nullptr;
  std::byte* calls_ = nullptr;
  Pieces groups_, slots_;
  RingWindow rings_;
};

class SessionView {
 public:
  // Errors: as ChannelView's.
  Status open(const SealedFile& file, const mw_geometry& geometry);
  void close();

  const SealedFile& file() const { return file_; }
  SessionHeader& header() const { return *reinterpret_cast<SessionHeader*>(head_); }
  SessionCall& call(uint32_t i) const {
    return reinterpret_cast<SessionCall*>(head_ + l_.calls)[i];
  }
  SessionGroup& group(uint32_t i) const {
    return reinterpret_cast<SessionGroup*>(head_ + l_.groups)[i];
  }
  SessionOwner& owner(uint32_t gen) const {
    return reinterpret_cast<SessionOwner*>(owners_)[gen % count_];
  }
  bool has_slot(uint32_t i) { return slots_.get(i / kSlotsAPiece) != nullptr; }
  SessionSlot& slot(uint32_t i) const {
    return reinterpret_cast<SessionSlot*>(slots_.find(i / kSlotsAPiece))[i % kSlotsAPiece];
  }
  // The near ones only if the far ones are in use and there is no memory for them.
  SessionWatches watches(uint32_t i);
  uint64_t piece_bytes() const { return slots_.mapped_bytes() + far_.mapped_bytes(); }
  void map_all();

 private:
  SealedFile file_{};
  SessionLayout l_{};
  uint32_t count_ = 1;
  Pieces first_, second_;  // the small tables before and behind the slots'
  std::byte* head_ = nullptr;
  std::byte* owners_ = nullptr;
  Pieces slots_, far_;
};

}  // namespace mw::shim
