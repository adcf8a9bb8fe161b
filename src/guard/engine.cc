#include "guard/engine.h"

#include <algorithm>
#include <cmath>

namespace mw::guard {

using netflow::Round;
using netflow::Sample;

namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMs;
constexpr int64_t kMinute = 60 * kSecond;
constexpr size_t kMaxPeers = 65'536;
// Answers are remembered for about so long.
constexpr double kMemorySeconds = 30;
// Of one answer so much is left after half a minute.
constexpr double kTrusted = 0.3;
// What was asked for may take this long to show.
constexpr int64_t kTakesEffect = 5 * kSecond;
// One connection of a peer that was served lately, or over a bad link, has so many times longer.
constexpr double kPatience = 3;
// Of a peer that cannot be heard at all: a computer that was suspended, a tunnel.
constexpr double kPatienceGone = 6;
// Between requests for so long: idle.
constexpr int64_t kIdle = kSecond;
// Nobody knows whether the peer or the application is late; then both have this long.
constexpr double kUnknownSeconds = 60;
// A first request in tiny pieces that keeps so many times the least rate is a slow uplink.
constexpr double kGoodRates = 4;
// It is the application, by all that can be seen: a long poll, a slow database.
constexpr double kAtWorkSeconds = 300;
// What is silent for so long behind an address with productive connections is dead; what adds
// pieces more often is left to the rules for one connection.
constexpr int64_t kSilent = 750 * kMs;
// A peer with a cap has room for this part of all connections that the application has taken, which
// are as many as it can hold when clients are not served.
constexpr uint32_t kRoomPart = 4;
// Of its cap's room this part is free of productive connections at least, or it is raised.
constexpr uint32_t kFreePart = 2;
// While all is well and the cap is full the room grows by a quarter each time, to three times at
// most, so that a part is always left to others.
constexpr int64_t kRoomGrows = kSecond;
constexpr uint32_t kMostGrowth = 3;
// Clients that still wait after so long wait in spite of what was done.
constexpr uint32_t kStillShortMs = 1'000;
// A connection that was at the same so long before the trouble has not brought it.
constexpr int64_t kKnownBefore = kMinute;
// When nothing else was found for so long, idle connections go though they were there before. It
// is longer than the graces of the rules for one connection.
constexpr int64_t kNothingElse = 20 * kSecond;
// So much of them each time.
constexpr size_t kLastPart = 4;
// A queue that was empty for so long is.
constexpr int64_t kQueueIsEmpty = 2 * kSecond;
// Accepted and untaken for so long: that is a queue too.
constexpr uint32_t kUnreadMs = 250;
constexpr size_t kMostPrograms = 64;
constexpr int64_t kUsualPeriod = 5 * kSecond;
// A round handles so many at most; the next one is a moment away.
constexpr size_t kMostAtOnce = 256;

// At least half of a limit that is set.
bool is_half(uint64_t count, uint64_t limit) {
  return limit > 0 && count * 2 >= limit;
}

// Nobody has read what came first: it waits for the application like those in the queue.
bool untaken(const Sample& s) {
  return s.unread > 0 && s.first_out == netflow::kNever;
}

// Within the last minute; 0: never.
bool within_minute(int64_t when_ns, int64_t now_ns) {
  return when_ns != 0 && now_ns - when_ns <= kMinute;
}

}  // namespace

// ---- what is there ----

