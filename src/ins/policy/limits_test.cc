// Clocks, the wheel of deadlines, and the census of peers, without sockets.
#include "ins/policy/limits.h"

#include <gtest/gtest.h>

#include <vector>

#include "ins/policy/wishes.h"

namespace mw {
namespace {

constexpr int64_t kSecond = RateClock::kSecond;

TEST(RateClock, EveryByteOfTheTurnBuysItsShareOfASecond) {
  RateClock c;
  c.rule = {500, 20};
  EXPECT_FALSE(c.runs());
  c.begin(100 * kSecond, 1'000'000);
  EXPECT_EQ(c.deadline_ns(1'000'000), 120 * kSecond);
  EXPECT_EQ(c.deadline_ns(1'000'001), 120 * kSecond + kSecond / 500);
  EXPECT_EQ(c.deadline_ns(1'001'250), 122 * kSecond + kSecond / 2);
  // No total overflows.
  c.rule = {1, kMaxGraceSeconds};
  EXPECT_GT(c.deadline_ns(UINT64_MAX), c.deadline_ns(1'000'000));
  c.rule = {kMaxMinRate, 0};
  EXPECT_EQ(c.deadline_ns(1'000'000 + kMaxMinRate + kMaxMinRate / 2), 101 * kSecond + kSecond / 2);
}

struct Wheel : testing::Test {
  std::vector<const Limits*> advance(int64_t now) {
    std::vector<const Limits*> due;
    wheel.advance(now, [&](Limits& l) { due.push_back(&l); });
    return due;
  }
  Limits a;
  Limits b;
  TimerWheel wheel;
};

TEST_F(Wheel, EachIsDueAtMostATickTooLateAndNeverTooEarly) {
  for (const int64_t after : {int64_t{1}, TimerWheel::kTickNs, 3 * kSecond, 12 * kSecond}) {
    const int64_t now = 1'000 * kSecond + 7;
    wheel.set(a, now, now + after);
    EXPECT_TRUE(advance(now + after - 1).empty()) << after;
    const int wait = wheel.wait_ms(now + after - 1);
    EXPECT_GT(wait, 0);
    EXPECT_LE(wait, TimerWheel::kTickNs / 1'000'000 + 1);
    EXPECT_EQ(advance(now + after + TimerWheel::kTickNs + 1), std::vector<const Limits*>{&a});
    EXPECT_TRUE(wheel.empty());
    EXPECT_EQ(wheel.wait_ms(now), -1);
  }
}

TEST_F(Wheel, WhatIsFarAwayIsLookedAtOnTheWay) {
  const int64_t now = 5 * kSecond;
  const int64_t due = now + 60 * kSecond;
  wheel.set(a, now, due);
  int looks = 0;
  for (int64_t t = now; !wheel.empty() && looks < 100; t += TimerWheel::kTickNs)
    wheel.advance(t, [&](Limits& l) {
      ++looks;
      if (t < due) wheel.set(l, t, due);
    });
  EXPECT_TRUE(wheel.empty());
  EXPECT_LT(looks, 8);
}

TEST_F(Wheel, WhoeverLeavesIsNotLookedAt) {
  const int64_t now = 5 * kSecond;
  wheel.set(a, now, now + kSecond);
  wheel.set(b, now, now + kSecond);
  wheel.set(a, now, now + kSecond);  // again
  wheel.advance(now + 2 * kSecond, [&](Limits& l) {
    EXPECT_EQ(&l, &a);
    wheel.remove(b);
  });
  EXPECT_TRUE(wheel.empty());
  wheel.remove(a);
  // After a long sleep too.
  wheel.set(b, now, now + kSecond);
  EXPECT_EQ(advance(now + 1'000 * kSecond).size(), 1u);
}

PeerAddress peer(uint8_t last) {
  PeerAddress a;
  a.family = AF_INET;
  a.bytes = {127, 0, 0, last};
  return a;
}

TEST(Wishes, ACensusCountsEveryConnectionOnce) {
  Wishes w;
  EXPECT_EQ(w.admit(peer(1)).census, 0u);  // nobody asked
  w.set_cap(nullptr, 3);
  const uint32_t first = w.count(peer(1));
  EXPECT_NE(first, 0u);
  EXPECT_EQ(w.admit(peer(1)).census, first);
  EXPECT_EQ(w.admit(peer(1)).census, first);
  EXPECT_TRUE(w.admit(peer(1)).refused);
  EXPECT_FALSE(w.admit(peer(2)).refused);
  w.gone(peer(1), first);
  EXPECT_FALSE(w.admit(peer(1)).refused);
  const PeerAddress own = peer(1);
  w.set_cap(&own, 4);
  EXPECT_FALSE(w.admit(peer(1)).refused);
  EXPECT_TRUE(w.admit(peer(1)).refused);
  // One that counted in an earlier census takes nothing away from a later one.
  w.set_cap(&own, 0);
  w.set_cap(nullptr, 0);
  EXPECT_EQ(w.census(), 0u);
  w.set_cap(nullptr, 1);
  EXPECT_NE(w.census(), first);
  EXPECT_FALSE(w.admit(peer(1)).refused);
  w.gone(peer(1), first);
  EXPECT_TRUE(w.admit(peer(1)).refused);
}

TEST(Wishes, TheAllowListBeatsTheOthers) {
  Wishes w;
  w.block(peer(1), true);
  w.set_rate(false, {500, 20});
  w.set_cap(nullptr, 1);
  EXPECT_TRUE(w.admit(peer(1)).refused);
  w.allow(peer(1), true);
  EXPECT_FALSE(w.is_blocked(peer(1)));
  for (int k = 0; k < 3; ++k) {
    const auto a = w.admit(peer(1));
    EXPECT_FALSE(a.refused);
    EXPECT_EQ(a.in.rate, 0u);
  }
  EXPECT_EQ(w.admit(peer(2)).in.rate, 500u);
  w.allow(peer(1), false);
  EXPECT_TRUE(w.is_blocked(peer(1)));
}

}  // namespace
}  // namespace mw
