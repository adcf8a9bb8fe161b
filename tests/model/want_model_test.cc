// The handshake of docs/protocol.md section 3: the INS publishes, fences, looks at `want`; a thread
// of the application sets its bit in `want`, fences, looks again, sleeps. Does it ever sleep on
// news that nobody sends a token for? Two threads wait on one socket, one for input and one for
// room.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Shipped {
  static constexpr bool kFenceOfIns = true;
  static constexpr bool kFenceOfPvm = true;
  static constexpr bool kClearsAtomically = true;
};
struct WithoutFenceOfIns : Shipped {
  static constexpr bool kFenceOfIns = false;
};
struct WithoutFenceOfPvm : Shipped {
  static constexpr bool kFenceOfPvm = false;
};
struct WithPlainClear : Shipped {
  static constexpr bool kClearsAtomically = false;
};

// `want` is changed with the orders that the fences have to make up for: none.
struct RelaxedWant : ShippedOrders {
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_relaxed;
};

template <class How>
struct WantModel : rl::test_suite<WantModel<How>, 3> {
  using A = RelacyAtomics<RelaxedWant>;
  static constexpr uint32_t kCapacity = 4;
  static constexpr uint32_t kStart = MW_INDEX_START + 0xfffu;  // one byte below the wrap

  rl::atomic<uint32_t> rx_tail, tx_head, want;
  rl::atomic<uint32_t> tokens[2];
  bool asleep[2];
  uint32_t tx_tail;

  void before() {
    rx_tail.store(kStart, rl::mo_relaxed, $);
    tx_head.store(kStart, rl::mo_relaxed, $);
    want.store(0, rl::mo_relaxed, $);
    for (auto& t : tokens) t.store(0, rl::mo_relaxed, $);
    asleep[0] = asleep[1] = false;
    tx_tail = kStart + kCapacity;  // the send ring is full
  }

  void announce(uint32_t bit) {
    if (How::kFenceOfIns) A::fence();
    const uint32_t seen = A::load_relaxed(want);
    if ((seen & bit) == 0) return;
    uint32_t had = seen;
    if (How::kClearsAtomically) {
      had = A::fetch_and(want, ~bit);
    } else {
      A::store_relaxed(want, seen & ~bit);
    }
    if ((had & bit) != 0) tokens[bit == MW_WANT_TOKEN_IN ? 0 : 1].fetch_add(1, rl::mo_relaxed, $);
  }
  void be_the_ins() {
    A::store_release(rx_tail, kStart + 2);
    announce(MW_WANT_TOKEN_IN);
    A::store_release(tx_head, kStart + 2);
    announce(MW_WANT_TOKEN_OUT);
  }

  bool has_input() { return *ring_ready<A>(kCapacity, kStart, rx_tail) != 0; }
  bool has_room() { return *ring_room<A>(kCapacity, tx_tail, tx_head) != 0; }
  template <class Ready>
  void wait(unsigned which, uint32_t bit, Ready&& ready) {
    if (ready()) return;
    A::fetch_or(want, bit);
    if (How::kFenceOfPvm) A::fence();
    if (ready()) return;
    asleep[which] = true;
  }

  void thread(unsigned id) {
    if (id == 0) return be_the_ins();
    if (id == 1) return wait(0, MW_WANT_TOKEN_IN, [this] { return has_input(); });
    wait(1, MW_WANT_TOKEN_OUT, [this] { return has_room(); });
  }
  void after() {
    for (int i = 0; i < 2; ++i) RL_ASSERT(!asleep[i] || tokens[i].load(rl::mo_relaxed, $) != 0);
  }
};

TEST(WantModel, NobodySleepsOnNews) {
  EXPECT_TRUE((explore<WantModel<Shipped>>()));
}
TEST(WantModel, NoticesThatTheInsHasNoFence) {
  EXPECT_TRUE((explore<WantModel<WithoutFenceOfIns>>(rl::test_result_user_assert_failed)));
}
TEST(WantModel, NoticesThatThePvmHasNoFence) {
  EXPECT_TRUE((explore<WantModel<WithoutFenceOfPvm>>(rl::test_result_user_assert_failed)));
}
TEST(WantModel, NoticesAPlainClear) {
  EXPECT_TRUE((explore<WantModel<WithPlainClear>>(rl::test_result_user_assert_failed)));
}

}  // namespace
}  // namespace mw::model