void Engine::observe(std::span<const Sample> samples, const Round& round) {
  const auto now = static_cast<int64_t>(round.mono_ns);
  // Nobody looked meanwhile, or the stack stood still: no peer is to blame.
  const int64_t pause = int64_t{rules_.sample_ms} * kMs;
  const int64_t gap = last_round_ns_ == 0 ? 0 : now - last_round_ns_ - pause;
  if (gap > kSecond + 3 * pause)
    for (auto& [id, c] : connections_) c.excuse(gap);
  last_round_ns_ = now;
  bool queue = false;
  bool unread = false;
  for (const Sample& s : samples) {
    queue = queue || s.queue > 0;
    if (s.type != 1 || (s.flags & netflow::kSampleInbound) == 0 ||
        (s.flags & netflow::kSampleListener) != 0)
      continue;
    const auto known = connections_.find(s.socket);
    uint32_t answers = 0;
    if (known == connections_.end())
      answers =
          connections_.emplace(s.socket, Connection(s, now, rules_)).first->second.productive(now)
              ? 1
              : 0;
    else
      answers = known->second.update(s, now, rules_);
    if (s.waiting_threads > 0 && waiters_.size() < kMostPrograms) waiters_.insert(s.command);
    unread = unread || (untaken(s) && s.age > kUnreadMs);
    if (answers > 0) {
      Peer& p = peers_[key_of(s.remote.address)];
      p.served = served_lately(p, now) + answers;
      p.served_ns = now;
    }
  }
  queue_rounds_ = queue || unread ? queue_rounds_ + 1 : 0;
  if (queue || unread) {
    if (queue_since_ns_ == 0) queue_since_ns_ = now;
    queue_seen_ns_ = now;
  } else if (now - queue_seen_ns_ >= kQueueIsEmpty) {
    queue_since_ns_ = 0;
  }
  forget(now, samples.size() >= round.sockets);
  uint32_t still = 0;
  for (const auto& [id, c] : connections_)
    still += c.still(now, rules_.crowd_still_ms, rules_) ? 1 : 0;
  pressed_ = queue || is_half(still, rules_.crowd_connections);
  suspicious_ = pressed_ || nearly_broken(now);
}

// Half of what a rule about many connections of one peer needs, for half of the time.
bool Engine::nearly_broken(int64_t now_ns) const {
  struct Counts {
    uint32_t still = 0;
    uint32_t idle = 0;
  };
  std::map<Key, Counts> peers;
  for (const auto& [id, c] : connections_) {
    const bool still = c.still(now_ns, rules_.crowd_still_ms / 2, rules_);
    if (!still && !c.idle(now_ns, kIdle / 2)) continue;
    const netflow::Address& peer = c.sample().remote.address;
    if (untouchable(c) || any_holds(rules_.shared, peer)) continue;
    Counts& n = peers[key_of(peer)];
    ++(still ? n.still : n.idle);
  }
  return std::any_of(peers.begin(), peers.end(), [&](const auto& one) {
    const Counts& n = one.second;
    const uint64_t share = 100 * uint64_t{n.idle} / connections_.size();
    return is_half(n.still, rules_.crowd_connections) ||
           (is_half(n.idle, rules_.idle_connections) && is_half(share, rules_.idle_share_percent));
  });
}

void Engine::forget(int64_t now_ns, bool complete) {
  std::erase_if(connections_, [&](const auto& one) {
    const int64_t unseen = now_ns - one.second.seen_ns();
    return unseen > 0 && (complete || unseen > 10 * kSecond);
  });
  const int64_t memory = int64_t{rules_.ttl_max_s} * kSecond;
  for (auto it = peers_.begin(); it != peers_.end();) {
    Peer& p = it->second;
    while (!p.cuts.empty() && now_ns - p.cuts.front() > kMinute) p.cuts.pop_front();
    if (p.blocks > 0 && now_ns - p.last_block_ns > 2 * memory) p.blocks = 0;
    const bool worth = p.blocks > 0 || !p.cuts.empty() || p.quiet_until_ns > now_ns ||
                       p.cap_until_ns > now_ns || p.mixed_until_ns > now_ns ||
                       within_minute(p.held_back_ns, now_ns) ||
                       now_ns - p.seen_ns < 2 * kUsualPeriod;
    const bool gone = peers_.size() > kMaxPeers || served_lately(p, now_ns) < 0.05;
    it = !worth && gone ? peers_.erase(it) : std::next(it);
  }
}

double Engine::served_lately(const Peer& p, int64_t now_ns) {
  if (p.served == 0) return 0;
  return p.served * std::exp(-static_cast<double>(now_ns - p.served_ns) / 1e9 / kMemorySeconds);
}

