// engine.h - from samples to decisions, by rules that can be explained: each decision names what
// was measured and the limit that it broke. Pure: no input or output, and no clock but the one that
// it is given. The rules and what spares honest slow clients: docs/decisions/0011.
//
// TRUST       Samples are the INS's word. What is kept of them is bounded by the sockets that it
//             may have and by kMaxPeers; an INS that lies harms the connections that it holds
//             anyway.
// INVARIANTS  A peer on the allow list is never decided about; nothing is decided twice. A peer
//             with productive connections (connection.h) is never blocked, and its cap always
//             leaves room for more than it has of them.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "guard/connection.h"
#include "guard/decision.h"
#include "guard/rules.h"

namespace mw::guard {

class Engine {
 public:
  // dry_run: nothing is done about what is decided, so that it is not expected to go away.
  Engine(const Rules& rules, bool dry_run) : rules_(rules), dry_run_(dry_run) {}

  // A round of samples, taken at `round.mono_ns`.
  void observe(std::span<const netflow::Sample> samples, const netflow::Round& round);
  // What is to be done now. While the service is served only caps in force are raised, unless the
  // rules say always.
  std::vector<Decision> decide(int64_t now_ns, Service service);
  // What came of it: 0 or an errno.
  void result(const Decision& d, uint32_t status, int64_t now_ns);
  // The connection to the session ended, and with it all that was in force.
  void released();
  // The samples look like trouble, whatever the probe says.
  bool pressed() const { return pressed_; }
  // Or may do so soon: it should be known by then whether anybody suffers.
  bool suspicious() const { return suspicious_; }

  size_t connections() const { return connections_.size(); }
  size_t peers() const { return peers_.size(); }

 private:
  using Key = std::pair<uint32_t, std::array<uint8_t, 16>>;  // family and bytes
  static Key key_of(const netflow::Address& a) { return {a.af, a.bytes}; }
  // How many connections that were answered a peer has while everybody is served: the fewest at any
  // time of the last 15 to 20 seconds of that.
  struct Usual {
    std::array<uint32_t, 4> least{};  // in each of the last periods
    int64_t period_ns = 0;            // the one that runs; 0: none yet
    void see(uint32_t count, int64_t now_ns);
    uint32_t count() const { return *std::min_element(least.begin(), least.end()); }
  };
  struct Peer {
    double served = 0;  // answers taken; a third of it is forgotten every few seconds
    int64_t served_ns = 0;
    std::deque<int64_t> cuts;    // within the last minute
    int64_t quiet_until_ns = 0;  // nothing more is decided about the peer as a whole
    int64_t blocked_until_ns = 0;
    uint32_t blocks = 0;  // so far: each lasts twice as long as the one before
    int64_t last_block_ns = 0;
    int64_t held_back_ns = 0;  // when it was told that it may not be blocked
    uint32_t cap = 0;          // in force until then, and the room in it for new connections
    uint32_t room = 0;
    uint32_t unused = 0;     // idle connections that count in it
    uint32_t most_room = 0;  // with more there was trouble; 0: not known
    int64_t room_ns = 0;     // when the room became what it is
    const char* cap_rule = "";
    int64_t cap_until_ns = 0;
    // Until then somebody behind its address attacks: each of its connections vouches for itself.
    int64_t mixed_until_ns = 0;
    Usual usual;
    int64_t seen_ns = 0;  // with a connection
  };
  // What a peer's connections are at, now.
  struct Tally {
    netflow::Address address;
    Peer* peer = nullptr;
    uint32_t connections = 0;
    uint32_t moving = 0;
    uint32_t productive = 0;
    uint32_t known = 0;    // not productive, but at the same long before the trouble
    uint32_t unused = 0;   // idle, and neither of those
    uint32_t at_work = 0;  // it is the application's turn, and neither of those
    uint32_t answered = 0;
    uint64_t worker_us = 0;  // of the dead ones, as are the bytes
    uint64_t bytes = 0;
    std::vector<Connection*> all;
    std::vector<Connection*> dead;  // still, and neither productive nor known
    std::vector<Connection*> idle;  // productive ones among them
  };
  using Tallies = std::map<Key, Tally>;

