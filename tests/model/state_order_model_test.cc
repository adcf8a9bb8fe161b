// The order in which the INS publishes bytes, the end of a connection, and an error, and in which
// the application looks at them. Does recv() ever tell the end or the error before all bytes that
// precede it, does poll() ever show it while bytes are missing from the ring, does send() ever say
// EPIPE where the error is what it should say, and does who took the error ever find a connection
// that still stands? The INS is StreamPump::receive(), tell_end() and publish_last_error() of
// src/ins/worker/stream_pump.cc; the readers are ReceivingEnd and no_bytes(), cannot_send(), and poll_mask() of
// src/shim.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

enum class Failure { as_one, error_first, state_first };  // an error and the state of it

struct Shipped {
  static constexpr Failure kFailure = Failure::as_one;
  static constexpr bool kBytesFirst = true;  // before the state
  static constexpr bool kStateFirst = true;  // a reader looks at it before the ring
  static constexpr bool kTakenFirst = true;  // error_taken is read before error_seq
};
struct ErrorBeforeState : Shipped {
  static constexpr Failure kFailure = Failure::error_first;
};
struct StateBeforeBytes : Shipped {
  static constexpr bool kBytesFirst = false;
};
struct RingBeforeState : Shipped {
  static constexpr bool kStateFirst = false;
};
struct StateBeforeError : Shipped {
  static constexpr Failure kFailure = Failure::state_first;
};
struct SeqBeforeTaken : Shipped {
  static constexpr bool kTakenFirst = false;
};
struct RelaxedStores : ShippedOrders {
  static constexpr rl::memory_order kRelease = rl::mo_relaxed;
};

// Of a reset recv() tells the error, or the end and leaves the error to getsockopt().
enum class Ends { by_fin, by_reset, by_reset_read, by_fin_and_error, by_reset_of_two_writers };

// Three bytes come, of which two have room in the ring; then the kernel tells the end.
template <class How, Ends kEnds, class Orders = ShippedOrders>
struct StateOrderModel : rl::test_suite<StateOrderModel<How, kEnds, Orders>, 4> {
  using A = RelacyAtomics<Orders>;
  static constexpr uint32_t kCapacity = 2;
  static constexpr uint32_t kBytes = 3;
  static constexpr uint32_t kStart = 0xfffffffeu;
  static constexpr uint32_t kHang = MW_ST_CLOSED | MW_ST_SND_SHUT;
  static constexpr int kReset = 104;

  rl::atomic<uint32_t> rx_tail, rx_head, state, error, error_seq, error_taken, half_closed;
  rl::atomic<uint32_t> takers;  // of the error
  rl::var<uint32_t> data[kCapacity];
  struct {
    uint32_t tail, state, untold;
    bool to_end, error_taken;
  } ins;

  void before() {
    rx_tail.store(kStart, rl::mo_relaxed, $);
    rx_head.store(kStart, rl::mo_relaxed, $);
    state.store(MW_ST_OPEN | MW_ST_CONNECTED, rl::mo_relaxed, $);
    error.store(0, rl::mo_relaxed, $);
    error_seq.store(0, rl::mo_relaxed, $);
    error_taken.store(0, rl::mo_relaxed, $);
    half_closed.store(0, rl::mo_relaxed, $);
    takers.store(0, rl::mo_relaxed, $);
    ins = {kStart, MW_ST_OPEN | MW_ST_CONNECTED, 0, false, false};
  }

