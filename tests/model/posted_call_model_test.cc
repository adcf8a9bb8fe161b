// Posted calls: nobody waits for them until the next call about the same socket, and their cell may
// serve other calls by then. Does such a wait end as soon as the call is answered, and neither for
// another call's sake nor before? A process is killed at any step; the driver finishes its call and
// frees its cell. The cell is the shipped template; the rest is post() and await_posted() of
// src/shim/socket/call_cells.cc and free_dead_calls() of src/driver/session_state.cc.
#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Owner {
  rl::atomic<uint32_t> pid, seq;
};
struct Cell {
  rl::atomic<uint32_t> seq, done_seq, waiting;
};

struct Shipped {
  static constexpr bool kByNumber = true;   // a slot names the cell and the call's number
  static constexpr bool kOrLater = true;    // a cell that is further has answered the call
  static constexpr bool kTakesOver = true;  // who clears `waiting` wakes
  static constexpr bool kDriverFinishes = true;
};
struct NamingTheCellOnly : Shipped {
  static constexpr bool kByNumber = false;
};
struct WaitingForEquality : Shipped {
  static constexpr bool kOrLater = false;
};
struct ClearingBlindly : Shipped {
  static constexpr bool kTakesOver = false;
};
struct WithoutTheDriver : Shipped {
  static constexpr bool kDriverFinishes = false;
};

// Threads: two processes that post about one socket twice, of which the first may be killed at any
// step; the INS; the driver; and, if kLookup, a process that looks up a name, which takes for ever.
template <class How, bool kLookup>
struct PostedCallModel : rl::test_suite<PostedCallModel<How, kLookup>, kLookup ? 5 : 4> {
  using A = RelacyAtomics<>;
  using Held = CallCell<Owner, Cell, A>;
  static constexpr uint32_t kCells = 2;
  static constexpr uint32_t kStart = 0xfffffffeu;  // two calls below the wrap
  static constexpr uint32_t kNumbers = 8;
  static constexpr unsigned kNever = 99;

  Owner owners[kCells];
  Cell cells[kCells];
  rl::atomic<uint32_t> is_lookup[kCells];
  rl::atomic<uint32_t> call_news;  // a bit for each cell
  rl::atomic<uint64_t> posted;     // of the slot
  rl::atomic<uint32_t> executed[kCells][kNumbers];
  rl::atomic<uint32_t> wakes[kCells];  // of the futex done_seq
  rl::atomic<uint32_t> dead, posters_done, driver_done;
  uint32_t last[kCells];
  struct Sleeper {
    bool asleep;
    uint32_t at, seq, wakes;
  } sleepers[2];

  void before() {
    for (uint32_t c = 0; c < kCells; ++c) {
      owners[c].pid.store(0, rl::mo_relaxed, $);
      owners[c].seq.store(kStart, rl::mo_relaxed, $);
      cells[c].seq.store(kStart, rl::mo_relaxed, $);
      cells[c].done_seq.store(kStart, rl::mo_relaxed, $);
      cells[c].waiting.store(0, rl::mo_relaxed, $);
      is_lookup[c].store(0, rl::mo_relaxed, $);
      wakes[c].store(0, rl::mo_relaxed, $);
      for (auto& e : executed[c]) e.store(0, rl::mo_relaxed, $);
      last[c] = kStart;
    }
    call_news.store(0, rl::mo_relaxed, $);
    posted.store(0, rl::mo_relaxed, $);
    dead.store(0, rl::mo_relaxed, $);
    posters_done.store(0, rl::mo_relaxed, $);
    driver_done.store(0, rl::mo_relaxed, $);
    for (auto& s : sleepers) s = {};
  }
  Held cell(uint32_t at) { return {owners[at], cells[at]}; }
  void wake_all(uint32_t at) { wakes[at].fetch_add(1, rl::mo_seq_cst, $); }