  bool nearly_broken(int64_t now_ns) const;
  void forget(int64_t now_ns, bool complete);
  Tallies tally(int64_t now_ns, uint64_t* worker_us);
  void know_usual(const Tallies& tallies, int64_t now_ns);
  void count_shares(int64_t now_ns);
  static double served_lately(const Peer& p, int64_t now_ns);
  bool untouchable(const Connection& c) const;
  bool known_before(const Connection& c, int64_t now_ns) const;
  // Clients wait to be accepted, or to be read for the first time. again: something was done about
  // that a moment ago, which may still be under way.
  bool connections_are_short(bool again) const;
  // Whoever runs this connection waits for its peers in threads: if none does, it is at work.
  bool waits_in_threads(const Connection& c) const;
  // So many connections with an answer are nothing new for the peer.
  static uint32_t usual_of(const Peer& p);

  void keep_order(Tally& t, Service service, int64_t now_ns, std::vector<Decision>& out);
  void judge_peer(Tally& t, uint64_t all_us, int64_t now_ns, std::vector<Decision>& out);
  void judge_crowd(Tally& t, int64_t now_ns, std::vector<Decision>& out);
  void judge_idle(Tally& t, int64_t now_ns, std::vector<Decision>& out);
  std::vector<Connection*> too_idle(Tally& t, int64_t now_ns);
  void judge_worker_time(Tally& t, uint64_t all_us, int64_t now_ns, std::vector<Decision>& out);
  void judge_repeat(Tally& t, int64_t now_ns, std::vector<Decision>& out);
  void judge_connection(Connection& c, Peer& p, bool shared, Service service, int64_t now_ns,
                        std::vector<Decision>& out);
  std::optional<Decision> broken_by(const Connection& c, double patience, Service service,
                                    int64_t now_ns) const;

  void block(Tally& t, Decision d, int64_t now_ns, std::vector<Decision>& out);
  void cap(Tally& t, size_t cut, Decision d, int64_t now_ns, std::vector<Decision>& out);
  static uint32_t counted(const Tally& t);
  static bool nearly_full(const Tally& t);  // its cap
  void raise_cap(Tally& t, bool served, int64_t now_ns, std::vector<Decision>& out);
  void close(Connection& c, Peer& p, Decision d, bool doubtful, int64_t now_ns,
             std::vector<Decision>& out);
  bool within_share(std::span<Connection* const> more, int64_t now_ns) const;
  void count_cut(std::span<Connection* const> cut, int64_t now_ns);
  void hold_back(Decision d, int64_t* told_ns, int64_t now_ns, std::vector<Decision>& out) const;
  bool judged(const Connection& c, int64_t now_ns) const;
  static bool spend(std::deque<int64_t>& spent, uint32_t most, int64_t now_ns);

  Rules rules_;
  bool dry_run_;
  std::unordered_map<int64_t, Connection> connections_;
  std::map<Key, Peer> peers_;
  std::deque<int64_t> doubtful_;
  std::deque<int64_t> blocks_;
  std::deque<int64_t> cut_;  // connections, within the last minute
  size_t uncut_count_ = 0;   // of those that are open
  int64_t last_round_ns_ = 0;
  int64_t queue_seen_ns_ = 0;               // when connections waited in a listener's queue, last
  uint32_t queue_rounds_ = 0;               // one after the other, up to now
  int64_t queue_since_ns_ = 0;              // they do since then; 0: they do not
  int64_t trouble_since_ns_ = 0;            // clients are not served since then; 0: they are
  int64_t last_cut_ns_ = 0;                 // something was found that could be cut
  size_t taken_ = 0;                        // by the application, in this round
  size_t all_idle_ = 0;                     // in this round
  std::set<std::array<char, 16>> waiters_;  // programs whose threads were seen to wait for a peer
  bool pressed_ = false;
  bool suspicious_ = false;
};

}  // namespace mw::guard
