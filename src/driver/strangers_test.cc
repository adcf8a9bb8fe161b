#include "driver/strangers.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

TEST(Strangers, HaveRoomUntilTheirUserHasItsShare) {
  Strangers s(8);
  for (uint32_t id = 1; id <= s.most_of_user(); ++id) {
    EXPECT_EQ(s.in_the_way_of(1000), 0u);
    s.add(id, 1000, id);
  }
  EXPECT_EQ(s.in_the_way_of(1000), 1u) << "its own oldest";
  EXPECT_EQ(s.in_the_way_of(1001), 0u) << "another user has its own share";
}

TEST(Strangers, OfTooManyTheOldestOfTheLargestUserGoes) {
  Strangers s(8);
  uint32_t id = 0;
  for (const uint32_t uid : {7u, 8u, 8u, 9u, 9u, 9u, 10u, 10u}) s.add(++id, uid, 0);
  EXPECT_EQ(s.in_the_way_of(11), 4u);
  s.remove(4);
  EXPECT_EQ(s.in_the_way_of(11), 0u);
  EXPECT_FALSE(s.contains(4));
  EXPECT_EQ(s.size(), 7u);
}

TEST(Strangers, WhoIsSilentForTooLongGoes) {
  Strangers s;
  EXPECT_EQ(s.overdue(INT64_MAX), 0u);
  s.add(1, 0, 500);
  s.add(2, 0, 600);
  EXPECT_EQ(s.due_ms(), 500 + Strangers::kPatienceMs);
  EXPECT_EQ(s.overdue(s.due_ms() - 1), 0u);
  EXPECT_EQ(s.overdue(s.due_ms()), 1u);
  s.remove(1);
  EXPECT_EQ(s.due_ms(), 600 + Strangers::kPatienceMs);
}

TEST(Strangers, ComeAsFastAsTheyLikeIfTheyComeForSomething) {
  Strangers s;
  for (int i = 0; i < 100'000; ++i) ASSERT_TRUE(s.may_come(1));
}

TEST(Strangers, ThatComeToNothingComeNoFasterThanTheBudget) {
  Strangers s;
  int64_t wasted = 0;
  for (int64_t ms = 1; ms <= 1000; ++ms)
    for (; s.may_come(ms); ++wasted) s.count_wasted();
  EXPECT_LE(wasted, 1000 * Strangers::kWastedPerMs + Strangers::kWastedAtOnce);
  EXPECT_GE(wasted, 999 * Strangers::kWastedPerMs);
  EXPECT_FALSE(s.may_come(1000));
  EXPECT_TRUE(s.may_come(1001));
}

}  // namespace
}  // namespace mw
