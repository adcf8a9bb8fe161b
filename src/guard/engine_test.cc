// Each rule is met by what it is for, and not by those who look like it.
#include "guard/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <set>

#include "netflow/address.h"

namespace mw::guard {
namespace {

using netflow::kNever;
using netflow::Round;
using netflow::Sample;

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMs;

// A connection of a made-up world; its members are what the next sample shows.
struct Client {
  int64_t begun = 0;
  int64_t last_in = -1, first_in = -1, last_out = -1, first_out = -1;
  Sample s;

  void sends(uint32_t bytes, int64_t now, bool read = true) {
    s.bytes_received += bytes;
    s.last_data_recv = 0;
    if (!read) {
      s.unread += bytes;
      return;
    }
    s.bytes_in += bytes;
    ++s.calls_in;
    last_in = now;
    if (first_in < 0) first_in = now;
  }
  void is_sent(uint32_t bytes, int64_t now) {  // by the application
    s.bytes_out += bytes;
    ++s.calls_out;
    s.unsent += bytes;
    s.notsent = s.unsent;
    last_out = now;
    if (first_out < 0) first_out = now;
  }
  void takes(uint32_t bytes) {
    const uint32_t n = std::min(bytes, s.unsent);
    s.bytes_acked += n;
    s.unsent -= n;
    s.notsent = s.unsent;
  }
};

class Browsers;

class World : public ::testing::Test {
 protected:
  friend class Browsers;
  World() { make(); }
  void make() { engine_ = std::make_unique<Engine>(rules_, dry_run_); }

  Client& connect(const std::string& address) {
    const uint32_t number = ++made_;
    Client& c = clients_[netflow::encode({1, number})];
    c.begun = now_;
    c.s.socket = netflow::encode({1, number});
    c.s.flags = netflow::kSampleInbound | netflow::kSampleTcp;
    c.s.remote = {*netflow::parse_address(address), static_cast<uint16_t>(number)};
    c.s.rtt_us = 1'000;
    c.s.snd_wnd = 65'535;
    c.s.waiting_threads = 1;
    return c;
  }
  uint32_t age(int64_t when) const {
    return when < 0 ? kNever : static_cast<uint32_t>((now_ - when) / kMs);
  }
  // Time passes: a round every 250 ms, before which `act` is called.
  std::vector<Decision> pass(
      double seconds, Service service, const std::function<void()>& act = [] {}) {
    std::vector<Decision> all;
    for (int64_t end = now_ + static_cast<int64_t>(seconds * 1e9); now_ < end;) {
      now_ += 250 * kMs;
      act();
      std::vector<Sample> samples;
      for (auto& [id, c] : clients_) {
        c.s.mono_ns = static_cast<uint64_t>(now_);
        c.s.age = age(c.begun);
        c.s.first_in = age(c.first_in);
        c.s.last_in = age(c.last_in);
        c.s.first_out = age(c.first_out);
        c.s.last_out = age(c.last_out);
        if (c.s.waiting_threads > 0) c.s.worker_us += 250'000;
        samples.push_back(c.s);
        c.s.last_data_recv += 250;
      }
      if (queue_ > 0) {
        Sample listener;
        listener.socket = netflow::encode({1, 0xffff});
        listener.flags = netflow::kSampleTcp | netflow::kSampleListener;
        listener.queue = queue_;
        samples.push_back(listener);
      }
      Round round;
      round.mono_ns = static_cast<uint64_t>(now_);
      round.sockets = static_cast<uint32_t>(samples.size());
      engine_->observe(samples, round);
      for (Decision& d : engine_->decide(now_, service)) {
        engine_->result(d, 0, now_);
        if (obeys_) obey(d);
        all.push_back(std::move(d));
      }
    }
    return all;
  }
  // What the session does when it is told to.
  void obey(const Decision& d) {
    const std::string address = netflow::to_string(d.peer.address);
    if (d.act == Act::close) clients_.erase(d.socket);
    if (d.act == Act::cap) caps_[address] = d.value;
    if (d.act != Act::block) return;
    caps_[address] = 0;
    std::erase_if(clients_, [&](const auto& one) { return address_of(one.second) == address; });
  }
  static std::string address_of(const Client& c) { return netflow::to_string(c.s.remote.address); }
  size_t connections_of(const std::string& address) const {
    const auto wanted = *netflow::parse_address(address);
    return static_cast<size_t>(
        std::count_if(clients_.begin(), clients_.end(),
                      [&](const auto& one) { return one.second.s.remote.address == wanted; }));
  }
  // As connect(), unless a cap or a block refuses it.
  Client* try_connect(const std::string& address) {
    const auto cap = caps_.find(address);
    if (cap != caps_.end() && connections_of(address) >= cap->second) return nullptr;
    return &connect(address);
  }
  // The rules that were broken, each once, in the order of the alphabet.
  static std::string rules_of(const std::vector<Decision>& decisions) {
    std::set<std::string> names;
    for (const Decision& d : decisions) names.insert(std::string(to_string(d.act)) + " " + d.rule);
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    return all;
  }
  static double value(const std::vector<Value>& values, const std::string& name) {
    for (const Value& v : values)
      if (v.name == name) return v.value;
    ADD_FAILURE() << "no value " << name;
    return -1;
  }
  // An exchange that the application and the peer complete at once.
  void whole_exchange(Client& c) {
    c.sends(300, now_);
    c.is_sent(10'000, now_);
    c.takes(10'000);
    c.s.waiting_threads = 0;
  }

  Rules rules_;
  bool dry_run_ = false;
  bool obeys_ = false;  // what is decided is done
  uint32_t queue_ = 0;  // connections that wait to be accepted
  uint32_t made_ = 0;
  std::map<std::string, uint64_t> caps_;
  int64_t now_ = 1'000 * kSecond;
  std::map<int64_t, Client> clients_;
  std::unique_ptr<Engine> engine_;
};

constexpr const char* kEvil = "203.0.113.9";
constexpr const char* kHonest = "198.51.100.7";

// ---- minimum rate in ----

TEST_F(World, ARequestThatTricklesIsCutWithWhatWasMeasured) {
  Client& c = connect(kEvil);
  c.sends(200, now_);
  const auto found = pass(13, Service::degraded, [&] {
    if (now_ / kSecond % 5 == 0) c.sends(1, now_);
  });
  ASSERT_EQ(rules_of(found), "close slow-request");
  const Decision& d = found.front();
  EXPECT_EQ(d.socket, c.s.socket);
  EXPECT_EQ(d.peer, c.s.remote);
  EXPECT_GT(value(d.measured, "seconds"), 10);
  EXPECT_LT(value(d.measured, "seconds"), 12);
  EXPECT_EQ(value(d.limits, "min_rate"), 240);
  EXPECT_EQ(value(d.limits, "grace_s"), 10);
  EXPECT_NE(reason_of(d).find("slow-request: seconds "), std::string::npos) << reason_of(d);
}

TEST_F(World, WhileNobodyIsServedTheGraceIsShorter) {
  connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(5, Service::denied)), "");
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "close slow-request");
}

TEST_F(World, NothingIsDoneWhileTheServiceIsServedUnlessAlways) {
  connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(30, Service::served)), "");
  rules_.always = true;
  make();
  EXPECT_EQ(rules_of(pass(30, Service::served)), "close slow-request");
}

