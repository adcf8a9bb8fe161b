// channel.h - typed access to a mapped region.
//
// TRUST       Geometry is a private, checked copy; every accessor takes an index that the caller
//             has range-checked (debug builds assert it). Nothing here reads the region.
// THREADS     Immutable after construction.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "abi/mw_region.h"
#include "base/result.h"
#include "ring/byte_ring.h"
#include "ring/ready_set.h"

namespace mw {

class Channel {
 public:
  Channel() = default;
  // Errors: peer (unacceptable geometry), limit (the mapping is too small for it).
  static Result<Channel> over(std::byte* base, uint64_t mapped, const mw_geometry& geometry) {
    Channel c;
    c.base_ = base;
    c.g_ = geometry;
    if (mw_layout_of(&geometry, &c.l_) != 0) return Error{Fault::peer, 0, "channel geometry"};
    if (c.l_.bytes > mapped) return Error{Fault::limit, 0, "channel mapping too small"};
    return c;
  }

  const mw_geometry& geometry() const { return g_; }
  const mw_layout& layout() const { return l_; }
  std::byte* base() const { return base_; }
  mw_region_header& header() const { return *at<mw_region_header>(0); }

  mw_slot& slot(uint32_t i) const {
    assert(i < g_.slots);
    return at<mw_slot>(l_.slots)[i];
  }
  mw_call& call(uint32_t i) const {
    assert(i < g_.calls);
    return at<mw_call>(l_.calls)[i];
  }
  RingBytes rx(uint32_t i) const { return {base_ + l_.rings + l_.ring_stride * i, g_.rx_ring}; }
  RingBytes tx(uint32_t i) const {
    return {base_ + l_.rings + l_.ring_stride * i + g_.rx_ring, g_.tx_ring};
  }
  // A socket, and every call about it, belongs to one worker of the INS for life.
  uint32_t worker_of(uint32_t slot) const { return slot % g_.workers; }
  ReadySet sock_news(uint32_t worker) const {
    return set_at(l_.sock_news + l_.sock_news_stride * worker, g_.slots);
  }
  ReadySet call_news(uint32_t worker) const {
    return set_at(l_.call_news + l_.call_news_stride * worker, g_.calls);
  }
  ReadySet group_news(uint32_t group) const {
    assert(group < g_.groups);
    return set_at(l_.group_news + l_.group_news_stride * group, g_.slots);
  }

 private:
  template <class T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  ReadySet set_at(uint64_t offset, uint32_t bits) const {
    return {at<mw_ready_set>(offset), at<uint64_t>(offset + sizeof(mw_ready_set)), bits};
  }

  std::byte* base_ = nullptr;
  mw_geometry g_{};
  mw_layout l_{};
};

}  // namespace mw
