// wishes.h - what the driver wants of every socket of this INS, and of its peers.
//
// INVARIANTS  A peer's connections are counted exactly while a cap is set, whatever workers they
//             belong to. A census begins with the first cap: from then on each connection is
//             counted as it is accepted; those that were there are counted afterwards
//             (InsOp::count_peers), when no worker accepts uncounted ones any more.
//             The allow list beats blocks, caps and minimum rates.
// THREADS     Any.
#pragma once

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "ins/policy/limits.h"
#include "ins/policy/peer_address.h"
#include "transport/local/control.h"

namespace mw {

// The peer that a request of the driver is about.
inline PeerAddress peer_named(const InsRequest& r) {
  PeerAddress peer;
  peer.family = r.family;
  std::memcpy(peer.bytes.data(), r.value, peer.bytes.size());
  return peer;
}

class Wishes {
 public:
  // False costs a load, which is all that a new connection pays while nobody wished for anything.
  bool any() const { return any_.load(std::memory_order_acquire); }

  // The option of new stream sockets from now on.
  void set_option(const InsRequest& r);
  void apply_to(int stream_socket) const;

  void block(const PeerAddress& a, bool on);
  bool is_blocked(const PeerAddress& a) const;
  void allow(const PeerAddress& a, bool on);
  bool is_allowed(const PeerAddress& a) const;
  // Of connections that are accepted from now on.
  void set_rate(bool out, const MinRate& rate);
  MinRate rate(bool out) const;
  // No address: what holds for a peer without a cap of its own. 0: any number.
  void set_cap(const PeerAddress* peer, uint32_t connections);

  struct Admission {
    bool refused = false;
    uint32_t census = 0;  // it counts; 0: it does not
    MinRate in;
    MinRate out;
  };
  // A connection from there was accepted.
  Admission admit(const PeerAddress& peer);
  // It was there before, and counts in no census or in an older one. Returns the census.
  uint32_t count(const PeerAddress& peer);
  uint32_t census() const;
  // Everything but the options. Returns how many peers were blocked.
  uint32_t forget();
  // A connection that counted is closed.
  void gone(const PeerAddress& peer, uint32_t census);

 private:
  std::atomic<bool> any_{false};
  mutable std::mutex lock_;
  std::vector<InsRequest> options_;
  std::set<PeerAddress> blocked_;
  std::set<PeerAddress> allowed_;
  MinRate in_;
  MinRate out_;
  uint32_t cap_ = 0;
  std::map<PeerAddress, uint32_t> caps_;
  std::map<PeerAddress, uint32_t> connections_;
  uint32_t census_ = 0;  // 0: nobody is counted
  uint32_t last_census_ = 0;
};

}  // namespace mw