  // ---- the INS ----
  void set_state(uint32_t now) {
    ins.state = now;
    A::store_release(state, now);
  }
  void publish_error() {
    A::store_relaxed(error, static_cast<uint32_t>(kReset));
    A::store_release(error_seq, 1u);
  }
  void publish_failure(uint32_t now) {
    if (How::kFailure == Failure::as_one) set_state(ins.state | MW_ST_FAILING);
    if (How::kFailure != Failure::state_first) publish_error();
    set_state(now & ~MW_ST_FAILING);
    if (How::kFailure == Failure::state_first) publish_error();
  }
  uint32_t end_state() {
    if (ins.to_end) return ins.state;
    const uint32_t told = ins.untold;
    ins.untold = 0;
    return (ins.state | told) & ~MW_ST_BEHIND;
  }
  void publish_last_error() {
    publish_failure(end_state() | (ins.to_end ? MW_ST_BEHIND : 0) | MW_ST_SND_SHUT);
  }
  void tell_end() { set_state(end_state()); }
  void stream_rx() {
    while (ins.tail - kStart < kBytes) {
      const uint32_t room = *ring_room<A>(kCapacity, ins.tail, rx_head);
      if (room == 0) return tell_end();
      const bool last = ins.tail - kStart == kBytes - 1;
      if (!How::kBytesFirst && last && ins.to_end) {
        ins.to_end = false;
        ins.untold |= MW_ST_EOF | MW_ST_RCV_SHUT;
        tell_end();
      }
      data[ins.tail % kCapacity]($) = ins.tail - kStart;
      A::store_release(rx_tail, ++ins.tail);
    }
    const bool ends = ins.to_end;
    ins.to_end = false;
    if (ends) ins.untold |= MW_ST_EOF | MW_ST_RCV_SHUT;
    if (ends && kEnds == Ends::by_reset_read) {
      ins.untold |= kHang;
      return publish_failure(end_state());
    }
    if (ends && !ins.error_taken) ins.untold |= MW_ST_FIN;
    tell_end();
  }
  void be_the_ins() {
    stream_rx();
    ins.to_end = true;
    ins.untold |= MW_ST_RCV_SHUT;
    if (kEnds == Ends::by_reset || kEnds == Ends::by_reset_of_two_writers) {
      stream_rx();
      ins.error_taken = true;
      ins.untold |= kHang;
      publish_last_error();
      tell_end();
    }
    for (int turn = 0; turn < 6 && (ins.to_end || ins.untold != 0); ++turn) {
      stream_rx();
      rl::yield(1, $);
    }
    if (kEnds != Ends::by_fin_and_error || ins.to_end) return;
    ins.untold |= kHang;
    publish_last_error();
    stream_rx();
  }

  // ---- the application ----
  bool error_pending() {
    const uint32_t taken = A::load_acquire(error_taken);
    return A::load_acquire(error_seq) != taken && is_published();
  }
  bool is_published() { return (A::load_acquire(state) & MW_ST_FAILING) == 0; }
  bool error_told() { return error_pending() && (A::load_acquire(state) & MW_ST_BEHIND) == 0; }
  int take_error() {
    uint32_t seq = How::kTakenFirst ? 0 : A::load_acquire(error_seq);
    const uint32_t taken = A::load_acquire(error_taken);
    if (How::kTakenFirst) seq = A::load_acquire(error_seq);
    if (seq == taken || !is_published()) return 0;
    if (!A::compare_exchange(error_taken, taken, seq)) return 0;
    RL_ASSERT(takers.fetch_add(1, rl::mo_relaxed, $) == 0);
    return static_cast<int>(A::load_relaxed(error));
  }
  struct End {
    bool error;
    uint32_t state;
    bool ended() const {
      return error || ((state & MW_ST_BEHIND) == 0 && (state & MW_ST_EOF) != 0);
    }
  };
  End receiving_end() {
    const bool told = error_told();
    return {told, A::load_acquire(state)};
  }
  uint32_t take_bytes(uint32_t head) {
    const uint32_t ready = *ring_ready<A>(kCapacity, head, rx_tail);
    for (uint32_t n = 0; n < ready; ++n)
      RL_ASSERT(data[(head + n) % kCapacity]($) == head + n - kStart);
    if (ready != 0) A::store_release(rx_head, head + ready);
    return ready;
  }
  void read() {
    uint32_t head = kStart;
    for (int turn = 0; turn < 8; ++turn) {
      End end{};
      if (How::kStateFirst) end = receiving_end();
      const uint32_t n = take_bytes(head);
      if (!How::kStateFirst) end = receiving_end();
      head += n;
      if (n != 0) continue;
      if (!end.ended()) {
        rl::yield(1, $);
        continue;
      }
      // no_bytes(): a FIN is told before the error that followed it.
      const bool fin = (end.state & MW_ST_FIN) != 0;
      const bool failed = !fin && end.error && take_error() != 0;
      if (!failed && (end.state & MW_ST_EOF) == 0) continue;
      RL_ASSERT(head - kStart == kBytes);
      RL_ASSERT(!failed || kEnds != Ends::by_fin_and_error);
      RL_ASSERT(!failed || (A::load_acquire(state) & MW_ST_EOF) != 0);
      return;
    }
  }
  void poll() {
    for (int turn = 0; turn < 4; ++turn) {
      const bool told = error_told();
      const uint32_t now = A::load_acquire(state);
      const bool own = half_closed.load(rl::mo_relaxed, $) != 0;
      const bool closed = (now & MW_ST_CLOSED) != 0;
      const bool rcv_shut = closed || (now & MW_ST_RCV_SHUT) != 0;
      const bool snd_shut = closed || (now & MW_ST_SND_SHUT) != 0 || own;
      const bool hup = rcv_shut && snd_shut;
      if (told || rcv_shut || hup) RL_ASSERT(rx_tail.load(rl::mo_relaxed, $) == kStart + kBytes);
      rl::yield(1, $);
    }
  }
  // Tries to send, and shuts its direction if that says nothing.
  void write() {
    for (int turn = 0; turn < 3; ++turn) {
      const uint32_t now = A::load_acquire(state);
      const bool failed = take_error() != 0;
      // Natively the error comes before EPIPE, unless the reader has taken it.
      if (!failed && (now & MW_ST_SND_SHUT) != 0)
        RL_ASSERT(error_taken.load(rl::mo_relaxed, $) != 0);
      if (failed) {
        RL_ASSERT((A::load_acquire(state) & MW_ST_SND_SHUT) != 0);
        return;
      }
      rl::yield(1, $);
    }
    half_closed.store(1, rl::mo_relaxed, $);
  }