// Each period starts with what is there, and keeps the least that was seen in it.
void Engine::Usual::see(uint32_t count, int64_t now_ns) {
  if (period_ns == 0 || now_ns - period_ns >= kUsualPeriod) {
    std::rotate(least.begin(), least.end() - 1, least.end());
    least.front() = count;
    period_ns = now_ns;
  }
  least.front() = std::min(least.front(), count);
}

void Engine::know_usual(const Tallies& tallies, int64_t now_ns) {
  for (auto& [key, p] : peers_) {
    const auto t = tallies.find(key);
    p.usual.see(t == tallies.end() ? 0 : t->second.answered, now_ns);
  }
}

uint32_t Engine::usual_of(const Peer& p) {
  return p.usual.count() + p.usual.count() / 2;
}

bool Engine::connections_are_short(bool again) const {
  return queue_rounds_ > 0 &&
         (!again || uint64_t{queue_rounds_} * rules_.sample_ms >= kStillShortMs);
}

bool Engine::waits_in_threads(const Connection& c) const {
  return waiters_.count(c.sample().command) != 0;
}

bool Engine::known_before(const Connection& c, int64_t now_ns) const {
  if (trouble_since_ns_ == 0 || c.answers() == 0) return false;
  return c.unchanged_ns(now_ns) - (now_ns - trouble_since_ns_) >= kKnownBefore;
}

bool Engine::untouchable(const Connection& c) const {
  return (c.sample().flags & netflow::kSampleAllowed) != 0 ||
         any_holds(rules_.allow, c.sample().remote.address);
}

Engine::Tallies Engine::tally(int64_t now_ns, uint64_t* worker_us) {
  Tallies all;
  for (auto& [id, c] : connections_) {
    const Sample& s = c.sample();
    *worker_us += s.worker_us;
    if (untouchable(c)) continue;
    Tally& t = all[key_of(s.remote.address)];
    t.address = s.remote.address;
    ++t.connections;
    t.all.push_back(&c);
    if (c.moves_well(now_ns, rules_)) ++t.moving;
    const bool idle = c.idle(now_ns, kIdle);
    if (idle) t.idle.push_back(&c);
    bool dead = false;
    if (c.productive(now_ns))
      ++t.productive;
    else if (known_before(c, now_ns))
      ++t.known;
    else if (idle)
      ++t.unused;
    else if (c.still(now_ns, rules_.crowd_still_ms, rules_))
      dead = true;
    else if (c.server_is_at_it(now_ns) && c.in_seconds(now_ns) >= 1)
      ++t.at_work;
    if (!dead && c.answers() > 0) ++t.answered;
    if (!dead) continue;
    t.dead.push_back(&c);
    t.worker_us += s.worker_us;
    t.bytes += s.bytes_in + s.bytes_out;
  }
  all_idle_ = taken_ = 0;
  for (const auto& [id, c] : connections_) taken_ += untaken(c.sample()) ? 0 : 1;
  for (auto& [key, t] : all) {
    t.peer = &peers_[key];
    t.peer->seen_ns = now_ns;
    all_idle_ += t.idle.size();
  }
  return all;
}

// ---- the share of connections that may be cut ----

void Engine::count_shares(int64_t now_ns) {
  while (!cut_.empty() && now_ns - cut_.front() > kMinute) cut_.pop_front();
  uncut_count_ = static_cast<size_t>(std::count_if(
      connections_.begin(), connections_.end(),
      [&](const auto& one) { return !within_minute(one.second.counted_ns, now_ns); }));
}

bool Engine::within_share(std::span<Connection* const> more, int64_t now_ns) const {
  const auto fresh = std::count_if(more.begin(), more.end(), [&](const Connection* c) {
    return !within_minute(c->counted_ns, now_ns);
  });
  const size_t cut = cut_.size() + static_cast<size_t>(fresh);
  return fresh == 0 || 100 * cut <= rules_.most_share_percent * (cut_.size() + uncut_count_);
}

// Each once, however often it takes to cut it.
void Engine::count_cut(std::span<Connection* const> cut, int64_t now_ns) {
  for (Connection* c : cut) {
    if (within_minute(c->counted_ns, now_ns)) continue;
    c->counted_ns = now_ns;
    cut_.push_back(now_ns);
    --uncut_count_;
  }
}

