// The byte ring's index orders: does a reader ever see bytes that are not written yet, or a writer
// put bytes over ones that are not read yet? The index functions are the shipped ones; indexes
// start just below 2^32 and wrap on the way.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

template <class Orders>
struct RingModel : rl::test_suite<RingModel<Orders>, 2> {
  using A = RelacyAtomics<Orders>;
  static constexpr uint32_t kCapacity = 2;
  static constexpr uint32_t kBytes = 5;
  static constexpr uint32_t kStart = 0xffffffffu;

  rl::atomic<uint32_t> tail, head;
  rl::var<uint32_t> data[kCapacity];

  void before() {
    tail.store(kStart, rl::mo_relaxed, $);
    head.store(kStart, rl::mo_relaxed, $);
  }
  void write_all() {
    uint32_t at = kStart;
    while (at - kStart < kBytes) {
      auto room = ring_room<A>(kCapacity, at, head);
      RL_ASSERT(static_cast<bool>(room));
      if (*room == 0) rl::yield(1, $);
      for (uint32_t n = *room; n > 0 && at - kStart < kBytes; --n, ++at)
        data[at % kCapacity]($) = at - kStart;
      A::store_release(tail, at);
    }
  }
  void read_all() {
    uint32_t at = kStart;
    while (at - kStart < kBytes) {
      auto ready = ring_ready<A>(kCapacity, at, tail);
      RL_ASSERT(static_cast<bool>(ready));
      if (*ready == 0) rl::yield(1, $);
      for (uint32_t n = *ready; n > 0; --n, ++at) RL_ASSERT(data[at % kCapacity]($) == at - kStart);
      A::store_release(head, at);
    }
  }
  void thread(unsigned id) {
    if (id == 0) {
      write_all();
    } else {
      read_all();
    }
  }
};

struct RelaxedIndexLoads : ShippedOrders {
  static constexpr rl::memory_order kAcquire = rl::mo_relaxed;
};
struct RelaxedIndexStores : ShippedOrders {
  static constexpr rl::memory_order kRelease = rl::mo_relaxed;
};

TEST(RingModel, KeepsReaderAndWriterApart) {
  EXPECT_TRUE((explore<RingModel<ShippedOrders>>()));
}
TEST(RingModel, NoticesARelaxedIndexLoad) {
  EXPECT_TRUE((explore<RingModel<RelaxedIndexLoads>>(rl::test_result_data_race)));
}
TEST(RingModel, NoticesARelaxedIndexStore) {
  EXPECT_TRUE((explore<RingModel<RelaxedIndexStores>>(rl::test_result_data_race)));
}

}  // namespace
}  // namespace mw::model
