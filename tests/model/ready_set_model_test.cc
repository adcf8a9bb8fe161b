// The ready set: is a member that was added ever forgotten, does a consumer ever sleep on one, and
// does it see what the news is about? The set is the shipped template.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Header {
  rl::atomic<uint32_t> sleepers, rung;
  rl::atomic<uint64_t> top;
  rl::atomic<uint64_t> mid[1];
};

// Adders post news about their members; the consumer drains, sleeps when there is nothing, and is
// woken by the doorbell. At the end nothing may be left unless somebody is on the way to take it.
template <class Orders, unsigned kAdders, uint32_t kSecondMember>
struct ReadySetModel : rl::test_suite<ReadySetModel<Orders, kAdders, kSecondMember>, kAdders + 1> {
  using A = RelacyAtomics<Orders>;
  using Set = BasicReadySet<A, Header, rl::atomic<uint64_t>>;
  static constexpr uint32_t kBits = 128;
  static constexpr unsigned kPostings = 2;  // of each adder

  Header header;
  rl::atomic<uint64_t> words[kBits / 64];
  rl::atomic<uint32_t> news[2];   // of each adder's member
  rl::atomic<uint32_t> doorbell;  // an eventfd: rings that nobody took yet
  uint32_t seen[2];
  bool asleep;

  static constexpr uint32_t member(unsigned adder) { return adder == 0 ? 0 : kSecondMember; }
  Set set() { return Set(&header, words, kBits); }

  void before() {
    header.sleepers.store(0, rl::mo_relaxed, $);
    header.rung.store(0, rl::mo_relaxed, $);
    header.top.store(0, rl::mo_relaxed, $);
    header.mid[0].store(0, rl::mo_relaxed, $);
    for (auto& w : words) w.store(0, rl::mo_relaxed, $);
    for (auto& n : news) n.store(0, rl::mo_relaxed, $);
    doorbell.store(0, rl::mo_relaxed, $);
    seen[0] = seen[1] = 0;
    asleep = false;
  }

  void add_all(unsigned adder) {
    for (uint32_t n = 1; n <= kPostings; ++n) {
      news[adder].store(n, rl::mo_relaxed, $);
      // write() to an eventfd orders nothing for us beyond its own count.
      if (set().add(member(adder))) doorbell.fetch_add(1, rl::mo_relaxed, $);
    }
  }

  void consume() {
    for (int turn = 0; turn < 4; ++turn) {
      RL_ASSERT(set().drain([this](uint32_t i) {
        for (unsigned adder = 0; adder < kAdders; ++adder) {
          if (member(adder) == i) seen[adder] = news[adder].load(rl::mo_relaxed, $);
        }
        return true;
      }));
      if (!set().prepare_sleep()) continue;
      // Sleeps; a ring that comes only after we stop looking still counts as one that wakes us.
      uint32_t rings = 0;
      for (int looks = 0; looks < 3 && rings == 0; ++looks) {
        rings = doorbell.exchange(0, rl::mo_relaxed, $);
        if (rings == 0) rl::yield(1, $);
      }
      if (rings == 0) {
        asleep = true;
        return;
      }
      set().wake();
    }
  }

  void thread(unsigned id) {
    if (id == kAdders) {
      consume();
    } else {
      add_all(id);
    }
  }

  void after() {
    for (unsigned adder = 0; adder < kAdders; ++adder) {
      if (seen[adder] == kPostings) continue;
      // Not seen: then the member still stands in all three levels,
      const uint32_t m = member(adder);
      RL_ASSERT((words[m / 64].load(rl::mo_relaxed, $) >> (m % 64) & 1) == 1);
      RL_ASSERT((header.mid[0].load(rl::mo_relaxed, $) >> (m / 64) & 1) == 1);
      RL_ASSERT(header.top.load(rl::mo_relaxed, $) == 1);
      // and the consumer is awake or has been rung for.
      RL_ASSERT(!asleep || doorbell.load(rl::mo_relaxed, $) != 0);
    }
  }
};

struct RelaxedLookAtSleepers : ShippedOrders {
  static constexpr rl::memory_order kSeqLoad = rl::mo_relaxed;
};
struct AcquireReleaseOnly : ShippedOrders {
  static constexpr rl::memory_order kSeqLoad = rl::mo_acquire;
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_acq_rel;
};
struct RelaxedReadModifyWrite : ShippedOrders {
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_relaxed;
};

TEST(ReadySetModel, OneAdder) {
  EXPECT_TRUE((explore<ReadySetModel<ShippedOrders, 1, 0>>()));
}
TEST(ReadySetModel, TwoAddersOfOneWord) {
  EXPECT_TRUE((explore<ReadySetModel<ShippedOrders, 2, 63>>()));
}
TEST(ReadySetModel, TwoAddersOfTwoWords) {
  EXPECT_TRUE((explore<ReadySetModel<ShippedOrders, 2, 64>>()));
}
TEST(ReadySetModel, TwoAddersOfOneMember) {
  // Both post about the same member; what the second one says must not be lost with the first one's
  // bit.
  EXPECT_TRUE((explore<ReadySetModel<ShippedOrders, 2, 0>>()));
}
TEST(ReadySetModel, NoticesARelaxedLookAtSleepers) {
  EXPECT_TRUE(
      (explore<ReadySetModel<RelaxedLookAtSleepers, 1, 0>>(rl::test_result_user_assert_failed)));
}
TEST(ReadySetModel, NoticesOrdersThatAreOnlyAcquireAndRelease) {
  EXPECT_TRUE(
      (explore<ReadySetModel<AcquireReleaseOnly, 1, 0>>(rl::test_result_user_assert_failed)));
}
TEST(ReadySetModel, NoticesRelaxedReadModifyWrites) {
  EXPECT_TRUE(
      (explore<ReadySetModel<RelaxedReadModifyWrite, 1, 0>>(rl::test_result_user_assert_failed)));
}

}  // namespace
}  // namespace mw::model