// Told once a minute for each connection and each peer.
void Engine::hold_back(Decision d, int64_t* told_ns, int64_t now_ns,
                       std::vector<Decision>& out) const {
  if (within_minute(*told_ns, now_ns)) return;
  *told_ns = now_ns;
  d.held_back = true;
  d.measured.push_back({"cut_lately", double(cut_.size())});
  d.measured.push_back({"open", double(uncut_count_)});
  d.limits.push_back({"most_share_percent", double(rules_.most_share_percent)});
  out.push_back(std::move(d));
}

// ---- what is to be done ----

std::vector<Decision> Engine::decide(int64_t now_ns, Service service) {
  std::vector<Decision> out;
  uint64_t worker_us = 0;
  if (service == Service::served)
    trouble_since_ns_ = 0;
  else if (trouble_since_ns_ == 0)
    trouble_since_ns_ = now_ns;
  Tallies tallies = tally(now_ns, &worker_us);
  count_shares(now_ns);
  for (auto& [key, t] : tallies) keep_order(t, service, now_ns, out);
  if (service == Service::served) know_usual(tallies, now_ns);
  if (service == Service::served && !rules_.always) return out;
  for (auto& [key, t] : tallies) {
    // What many connections of one peer do together is only held against it while others suffer.
    if (service != Service::served && !any_holds(rules_.shared, t.address) &&
        t.peer->blocked_until_ns <= now_ns)
      judge_peer(t, worker_us, now_ns, out);
    if (out.size() >= kMostAtOnce) break;
  }
  for (auto& [id, c] : connections_) {
    if (out.size() >= kMostAtOnce) break;
    if (untouchable(c) || judged(c, now_ns)) continue;
    Peer& p = peers_[key_of(c.sample().remote.address)];
    if (p.blocked_until_ns > now_ns) continue;  // it is being cut
    judge_connection(c, p, any_holds(rules_.shared, c.sample().remote.address), service, now_ns,
                     out);
  }
  return out;
}

// Below a cap, whether clients are served again or not: it must not hinder who is productive, and
// dead connections must not fill it.
void Engine::keep_order(Tally& t, Service service, int64_t now_ns, std::vector<Decision>& out) {
  Peer& p = *t.peer;
  if (dry_run_ || p.cap_until_ns <= now_ns || p.blocked_until_ns > now_ns) return;
  raise_cap(t, service == Service::served, now_ns, out);
  if (p.mixed_until_ns <= now_ns || !nearly_full(t)) return;
  Decision d;
  d.rule = "crowd";
  d.measured = {{"connections", double(t.connections)},
                {"still", double(t.dead.size())},
                {"productive", double(t.productive)}};
  d.limits = {{"connections", double(p.cap)}, {"still_s", rules_.crowd_still_ms / 1e3}};
  for (Connection* c : t.dead)
    if (c->silent(now_ns, kSilent) && out.size() < kMostAtOnce) close(*c, p, d, false, now_ns, out);
}

void Engine::judge_peer(Tally& t, uint64_t all_us, int64_t now_ns, std::vector<Decision>& out) {
  judge_crowd(t, now_ns, out);
  if (t.peer->blocked_until_ns > now_ns) return;
  judge_idle(t, now_ns, out);
  judge_worker_time(t, all_us, now_ns, out);
  judge_repeat(t, now_ns, out);
}