TEST_F(World, AOneBytePostIsCutAlthoughEachByteIsFresh) {
  Client& c = connect(kEvil);
  c.sends(300, now_);
  int64_t next = now_ + 2 * kSecond;
  const auto found = pass(14, Service::degraded, [&] {
    if (now_ < next) return;
    c.sends(1, now_);
    next += 2 * kSecond;
  });
  EXPECT_EQ(rules_of(found), "close slow-request");
}

TEST_F(World, APhoneOnABadLinkThatFinishesIsLeftAlone) {
  for (int round = 0; round < 5; ++round) {
    Client& c = connect(kHonest);
    c.s.rtt_us = 400'000;
    for (int piece = 0; piece < 8; ++piece) {
      c.sends(40, now_);
      c.s.total_retrans += piece % 3 == 0;
      EXPECT_EQ(rules_of(pass(0.75, Service::denied)), "");
    }
    c.is_sent(10'000, now_);
    for (int part = 0; part < 10; ++part) {
      c.takes(1'000);
      EXPECT_EQ(rules_of(pass(0.5, Service::denied)), "");
    }
    c.s.waiting_threads = 0;
  }
}

TEST_F(World, AVerySlowPhoneOnABadLinkHasMoreTime) {
  Client& c = connect(kHonest);
  c.s.rtt_us = 600'000;
  EXPECT_EQ(rules_of(pass(14, Service::denied, [&] { c.sends(5, now_); })), "");
  clients_.clear();
  Client& same_on_a_good_link = connect(kEvil);
  EXPECT_EQ(rules_of(pass(9, Service::denied, [&] { same_on_a_good_link.sends(5, now_); })),
            "close slow-request");
}

TEST_F(World, ASlowUploadIsLeftAlone) {
  Client& c = connect(kHonest);
  c.sends(300, now_);
  EXPECT_EQ(rules_of(pass(120, Service::denied, [&] { c.sends(500, now_); })), "");
}

TEST_F(World, WhatTheApplicationHasNotReadIsNotThePeersFault) {
  for (int k = 0; k < 50; ++k) {
    Client& c = connect(kHonest);
    c.sends(300, now_, false);
    c.s.waiting_threads = 0;
  }
  EXPECT_EQ(rules_of(pass(60, Service::denied)), "");
}

TEST_F(World, AnApplicationThatThinksIsNotThePeersFault) {
  for (int k = 0; k < 50; ++k) {
    Client& c = connect(kHonest);
    c.sends(300, now_);
    c.s.waiting_threads = 0;  // it waits for its database
  }
  EXPECT_EQ(rules_of(pass(55, Service::denied)), "");
}

TEST_F(World, AnEventDrivenServersPeerIsJudgedByItsPieces) {
  Client& c = connect(kEvil);
  c.s.waiting_threads = 0;
  int64_t next = now_;
  const auto found = pass(14, Service::degraded, [&] {
    if (now_ < next) return;
    c.sends(20, now_);
    next += 4 * kSecond;
  });
  EXPECT_EQ(rules_of(found), "close slow-request");
}

TEST_F(World, TimeInWhichTheStackStoodStillCountsAgainstNobody) {
  Client& c = connect(kHonest);
  c.sends(300, now_);
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "");
  now_ += 30 * kSecond;
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "");
}

// ---- unfinished first request ----

TEST_F(World, AFirstRequestInTinyPiecesIsCutEvenAboveTheRate) {
  Client& c = connect(kEvil);
  const auto found = pass(33, Service::degraded, [&] { c.sends(70, now_); });  // 280 B/s
  ASSERT_EQ(rules_of(found), "close unfinished-request");
  EXPECT_EQ(value(found.front().measured, "piece"), 70);
  EXPECT_EQ(value(found.front().limits, "piece"), 100);
}

// ---- minimum rate out, closed windows ----

