// netflow_changes.cc - every change that an engine makes: whether it may be, what was before, the
// rule that it becomes, and how it ends.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "driver/netflow_service.h"
#include "netflow/address.h"

namespace mw {
namespace {

using netflow::Feature;
using netflow::Request;

constexpr uint64_t kMaxConnections = INT32_MAX;
constexpr uint64_t kSlowestPacing = 100;
constexpr uint64_t kMaxTimeoutSeconds = 1'000'000'000;
constexpr size_t kRulesBytesAtOnce = 65536;
constexpr size_t kMaxAllowed = 65536;

Feature feature_of(const Request& r) {
  return static_cast<Feature>(r.name);
}

uint16_t about_of(const Request& r) {
  return r.flags & (netflow::kRequestBySocket | netflow::kRequestByPeer);
}

// Their answers have both values.
bool has_two_values(Feature f) {
  return f == Feature::sndtimeo || f == Feature::rcvtimeo || f == Feature::min_rate_in ||
         f == Feature::min_rate_out;
}

bool is_act(Feature f) {
  return f == Feature::is_open || f == Feature::owner_running;
}

// The errno of a value that no socket takes, or 0.
uint32_t value_fault(const Request& r) {
  const auto at_most = [&r](uint64_t most) -> uint32_t { return r.value0 > most ? EINVAL : 0; };
  switch (feature_of(r)) {
    case Feature::nonblock:
    case Feature::error:
      return EOPNOTSUPP;
    case Feature::sndlowat:
      return ENOPROTOOPT;
    case Feature::reuseaddr:
    case Feature::reuseport:
    case Feature::keepalive:
    case Feature::nodelay:
    case Feature::address_block:
    case Feature::allow:
      return at_most(1);
    case Feature::is_open:
    case Feature::owner_running:
      return at_most(0);
    case Feature::pause:
      return at_most(3);
    case Feature::pacing:
      return r.value0 != 0 && r.value0 < kSlowestPacing ? EINVAL : 0;
    case Feature::peer_cap:
      return at_most(kMaxConnections);
    case Feature::min_rate_in:
    case Feature::min_rate_out:
      return r.value0 > kMaxMinRate || r.value1 > kMaxGraceSeconds ? EINVAL : 0;
    case Feature::sndtimeo:
    case Feature::rcvtimeo:
      return r.value0 > kMaxTimeoutSeconds || r.value1 >= 1'000'000 ? EDOM : 0;
    case Feature::congestion:
      return r.value0 == netflow::kCongestionReno || r.value0 == netflow::kCongestionNewReno ||
                     r.value0 == netflow::kCongestionCubic
                 ? 0
                 : EINVAL;
    default:
      return 0;
  }
}

// Whether it would be against a peer.
bool restrains(const Request& r) {
  const Feature feature = feature_of(r);
  return feature == Feature::is_open || (about_of(r) != 0 && r.value0 != 0 && holds_back(feature));
}

// The request that brings about a value that was read.
Request writing(const Rules::Restore& back) {
  Request r;
  r.name = back.subject.name;
  r.flags = back.subject.flags | netflow::kRequestWrite;
  r.identity = back.subject.identity;
  r.value0 = back.to.value0;
  r.value1 = back.to.value1;
  switch (feature_of(r)) {
    case Feature::sndbuf:
    case Feature::rcvbuf:
      r.value0 /= 2;  // the kernel doubles it
      break;
    case Feature::delack_ticks:
      r.value0 = back.to.value0 - back.from.value0;
      break;
    default:
      break;
  }
  return r;
}

// What a change would be answered with.
Rules::Values expected(const Request& r, const Rules::Values& before) {
  switch (feature_of(r)) {
    case Feature::sndbuf:
    case Feature::rcvbuf:
      return {2 * r.value0, 0};
    case Feature::delack_ticks:
      return {before.value0 + r.value0, 0};
    default:
      return {r.value0, has_two_values(feature_of(r)) ? r.value1 : 0};
  }
}

InsRequest rate_request(Feature f, bool write, const Rules::Values& v) {
  InsRequest r{};
  r.op = InsOp::min_rate;
  r.name = f == Feature::min_rate_out ? 1 : 0;
  r.write = write ? 1 : 0;
  const MinRate value{v.value0, v.value1};
  r.len = sizeof value;
  std::memcpy(r.value, &value, sizeof value);
  return r;
}

}  // namespace

NetflowService::PeerKey NetflowService::key_of(const netflow::Address& a) {
  const netflow::Address one = netflow::unmapped(a);  // one peer has one form
  PeerKey key{};
  key[0] = static_cast<uint8_t>(one.af);
  std::copy(one.bytes.begin(), one.bytes.end(), key.begin() + 1);
  return key;
}

netflow::Address NetflowService::address_of(const PeerKey& key) {
  netflow::Address a;
  a.af = key[0];
  std::copy(key.begin() + 1, key.end(), a.bytes.begin());
  return a;
}

InsRequest NetflowService::about_peer(InsOp op, const PeerKey& key, bool write) {
  InsRequest r{};
  r.op = op;
  r.write = write ? 1 : 0;
  if (key[0] != 0) r.family = key[0] == 6 ? AF_INET6 : AF_INET;
  std::copy(key.begin() + 1, key.end(), r.value);
  return r;
}

// ---- a change ----

void NetflowService::on_change(EngineId engine, const netflow::Asking& asking) {
  const Request& r = asking.request.request;
  const auto refuse = [&](uint32_t err) { server_->respond(engine, {r.id, err, 0, 0}); };
  if (const uint32_t err = value_fault(r); err != 0) return refuse(err);
  // What leaves no rule, or ends some, is always possible.
  const bool leaves_none = is_act(feature_of(r)) || (r.value0 == 0 && asking.request.ttl_s == 0 &&
                                                     asking.request.options == 0);
  if (!leaves_none && !rules_.room()) return refuse(ENOSPC);
  Change change{engine, asking, {}};
  Request before = r;
  before.flags &= ~netflow::kRequestWrite;
  before.value0 = before.value1 = 0;
  // It also tells whether there is such a thing.
  Asked read{engine, before, [this, change](const Outcome& o) {
               if (o.err != 0) return finish(change, o);
               Change known = change;
               known.before = {o.value0, o.value1};
               make(known);
             }};
  if (feature_of(r) == Feature::address_block) return read_block(read);
  execute(read);
}

void NetflowService::make(const Change& change) {
  const netflow::ExtendedRequest& wanted = change.asking.request;
  const Request& r = wanted.request;
  const bool persons_word = !change.asking.extended && feature_of(r) == Feature::is_open;
  if (restrains(r) && !persons_word && allowed_.count(key_of(peer_of_request(r))) != 0)
    return finish(change, {EACCES, 0, 0});
  if ((wanted.options & netflow::kDryRun) != 0) {
    if (feature_of(r) == Feature::is_open && is_listener(r))
      return finish(change, {EOPNOTSUPP, 0, 0});
    const Rules::Values would = expected(r, change.before);
    return server_->respond(change.engine, {r.id, 0, would.value0, would.value1});
  }
  execute({change.engine, r, [this, change](const Outcome& o) { finish(change, o); }});
}

// It was done, or it was not.
void NetflowService::finish(const Change& change, const Outcome& o) {
  const netflow::ExtendedRequest& wanted = change.asking.request;
  const Request& r = wanted.request;
  const auto answer_with = [&](uint64_t value1) {
    server_->respond(change.engine, {r.id, o.err, o.err == 0 ? o.value0 : 0, value1});
  };
  if (o.err != 0) return answer_with(0);
  Rules::Change c;
  c.subject = {r.name, about_of(r), r.identity};
  c.before = change.before;
  c.now = {o.value0, o.value1};
  c.hits = o.cut;
  c.act = is_act(feature_of(r));
  if ((r.flags & netflow::kRequestBySocket) != 0) {
    const auto id = netflow::socket_of(r);
    uint32_t slot = 0;
    c.socket = netflow::encode(*id);
    const Flow* flow = ins_ ? ins_->flows().find(id->number, &slot) : nullptr;
    if (flow != nullptr) c.peer = flow->remote;
    // It closed meanwhile: there is nothing that a rule could be about.
    c.act = c.act || flow == nullptr;
  } else if ((r.flags & netflow::kRequestByPeer) != 0) {
    c.peer.address = peer_of_request(r);
    // Both forms of an address are the same peer.
    Request named;
    netflow::name_peer(named, c.peer.address);
    c.subject.identity = named.identity;
  }
  c.engine = server_->name_of(change.engine);
  c.reason = wanted.reason;
  c.ttl_s = wanted.ttl_s;
  const bool bound = (wanted.options & netflow::kEndsWithConnection) != 0;
  if (bound) c.bound_to = change.engine;
  const uint32_t id = rules_.add(c, monotonic_ms(), realtime_ns());
  if (bound && c.engine.empty()) rules_.connection_gone(change.engine);
  answer_with(has_two_values(feature_of(r)) ? o.value1 : change.asking.extended ? id : 0);
}

// The address alone, or that of the socket's other end.
netflow::Address NetflowService::peer_of_request(const Request& r) const {
  if ((r.flags & netflow::kRequestByPeer) != 0)
    return netflow::unmapped(netflow::peer_of(r).value_or(netflow::Address{}));
  const auto id = netflow::socket_of(r);
  uint32_t slot = 0;
  const Flow* flow = id && ins_ ? ins_->flows().find(id->number, &slot) : nullptr;
  return flow == nullptr ? netflow::Address{} : flow->remote.address;
}

bool NetflowService::is_listener(const Request& r) const {
  const auto id = netflow::socket_of(r);
  uint32_t slot = 0;
  const Flow* flow = id && ins_ ? ins_->flows().find(id->number, &slot) : nullptr;
  return flow != nullptr && (flow->bits & MW_TEL_WHO_LISTENER) != 0;
}

// ---- how changes end ----

void NetflowService::end_rule(uint32_t id, uint16_t state, const Then& then) {
  const auto back = rules_.end(id, state, realtime_ns());
  if (!back) return then({0, 0, 0});
  execute({0, writing(*back), then});
}

void NetflowService::end_due_rules() {
  // What has to be put back is put back in an INS.
  if (!ins_) return;
  for (const uint32_t id : rules_.due(monotonic_ms())) {
    const bool expired = rules_.in_force(id)->until.seconds != 0 &&
                         rules_.in_force(id)->until.seconds <= realtime_ns() / 1'000'000'000 + 1;
    end_rule(id, expired ? netflow::kRuleExpired : netflow::kRuleUndone, [id](const Outcome& o) {
      if (o.err != 0 && o.err != EBADF)
        log_line("mwcommsd", "NetFlow: rule %u ended, but what was before it is not back: error %u",
                 id, o.err);
    });
  }
}

void NetflowService::on_undo(const Asked& a, bool dry_run) {
  const Request& r = a.request;
  if (!r.write()) return answer(a, EOPNOTSUPP);
  if (about_of(r) != 0 || r.value0 > UINT32_MAX) return answer(a, EINVAL);
  const auto id = static_cast<uint32_t>(r.value0);
  if (rules_.in_force(id) == nullptr) return answer(a, rules_.was_act(id) ? EOPNOTSUPP : ENOENT);
  // No name for "any other": it cannot be asked for.
  if (rules_.in_force(id)->name == static_cast<uint16_t>(Feature::congestion) &&
      rules_.before(id).value0 == 0)
    return answer(a, EOPNOTSUPP);
  if (!ins_) return answer(a, ENETDOWN);
  if (dry_run) return answer(a, 0, id);
  end_rule(id, netflow::kRuleUndone, [this, a, id](const Outcome& o) { answer(a, o.err, id); });
}

// One message for each rule, then the answer: how many are in force.
void NetflowService::on_rules(const Asked& a) {
  if (a.request.flags != 0) return answer(a, a.request.write() ? EOPNOTSUPP : EINVAL);
  std::vector<uint8_t> part;
  bool room = true;
  rules_.each([&](const netflow::Rule& rule) {
    netflow::Rule r = rule;
    r.sequence = ++flow_sequence_;
    const auto bytes = netflow::encoded(r);
    part.insert(part.end(), bytes.begin(), bytes.end());
    if (part.size() < kRulesBytesAtOnce) return;
    room = room && server_->send_part(a.engine, std::exchange(part, {}));
  });
  if (!part.empty()) room = room && server_->send_part(a.engine, std::move(part));
  answer(a, room ? 0 : ENOBUFS, rules_.in_force());
}

// The INS says that a socket is gone, and why if it did it because of a rule.
void NetflowService::on_closed(const netflow::Observation& o) {
  const uint32_t cut = ins_ ? ins_->flows().last_cut() : 0;
  if (cut == MW_TEL_CUT_MIN_RATE_IN) rules_.hit(Feature::min_rate_in, o.socket);
  if (cut == MW_TEL_CUT_MIN_RATE_OUT) rules_.hit(Feature::min_rate_out, o.socket);
  if (rules_.about_sockets()) rules_.socket_gone(o.socket, realtime_ns());
}

// ---- features of version 2 ----

void NetflowService::read_block(const Asked& a) {
  const auto peer = netflow::peer_of(a.request);
  if (about_of(a.request) != netflow::kRequestByPeer || !peer) return answer(a, EINVAL);
  answer(a, 0, blocked_.count(key_of(*peer)));
}

void NetflowService::on_allow(const Asked& a) {
  const Request& r = a.request;
  const auto peer = netflow::peer_of(r);
  if (about_of(r) != netflow::kRequestByPeer || !peer) return answer(a, EINVAL);
  const auto key = key_of(*peer);
  if (!r.write()) return answer(a, 0, allowed_.count(key));
  const bool on = r.value0 == 1;
  if (on && allowed_.size() >= kMaxAllowed) return answer(a, ENOSPC);
  if (!ins_) return answer(a, ENETDOWN);
  const bool was = allowed_.count(key) != 0;
  const auto set = [this, key](bool allow) {
    if (allow)
      allowed_.insert(key);
    else
      allowed_.erase(key);
  };
  set(on);
  const auto last = [this, a, on, was, key, set] {
    const auto failed = [this, a, was, set](uint32_t status) {
      set(was);
      answer(a, status, was ? 1 : 0);
    };
    if (!ins_) return failed(ENETDOWN);
    ins_->ask(about_peer(InsOp::allow, key, on), [this, a, on, failed](const InsReply& reply) {
      if (reply.status != 0) return failed(reply.status);
      answer(a, 0, on ? 1 : 0);
    });
  };
  // What is against it ends first, so that nothing of it is left when this is answered.
  const auto ends = on ? rules_.against(netflow::unmapped(*peer)) : std::vector<uint32_t>{};
  if (ends.empty()) return last();
  const auto left = std::make_shared<size_t>(ends.size());
  for (const uint32_t id : ends)
    end_rule(id, netflow::kRuleUndone, [left, last](const Outcome&) {
      if (--*left == 0) last();
    });
}

void NetflowService::on_peer_cap(const Asked& a) {
  const Request& r = a.request;
  const bool of_one = about_of(r) == netflow::kRequestByPeer;
  const auto peer = netflow::peer_of(r);
  if ((about_of(r) != 0 && !of_one) || (of_one && !peer)) return answer(a, EINVAL);
  const PeerKey key = of_one ? key_of(*peer) : PeerKey{};
  const auto held = caps_.find(key);
  if (!r.write()) return answer(a, 0, held == caps_.end() ? 0 : held->second);
  if (!ins_) return answer(a, ENETDOWN);
  const auto cap = static_cast<uint32_t>(r.value0);
  if (cap != 0 && held == caps_.end() && caps_.size() >= kMaxAllowed) return answer(a, ENOSPC);
  const uint32_t was = held == caps_.end() ? 0 : held->second;
  const auto set = [this, key](uint32_t value) {
    if (value == 0)
      caps_.erase(key);
    else
      caps_[key] = value;
  };
  set(cap);
  ask_cap(key, cap, [this, a, cap, was, set](uint32_t status) {
    if (status != 0) set(was);
    answer(a, status, status != 0 ? was : cap);
  });
}

// First new connections count, then those that were there are counted.
void NetflowService::ask_cap(const PeerKey& key, uint32_t cap,
                             const std::function<void(uint32_t)>& then) {
  InsRequest r = about_peer(InsOp::peer_cap, key, false);
  r.level = static_cast<int32_t>(cap);
  ins_->ask(r, [this, then](const InsReply& set) {
    if (set.status != 0 || !ins_) return then(set.status);
    InsRequest count{};
    count.op = InsOp::count_peers;
    ins_->ask(count, [then](const InsReply& counted) { then(counted.status); });
  });
}

// Of all connections to come; what is about one socket goes the way of the other socket requests.
void NetflowService::on_default_rate(const Asked& a) {
  const Request& r = a.request;
  const Feature f = feature_of(r);
  if (about_of(r) != 0) return answer(a, EINVAL);
  Rules::Values& held = f == Feature::min_rate_out ? min_rate_out_ : min_rate_in_;
  if (!r.write()) return answer(a, 0, held.value0, held.value1);
  if (!ins_) return answer(a, ENETDOWN);
  const Rules::Values was = std::exchange(held, {r.value0, r.value1});
  ins_->ask(rate_request(f, true, held), [this, a, f, was](const InsReply& reply) {
    Rules::Values& now = f == Feature::min_rate_out ? min_rate_out_ : min_rate_in_;
    if (reply.status != 0) now = was;
    answer(a, reply.status, now.value0, now.value1);
  });
}

// Minimum rates, pauses and pacing of a socket.
void NetflowService::on_limit(const Asked& a, uint32_t slot, uint32_t number) {
  const Request& request = a.request;
  const Feature f = feature_of(request);
  InsRequest r = rate_request(f, request.write(), {request.value0, request.value1});
  if (f == Feature::pause) {
    const auto bits = static_cast<uint32_t>(request.value0);
    r.op = InsOp::pause;
    r.len = sizeof bits;
    std::memcpy(r.value, &bits, sizeof bits);
  } else if (f == Feature::pacing) {
    const uint64_t rate = request.value0 == 0 ? UINT64_MAX : request.value0;
    r.op = InsOp::option;
    r.level = SOL_SOCKET;
    r.name = SO_MAX_PACING_RATE;
    r.len = sizeof rate;
    std::memcpy(r.value, &rate, sizeof rate);
  }
  r.slot = slot;
  r.gen = number;
  ins_->ask(r, [this, a, f](const InsReply& reply) {
    MinRate value{};
    std::memcpy(&value, reply.value, std::min<size_t>(reply.len, sizeof value));
    if (f == Feature::pacing && (value.rate == UINT64_MAX || value.rate == UINT32_MAX))
      value.rate = 0;
    answer(a, reply.status, value.rate, has_two_values(f) ? value.grace_s : 0);
  });
}

// An INS that we found may hold to rules of a driver that is gone, and nobody would end them. One
// that is new knows none.
void NetflowService::forget_predecessors_rules() {
  InsRequest forget{};
  forget.op = InsOp::forget;
  ins_->ask(forget, [this](const InsReply& reply) {
    uint32_t blocked = 0;
    std::memcpy(&blocked, reply.value, std::min<size_t>(reply.len, sizeof blocked));
    if (reply.status != 0 || blocked == 0) return;
    log_line("mwcommsd",
             "NetFlow: the rules of the mwcommsd before this one are forgotten: %u blocked peers "
             "are let in again, and its caps, minimum rates and allow list ended too",
             blocked);
    if (!ins_ || ins_->netns() < 0) return;
    blocks_.clear(ins_->netns(), [](uint32_t err) {
      if (err != 0) log_line("mwcommsd", "NetFlow: peers stay blocked in nftables: error %u", err);
    });
    // What was blocked in the meantime is blocked again behind that.
    for (const PeerKey& key : blocked_)
      blocks_.change(ins_->netns(), address_of(key), true, [](uint32_t) {});
  });
}

// An INS that takes over, or that we found.
void NetflowService::renew_rules() {
  const auto renewed = [](uint32_t status) {
    if (status != 0)
      log_line("mwcommsd", "NetFlow: a rule does not hold in the new INS: error %u", status);
  };
  const auto ask = [&](const InsRequest& r) {
    ins_->ask(r, [renewed](const InsReply& reply) { renewed(reply.status); });
  };
  for (const PeerKey& key : allowed_) ask(about_peer(InsOp::allow, key, true));
  for (const auto& [f, held] : {std::pair{Feature::min_rate_in, min_rate_in_},
                                std::pair{Feature::min_rate_out, min_rate_out_}})
    if (held.value0 != 0) ask(rate_request(f, true, held));
  for (const auto& [key, cap] : caps_) ask_cap(key, cap, renewed);
}

}  // namespace mw