void Engine::judge_crowd(Tally& t, int64_t now_ns, std::vector<Decision>& out) {
  const size_t dead = t.dead.size();
  if (rules_.crowd_connections == 0 || dead < rules_.crowd_connections) return;
  const double progress = served_lately(*t.peer, now_ns) + t.moving;
  Decision d;
  d.rule = "crowd";
  d.measured = {{"connections", double(t.connections)},
                {"still", double(dead)},
                {"productive", double(t.productive)},
                {"progress", progress}};
  d.limits = {{"still", double(rules_.crowd_connections)},
              {"still_s", rules_.crowd_still_ms / 1e3},
              {"progress_percent", double(rules_.crowd_progress_percent)}};
  const double enough = double(rules_.crowd_progress_percent) * static_cast<double>(dead);
  if (t.productive + t.known == 0 && progress * 100 < enough) {
    if (t.peer->quiet_until_ns <= now_ns) block(t, std::move(d), now_ns, out);
    return;
  }
  // Others are behind the same address: they keep what they have, and room for more.
  t.peer->mixed_until_ns = now_ns + int64_t{rules_.ttl_s} * kSecond;
  cap(t, 0, d, now_ns, out);
  for (Connection* c : t.dead)
    if (c->silent(now_ns, kSilent) && out.size() < kMostAtOnce)
      close(*c, *t.peer, d, false, now_ns, out);
}

void Engine::judge_idle(Tally& t, int64_t now_ns, std::vector<Decision>& out) {
  const size_t idle = t.idle.size();
  const double share = 100.0 * static_cast<double>(idle) / static_cast<double>(connections_.size());
  if (rules_.idle_connections == 0 || idle < rules_.idle_connections ||
      share < rules_.idle_share_percent || !connections_are_short(t.peer->cap_until_ns > now_ns))
    return;
  const std::vector<Connection*> go = too_idle(t, now_ns);
  if (go.empty()) return;
  Decision d;
  d.rule = "idle";
  d.measured = {{"idle", double(idle)},
                {"share_percent", share},
                {"idle_s", double(go.front()->idle_ns(now_ns)) / 1e9},
                {"productive", double(t.productive)}};
  d.limits = {{"idle", double(rules_.idle_connections)},
              {"share_percent", double(rules_.idle_share_percent)},
              {"keep", double(std::max(rules_.keep, usual_of(*t.peer)))}};
  cap(t, go.size(), d, now_ns, out);
  for (Connection* c : go)
    if (out.size() < kMostAtOnce) close(*c, *t.peer, d, false, now_ns, out);
}

// Those that go, the longest idle first. As many stay as the peer had before the trouble, and those
// that were there long before or that the application itself keeps up; but if nothing else helps,
// some of these go as well.
std::vector<Connection*> Engine::too_idle(Tally& t, int64_t now_ns) {
  const auto spared = [&](const Connection* c) {
    return c->pushed(now_ns) || known_before(*c, now_ns);
  };
  std::sort(t.idle.begin(), t.idle.end(), [&](const Connection* a, const Connection* b) {
    if (spared(a) != spared(b)) return spared(b);
    return a->idle_ns(now_ns) > b->idle_ns(now_ns);
  });
  const size_t idle = t.idle.size();
  const auto first_spared =
      static_cast<size_t>(std::find_if(t.idle.begin(), t.idle.end(), spared) - t.idle.begin());
  const size_t stay = std::max(rules_.keep, usual_of(*t.peer));
  const size_t excess = std::min(idle > stay ? idle - stay : 0, first_spared);
  if (excess > 0) return {t.idle.begin(), t.idle.begin() + static_cast<ptrdiff_t>(excess)};
  const bool nothing_else = trouble_since_ns_ != 0 && now_ns - trouble_since_ns_ > kNothingElse &&
                            now_ns - last_cut_ns_ > kNothingElse && queue_since_ns_ != 0 &&
                            now_ns - queue_since_ns_ > kNothingElse &&
                            2 * all_idle_ >= connections_.size();
  if (!nothing_else || idle <= rules_.keep) return {};
  const size_t some = (idle - rules_.keep + kLastPart - 1) / kLastPart;
  return {t.idle.begin(), t.idle.begin() + static_cast<ptrdiff_t>(some)};
}