TEST_F(World, AWindowThatStaysClosedIsCut) {
  Client& c = connect(kEvil);
  c.sends(200, now_);
  c.is_sent(8'000'000, now_);
  c.takes(2'000);
  c.s.snd_wnd = 0;
  EXPECT_EQ(rules_of(pass(9, Service::degraded)), "");
  const auto found = pass(3, Service::degraded);
  ASSERT_EQ(rules_of(found), "close closed-window");
  EXPECT_GT(value(found.front().measured, "closed_s"), 10);
  EXPECT_EQ(value(found.front().measured, "window"), 0);
  EXPECT_EQ(value(found.front().limits, "closed_s"), 10);
}

TEST_F(World, ASlowReaderIsCutHoweverOftenItTakesALittle) {
  Client& c = connect(kEvil);
  c.sends(200, now_);
  c.is_sent(8'000'000, now_);
  c.s.snd_wnd = 30'000;  // never closed
  const auto found = pass(20, Service::degraded, [&] { c.takes(5); });
  ASSERT_EQ(rules_of(found), "close slow-answer");
  EXPECT_EQ(value(found.front().limits, "min_rate"), 240);
}

TEST_F(World, ASlowDownloadIsLeftAlone) {
  Client& c = connect(kHonest);
  c.sends(200, now_);
  c.is_sent(4'000'000, now_);
  int turn = 0;
  EXPECT_EQ(rules_of(pass(60, Service::denied,
                          [&] {
                            c.s.snd_wnd = ++turn % 2 == 0
                                              ? 0
                                              : 8'000;  // its window is closed again and again
                            if (turn % 2 == 0) c.takes(6'000);
                          })),
            "");
}

TEST_F(World, AVideoThatIsPausedIsLeftAloneForAMinute) {
  Client& c = connect(kHonest);
  c.sends(200, now_);
  c.is_sent(50'000'000, now_);
  EXPECT_EQ(rules_of(pass(10, Service::denied, [&] { c.takes(250'000); })), "");
  c.s.snd_wnd = 0;
  EXPECT_EQ(rules_of(pass(55, Service::denied)), "");
  EXPECT_EQ(rules_of(pass(10, Service::denied)), "close closed-window");
}

TEST_F(World, ALaptopThatIsSuspendedIsLeftAlone) {
  Client& c = connect(kHonest);
  c.sends(200, now_);
  c.is_sent(4'000'000, now_);
  pass(2, Service::denied, [&] { c.takes(20'000); });
  c.s.unacked = 10;
  c.s.backoff = 3;
  EXPECT_EQ(rules_of(pass(25, Service::denied,
                          [&] {
                            c.s.last_ack_recv += 250;
                            c.s.total_retrans += 1;
                          })),
            "");
}

// ---- idle connections ----

TEST_F(World, AHoardOfIdleConnectionsIsCappedAndTheLongestIdleGoFirst) {
  queue_ = 3;
  std::vector<int64_t> order;
  for (int k = 0; k < 60; ++k) {
    Client& c = connect(kEvil);
    whole_exchange(c);
    order.push_back(c.s.socket);
    pass(0.25, Service::served);
  }
  const auto found = pass(1.5, Service::degraded);
  ASSERT_EQ(rules_of(found), "cap idle, close idle");
  ASSERT_EQ(found.front().act, Act::cap);
  // 58 have been idle for a second and 10 may stay; a quarter of 60 may come.
  EXPECT_EQ(found.front().value, 60u - 48 + 15);
  EXPECT_EQ(found.front().ttl_s, 60u);
  ASSERT_GE(found.size(), 40u);
  for (size_t k = 1; k < 20; ++k) EXPECT_EQ(found[k].socket, order[k - 1]);
}

TEST_F(World, IdleBrowsersAreLeftAlone) {
  for (int person = 1; person <= 40; ++person) {
    for (int k = 0; k < 6; ++k) {
      Client& c = connect("198.51.100." + std::to_string(person));
      pass(0, Service::served);
      whole_exchange(c);
    }
  }
  EXPECT_EQ(rules_of(pass(60, Service::denied)), "");
}

// ---- many connections of one peer ----

TEST_F(World, ACrowdThatHoldsThreadsIsBlockedWithinASecond) {
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  const auto found = pass(1, Service::degraded);
  ASSERT_EQ(rules_of(found), "block crowd");
  EXPECT_EQ(found.size(), 1u);
  EXPECT_EQ(netflow::to_string(found.front().peer.address), kEvil);
  EXPECT_EQ(found.front().ttl_s, 60u);
  EXPECT_EQ(value(found.front().measured, "still"), 100);
  EXPECT_EQ(value(found.front().limits, "still"), 20);
}

TEST_F(World, ACrowdBehindClosedWindowsIsBlockedWithoutAnyThread) {
  for (int k = 0; k < 100; ++k) {
    Client& c = connect(kEvil);
    c.sends(200, now_);
    c.is_sent(300'000, now_);
    c.takes(1'000);
    c.s.snd_wnd = 300;
    c.s.waiting_threads = 0;
  }
  EXPECT_EQ(rules_of(pass(1, Service::degraded)), "block crowd");
}

TEST_F(World, AnOfficeBehindOneAddressThatGetsThingsDoneIsNotBlocked) {
  for (int k = 0; k < 30; ++k) connect(kHonest).sends(500, now_);
  const auto found = pass(4, Service::denied, [&] {
    for (auto& [id, c] : clients_) c.sends(500, now_);  // uploads
  });
  EXPECT_EQ(rules_of(found), "");
}

TEST_F(World, AMixedPeerIsCappedAndOnlyItsIdlersAreCut) {
  for (int k = 0; k < 40; ++k) connect(kHonest).sends(200, now_);
  std::set<int64_t> good;
  for (int k = 0; k < 20; ++k) good.insert(connect(kHonest).s.socket);
  const auto work = [&] {
    for (const int64_t id : good) clients_[id].sends(1'000, now_);
  };
  pass(2, Service::served, work);
  const auto found = pass(2, Service::degraded, work);
  EXPECT_EQ(rules_of(found), "cap crowd, close crowd");
  for (const Decision& d : found) EXPECT_EQ(good.count(d.socket), 0u);
}

TEST_F(World, ASharedAddressIsJudgedOneConnectionAtATime) {
  rules_.shared = {*parse_network("203.0.113.0/24")};
  make();
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(5, Service::denied)), "");
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "close slow-request");
}

TEST_F(World, TheAllowListWins) {
  rules_.allow = {*parse_network("203.0.113.0/24")};
  make();
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  for (int k = 0; k < 100; ++k) {
    Client& c = connect("192.0.2.1");
    c.sends(200, now_);
    c.s.flags |= netflow::kSampleAllowed;  // the session's own list
  }
  EXPECT_EQ(rules_of(pass(60, Service::denied)), "");
}

TEST_F(World, AManyHandedAttackerIsBlockedWhenItComesBack) {
  int64_t next = 0;
  const auto found = pass(30, Service::denied, [&] {
    if (now_ < next) return;
    next = now_ + 7 * kSecond;
    clients_.clear();
    for (int k = 0; k < 3; ++k) connect(kEvil).sends(200, now_);
    for (auto& [id, c] : clients_) {  // other sockets than before
      c.s.socket = netflow::encode({1, static_cast<uint32_t>(now_ / kMs) + c.s.remote.port});
    }
  });
  EXPECT_EQ(rules_of(found), "block repeat, close slow-request");
}

TEST_F(World, ThreadsThatWaitForOnePeerAreItsWorkerTime) {
  rules_.crowd_connections = rules_.unfinished_s = 0;
  rules_.request.min_rate = rules_.repeat_cuts = 0;
  make();
  for (int k = 0; k < 10; ++k) connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(5, Service::degraded)), "");
  const auto found = pass(3, Service::degraded);
  ASSERT_EQ(rules_of(found), "block worker-time");
  EXPECT_GE(value(found.front().measured, "worker_s"), 60);
  EXPECT_EQ(value(found.front().measured, "share_percent"), 100);
}

TEST_F(World, EachRuleCanBeTurnedOff) {
  const RulesReading off = parse_rules(
      "request.min_rate=0\nanswer.min_rate=0\nunfinished.after_s=0\nclosed_window.after_s=0\n"
      "crowd.connections=0\nidle.connections=0\nworker_time.after_s=0\nrepeat.cuts=0\n");
  ASSERT_TRUE(off.faults.empty());
  rules_ = off.rules;
  make();
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(100, Service::denied)), "");
}

// ---- many people behind one address ----

// People with six connections each, which they use when they click, every `pause` seconds, each at
// a moment of its own. A connection that was closed between clicks is made anew, as browsers do.
class Browsers {
 public:
  Browsers(World& world, std::string address, int people, double pause)
      : world_(world), address_(std::move(address)), pause_ns_(static_cast<int64_t>(pause * 1e9)) {
    for (int k = 0; k < people; ++k)
      people_.push_back({world_.now_ + pause_ns_ * k / people, std::vector<int64_t>(6, 0)});
  }
  // What they do in a round.
  void act() {
    for (Person& p : people_) {
      if (world_.now_ < p.next_ns) continue;
      p.next_ns += pause_ns_;
      for (int64_t& id : p.connections) click(id);
    }
  }
  bool owns(int64_t id) const {
    return std::any_of(people_.begin(), people_.end(), [&](const Person& p) {
      return std::find(p.connections.begin(), p.connections.end(), id) != p.connections.end();
    });
  }
  int refused() const { return refused_; }

 private:
  struct Person {
    int64_t next_ns;
    std::vector<int64_t> connections;
  };
  void click(int64_t& id) {
    if (world_.clients_.count(id) == 0) {
      Client* const c = world_.try_connect(address_);
      if (c == nullptr) {
        ++refused_;
        return;
      }
      id = c->s.socket;
    }
    world_.whole_exchange(world_.clients_[id]);
  }
  World& world_;
  std::string address_;
  int64_t pause_ns_;
  std::vector<Person> people_;
  int refused_ = 0;
};

TEST_F(World, SixtyPeopleBehindOneAddressAreNotCappedBecauseOneOfThemIsSlow) {
  obeys_ = true;
  Browsers browsers(*this, kHonest, 60, 10);
  EXPECT_EQ(rules_of(pass(30, Service::served, [&] { browsers.act(); })), "");
  EXPECT_EQ(connections_of(kHonest), 360u);
  const int64_t slow = connect(kHonest).s.socket;
  clients_[slow].sends(200, now_);
  queue_ = 5;
  const auto found = pass(19, Service::denied, [&] { browsers.act(); });
  ASSERT_EQ(rules_of(found), "close slow-request");
  for (const Decision& d : found) EXPECT_EQ(d.socket, slow);
  EXPECT_EQ(browsers.refused(), 0);
}

TEST_F(World, PeopleBehindOneAddressAreNotCappedWhileConnectionsAreNotShort) {
  obeys_ = true;
  Browsers browsers(*this, kHonest, 60, 10);
  pass(3, Service::served, [&] { browsers.act(); });
  EXPECT_EQ(rules_of(pass(60, Service::denied, [&] { browsers.act(); })), "");
}

TEST_F(World, WhoSharesAnAddressWithAnAttackerKeepsWhatGetsThingsDone) {
  obeys_ = true;
  Browsers browsers(*this, kHonest, 60, 10);
  pass(30, Service::served, [&] { browsers.act(); });
  std::set<int64_t> evil;
  // It comes back as fast as it can, in each round.
  const auto attack = [&] {
    while (connections_of(kHonest) < 1000) {
      Client* const c = try_connect(kHonest);
      if (c == nullptr) return;
      evil.insert(c->s.socket);
      c->sends(200, now_);
    }
  };
  attack();
  size_t most = 0;
  size_t rounds = 0;
  const auto found = pass(20, Service::denied, [&] {
    browsers.act();
    attack();
    if (++rounds < 28) return;  // the first cap is of a time when the attack had 640
    most = std::max(most, clients_.size() - 360);
  });
  EXPECT_EQ(rules_of(found), "cap crowd, close crowd");
  for (const Decision& d : found) {
    EXPECT_FALSE(d.act == Act::close && browsers.owns(d.socket)) << reason_of(d);
    EXPECT_FALSE(d.act == Act::cap && d.value < 360u + rules_.keep) << reason_of(d);
  }
  EXPECT_EQ(browsers.refused(), 0);
  EXPECT_EQ(connections_of(kHonest) - std::count_if(evil.begin(), evil.end(),
                                                    [&](int64_t id) { return clients_.count(id); }),
            360u);
  EXPECT_LT(most, 200u);  // of the 640 that it would hold without a cap
}

TEST_F(World, OneConnectionThatWorksIsNoFigLeafForFiveHundredThatDoNot) {
  obeys_ = true;
  Client& leaf = connect(kEvil);
  const int64_t works = leaf.s.socket;
  const auto act = [&] {
    clients_[works].sends(1'000, now_);
    while (clients_.size() < 501) {
      Client* const c = try_connect(kEvil);
      if (c == nullptr) return;
      c->sends(200, now_);
    }
  };
  pass(5, Service::served, act);
  const auto found = pass(3, Service::denied, act);
  EXPECT_EQ(rules_of(found), "cap crowd, close crowd");
  for (const Decision& d : found) EXPECT_NE(d.socket, works);
  EXPECT_LE(caps_[kEvil], 1u + 501 / 4);
  pass(40, Service::denied, act);
  EXPECT_LE(clients_.size(), 40u);  // what one working connection is worth, and some room
  EXPECT_EQ(clients_.count(works), 1u);
}

TEST_F(World, ATrickleOfBytesBehindOneThatWorksIsCutByTheRuleForOne) {
  obeys_ = true;
  const int64_t works = connect(kEvil).s.socket;
  const auto act = [&] {
    for (auto& [id, c] : clients_) c.sends(id == works ? 1'000 : 1, now_);
  };
  pass(2, Service::served, act);
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  const auto found = pass(8, Service::denied, act);
  EXPECT_EQ(rules_of(found), "cap crowd, close slow-request");
  EXPECT_EQ(clients_.size(), 1u);
}

TEST_F(World, OneGoodRequestOnEachConnectionVouchesForSecondsOnly) {
  obeys_ = true;
  for (int k = 0; k < 100; ++k) whole_exchange(connect(kEvil));
  pass(0.5, Service::served);
  for (auto& [id, c] : clients_) {
    c.sends(200, now_);
    c.s.waiting_threads = 1;
  }
  pass(5, Service::degraded);
  EXPECT_EQ(clients_.size(), 0u);
}

TEST_F(World, AnIdleHoardIsNoFigLeafForDeadConnections) {
  obeys_ = true;
  for (int k = 0; k < 200; ++k) whole_exchange(connect(kEvil));
  pass(4, Service::served);
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  pass(2, Service::denied);
  const uint64_t cap = caps_[kEvil];
  EXPECT_EQ(cap, 200u + 300 / 4);
  // It fills the cap with more of them, and keeps a crowd beside: that does not raise it.
  size_t round = 0;
  pass(20, Service::denied, [&] {
    while (Client* const c = try_connect(kEvil)) {
      if (++round % 2 == 0)
        c->sends(200, now_);
      else
        whole_exchange(*c);
    }
  });
  EXPECT_LE(caps_[kEvil], 2 * cap);
  EXPECT_LE(clients_.size(), 2 * cap);
}

TEST_F(World, ConnectionsThatWereKeptForAnAttackAreNotKnownBefore) {
  obeys_ = true;
  for (int k = 0; k < 60; ++k) connect(kEvil);
  int64_t turn = 0;
  pass(90, Service::served, [&] {
    if (++turn % 16 != 1) return;  // a request every 4 s keeps them open
    for (auto& [id, c] : clients_) whole_exchange(c);
  });
  for (auto& [id, c] : clients_) {
    c.sends(200, now_);
    c.s.waiting_threads = 1;
  }
  pass(7, Service::denied);
  EXPECT_EQ(clients_.size(), 0u);
}

TEST_F(World, ACapIsRaisedBeforeThoseWhoGetThingsDoneFillIt) {
  obeys_ = true;
  std::vector<int64_t> good;
  const auto work = [&] {
    for (const int64_t id : good) clients_[id].sends(1'000, now_);
  };
  const auto come = [&](int count) {
    for (int k = 0; k < count; ++k)
      if (Client* const c = try_connect(kHonest)) good.push_back(c->s.socket);
  };
  come(10);
  pass(2, Service::served, work);
  for (int k = 0; k < 30; ++k) connect(kHonest).sends(200, now_);
  EXPECT_EQ(rules_of(pass(2, Service::denied, work)), "cap crowd, close crowd");
  EXPECT_EQ(caps_[kHonest], 10u + 10);
  // Some come every two seconds, also when all is well again: none is refused.
  for (int k = 0; k < 10; ++k) {
    come(4);
    pass(2, k < 3 ? Service::denied : Service::served, work);
  }
  EXPECT_EQ(good.size(), 50u);
  EXPECT_GE(caps_[kHonest], 50u);
}

// Under a cap, with an attacker who takes whatever place there is.
class Attacked : public World {
 protected:
  Attacked() {
    obeys_ = true;
    for (int k = 0; k < 10; ++k) good_.push_back(connect(kHonest).s.socket);
    pass(2, Service::served, [&] { work(); });
    for (int k = 0; k < 90; ++k) connect(kHonest).sends(200, now_);
    pass(2, Service::denied, [&] { work(); });
    first_ = caps_[kHonest];
    EXPECT_EQ(first_, 10u + 100 / 4);
  }
  void work() {
    for (const int64_t id : good_) clients_[id].sends(1'000, now_);
  }
  void attack() {
    while (Client* const c = try_connect(kHonest)) c->sends(200, now_);
  }
  std::vector<int64_t> good_;
  uint64_t first_ = 0;
};

TEST_F(Attacked, DeadConnectionsDoNotFillACapWhenClientsAreServedAgain) {
  attack();
  EXPECT_EQ(connections_of(kHonest), first_);
  const auto found = pass(1.5, Service::served, [&] { work(); });
  EXPECT_NE(rules_of(found).find("close crowd"), std::string::npos) << rules_of(found);
  EXPECT_EQ(clients_.size(), good_.size());
  // Nothing is in the way any more, so that nobody has to go.
  for (int k = 0; k < 10; ++k) connect(kHonest).sends(200, now_);
  EXPECT_EQ(rules_of(pass(3, Service::served, [&] { work(); })), "");
}

TEST_F(Attacked, TheRoomGrowsWhileAllIsWellButNotToWhereItWasNot) {
  const auto both = [&] {
    work();
    attack();
  };
  pass(10, Service::served, both);
  const uint64_t grown = caps_[kHonest];
  EXPECT_EQ(grown, 10u + 3 * 25);
  pass(2, Service::denied, both);
  EXPECT_LT(caps_[kHonest], grown);
  pass(30, Service::served, both);
  EXPECT_LT(caps_[kHonest], grown);
  EXPECT_GT(caps_[kHonest], first_);
}

TEST_F(World, APhoneBehindAnAttackedAddressMayGoOnAddingPieces) {
  obeys_ = true;
  for (int k = 0; k < 5; ++k) connect(kHonest);
  const auto work = [&] {
    for (auto& [id, c] : clients_)
      if (c.s.remote.port <= 5) c.sends(1'000, now_);
  };
  pass(2, Service::served, work);
  for (int k = 0; k < 40; ++k) connect(kHonest).sends(200, now_);
  const int64_t phone = connect(kHonest).s.socket;
  pass(4, Service::denied, [&] {
    work();
    if (now_ / (250 * kMs) % 2 == 0) clients_[phone].sends(40, now_);
  });
  EXPECT_EQ(clients_.count(phone), 1u);
  EXPECT_EQ(clients_.size(), 6u);
}

TEST_F(World, ThreadsThatWaitForPeopleBetweenRequestsAreNotHeldAgainstThem) {
  const auto ask = [&](Client& c) {
    c.sends(10, now_);
    c.is_sent(10, now_);
    c.takes(10);
  };
  for (int k = 0; k < 30; ++k) ask(connect(kHonest));  // one thread a connection, all the time
  int64_t turn = 0;
  EXPECT_EQ(rules_of(pass(60, Service::degraded,
                          [&] {
                            ++turn;
                            for (auto& [id, c] : clients_)
                              if (turn % 30 == c.s.remote.port % 30) ask(c);
                          })),
            "");
}

// ---- connections that live long ----

TEST_F(World, EventStreamsAreLeftAlone) {
  queue_ = 5;
  for (int k = 0; k < 30; ++k) whole_exchange(connect(kHonest));
  const auto events = [&] {
    if (now_ / (250 * kMs) % 80 != 0) return;  // every 20 s
    for (auto& [id, c] : clients_) {
      c.is_sent(50, now_);
      c.takes(50);
    }
  };
  pass(70, Service::served, events);
  EXPECT_EQ(rules_of(pass(19, Service::denied, events)), "");
}

TEST_F(World, LongPollsOfAServerWithThreadsAreLeftAlone) {
  Client& elsewhere = connect(kHonest);
  whole_exchange(elsewhere);
  elsewhere.s.waiting_threads = 1;
  pass(1, Service::served);
  for (int k = 0; k < 30; ++k) {
    Client& c = connect(kHonest);
    c.sends(200, now_);
    c.s.waiting_threads = 0;
  }
  EXPECT_EQ(rules_of(pass(120, Service::denied)), "");
}

TEST_F(World, ALongPollThatCameInPiecesIsLeftAlone) {
  Client& c = connect(kHonest);
  for (int piece = 0; piece < 6; ++piece) {
    c.sends(40, now_);
    pass(0.75, Service::denied);
  }
  c.s.waiting_threads = 0;  // the application has all of it
  EXPECT_EQ(rules_of(pass(120, Service::denied)), "");
}

TEST_F(World, MessagesWithoutAnAnswerAreLeftAloneWhenTheyWereThereBefore) {
  for (int k = 0; k < 30; ++k) {
    Client& c = connect(kHonest);
    whole_exchange(c);  // the handshake
    c.s.waiting_threads = 1;
  }
  const auto messages = [&] {
    if (now_ / (250 * kMs) % 40 != 0) return;  // every 10 s
    for (auto& [id, c] : clients_) c.sends(20, now_);
  };
  pass(90, Service::served, messages);
  EXPECT_EQ(rules_of(pass(12, Service::denied, messages)), "");
}

TEST_F(World, AnUploadMayPauseForAsLongAsItHasMoved) {
  obeys_ = true;
  for (int k = 0; k < 25; ++k) connect(kHonest);
  pass(7, Service::denied, [&] {
    for (auto& [id, c] : clients_) c.sends(4'000, now_);
  });
  EXPECT_EQ(rules_of(pass(6, Service::denied)), "");
}

TEST_F(World, AnUploadInTinyPiecesIsLeftAloneIfItsRateIsGood) {
  Client& c = connect(kHonest);
  const auto send = [&] {
    for (int k = 0; k < 25; ++k) c.sends(80, now_);  // 8 kB/s
  };
  EXPECT_EQ(rules_of(pass(120, Service::denied, send)), "");
}

// ---- who goes last ----

TEST_F(World, IdleConnectionsGoOnlyWhileOthersWaitForAConnection) {
  for (int k = 0; k < 60; ++k) whole_exchange(connect(kEvil));
  EXPECT_EQ(rules_of(pass(10, Service::denied)), "");
  queue_ = 1;
  EXPECT_EQ(rules_of(pass(1, Service::denied)), "cap idle, close idle");
}

TEST_F(World, BytesThatNobodyReadsWaitForAConnectionToo) {
  for (int k = 0; k < 60; ++k) whole_exchange(connect(kEvil));
  pass(2, Service::served);
  Client& waits = connect(kHonest);
  waits.sends(300, now_, false);
  waits.s.waiting_threads = 0;
  EXPECT_EQ(rules_of(pass(1, Service::denied)), "cap idle, close idle");
}

TEST_F(World, ThoseWhoWereIdleBeforeGoLastAndAPartAtATime) {
  obeys_ = true;
  for (int k = 0; k < 110; ++k) whole_exchange(connect(kHonest));
  pass(30, Service::served);
  queue_ = 5;
  EXPECT_EQ(rules_of(pass(19, Service::denied)), "");
  const auto found = pass(3, Service::denied);
  EXPECT_EQ(rules_of(found), "cap idle, close idle");
  EXPECT_EQ(clients_.size(), 85u);
  pass(12, Service::denied);
  EXPECT_EQ(clients_.size(), 85u);
}

TEST_F(World, OfTheIdleOnesThoseThatTheServerKeepsUpGoLast) {
  obeys_ = true;
  std::set<int64_t> streams;
  for (int k = 0; k < 10; ++k) streams.insert(connect(kHonest).s.socket);
  for (int k = 0; k < 50; ++k) connect(kHonest);
  for (auto& [id, c] : clients_) whole_exchange(c);
  pass(3, Service::served);
  for (const int64_t id : streams) {
    clients_[id].is_sent(50, now_);
    clients_[id].takes(50);
  }
  pass(3, Service::served);
  queue_ = 5;
  pass(5, Service::denied);
  for (const int64_t id : streams) EXPECT_EQ(clients_.count(id), 1u);
  EXPECT_EQ(clients_.size(), 10u);
}

// ---- against mistakes ----

TEST_F(World, ABlockLastsTwiceAsLongWhenThePeerComesBack) {
  for (int k = 0; k < 30; ++k) connect(kEvil).sends(200, now_);
  std::vector<uint32_t> ttls;
  for (const Decision& d : pass(400, Service::degraded))
    if (d.act == Act::block) ttls.push_back(d.ttl_s);
  EXPECT_EQ(ttls, (std::vector<uint32_t>{60, 120, 240}));
}

TEST_F(World, APeerThatWasServedLatelyIsCutForAHardFloorOnlyAndSoManyAMinute) {
  rules_.repeat_cuts = 0;
  make();
  for (int k = 0; k < 30; ++k) {
    const std::string address = "198.51.100." + std::to_string(k + 1);
    Client& c = connect(address);
    pass(0.25, Service::served);
    whole_exchange(c);
  }
  pass(0.25, Service::served);
  for (int k = 0; k < 30; ++k) connect("198.51.100." + std::to_string(k + 1)).sends(100, now_);
  EXPECT_EQ(rules_of(pass(6, Service::denied)), "");
  const auto found = pass(10, Service::denied);
  EXPECT_EQ(rules_of(found), "close slow-request");
  EXPECT_EQ(found.size(), rules_.doubtful_per_minute);
}

// ---- the cap on the share of connections ----

TEST_F(World, ABlockThatWouldCutMoreThanTheShareIsHeldBackAndToldOnceAMinute) {
  rules_.most_share_percent = 50;
  rules_.request.min_rate = rules_.unfinished_s = 0;
  make();
  for (int k = 0; k < 30; ++k) connect(kEvil).sends(200, now_);
  for (int k = 0; k < 29; ++k) whole_exchange(connect("198.51.100." + std::to_string(k + 1)));
  const auto found = pass(55, Service::denied);
  ASSERT_EQ(rules_of(found), "block crowd");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_TRUE(found.front().held_back);
  EXPECT_EQ(value(found.front().measured, "cut_lately"), 0);
  EXPECT_EQ(value(found.front().measured, "open"), 59);
  EXPECT_EQ(value(found.front().limits, "most_share_percent"), 50);
  EXPECT_EQ(pass(10, Service::denied).size(), 1u);
  // One more honest client, and the attack is no more than half.
  whole_exchange(connect(kHonest));
  const auto then = pass(1, Service::denied);
  ASSERT_EQ(then.size(), 1u);
  EXPECT_FALSE(then.front().held_back);
}

TEST_F(World, WhatWasCutCountsForAMinuteAlthoughItIsGone) {
  rules_.most_share_percent = 20;
  rules_.repeat_cuts = rules_.unfinished_s = rules_.crowd_connections = 0;
  make();
  const auto cut = [](const std::vector<Decision>& found) {
    return std::count_if(found.begin(), found.end(), [](auto& d) { return !d.held_back; });
  };
  for (int k = 0; k < 40; ++k) whole_exchange(connect("198.51.100." + std::to_string(k + 1)));
  std::vector<int64_t> slow;
  for (int k = 0; k < 20; ++k) {
    Client& c = connect("203.0.113." + std::to_string(k + 1));
    c.sends(200, now_);
    slow.push_back(c.s.socket);
  }
  const auto found = pass(7, Service::denied);
  EXPECT_EQ(cut(found), 12);  // a fifth of 60
  EXPECT_EQ(found.size(), 20u);
  for (const Decision& d : found)
    if (!d.held_back) clients_.erase(d.socket);
  EXPECT_EQ(cut(pass(50, Service::denied)), 0);
  // A minute later the eight that are left are less than a fifth of 48.
  EXPECT_EQ(cut(pass(10, Service::denied)), 8);
}

TEST_F(World, WithoutACapAnAttackOfNearlyAllConnectionsIsCut) {
  whole_exchange(connect(kHonest));
  for (int k = 0; k < 1000; ++k) connect(kEvil).sends(200, now_);
  const auto found = pass(1, Service::denied);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_FALSE(found.front().held_back);
}

TEST_F(World, WhatIsOnlyWatchedIsToldOnce) {
  dry_run_ = true;
  make();
  for (int k = 0; k < 100; ++k) connect(kEvil).sends(200, now_);
  Client& lonely = connect("192.0.2.77");
  lonely.sends(200, now_);
  const auto found = pass(50, Service::denied);
  EXPECT_EQ(rules_of(found), "block crowd, close slow-request");
  EXPECT_EQ(found.size(), 2u);
}

TEST_F(World, ABlockThatFailedLeavesItsConnectionsToBeCutOneByOne) {
  for (int k = 0; k < 30; ++k) connect(kEvil).sends(200, now_);
  now_ += 250 * kMs;
  for (const Decision& d : pass(1, Service::denied)) engine_->result(d, EOPNOTSUPP, now_);
  const auto found = pass(5, Service::denied, [&] {});
  EXPECT_NE(rules_of(found).find("close slow-request"), std::string::npos) << rules_of(found);
}

TEST_F(World, WhatEndedWithTheConnectionIsDecidedAgain) {
  for (int k = 0; k < 30; ++k) connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "block crowd");
  EXPECT_EQ(rules_of(pass(2, Service::denied)), "");
  engine_->released();
  EXPECT_EQ(rules_of(pass(1, Service::denied)), "block crowd");
}

TEST_F(World, WhatIsGoneIsForgotten) {
  for (int k = 0; k < 1000; ++k) {
    Client& c = connect("10.0." + std::to_string(k / 250) + "." + std::to_string(k % 250));
    whole_exchange(c);
  }
  pass(1, Service::degraded);
  EXPECT_EQ(engine_->connections(), 1000u);
  clients_.clear();
  pass(200, Service::degraded);
  EXPECT_EQ(engine_->connections(), 0u);
  EXPECT_EQ(engine_->peers(), 0u);
}

TEST_F(World, ACrowdIsKnownInTheRoundInWhichItsTimeIsUpThoughItComesEarly) {
  for (int k = 0; k < 20; ++k) connect(kEvil).sends(200, now_);
  EXPECT_EQ(rules_of(pass(0.5, Service::denied)), "");
  now_ -= 10 * kMs;
  EXPECT_EQ(rules_of(pass(0.25, Service::denied)), "block crowd");
}

TEST_F(World, TroubleIsSeenBeforeAnybodySuffers) {
  connect(kHonest).sends(200, now_);
  pass(2, Service::served);
  EXPECT_FALSE(engine_->suspicious());
  for (int k = 0; k < 10; ++k) connect(kEvil).sends(200, now_);
  pass(0.25, Service::served);
  EXPECT_FALSE(engine_->suspicious());
  pass(0.25, Service::served);
  EXPECT_TRUE(engine_->suspicious());
  EXPECT_FALSE(engine_->pressed());
  pass(0.25, Service::served);
  EXPECT_TRUE(engine_->pressed());
}

TEST_F(World, IdleConnectionsOfOnePeerAreSuspicious) {
  const auto idle_ones = [&](int count, const std::function<std::string(int)>& address) {
    for (int k = 0; k < count; ++k) {
      Client& c = connect(address(k));
      pass(0, Service::served);
      whole_exchange(c);
    }
    pass(0.75, Service::served);
  };
  idle_ones(40, [](int k) { return "198.51.100." + std::to_string(k + 1); });
  EXPECT_FALSE(engine_->suspicious());
  idle_ones(10, [](int) { return kEvil; });
  EXPECT_TRUE(engine_->suspicious());
  EXPECT_FALSE(engine_->pressed());
}

TEST_F(World, APeerThatIsNeverDecidedAboutIsNotSuspicious) {
  rules_.allow = {*parse_network(kEvil)};
  rules_.shared = {*parse_network(kHonest)};
  make();
  for (const char* peer : {kEvil, kHonest})
    for (int k = 0; k < 10; ++k) connect(peer).sends(200, now_);
  pass(0.5, Service::served);
  EXPECT_FALSE(engine_->suspicious());
}

}  // namespace
}  // namespace mw::guard