  void thread(unsigned id) {
    if (id == 0) return be_the_ins();
    if (id == 1) return read();
    if (id == 2 && kEnds != Ends::by_reset_of_two_writers) return poll();
    write();
  }
};

constexpr auto kBad = rl::test_result_user_assert_failed;
constexpr rl::iteration_t kSome = 8000;

TEST(StateOrderModel, TheEndComesAfterTheBytes) {
  EXPECT_TRUE((explore<StateOrderModel<Shipped, Ends::by_fin>>(rl::test_result_success, kSome)));
}
TEST(StateOrderModel, TheErrorComesAfterTheBytes) {
  EXPECT_TRUE((explore<StateOrderModel<Shipped, Ends::by_reset>>(rl::test_result_success, kSome)));
}
TEST(StateOrderModel, TheErrorComesWithTheEnd) {
  EXPECT_TRUE(
      (explore<StateOrderModel<Shipped, Ends::by_reset_read>>(rl::test_result_success, kSome)));
}
TEST(StateOrderModel, TheErrorIsTakenOnce) {
  EXPECT_TRUE((explore<StateOrderModel<Shipped, Ends::by_reset_of_two_writers>>(
      rl::test_result_success, kSome)));
}
TEST(StateOrderModel, TheEndComesBeforeTheErrorThatFollowed) {
  EXPECT_TRUE(
      (explore<StateOrderModel<Shipped, Ends::by_fin_and_error>>(rl::test_result_success, kSome)));
}
TEST(StateOrderModel, NoticesAnErrorBeforeItsState) {
  EXPECT_TRUE((explore<StateOrderModel<ErrorBeforeState, Ends::by_reset>>(kBad)));
  EXPECT_TRUE((explore<StateOrderModel<ErrorBeforeState, Ends::by_reset_read>>(kBad)));
  EXPECT_TRUE((explore<StateOrderModel<ErrorBeforeState, Ends::by_reset_of_two_writers>>(kBad)));
}
TEST(StateOrderModel, NoticesAStateBeforeTheBytes) {
  EXPECT_TRUE((explore<StateOrderModel<StateBeforeBytes, Ends::by_fin>>(kBad)));
}
TEST(StateOrderModel, NoticesALookAtTheRingBeforeTheState) {
  EXPECT_TRUE((explore<StateOrderModel<RingBeforeState, Ends::by_fin>>(kBad)));
}
TEST(StateOrderModel, NoticesAStateBeforeItsError) {
  EXPECT_TRUE((explore<StateOrderModel<StateBeforeError, Ends::by_reset>>(kBad)));
}
TEST(StateOrderModel, NoticesThatAnErrorIsTakenTwice) {
  EXPECT_TRUE((explore<StateOrderModel<SeqBeforeTaken, Ends::by_reset_of_two_writers>>(kBad)));
}
TEST(StateOrderModel, NoticesRelaxedStores) {
  EXPECT_FALSE(
      (explore<StateOrderModel<Shipped, Ends::by_fin, RelaxedStores>>(rl::test_result_success)));
}

}  // namespace
}  // namespace mw::model
