// The ready set with several consumers, as an epoll instance uses its group's set: they look and
// take, put back what stays ready, and pass on what they leave. Is a member ever lost, and does a
// consumer ever sleep on one while nobody is about to ring for it? The set is the shipped template;
// what a consumer does is shim_epoll_wait() of src/shim/calls/epoll.cc with room for one event.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Header {
  rl::atomic<uint32_t> sleepers, rung;
  rl::atomic<uint64_t> top;
  rl::atomic<uint64_t> mid[1];
};

struct Shipped {
  static constexpr bool kLooksTwice = true;     // after it cleared the bit above an empty word
  static constexpr bool kGivesRingBack = true;  // a ring that came while it was not asleep
  static constexpr bool kPassesOn = true;       // when it leaves with an event
  static constexpr bool kPassesOnLate = true;   // when its time is over
};
struct WithoutSecondLook : Shipped {
  static constexpr bool kLooksTwice = false;
};
struct KeepingAnothersRing : Shipped {
  static constexpr bool kGivesRingBack = false;
};
struct WithoutPassingOn : Shipped {
  static constexpr bool kPassesOn = false;
};
struct LeavingSilently : Shipped {
  static constexpr bool kPassesOnLate = false;
};

enum class With { two_sleepers, a_drainer, a_look };

// Thread 0 and 1 are consumers, the next one drains if it is a_drainer, the others add one member
// each. Member 0 is level-triggered and stays ready. Member kSecond is edge-triggered and added
// twice, the second time for nothing. a_look: consumer 1 has no time to sleep, and kSecond is in the
// set for nothing from the start.
template <class Orders, class How, uint32_t kSecond, With kWith = With::two_sleepers>
struct SharedSetModel
    : rl::test_suite<SharedSetModel<Orders, How, kSecond, kWith>, kWith == With::two_sleepers ? 4
                                                                  : kWith == With::a_drainer  ? 5
                                                                                              : 3> {
  using A = RelacyAtomics<Orders>;
  using Set = BasicReadySet<A, Header, rl::atomic<uint64_t>>;
  static constexpr uint32_t kBits = 128;
  static constexpr unsigned kConsumers = 2;

  Header header;
  rl::atomic<uint64_t> words[kBits / 64];
  rl::atomic<uint32_t> news[2];
  rl::atomic<uint32_t> edge;  // the doorbell in the kernel's instance, edge-triggered
  bool asleep[kConsumers];
  bool looking[kConsumers];  // was not followed further

  static constexpr uint32_t member(unsigned which) { return which == 0 ? 0 : kSecond; }
  Set set() { return Set(&header, words, kBits); }

  void before() {
    header.sleepers.store(0, rl::mo_relaxed, $);
    header.rung.store(0, rl::mo_relaxed, $);
    header.top.store(0, rl::mo_relaxed, $);
    header.mid[0].store(0, rl::mo_relaxed, $);
    for (auto& w : words) w.store(0, rl::mo_relaxed, $);
    for (auto& n : news) n.store(0, rl::mo_relaxed, $);
    edge.store(0, rl::mo_relaxed, $);
    if (kWith == With::a_look) set().put_back(kSecond);
    for (unsigned c = 0; c < kConsumers; ++c) asleep[c] = looking[c] = false;
  }

  void ring() { edge.exchange(1, rl::mo_relaxed, $); }
  bool take_ring() { return edge.exchange(0, rl::mo_relaxed, $) != 0; }

  void add(unsigned which) {
    if (which == 0) news[0].store(1, rl::mo_relaxed, $);
    if (which == 1) news[1].exchange(1, rl::mo_relaxed, $);
    if (set().add(member(which))) ring();
    if (which == 1 && set().add(member(which))) ring();
  }

  bool take(uint32_t i) {
    if (How::kLooksTwice) return set().take(i);
    const uint64_t bit = uint64_t{1} << (i & 63);
    const uint64_t before = A::fetch_and(words[i / 64], ~bit);
    if (before == bit) {
      const uint64_t above = uint64_t{1} << (i / 64);
      if ((A::fetch_and(header.mid[0], ~above) & ~above) == 0) A::fetch_and(header.top, ~1ull);
    }
    return (before & bit) != 0;
  }
  // harvest() and report(). Returns how many events it found: one at most.
  int harvest() {
    uint32_t found[2];
    uint32_t count = 0;
    set().look(0, kBits, 2, [&](uint32_t i) { found[count++] = i; });
    for (uint32_t k = 0; k < count; ++k) {
      if (!take(found[k])) continue;
      const unsigned which = found[k] == 0 ? 0 : 1;
      if (which == 0) {
        RL_ASSERT(news[0].load(rl::mo_relaxed, $) == 1);
        set().put_back(found[k]);
        return 1;
      }
      if (news[1].exchange(0, rl::mo_relaxed, $) != 0) return 1;
    }
    return 0;
  }
  void pass_on() {
    if (set().pass_on()) ring();
  }
  void wait(unsigned consumer) {
    for (int turn = 0; turn < 3; ++turn) {
      if (harvest() != 0) {
        // Looks for ordinary descriptors, too, and may find the doorbell.
        if (take_ring() && How::kGivesRingBack) set().clear_rung();
        if (How::kPassesOn) pass_on();
        return;
      }
      if (kWith == With::a_look && consumer == 1) {
        if (How::kPassesOnLate) pass_on();
        return;
      }
      if (!set().prepare_sleep()) continue;
      bool rung = false;
      for (int looks = 0; looks < 2 && !rung; ++looks) {
        rung = take_ring();
        if (!rung) rl::yield(1, $);
      }
      // Consumer 1 waits for some time only.
      if (!rung && consumer == 0) {
        asleep[consumer] = true;
        return;
      }
      set().wake();
      const bool found = harvest() != 0;
      if (found ? How::kPassesOn : !rung && How::kPassesOnLate) pass_on();
      if (found || !rung) return;
    }
    looking[consumer] = true;
  }
  // harvest() when it finds bits that stand for no socket.
  void clean_up() {
    set().drain([this](uint32_t i) {
      set().put_back(i);
      return true;
    });
    pass_on();
  }

  void thread(unsigned id) {
    if (id < kConsumers) return wait(id);
    constexpr unsigned kDrainers = kWith == With::a_drainer ? 1 : 0;
    if (id < kConsumers + kDrainers) return clean_up();
    add(id - kConsumers - kDrainers);
  }

  void after() {
    bool left = false;
    for (unsigned which = 0; which < 2; ++which) {
      const uint32_t m = member(which);
      const bool in = (words[m / 64].load(rl::mo_relaxed, $) >> (m % 64) & 1) == 1;
      left |= in;
      // There is news, or it is still ready: then it stands in all three levels.
      if (news[which].load(rl::mo_relaxed, $) == 0) continue;
      RL_ASSERT(in);
      RL_ASSERT((header.mid[0].load(rl::mo_relaxed, $) >> (m / 64) & 1) == 1);
      RL_ASSERT(header.top.load(rl::mo_relaxed, $) == 1);
    }
    bool sleeps = false;
    bool looks = false;
    for (unsigned c = 0; c < kConsumers; ++c) sleeps |= asleep[c];
    for (unsigned c = 0; c < kConsumers; ++c) looks |= looking[c];
    RL_ASSERT(!left || !sleeps || looks || edge.load(rl::mo_relaxed, $) != 0);
  }
};