  // False: the thread sleeps for good, as far as we look.
  bool await(unsigned who, uint32_t at, uint32_t seq, bool ours) {
    bool slept = false;
    for (int turn = 0; turn < 3; ++turn) {
      const bool answered =
          How::kOrLater ? cell(at).is_answered(seq) : A::load_acquire(cells[at].done_seq) == seq;
      if (answered) {
        RL_ASSERT(executed[at][seq - kStart].load(rl::mo_relaxed, $) != 0);
        if (slept && ours) cell(at).forget_waiters();
        return true;
      }
      slept = true;
      uint32_t seen = 0;
      if (!cell(at).prepare_sleep(seq, seen) && How::kOrLater) continue;
      const uint32_t before = wakes[at].load(rl::mo_seq_cst, $);
      bool woken = A::load_seq(cells[at].done_seq) != seen;
      for (int looks = 0; looks < 2 && !woken; ++looks) {
        rl::yield(1, $);
        woken = wakes[at].load(rl::mo_seq_cst, $) != before;
      }
      if (woken) continue;
      sleepers[who] = {true, at, seq, before};
      return false;
    }
    return false;
  }
  bool await_posted(unsigned who) {
    const uint64_t call = posted.load(rl::mo_acquire, $);
    if (call == 0) return true;
    const uint32_t at = posted_cell(call);
    uint32_t seq = posted_seq(call);
    if (!How::kByNumber) seq = owners[at].seq.load(rl::mo_relaxed, $);
    if (!await(who, at, seq, false)) return false;
    uint64_t same = call;
    posted.compare_exchange_strong(same, 0, rl::mo_seq_cst, $);
    return true;
  }
  int acquire_cell(uint32_t pid) {
    for (uint32_t tries = 0; tries < 2 * kCells; ++tries) {
      if (cell(tries % kCells).acquire(pid)) return static_cast<int>(tries % kCells);
      rl::yield(1, $);
    }
    return -1;
  }
  uint32_t submit(uint32_t at, bool lookup) {
    if (How::kTakesOver) {
      if (cell(at).take_over_waiters()) wake_all(at);
    } else {
      A::store_relaxed(cells[at].waiting, 0u);
    }
    is_lookup[at].store(lookup ? 1 : 0, rl::mo_relaxed, $);
    return cell(at).publish();
  }
  // False: it was killed, or waits for good.
  bool post(unsigned who, unsigned killed_at) {
    if (!await_posted(who)) return false;
    const int found = acquire_cell(who + 1);
    if (found < 0) return false;
    const auto at = static_cast<uint32_t>(found);
    if (killed_at == 0) return false;
    const uint32_t seq = submit(at, false);
    if (killed_at == 1) return false;
    A::fetch_or(call_news, 1u << at);
    if (killed_at == 2) return false;
    uint64_t none = 0;
    if (!posted.compare_exchange_strong(none, posted_call(at, seq), rl::mo_seq_cst, $) &&
        !await(who, at, seq, true))
      return false;
    if (killed_at == 3) return false;
    cell(at).release();
    return true;
  }
  void be_a_process(unsigned who) {
    const unsigned when = who == 0 ? rl::rand(10) : kNever;
    (void)(post(who, when) && post(who, when < 4 ? kNever : when - 4));
    if (when < 8) dead.store(1, rl::mo_release, $);
    posters_done.fetch_add(1, rl::mo_acq_rel, $);
  }
  void look_up() {
    const int found = acquire_cell(3);
    if (found < 0) return;
    submit(static_cast<uint32_t>(found), true);
    A::fetch_or(call_news, 1u << found);
  }

  void execute() {
    for (uint32_t news = A::exchange(call_news, 0u); news != 0; news &= news - 1) {
      const auto at = static_cast<uint32_t>(std::countr_zero(news));
      const uint32_t seq = cells[at].seq.load(rl::mo_relaxed, $);
      if (last[at] == seq || is_lookup[at].load(rl::mo_relaxed, $) != 0) continue;
      last[at] = seq;
      executed[at][seq - kStart].store(1, rl::mo_relaxed, $);
      if (answer_call<A>(cells[at], seq)) wake_all(at);
    }
  }
  void be_the_ins() {
    while (posters_done.load(rl::mo_acquire, $) < 2 || driver_done.load(rl::mo_acquire, $) == 0) {
      execute();
      rl::yield(1, $);
    }
    execute();
  }
  void sweep() {
    for (uint32_t at = 0; at < kCells; ++at) {
      if (A::load_acquire(owners[at].pid) != 1) continue;
      const uint32_t seq = A::load_acquire(cells[at].seq);
      if (seq != A::load_acquire(cells[at].done_seq)) {
        if (How::kDriverFinishes) A::fetch_or(call_news, 1u << at);
        continue;
      }
      A::store_relaxed(owners[at].seq, seq);
      A::compare_exchange(owners[at].pid, 1u, 0u);
    }
  }
  void be_the_driver() {
    bool last_time = false;
    while (!last_time) {
      last_time = posters_done.load(rl::mo_acquire, $) == 2;
      if (dead.load(rl::mo_acquire, $) != 0) sweep();
      if (!last_time) rl::yield(1, $);
    }
    driver_done.store(1, rl::mo_release, $);
  }

  void thread(unsigned id) {
    if (id < 2) return be_a_process(id);
    if (id == 2) return be_the_ins();
    if (id == 3) return be_the_driver();
    look_up();
  }
  void after() {
    if (dead.load(rl::mo_relaxed, $) != 0) {
      sweep();
      for (const Owner& o : owners) RL_ASSERT(o.pid.load(rl::mo_relaxed, $) != 1);
    }
    // Every call was answered in the end, except lookups: whoever slept was woken since.
    for (const Sleeper& s : sleepers)
      RL_ASSERT(!s.asleep || wakes[s.at].load(rl::mo_relaxed, $) != s.wakes);
  }
};

constexpr auto kBad = rl::test_result_user_assert_failed;

TEST(PostedCallModel, AWaitEndsWithItsCall) {
  EXPECT_TRUE((explore<PostedCallModel<Shipped, false>>(rl::test_result_success, 20000)));
}
TEST(PostedCallModel, AWaitEndsThoughALookupHasTheCell) {
  EXPECT_TRUE((explore<PostedCallModel<Shipped, true>>(rl::test_result_success, 20000)));
}
TEST(PostedCallModel, NoticesThatASlotNamesTheCellOnly) {
  EXPECT_TRUE((explore<PostedCallModel<NamingTheCellOnly, true>>(kBad)));
}
TEST(PostedCallModel, NoticesAComparisonForEquality) {
  EXPECT_TRUE((explore<PostedCallModel<WaitingForEquality, true>>(kBad)));
}
TEST(PostedCallModel, NoticesThatWaitersAreForgotten) {
  EXPECT_TRUE((explore<PostedCallModel<ClearingBlindly, false>>(kBad)));
}
TEST(PostedCallModel, NoticesThatTheDriverDoesNotFinish) {
  EXPECT_TRUE((explore<PostedCallModel<WithoutTheDriver, false>>(kBad)));
}

}  // namespace
}  // namespace mw::model
