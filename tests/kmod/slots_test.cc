#include "kmod/core/slots.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

struct Slots {
  Slots() { mw_slots_init(&slots, entries, shared, 4); }
  // The INS makes a socket in a slot and names it.
  mw_status take(uint32_t slot, uint32_t gen, void* owner) {
    if (slot < 4) shared[slot].gen = gen;
    return mw_slots_take(&slots, slot, gen, owner, &freed);
  }
  mw_slot_entry entries[4];
  mw_slot shared[4]{};
  mw_slots slots;
  uint32_t freed = 0;
  int a = 0, b = 0;
};

TEST(KmodSlots, FindsASocketByItsGeneration) {
  Slots s;
  ASSERT_EQ(s.take(2, 7, &s.a), MW_OK);
  EXPECT_EQ(s.freed, MW_EXT_NONE);
  EXPECT_EQ(mw_slots_find(&s.slots, 2, 7), &s.a);
  EXPECT_EQ(mw_slots_owner(&s.slots, 2), &s.a);
  EXPECT_EQ(mw_slots_find(&s.slots, 2, 8), nullptr);
  EXPECT_EQ(mw_slots_find(&s.slots, 1, 0), nullptr);
  EXPECT_EQ(mw_slots_find(&s.slots, 4, 7), nullptr);
  EXPECT_EQ(mw_slots_owner(&s.slots, 0xffffffff), nullptr);
}

TEST(KmodSlots, RefusesWhatTheInsMayNotName) {
  Slots s;
  EXPECT_EQ(s.take(4, 1, &s.a), MW_PEER);
  EXPECT_EQ(s.take(0xffffffff, 1, &s.a), MW_PEER);
  EXPECT_EQ(s.take(0, 0, &s.a), MW_PEER);
  ASSERT_EQ(s.take(0, 1, &s.a), MW_OK);
  EXPECT_EQ(s.take(0, 2, &s.b), MW_PEER) << "in use";
  EXPECT_EQ(mw_slots_owner(&s.slots, 0), &s.a);
  s.shared[1].gen = 5;
  EXPECT_EQ(mw_slots_take(&s.slots, 1, 6, &s.b, &s.freed), MW_PEER) << "not the slot's own";
  EXPECT_EQ(s.slots.used, 1u);
}

TEST(KmodSlots, IsClosingUntilTheInsFreedIt) {
  Slots s;
  ASSERT_EQ(s.take(1, 9, &s.a), MW_OK);
  ASSERT_EQ(mw_slots_release(&s.slots, 1, 9, 0x402), MW_OK);
  EXPECT_EQ(mw_slots_owner(&s.slots, 1), nullptr);
  EXPECT_FALSE(mw_slots_reap(&s.slots, 1, &s.freed));
  EXPECT_EQ(s.slots.closing, 1u);
  s.shared[1].gen = 0;
  EXPECT_TRUE(mw_slots_reap(&s.slots, 1, &s.freed));
  EXPECT_EQ(s.freed, 0x402u);
  EXPECT_FALSE(mw_slots_reap(&s.slots, 1, &s.freed));
  EXPECT_EQ(s.freed, MW_EXT_NONE);
  EXPECT_EQ(s.slots.closing, 0u);
}

TEST(KmodSlots, GivesTheExtentOfASlotThatIsUsedAgainBeforeItsNews) {
  Slots s;
  ASSERT_EQ(s.take(1, 9, &s.a), MW_OK);
  ASSERT_EQ(mw_slots_release(&s.slots, 1, 9, 0x402), MW_OK);
  ASSERT_EQ(s.take(1, 10, &s.b), MW_OK);
  EXPECT_EQ(s.freed, 0x402u);
  EXPECT_FALSE(mw_slots_reap(&s.slots, 1, &s.freed)) << "the news comes late";
  EXPECT_EQ(mw_slots_owner(&s.slots, 1), &s.b);
  EXPECT_EQ(s.slots.used, 1u);
  EXPECT_EQ(s.slots.closing, 0u);
}

TEST(KmodSlots, RefusesTheSameGenerationAgain) {
  Slots s;
  ASSERT_EQ(s.take(1, 9, &s.a), MW_OK);
  ASSERT_EQ(mw_slots_release(&s.slots, 1, 9, MW_EXT_NONE), MW_OK);
  EXPECT_EQ(s.take(1, 9, &s.b), MW_PEER) << "it is still closing";
  s.shared[1].gen = 0;
  ASSERT_TRUE(mw_slots_reap(&s.slots, 1, &s.freed));
  EXPECT_EQ(s.take(1, 9, &s.b), MW_PEER) << "it was used";
}

TEST(KmodSlots, ReleasesOnlyWhatIsUsed) {
  Slots s;
  EXPECT_EQ(mw_slots_release(&s.slots, 1, 9, MW_EXT_NONE), MW_BUG);
  EXPECT_EQ(mw_slots_release(&s.slots, 4, 9, MW_EXT_NONE), MW_BUG);
  ASSERT_EQ(s.take(1, 9, &s.a), MW_OK);
  EXPECT_EQ(mw_slots_release(&s.slots, 1, 8, MW_EXT_NONE), MW_BUG);
  EXPECT_EQ(mw_slots_release(&s.slots, 1, 9, MW_EXT_NONE), MW_OK);
  EXPECT_EQ(mw_slots_release(&s.slots, 1, 9, MW_EXT_NONE), MW_BUG);
  EXPECT_FALSE(mw_slots_reap(&s.slots, 2, &s.freed)) << "news about a slot that is free";
  EXPECT_FALSE(mw_slots_reap(&s.slots, 99, &s.freed));
}

}  // namespace
}  // namespace mw
