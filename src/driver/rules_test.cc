// Rules with a clock of the test's own.
#include "driver/rules.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

using netflow::Feature;

netflow::Address peer(uint8_t last) {
  netflow::Address a;
  a.bytes = {192, 0, 2, last};
  return a;
}

Rules::Change about_peer(Feature name, uint8_t last, uint64_t value, uint64_t before = 0) {
  Rules::Change c;
  c.subject = {static_cast<uint16_t>(name), netflow::kRequestByPeer, {}};
  c.subject.identity[0] = last;
  c.peer.address = peer(last);
  c.before = {before, 0};
  c.now = {value, 0};
  return c;
}

Rules::Change about_socket(Feature name, int64_t socket, uint64_t value) {
  Rules::Change c = about_peer(name, 7, value);
  c.subject.flags = netflow::kRequestBySocket;
  c.subject.identity[1] = static_cast<uint8_t>(socket);
  c.socket = socket;
  return c;
}

const netflow::Rule& ended(const Rules& rules, uint32_t id) {
  static netflow::Rule found;
  found = {};
  rules.each([id](const netflow::Rule& r) {
    if (r.id == id && r.state != netflow::kRuleInForce) found = r;
  });
  return found;
}

TEST(Rules, UndoPutsBackWhatWasBefore) {
  Rules rules;
  const uint32_t id = rules.add(about_peer(Feature::peer_cap, 1, 5, 9), 1000, 1);
  ASSERT_NE(rules.in_force(id), nullptr);
  const auto back = rules.end(id, netflow::kRuleUndone, 2);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->from.value0, 5u);
  EXPECT_EQ(back->to.value0, 9u);
  EXPECT_EQ(rules.in_force(), 0u);
  EXPECT_EQ(ended(rules, id).state, netflow::kRuleUndone);
  EXPECT_FALSE(rules.end(id, netflow::kRuleUndone, 3));
}

TEST(Rules, WhicheverEndsFirstTheOtherHolds) {
  for (const bool older_first : {true, false}) {
    Rules rules;
    const uint32_t older = rules.add(about_socket(Feature::pacing, 3, 1000), 0, 1);
    const uint32_t newer = rules.add(about_socket(Feature::pacing, 3, 2000), 0, 2);
    const auto first = rules.end(older_first ? older : newer, netflow::kRuleExpired, 3);
    EXPECT_EQ(first.has_value(), !older_first);
    if (first) {
      EXPECT_EQ(first->to.value0, 1000u);
    }
    const auto second = rules.end(older_first ? newer : older, netflow::kRuleExpired, 4);
    ASSERT_TRUE(second);
    EXPECT_EQ(second->from.value0, older_first ? 2000u : 1000u);
    EXPECT_EQ(second->to.value0, 0u);
  }
}