struct RelaxedReadModifyWrite : ShippedOrders {
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_relaxed;
};
struct RelaxedLooks : ShippedOrders {
  static constexpr rl::memory_order kSeqLoad = rl::mo_relaxed;
};
constexpr rl::iteration_t kSome = 20000;
constexpr auto kBad = rl::test_result_user_assert_failed;

TEST(SharedSetModel, TwoConsumersOfOneWord) {
  EXPECT_TRUE(
      (explore<SharedSetModel<ShippedOrders, Shipped, 63>>(rl::test_result_success, kSome)));
}
TEST(SharedSetModel, TwoConsumersOfTwoWords) {
  EXPECT_TRUE(
      (explore<SharedSetModel<ShippedOrders, Shipped, 64>>(rl::test_result_success, kSome)));
}
TEST(SharedSetModel, TwoConsumersAndADrainer) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, Shipped, 63, With::a_drainer>>(
      rl::test_result_success, kSome)));
}
TEST(SharedSetModel, OneThatSleepsAndOneThatLooks) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, Shipped, 63, With::a_look>>(
      rl::test_result_success, kSome)));
}
TEST(SharedSetModel, NoticesThatThereIsNoSecondLook) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, WithoutSecondLook, 63>>(kBad)));
}
TEST(SharedSetModel, NoticesThatAnothersRingIsKept) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, KeepingAnothersRing, 63>>(kBad)));
}
TEST(SharedSetModel, NoticesThatNothingIsPassedOn) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, WithoutPassingOn, 63>>(kBad)));
}
TEST(SharedSetModel, NoticesThatALateConsumerLeavesSilently) {
  EXPECT_TRUE((explore<SharedSetModel<ShippedOrders, LeavingSilently, 63, With::a_look>>(kBad)));
}
TEST(SharedSetModel, NoticesRelaxedReadModifyWrites) {
  EXPECT_TRUE((explore<SharedSetModel<RelaxedReadModifyWrite, Shipped, 63>>(kBad)));
}
TEST(SharedSetModel, NoticesRelaxedLooks) {
  EXPECT_TRUE((explore<SharedSetModel<RelaxedLooks, Shipped, 63>>(kBad)));
}

}  // namespace
}  // namespace mw::model
