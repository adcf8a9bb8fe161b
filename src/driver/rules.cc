#include "driver/rules.h"

#include <algorithm>

namespace mw {
namespace {

using netflow::Feature;

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr int64_t kAtOnce = 1;  // a due time that has passed

template <class Key>
std::vector<uint32_t> ids_of(const std::set<std::pair<Key, uint32_t>>& set, Key key) {
  std::vector<uint32_t> ids;
  for (auto it = set.lower_bound({key, 0}); it != set.end() && it->first == key; ++it)
    ids.push_back(it->second);
  return ids;
}

}  // namespace

bool holds_back(Feature feature) {
  switch (feature) {
    case Feature::address_block:
    case Feature::peer_cap:
    case Feature::min_rate_in:
    case Feature::min_rate_out:
    case Feature::pause:
    case Feature::pacing:
      return true;
    default:
      return false;
  }
}

uint32_t Rules::add(const Change& c, int64_t now_ms, uint64_t now_ns) {
  while (++last_id_ == 0 || rules_.count(last_id_) != 0) {
  }
  const uint32_t id = last_id_;
  netflow::Rule rule;
  rule.id = id;
  rule.name = c.subject.name;
  rule.flags = c.subject.flags | netflow::kRequestWrite;
  rule.value0 = c.now.value0;
  rule.value1 = c.now.value1;
  rule.socket = c.socket;
  rule.peer = c.peer;
  rule.since = netflow::timestamp_of(now_ns);
  rule.hits = c.hits;
  rule.engine = c.engine;
  rule.reason = c.reason;
  if (c.act) {
    remember(std::move(rule), netflow::kRuleDone, now_ns);
    return id;
  }
  const auto existing = stacks_.find(c.subject);
  const Values before = existing != stacks_.end() ? existing->second.before : c.before;
  if (c.now == before && c.ttl_s == 0 && c.bound_to == 0) {
    if (existing != stacks_.end())
      for (const uint32_t old : std::vector(existing->second.ids))
        (void)end(old, netflow::kRuleUndone, now_ns);
    remember(std::move(rule), netflow::kRuleDone, now_ns);
    return id;
  }
  if (existing != stacks_.end() && existing->second.ids.size() >= kMaxDepth)
    (void)end(existing->second.ids.front(), netflow::kRuleUndone, now_ns);
  Stack& stack = stacks_[c.subject];
  stack.before = before;
  stack.ids.push_back(id);
  InForce& r = rules_[id];
  if (c.ttl_s != 0) rule.until = netflow::timestamp_of(now_ns + c.ttl_s * kSecondNs);
  r.rule = std::move(rule);
  r.subject = c.subject;
  r.bound_to = c.bound_to;
  if (c.ttl_s != 0) set_due(id, r, now_ms + int64_t{c.ttl_s} * 1000);
  if (c.bound_to != 0) bound_.insert({c.bound_to, id});
  if (c.socket != 0) by_socket_.insert({c.socket, id});
  return id;
}

const netflow::Rule* Rules::in_force(uint32_t id) const {
  const auto it = rules_.find(id);
  return it == rules_.end() ? nullptr : &it->second.rule;
}

bool Rules::was_act(uint32_t id) const {
  return std::any_of(history_.begin(), history_.end(), [id](const netflow::Rule& r) {
    return r.id == id && r.state == netflow::kRuleDone;
  });
}

std::optional<Rules::Restore> Rules::end(uint32_t id, uint16_t state, uint64_t now_ns) {
  const auto it = rules_.find(id);
  if (it == rules_.end()) return std::nullopt;
  InForce& r = it->second;
  set_due(id, r, 0);
  bound_.erase({r.bound_to, id});
  by_socket_.erase({r.rule.socket, id});
  const auto place = stacks_.find(r.subject);
  Stack& stack = place->second;
  const bool held = stack.ids.back() == id;
  std::erase(stack.ids, id);
  Restore restore{r.subject, {r.rule.value0, r.rule.value1}, stack.before};
  if (!stack.ids.empty()) {
    const netflow::Rule& next = rules_.at(stack.ids.back()).rule;
    restore.to = {next.value0, next.value1};
  } else {
    stacks_.erase(place);
  }
  remember(std::move(r.rule), state, now_ns);
  rules_.erase(it);
  if (!held || restore.from == restore.to || state == netflow::kRuleSocketGone) return std::nullopt;
  return restore;
}

std::optional<int64_t> Rules::next_due_ms() const {
  if (due_.empty()) return std::nullopt;
  return due_.begin()->first;
}

std::vector<uint32_t> Rules::due(int64_t now_ms) const {
  std::vector<uint32_t> ids;
  for (auto it = due_.begin(); it != due_.end() && it->first <= now_ms; ++it)
    ids.push_back(it->second);
  return ids;
}

void Rules::connection_gone(uint64_t connection) {
  for (const uint32_t id : ids_of(bound_, connection)) set_due(id, rules_.at(id), kAtOnce);
}

void Rules::socket_gone(int64_t socket, uint64_t now_ns) {
  for (const uint32_t id : ids_of(by_socket_, socket))
    (void)end(id, netflow::kRuleSocketGone, now_ns);
}

std::vector<uint32_t> Rules::against(const netflow::Address& peer) const {
  std::vector<uint32_t> ids;
  for (const auto& [id, r] : rules_) {
    const bool about_it = r.rule.socket != 0 || (r.subject.flags & netflow::kRequestByPeer) != 0;
    if (about_it && r.rule.peer.address == peer && r.rule.value0 != 0 &&
        holds_back(static_cast<Feature>(r.subject.name)))
      ids.push_back(id);
  }
  return ids;
}

void Rules::hit(Feature feature, int64_t socket) {
  const auto name = static_cast<uint16_t>(feature);
  for (const uint32_t id : ids_of(by_socket_, socket)) {
    InForce& r = rules_.at(id);
    if (r.subject.name != name || stacks_.at(r.subject).ids.back() != id) continue;
    ++r.rule.hits;
    return;
  }
  const auto all = stacks_.find(Subject{name, 0, {}});
  if (all != stacks_.end()) ++rules_.at(all->second.ids.back()).rule.hits;
}

void Rules::remember(netflow::Rule rule, uint16_t state, uint64_t now_ns) {
  rule.state = state;
  rule.until = netflow::timestamp_of(now_ns);
  history_.push_back(std::move(rule));
  if (history_.size() > kHistory) history_.pop_front();
}

void Rules::set_due(uint32_t id, InForce& r, int64_t due_ms) {
  if (r.due_ms != 0) due_.erase({r.due_ms, id});
  r.due_ms = due_ms;
  if (due_ms != 0) due_.insert({due_ms, id});
}

}  // namespace mw