void Engine::judge_worker_time(Tally& t, uint64_t all_us, int64_t now_ns,
                               std::vector<Decision>& out) {
  if (rules_.worker_s == 0 || t.worker_us < uint64_t{rules_.worker_s} * 1'000'000 ||
      t.peer->quiet_until_ns > now_ns)
    return;
  const double worker_s = double(t.worker_us) / 1e6;
  const double share = 100.0 * double(t.worker_us) / double(all_us);
  const double rate = double(t.bytes) / worker_s;
  if (share < rules_.worker_share_percent || rate >= rules_.worker_min_rate) return;
  Decision d;
  d.rule = "worker-time";
  d.measured = {{"worker_s", worker_s}, {"share_percent", share}, {"bytes_per_worker_s", rate}};
  d.limits = {{"worker_s", double(rules_.worker_s)},
              {"share_percent", double(rules_.worker_share_percent)},
              {"bytes_per_worker_s", double(rules_.worker_min_rate)}};
  if (t.productive + t.known == 0 && served_lately(*t.peer, now_ns) + t.moving < 1)
    block(t, std::move(d), now_ns, out);
  else
    cap(t, 0, std::move(d), now_ns, out);
}

void Engine::judge_repeat(Tally& t, int64_t now_ns, std::vector<Decision>& out) {
  const std::deque<int64_t>& cuts = t.peer->cuts;
  const auto lately = std::count_if(cuts.begin(), cuts.end(),
                                    [&](int64_t when) { return now_ns - when <= kMinute; });
  if (rules_.repeat_cuts == 0 || lately < rules_.repeat_cuts || t.peer->quiet_until_ns > now_ns)
    return;
  const double progress = served_lately(*t.peer, now_ns) + t.moving;
  if (progress >= 1 || t.productive + t.known > 0) return;
  Decision d;
  d.rule = "repeat";
  d.measured = {{"cuts", double(lately)}, {"progress", progress}};
  d.limits = {{"cuts", double(rules_.repeat_cuts)}, {"progress", 1}};
  block(t, std::move(d), now_ns, out);
}

// ---- one connection ----

void Engine::judge_connection(Connection& c, Peer& p, bool shared, Service service, int64_t now_ns,
                              std::vector<Decision>& out) {
  // A peer that was served lately is most likely honest. Where an attacker is behind the same
  // address, or many people are, each connection has to vouch for itself.
  const bool mixed = p.mixed_until_ns > now_ns;
  const bool vouched = mixed ? c.productive(now_ns) : served_lately(p, now_ns) >= kTrusted;
  const bool trusted = (vouched && !shared) || known_before(c, now_ns);
  double patience = trusted || c.link_is_bad() ? kPatience : 1;
  if (c.peer_is_gone()) patience = kPatienceGone;
  if (auto d = broken_by(c, patience, service, now_ns))
    close(c, p, std::move(*d), trusted || (!mixed && c.answers() > 0), now_ns, out);
}

