// rules.h - the changes that engines made: what is in force, until when and why, and what was there
// before (docs/netflow.md, version 2).
//
// Rules about the same thing stand one upon the other: the youngest holds, and whichever ends, what
// is left is what the others say, or what was there before all of them. So engines may change and
// undo the same thing in any order.
//
// INVARIANTS  So many rules and no more, of all engines together; about one thing only a few, the
//             oldest of which ends for a newer one. Nothing here reads a clock or asks anybody.
// THREADS     One.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "netflow/wire.h"

namespace mw {

// A feature whose value, unless it is 0, is held against a peer or its connections.
bool holds_back(netflow::Feature feature);

class Rules {
 public:
  static constexpr size_t kMaxInForce = 65536;
  static constexpr size_t kHistory = 256;
  static constexpr size_t kMaxDepth = 8;

  struct Values {
    uint64_t value0 = 0;
    uint64_t value1 = 0;
    bool operator==(const Values&) const = default;
  };
  // What a rule is about: a feature, of a socket, of a peer or of the whole INS.
  struct Subject {
    uint16_t name = 0;
    uint16_t flags = 0;  // without kRequestWrite
    std::array<uint8_t, 20> identity{};
    auto operator<=>(const Subject&) const = default;
  };
  struct Change {
    Subject subject;
    Values before;
    Values now;
    int64_t socket = 0;
    netflow::Endpoint peer;
    std::string engine;
    std::string reason;
    uint32_t ttl_s = 0;     // 0: until it is undone
    uint64_t bound_to = 0;  // ends with this connection; 0: with none
    bool act = false;       // done at once and for good
    uint32_t hits = 0;      // connections that ended when it was made
  };
  // What is to be put back: from what is in force to what was before.
  struct Restore {
    Subject subject;
    Values from;
    Values to;
  };

  bool room() const { return rules_.size() < kMaxInForce; }
  // A change that was made. Returns the id of its rule. One that makes things as they were before
  // all rules, for good, ends those.
  uint32_t add(const Change& change, int64_t now_ms, uint64_t now_ns);

  const netflow::Rule* in_force(uint32_t id) const;
  // It is over, and was one act.
  bool was_act(uint32_t id) const;
  // What was there before the rules about what this one, in force, is about.
  Values before(uint32_t id) const { return stacks_.at(rules_.at(id).subject).before; }
  // Ends a rule that is in force. Nothing: no more than that is to be done.
  std::optional<Restore> end(uint32_t id, uint16_t state, uint64_t now_ns);

  std::optional<int64_t> next_due_ms() const;
  std::vector<uint32_t> due(int64_t now_ms) const;
  // What was bound to this connection is due.
  void connection_gone(uint64_t connection);
  void socket_gone(int64_t socket, uint64_t now_ns);
  bool about_sockets() const { return !by_socket_.empty(); }
  // All that is in force against this peer.
  std::vector<uint32_t> against(const netflow::Address& peer) const;
  // A connection was cut because of the rule of this socket, or else of the one for all.
  void hit(netflow::Feature feature, int64_t socket);

  size_t in_force() const { return rules_.size(); }
  // Those in force, then those that ended, oldest first.
  template <class Visit>
  void each(Visit&& visit) const {
    for (const auto& [id, r] : rules_) visit(r.rule);
    for (const netflow::Rule& r : history_) visit(r);
  }

 private:
  struct InForce {
    netflow::Rule rule;
    Subject subject;
    int64_t due_ms = 0;  // 0: never
    uint64_t bound_to = 0;
  };
  struct Stack {
    Values before;
    std::vector<uint32_t> ids;  // the last one holds
  };
  void remember(netflow::Rule rule, uint16_t state, uint64_t now_ns);
  void set_due(uint32_t id, InForce& r, int64_t due_ms);

  uint32_t last_id_ = 0;
  std::map<uint32_t, InForce> rules_;
  std::map<Subject, Stack> stacks_;
  std::set<std::pair<int64_t, uint32_t>> due_;
  std::set<std::pair<uint64_t, uint32_t>> bound_;
  std::set<std::pair<int64_t, uint32_t>> by_socket_;
  std::deque<netflow::Rule> history_;
};

}  // namespace mw