TEST(Rules, ATimeToLiveAndAConnectionsEndMakeItDue) {
  Rules rules;
  EXPECT_FALSE(rules.next_due_ms());
  auto c = about_peer(Feature::address_block, 1, 1);
  c.ttl_s = 10;
  const uint32_t timed = rules.add(c, 1000, 5'000'000'000);
  EXPECT_EQ(rules.in_force(timed)->until.seconds, 15u);
  c = about_peer(Feature::address_block, 2, 1);
  c.bound_to = 77;
  const uint32_t bound = rules.add(c, 1000, 1);
  EXPECT_EQ(rules.next_due_ms(), 11'000);
  EXPECT_TRUE(rules.due(10'999).empty());
  EXPECT_EQ(rules.due(11'000), std::vector{timed});
  rules.connection_gone(76);
  EXPECT_TRUE(rules.due(10'999).empty());
  rules.connection_gone(77);
  EXPECT_EQ(rules.due(10'999), std::vector{bound});
  EXPECT_TRUE(rules.end(bound, netflow::kRuleUndone, 1));
  EXPECT_TRUE(rules.end(timed, netflow::kRuleExpired, 1));
  EXPECT_FALSE(rules.next_due_ms());
}

TEST(Rules, WhatMakesThingsAsTheyWereEndsAllRulesAboutThem) {
  Rules rules;
  auto c = about_peer(Feature::address_block, 1, 1);
  const uint32_t first = rules.add(c, 0, 1);
  c.before = {1, 0};
  const uint32_t second = rules.add(c, 0, 1);
  c.now = {0, 0};
  const uint32_t unblock = rules.add(c, 0, 2);
  EXPECT_EQ(rules.in_force(), 0u);
  EXPECT_EQ(ended(rules, first).state, netflow::kRuleUndone);
  EXPECT_EQ(ended(rules, second).state, netflow::kRuleUndone);
  EXPECT_EQ(ended(rules, unblock).state, netflow::kRuleDone);
  // For a while only: then it is blocked again.
  const uint32_t block = rules.add(about_peer(Feature::address_block, 1, 1), 0, 3);
  c.ttl_s = 1;
  const uint32_t respite = rules.add(c, 0, 3);
  const auto back = rules.end(respite, netflow::kRuleExpired, 4);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->to.value0, 1u);
  EXPECT_NE(rules.in_force(block), nullptr);
}

TEST(Rules, ThoseOfASocketEndWithIt) {
  Rules rules;
  const uint32_t a = rules.add(about_socket(Feature::pause, 3, 1), 0, 1);
  const uint32_t b = rules.add(about_socket(Feature::pacing, 3, 1000), 0, 1);
  const uint32_t other = rules.add(about_socket(Feature::pause, 4, 1), 0, 1);
  EXPECT_TRUE(rules.about_sockets());
  rules.socket_gone(3, 9);
  EXPECT_EQ(ended(rules, a).state, netflow::kRuleSocketGone);
  EXPECT_EQ(ended(rules, b).state, netflow::kRuleSocketGone);
  EXPECT_NE(rules.in_force(other), nullptr);
  rules.socket_gone(4, 9);
  EXPECT_FALSE(rules.about_sockets());
}

TEST(Rules, WhatIsAgainstAPeer) {
  Rules rules;
  const uint32_t block = rules.add(about_peer(Feature::address_block, 7, 1), 0, 1);
  const uint32_t pause = rules.add(about_socket(Feature::pause, 3, 1), 0, 1);
  rules.add(about_socket(Feature::sndbuf, 3, 4096), 0, 1);
  rules.add(about_peer(Feature::allow, 7, 1), 0, 1);
  rules.add(about_peer(Feature::address_block, 8, 1), 0, 1);
  EXPECT_EQ(rules.against(peer(7)), (std::vector{block, pause}));
}

TEST(Rules, ACutConnectionCountsForTheRuleThatCutIt) {
  Rules rules;
  Rules::Change all;
  all.subject.name = static_cast<uint16_t>(Feature::min_rate_in);
  all.now = {500, 20};
  const uint32_t of_all = rules.add(all, 0, 1);
  const uint32_t own = rules.add(about_socket(Feature::min_rate_in, 3, 1000), 0, 1);
  rules.hit(Feature::min_rate_in, 3);
  rules.hit(Feature::min_rate_in, 4);
  rules.hit(Feature::min_rate_in, 5);
  rules.hit(Feature::min_rate_out, 3);
  EXPECT_EQ(rules.in_force(own)->hits, 1u);
  EXPECT_EQ(rules.in_force(of_all)->hits, 2u);
}

TEST(Rules, AnActIsRememberedAndHistoryIsBounded) {
  Rules rules;
  auto c = about_socket(Feature::is_open, 3, 0);
  c.act = true;
  const uint32_t first = rules.add(c, 0, 1);
  EXPECT_TRUE(rules.was_act(first));
  EXPECT_EQ(rules.in_force(), 0u);
  for (size_t k = 0; k < Rules::kHistory; ++k) rules.add(c, 0, 1);
  EXPECT_FALSE(rules.was_act(first));
  size_t seen = 0;
  rules.each([&seen](const netflow::Rule&) { ++seen; });
  EXPECT_EQ(seen, Rules::kHistory);
}

TEST(Rules, ThereIsABound) {
  Rules rules;
  uint32_t first = 0;
  for (uint64_t k = 0; k < Rules::kMaxDepth; ++k) {
    const uint32_t id = rules.add(about_socket(Feature::pacing, 3, 1000 + k), 0, 1);
    if (k == 0) first = id;
  }
  rules.add(about_socket(Feature::pacing, 3, 5000), 0, 1);
  EXPECT_EQ(rules.in_force(), Rules::kMaxDepth);
  EXPECT_EQ(ended(rules, first).state, netflow::kRuleUndone);
  rules.socket_gone(3, 1);
  for (uint32_t k = 0; rules.room(); ++k) {
    auto c = about_peer(Feature::address_block, 1, 1);
    std::copy_n(reinterpret_cast<const uint8_t*>(&k), sizeof k, c.subject.identity.begin());
    rules.add(c, 0, 1);
    ASSERT_LE(k, Rules::kMaxInForce);
  }
  EXPECT_EQ(rules.in_force(), Rules::kMaxInForce);
}

}  // namespace
}  // namespace mw