std::optional<Decision> Engine::broken_by(const Connection& c, double patience, Service service,
                                          int64_t now_ns) const {
  const Sample& s = c.sample();
  const bool denied = service == Service::denied;
  const auto grace = [&](const RateRules& r) {
    return patience * (denied ? r.grace_denied_s : r.grace_s);
  };
  const auto found = [&](const char* rule, std::vector<Value> measured, std::vector<Value> limits) {
    Decision d;
    d.rule = rule;
    d.measured = std::move(measured);
    d.limits = std::move(limits);
    for (const Value& v :
         {Value{"worker_s", double(s.worker_us) / 1e6}, Value{"rtt_ms", s.rtt_us / 1e3},
          Value{"retrans", double(s.total_retrans)}})
      d.measured.push_back(v);
    return d;
  };
  if (c.out_turn()) {
    const double t = c.out_seconds(now_ns);
    const double bytes = double(c.out_bytes());
    const double rate = rules_.answer.min_rate;
    const double closed = c.window_seconds(now_ns);
    const bool enough = bytes >= rate * t;
    const double limit = enough ? rules_.window_progress_s
                                : patience * (denied ? rules_.window_denied_s : rules_.window_s);
    if (rules_.window_s > 0 && closed > limit && !c.peer_is_gone())
      return found("closed-window",
                   {{"closed_s", closed},
                    {"window", double(s.snd_wnd)},
                    {"unsent", double(std::max(s.unsent, s.notsent))},
                    {"bytes", bytes}},
                   {{"closed_s", limit}, {"window", double(rules_.window_bytes)}});
    if (rate > 0 && t > grace(rules_.answer) && bytes < rate * (t - grace(rules_.answer)))
      return found("slow-answer", {{"seconds", t}, {"bytes", bytes}, {"window", double(s.snd_wnd)}},
                   {{"min_rate", rate}, {"grace_s", grace(rules_.answer)}});
    return std::nullopt;
  }
  if (!c.in_turn() || c.server_is_behind()) return std::nullopt;
  double t = c.in_seconds(now_ns);
  // What a client that was answered before did while all was well is not held against it: messages
  // without an answer, now and then.
  if (c.answers() > 0 && trouble_since_ns_ != 0)
    t = std::min(t, double(now_ns - trouble_since_ns_) / 1e9);
  const double bytes = double(c.in_bytes());
  const double rate = rules_.request.min_rate;
  const double unknown = waits_in_threads(c) ? kAtWorkSeconds : kUnknownSeconds;
  const double wait =
      c.server_waits(now_ns) ? grace(rules_.request) : std::max(unknown, grace(rules_.request));
  if (rate > 0 && t > wait && bytes < rate * (t - wait))
    return found("slow-request",
                 {{"seconds", t}, {"bytes", bytes}, {"waiting_threads", double(s.waiting_threads)}},
                 {{"min_rate", rate}, {"grace_s", wait}});
  const double piece = bytes / std::max(1u, s.calls_in);
  if (rules_.unfinished_s > 0 && s.first_out == netflow::kNever && c.server_waits(now_ns) &&
      t > patience * rules_.unfinished_s && piece < rules_.unfinished_piece &&
      bytes < kGoodRates * rate * t)
    return found(
        "unfinished-request",
        {{"seconds", t}, {"bytes", bytes}, {"calls", double(s.calls_in)}, {"piece", piece}},
        {{"seconds", patience * rules_.unfinished_s}, {"piece", double(rules_.unfinished_piece)}});
  return std::nullopt;
}

// ---- deciding ----

bool Engine::spend(std::deque<int64_t>& spent, uint32_t most, int64_t now_ns) {
  while (!spent.empty() && now_ns - spent.front() > kMinute) spent.pop_front();
  if (spent.size() >= most) return false;
  spent.push_back(now_ns);
  return true;
}

void Engine::block(Tally& t, Decision d, int64_t now_ns, std::vector<Decision>& out) {
  d.act = Act::block;
  d.peer = {t.address, 0};
  if (!within_share(t.all, now_ns))
    return hold_back(std::move(d), &t.peer->held_back_ns, now_ns, out);
  if (!spend(blocks_, rules_.blocks_per_minute, now_ns)) return;
  count_cut(t.all, now_ns);
  last_cut_ns_ = now_ns;
  const uint64_t ttl = uint64_t{rules_.ttl_s} << std::min(t.peer->blocks, 16u);
  d.ttl_s = static_cast<uint32_t>(std::min<uint64_t>(ttl, rules_.ttl_max_s));
  ++t.peer->blocks;
  t.peer->last_block_ns = now_ns;
  t.peer->quiet_until_ns = t.peer->blocked_until_ns = now_ns + int64_t{d.ttl_s} * kSecond;
  out.push_back(std::move(d));
}

// Of idle connections only as many count as the peer had before its first cap: nobody raises a cap
// by filling it with those.
uint32_t Engine::counted(const Tally& t) {
  return t.productive + t.known + t.at_work + std::min(t.unused, t.peer->unused);
}

bool Engine::nearly_full(const Tally& t) {
  return t.connections + t.peer->room / kRoomPart >= t.peer->cap;
}

