#include "kmod/core/rset.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace mw {
namespace {

struct Set {
  explicit Set(uint32_t bits) : memory(mw_ready_set_bytes(bits) / 8) {
    mw_rset_init(&set, memory.data(), bits);
  }
  // One drain of so many steps. True: nothing is left.
  bool drain(uint32_t steps) {
    return mw_rset_drain(
        &set, &taken, steps,
        [](void* all, uint32_t i) { static_cast<std::multiset<uint32_t>*>(all)->insert(i); }, &got);
  }
  std::vector<uint64_t> memory;
  mw_rset set;
  mw_rset_taken taken{};
  std::multiset<uint32_t> got;
};

TEST(KmodRset, DrainsEachMemberOnce) {
  Set s(MW_READY_MAX_BITS);
  const std::multiset<uint32_t> members{0, 63, 64, 4095, 4096, 131071, MW_READY_MAX_BITS - 1};
  for (uint32_t i : members) mw_rset_add(&s.set, i);
  mw_rset_add(&s.set, 63);
  EXPECT_TRUE(s.drain(1000));
  EXPECT_EQ(s.got, members);
  EXPECT_TRUE(s.drain(1));
  EXPECT_EQ(s.got, members);
}

TEST(KmodRset, GoesOnWhereItsStepsEnded) {
  Set s(10000);
  std::multiset<uint32_t> members;
  for (uint32_t i = 0; i < 10000; i += 7) {
    mw_rset_add(&s.set, i);
    members.insert(i);
  }
  size_t before = 0;
  int calls = 1;
  while (!s.drain(64)) {
    ++calls;
    EXPECT_LE(s.got.size() - before, 64u);
    before = s.got.size();
  }
  EXPECT_EQ(s.got, members);
  EXPECT_GT(calls, 10);
}

TEST(KmodRset, TakesWhatIsAddedWhileItDrains) {
  Set s(200);
  for (uint32_t i = 0; i < 100; ++i) mw_rset_add(&s.set, i);
  EXPECT_FALSE(s.drain(20));
  mw_rset_add(&s.set, 3);
  mw_rset_add(&s.set, 150);
  EXPECT_TRUE(s.drain(500));
  EXPECT_EQ(s.got.count(3), 2u);
  EXPECT_EQ(s.got.count(150), 1u);
  EXPECT_EQ(s.got.size(), 102u);
}

TEST(KmodRset, NoStepsAreNoDrain) {
  Set s(64);
  EXPECT_TRUE(s.drain(0));
  mw_rset_add(&s.set, 1);
  EXPECT_FALSE(s.drain(0));
  EXPECT_TRUE(s.got.empty());
}

TEST(KmodRset, IgnoresMembersBeyondItsSize) {
  Set s(100);
  s.set.h->top = ~uint64_t{0};
  for (auto& w : s.set.h->mid) w = ~uint64_t{0};
  s.set.words[0] = s.set.words[1] = ~uint64_t{0};
  s.drain(100000);
  EXPECT_EQ(s.got.size(), 100u);
  EXPECT_EQ(*s.got.rbegin(), 99u);
}

TEST(KmodRset, LiesInUpperLevelsCostSteps) {
  Set s(MW_READY_MAX_BITS);
  s.set.h->top = ~uint64_t{0};
  for (auto& w : s.set.h->mid) w = ~uint64_t{0};
  int calls = 1;
  while (!s.drain(64)) ++calls;
  EXPECT_GE(calls, 64);
  EXPECT_TRUE(s.got.empty());
}

TEST(KmodRset, RingsOnceUntilTheDoorbellWasHeard) {
  Set s(64);
  EXPECT_FALSE(mw_rset_add(&s.set, 1)) << "nobody sleeps";
  mw_rset_stay_asleep(&s.set);
  EXPECT_TRUE(mw_rset_add(&s.set, 2));
  EXPECT_FALSE(mw_rset_add(&s.set, 3));
  mw_rset_on_ring(&s.set);
  EXPECT_TRUE(s.drain(100));
  EXPECT_TRUE(mw_rset_add(&s.set, 4));
}

}  // namespace
}  // namespace mw
