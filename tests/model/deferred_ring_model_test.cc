// Rings that a worker defers: it announces to a group while it handles news, collects the group's
// doorbell, and rings once for the batch. The application's thread fills its send ring, asks for an
// OUT event, and sleeps in the group. Does it ever sleep on room that nobody rings for, because the
// worker sleeps as well? The sets and the order of the worker's sleep (sleep_in) are the shipped
// templates.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Header {
  rl::atomic<uint32_t> sleepers, rung;
  rl::atomic<uint64_t> top;
  rl::atomic<uint64_t> mid[1];
};

struct Shipped {
  static constexpr bool kRingsBeforeSleep = true;
  static constexpr bool kAsksAgain = true;  // the sender looks for room after it has asked
  static constexpr bool kFenceOfIns = true;
};
struct WithoutRingBeforeSleep : Shipped {
  static constexpr bool kRingsBeforeSleep = false;
};
struct AskingOnce : Shipped {
  static constexpr bool kAsksAgain = false;
};
struct WithoutFenceOfIns : Shipped {
  static constexpr bool kFenceOfIns = false;
};
// `want` has the orders that the fences have to make up for: none. A set has its own.
struct RelaxedWant : ShippedOrders {
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_relaxed;
};

template <class How>
struct DeferredRingModel : rl::test_suite<DeferredRingModel<How>, 2> {
  using A = RelacyAtomics<ShippedOrders>;
  using W = RelacyAtomics<RelaxedWant>;
  using Set = BasicReadySet<A, Header, rl::atomic<uint64_t>>;
  static constexpr uint32_t kCapacity = 4;
  static constexpr uint32_t kStart = 0xfffffffeu;

  struct Memory {
    Header header;
    rl::atomic<uint64_t> word[1];
    rl::atomic<uint32_t> bell;
    Set set() { return Set(&header, word, 64); }
    void reset() {
      header.sleepers.store(0, rl::mo_relaxed, $);
      header.rung.store(0, rl::mo_relaxed, $);
      header.top.store(0, rl::mo_relaxed, $);
      header.mid[0].store(0, rl::mo_relaxed, $);
      word[0].store(0, rl::mo_relaxed, $);
      bell.store(0, rl::mo_relaxed, $);
    }
    void ring() { bell.fetch_add(1, rl::mo_relaxed, $); }
    bool take_ring() {
      for (int looks = 0; looks < 3; ++looks) {
        if (bell.exchange(0, rl::mo_relaxed, $) != 0) return true;
        rl::yield(1, $);
      }
      return false;
    }
  };
  Memory sock_news, call_news, group;  // the calls' doorbell is that of the sockets
  rl::atomic<uint32_t> tx_tail, tx_head, want;
  rl::atomic<uint32_t> sender_is_done;  // it makes no news any more
  uint32_t ins_head;
  bool due;
  bool worker_rests, sender_sleeps;

  void before() {
    sock_news.reset();
    call_news.reset();
    group.reset();
    tx_tail.store(kStart, rl::mo_relaxed, $);
    tx_head.store(kStart, rl::mo_relaxed, $);
    want.store(0, rl::mo_relaxed, $);
    sender_is_done.store(0, rl::mo_relaxed, $);
    ins_head = kStart;
    due = worker_rests = sender_sleeps = false;
  }

  // News::announce(), for news of room.
  void announce() {
    if (How::kFenceOfIns) W::fence();
    if ((W::load_relaxed(want) & MW_WANT_OUT_EVENT) == 0) return;
    W::fetch_and(want, ~MW_WANT_OUT_EVENT);
    if (group.set().add(0)) due = true;
  }
  void ring_groups() {
    if (due) group.ring();
    due = false;
  }
  void work() {
    Set socks = sock_news.set();
    Set calls = call_news.set();
    for (int turn = 0; turn < 4; ++turn) {
      socks.drain([this](uint32_t) {
        const uint32_t ready = *ring_ready<W>(kCapacity, ins_head, tx_tail);
        ins_head += ready;
        W::store_release(tx_head, ins_head);
        if (ready != 0) announce();
        return true;
      });
      bool woken = true;
      sleep_in(
          socks, calls,
          [this] {
            if (How::kRingsBeforeSleep) ring_groups();
          },
          [&] {
            while (!(woken = sock_news.take_ring()))
              if (sender_is_done.load(rl::mo_acquire, $) != 0) break;
            woken = woken || sock_news.take_ring();
            if (woken) ring_groups();  // as turn_events() ends
          });
      if (!woken) {
        worker_rests = true;
        return;
      }
    }
  }

  bool has_room(uint32_t tail) {
    return ring_writable(kCapacity, *ring_room<W>(kCapacity, tail, tx_head));
  }
  void send() {
    uint32_t tail = kStart;
    for (int turn = 0; turn < 2; ++turn) {
      tail += *ring_room<W>(kCapacity, tail, tx_head);
      W::store_release(tx_tail, tail);
      if (sock_news.set().add(0)) sock_news.ring();
      if (*ring_room<W>(kCapacity, tail, tx_head) != 0) continue;
      W::fetch_or(want, MW_WANT_OUT_EVENT);
      W::fence();
      if (How::kAsksAgain && has_room(tail) && group.set().add(0)) group.ring();
      if (!wait_for_room(tail)) return;
    }
  }
  // epoll_wait(). False: it is still asleep.
  bool wait_for_room(uint32_t tail) {
    Set news = group.set();
    for (int turn = 0; turn < 4; ++turn) {
      bool room = false;
      news.drain([&](uint32_t) {
        room = has_room(tail);
        return true;
      });
      if (room) return true;
      if (!news.prepare_sleep()) continue;
      if (!group.take_ring()) {
        sender_sleeps = true;
        return false;
      }
      news.wake();
    }
    return false;
  }

  void thread(unsigned id) {
    if (id == 0) return work();
    send();
    sender_is_done.store(1, rl::mo_release, $);
  }
  void after() {
    if (!sender_sleeps || !worker_rests) return;
    // The worker has bytes to send and a ring that tells of them, or the sender has one.
    RL_ASSERT(sock_news.bell.load(rl::mo_relaxed, $) != 0 ||
              group.bell.load(rl::mo_relaxed, $) != 0);
  }
};

constexpr auto kBad = rl::test_result_user_assert_failed;

TEST(DeferredRingModel, NoSenderSleepsOnRoom) {
  EXPECT_TRUE((explore<DeferredRingModel<Shipped>>(rl::test_result_success, 15000)));
}
TEST(DeferredRingModel, NoticesThatTheWorkerSleepsOnItsRings) {
  EXPECT_TRUE((explore<DeferredRingModel<WithoutRingBeforeSleep>>(kBad)));
}
TEST(DeferredRingModel, NoticesThatTheSenderAsksOnce) {
  EXPECT_TRUE((explore<DeferredRingModel<AskingOnce>>(kBad)));
}
TEST(DeferredRingModel, NoticesThatTheInsHasNoFence) {
  EXPECT_TRUE((explore<DeferredRingModel<WithoutFenceOfIns>>(kBad)));
}

}  // namespace
}  // namespace mw::model
