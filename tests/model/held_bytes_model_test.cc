// Bytes that a program holds back (TCP_CORK, MSG_MORE). Once it has sent without MSG_MORE, or waits,
// is the INS told of every byte? Two threads send on one socket. The ready set is the shipped
// template; the rest is hold_back(), announce_bytes(), announce_held() and release_held_slot() of
// src/shim/socket/socket.cc, and StreamPump::send() of src/ins/worker/stream_pump.cc.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Header {
  rl::atomic<uint32_t> sleepers, rung;
  rl::atomic<uint64_t> top;
  rl::atomic<uint64_t> mid[1];
};

struct Shipped {
  static constexpr bool kTrustsTheMark = false;  // who waits believes that a cleared mark tells all
  static constexpr bool kAnnouncesAfterCork = true;
};
struct TrustingTheMark : Shipped {
  static constexpr bool kTrustsTheMark = true;
};
struct CorkingSilently : Shipped {
  static constexpr bool kAnnouncesAfterCork = false;
};
struct RelaxedWant : ShippedOrders {
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_relaxed;
};

// Thread 0 sends a byte with MSG_MORE, and then waits or, if kSends, sends one without. Thread 1
// sends one without; or, if kBlocks, it is the kernel that has no room until then.
template <class How, bool kSends, bool kBlocks>
struct HeldBytesModel : rl::test_suite<HeldBytesModel<How, kSends, kBlocks>, 3> {
  using A = RelacyAtomics<>;
  using W = RelacyAtomics<RelaxedWant>;
  using Set = BasicReadySet<A, Header, rl::atomic<uint64_t>>;
  static constexpr uint32_t kCapacity = 8;
  static constexpr uint32_t kStart = 0xffffffffu;

  Header header;
  rl::atomic<uint64_t> word[1];
  rl::atomic<uint32_t> tx_tail, tx_head, want, calls, kernel_room, programs_done;
  rl::mutex tx_lock;
  uint32_t ins_head;
  bool blocked;

  void before() {
    header.sleepers.store(0, rl::mo_relaxed, $);
    header.rung.store(0, rl::mo_relaxed, $);
    header.top.store(0, rl::mo_relaxed, $);
    header.mid[0].store(0, rl::mo_relaxed, $);
    word[0].store(0, rl::mo_relaxed, $);
    tx_tail.store(kStart, rl::mo_relaxed, $);
    tx_head.store(kStart, rl::mo_relaxed, $);
    want.store(0, rl::mo_relaxed, $);
    calls.store(0, rl::mo_relaxed, $);
    kernel_room.store(kBlocks ? 0 : 1, rl::mo_relaxed, $);
    programs_done.store(0, rl::mo_relaxed, $);
    ins_head = kStart;
    blocked = kBlocks;
  }
  Set news() { return Set(&header, word, 64); }
  bool is_held() { return (W::load_relaxed(want) & MW_WANT_HOLD) != 0; }
  void announce() { news().add(0); }

  void put_byte() {
    tx_lock.lock($);
    const uint32_t tail = tx_tail.load(rl::mo_relaxed, $);
    A::store_release(tx_tail, tail + 1);
    tx_lock.unlock($);
  }
  void send(bool more) {
    if (more && !is_held()) W::fetch_or(want, MW_WANT_HOLD);
    put_byte();
    if (more) return;
    if (is_held()) W::fetch_and(want, ~MW_WANT_HOLD);
    announce();
  }
  void release_held() {
    if (!is_held()) {
      if (!How::kTrustsTheMark) announce();
      return;
    }
    A::exchange(calls, 1u);  // TCP_CORK
    W::fetch_and(want, ~MW_WANT_HOLD);
    if (How::kAnnouncesAfterCork) announce();
  }

  void stream_tx(bool even_held) {
    const uint32_t ready = *ring_ready<A>(kCapacity, ins_head, tx_tail);
    if ((W::load_relaxed(want) & MW_WANT_HOLD) != 0 && !even_held) return;
    ins_head += ready;
    A::store_release(tx_head, ins_head);
  }
  void turn() {
    if (A::exchange(calls, 0u) != 0 && !blocked) stream_tx(true);
    news().drain([this](uint32_t) {
      if (!blocked) stream_tx(false);
      return true;
    });
    if (blocked && kernel_room.load(rl::mo_acquire, $) != 0) {
      blocked = false;
      stream_tx(false);
    }
  }
  void be_the_ins() {
    while (programs_done.load(rl::mo_acquire, $) < 2) {
      turn();
      rl::yield(1, $);
    }
    turn();
    turn();
  }

  void thread(unsigned id) {
    if (id == 2) return be_the_ins();
    if (id == 0) {
      send(true);
      if (kSends)
        send(false);
      else
        release_held();
    } else if (kBlocks) {
      kernel_room.store(1, rl::mo_release, $);
    } else {
      send(false);
    }
    programs_done.fetch_add(1, rl::mo_acq_rel, $);
  }
  void after() { RL_ASSERT(ins_head == tx_tail.load(rl::mo_relaxed, $)); }
};

constexpr auto kBad = rl::test_result_user_assert_failed;
constexpr rl::iteration_t kSome = 20000;

TEST(HeldBytesModel, AllIsToldOnceTheProgramWaits) {
  EXPECT_TRUE((explore<HeldBytesModel<Shipped, false, false>>(rl::test_result_success, kSome)));
}
TEST(HeldBytesModel, AllIsToldOnceTheProgramWaitsAndTheKernelHasRoom) {
  EXPECT_TRUE((explore<HeldBytesModel<Shipped, false, true>>(rl::test_result_success, kSome)));
}
TEST(HeldBytesModel, AllIsToldOnceTheProgramSendsWithoutMore) {
  EXPECT_TRUE((explore<HeldBytesModel<Shipped, true, false>>(rl::test_result_success, kSome)));
}
TEST(HeldBytesModel, NoticesThatAClearedMarkIsTrusted) {
  EXPECT_TRUE((explore<HeldBytesModel<TrustingTheMark, false, false>>(kBad)));
}
TEST(HeldBytesModel, NoticesThatNothingIsAnnouncedAfterTheCork) {
  EXPECT_TRUE((explore<HeldBytesModel<CorkingSilently, false, true>>(kBad)));
}

}  // namespace
}  // namespace mw::model