// `cut`: so many of its idle connections are about to be closed. Dead ones do not count at all, nor
// does who has just come: for those is the room.
void Engine::cap(Tally& t, size_t cut, Decision d, int64_t now_ns, std::vector<Decision>& out) {
  Peer& p = *t.peer;
  if (p.quiet_until_ns > now_ns) return;
  auto room = std::max(rules_.keep, static_cast<uint32_t>(taken_ / kRoomPart));
  d.act = Act::cap;
  d.peer = {t.address, 0};
  if (p.cap_until_ns <= now_ns) {
    p.unused = std::max(t.unused, usual_of(p));
    p.most_room = room * kMostGrowth;
  } else {  // what it had room for was too much
    p.most_room = std::max(rules_.keep, p.room - p.room / kRoomPart);
    room = std::min(room, p.most_room);
  }
  d.value = counted(t) + room;
  d.value -= std::min<uint64_t>(cut, counted(t));
  d.ttl_s = rules_.ttl_s;
  p.quiet_until_ns = now_ns + (dry_run_ ? int64_t{d.ttl_s} * kSecond : kTakesEffect);
  p.cap = static_cast<uint32_t>(d.value);
  p.room = room;
  p.room_ns = now_ns;
  p.cap_rule = d.rule;
  p.cap_until_ns = now_ns + int64_t{d.ttl_s} * kSecond;
  out.push_back(std::move(d));
}

// A cap that was set when fewer connections got things done would keep out who is new. And whoever
// is new has to be let in to get something done: as many as do no harm.
void Engine::raise_cap(Tally& t, bool served, int64_t now_ns, std::vector<Decision>& out) {
  Peer& p = *t.peer;
  const uint32_t now_has = counted(t);
  if (served && p.mixed_until_ns > now_ns && nearly_full(t) && p.room < p.most_room &&
      now_ns - p.room_ns >= kRoomGrows) {
    p.room = std::min(p.room + p.room / kRoomPart + 1, p.most_room);
    p.room_ns = now_ns;
  } else if (now_has + p.room / kFreePart <= p.cap) {
    return;
  }
  if (now_has + p.room <= p.cap) return;
  Decision d;
  d.act = Act::cap;
  d.rule = p.cap_rule;
  d.peer = {t.address, 0};
  d.value = now_has + p.room;
  d.ttl_s = static_cast<uint32_t>((p.cap_until_ns - now_ns + kSecond - 1) / kSecond);
  d.measured = {{"connections", double(t.connections)}, {"productive", double(t.productive)}};
  d.limits = {{"connections", double(p.cap)}};
  p.cap = static_cast<uint32_t>(d.value);
  out.push_back(std::move(d));
}

bool Engine::judged(const Connection& c, int64_t now_ns) const {
  return c.judged_ns != 0 && (dry_run_ || now_ns - c.judged_ns < kTakesEffect);
}

void Engine::close(Connection& c, Peer& p, Decision d, bool doubtful, int64_t now_ns,
                   std::vector<Decision>& out) {
  if (judged(c, now_ns)) return;
  d.act = Act::close;
  d.socket = c.sample().socket;
  d.peer = c.sample().remote;
  d.ttl_s = 0;
  Connection* const one[] = {&c};
  if (!within_share(one, now_ns)) return hold_back(std::move(d), &c.held_back_ns, now_ns, out);
  if (doubtful && !spend(doubtful_, rules_.doubtful_per_minute, now_ns)) return;
  count_cut(one, now_ns);
  c.judged_ns = last_cut_ns_ = now_ns;
  p.cuts.push_back(now_ns);
  if (p.cuts.size() > std::max(1u, rules_.repeat_cuts)) p.cuts.pop_front();
  out.push_back(std::move(d));
}

void Engine::released() {
  for (auto& [key, p] : peers_) p.quiet_until_ns = p.blocked_until_ns = p.cap_until_ns = 0;
}

void Engine::result(const Decision& d, uint32_t status, int64_t now_ns) {
  if (status == 0) return;
  const auto peer = peers_.find(key_of(d.peer.address));
  if (d.act == Act::close || peer == peers_.end()) return;
  // It is not in force: what the peer does is still to be judged one by one.
  peer->second.blocked_until_ns = 0;
  if (d.act == Act::cap) peer->second.cap_until_ns = 0;
  peer->second.quiet_until_ns = now_ns + kTakesEffect;
  if (d.act == Act::block && peer->second.blocks > 0) --peer->second.blocks;
}

}  // namespace mw::guard
