// The core under the model checker, as it ships: its accesses to shared memory are the checker's, by
// the hooks of kmod/core/atomic.h. Each model also weakens one order, to show that it would notice.
#include "kmod/core/calls.h"
#include "kmod/core/extents.h"
#include "kmod/core/rset.h"
#include "tests/model/relacy_atomics.h"

namespace mw::model {
namespace {

// The shared words and bytes of a model, by their addresses. One model runs at a time.
class Board {
 public:
  static Board* now;

  // Forgets the last iteration's.
  void clear() {
    now = this;
    words_ = bytes_ = 0;
  }
  void word(const void* at, uint64_t value) {
    word_at_[words_] = at;
    word_[words_++].store(value, rl::mo_relaxed, $);
  }
  void byte(const void* at) { byte_at_[bytes_++] = at; }

  rl::atomic<uint64_t>& word_of(const void* at) {
    for (unsigned i = 0; i < words_; ++i) {
      if (word_at_[i] == at) return word_[i];
    }
    std::abort();  // the core uses a word that this model does not know
  }
  rl::var<uint8_t>& byte_of(const void* at) {
    for (unsigned i = 0; i < bytes_; ++i) {
      if (byte_at_[i] == at) return byte_[i];
    }
    std::abort();
  }
  uint64_t value(const void* at) { return word_of(at).load(rl::mo_relaxed, $); }

  struct Orders {
    rl::memory_order acquire = rl::mo_acquire, release = rl::mo_release, seq = rl::mo_seq_cst,
                     rmw = rl::mo_seq_cst, fence = rl::mo_seq_cst;
  };
  Orders orders;

 private:
  static constexpr unsigned kWords = 24, kBytes = 16;
  const void* word_at_[kWords];
  const void* byte_at_[kBytes];
  rl::atomic<uint64_t> word_[kWords];
  rl::var<uint8_t> byte_[kBytes];
  unsigned words_ = 0, bytes_ = 0;
};
Board* Board::now = nullptr;

}  // namespace
}  // namespace mw::model

using mw::model::Board;

extern "C" {
uint64_t mw_hook_load(const void* word, uint32_t, mw_order order) {
  const Board::Orders& o = Board::now->orders;
  return Board::now->word_of(word).load(order == MW_RELAXED ? rl::mo_relaxed
                                        : order == MW_SEQ   ? o.seq
                                                            : o.acquire,
                                        $);
}
void mw_hook_store(void* word, uint32_t, uint64_t value, mw_order order) {
  Board::now->word_of(word).store(
      value, order == MW_RELAXED ? rl::mo_relaxed : Board::now->orders.release, $);
}
uint64_t mw_hook_xchg(void* word, uint32_t, uint64_t value) {
  return Board::now->word_of(word).exchange(value, Board::now->orders.rmw, $);
}
uint64_t mw_hook_fetch_or(void* word, uint32_t, uint64_t bits) {
  return Board::now->word_of(word).fetch_or(bits, Board::now->orders.rmw, $);
}
uint64_t mw_hook_fetch_and(void* word, uint32_t, uint64_t bits) {
  return Board::now->word_of(word).fetch_and(bits, Board::now->orders.rmw, $);
}
void mw_hook_fence() {
  rl::atomic_thread_fence(Board::now->orders.fence, $);
}
void mw_hook_read(void* to, const void* shared, size_t n) {
  for (size_t i = 0; i < n; ++i)
    static_cast<uint8_t*>(to)[i] = Board::now->byte_of(static_cast<const uint8_t*>(shared) + i)($);
}
void mw_hook_write(void* shared, const void* from, size_t n) {
  for (size_t i = 0; i < n; ++i)
    Board::now->byte_of(static_cast<uint8_t*>(shared) + i)($) =
        static_cast<const uint8_t*>(from)[i];
}
}

namespace mw::model {
namespace {

struct Shipped {
  static void weaken(Board::Orders&) {}
};
struct RelaxedAcquire {
  static void weaken(Board::Orders& o) { o.acquire = rl::mo_relaxed; }
};
struct RelaxedRelease {
  static void weaken(Board::Orders& o) { o.release = rl::mo_relaxed; }
};
struct RelaxedSeqLoads {
  static void weaken(Board::Orders& o) { o.seq = rl::mo_relaxed; }
};
struct RelaxedReadModifyWrites {
  static void weaken(Board::Orders& o) { o.rmw = rl::mo_relaxed; }
};
struct NoFence {
  static void weaken(Board::Orders& o) { o.fence = rl::mo_relaxed; }
};

// ---- a ring of two bytes whose indexes wrap ----

template <class Weak>
struct RingModel : rl::test_suite<RingModel<Weak>, 2> {
  static constexpr uint32_t kBytes = 5, kStart = 0xffffffffu;
  Board board;
  uint32_t tail, head;
  uint8_t memory[2];
  mw_producer p;
  mw_consumer c;

  void before() {
    board.clear();
    Weak::weaken(board.orders);
    board.word(&tail, kStart);
    board.word(&head, kStart);
    for (uint8_t& b : memory) board.byte(&b);
    mw_producer_init(&p, &tail, &head);
    mw_consumer_init(&c, &tail, &head);
    p.mem = c.mem = {memory, sizeof memory};
    p.tail = p.head = c.tail = c.head = kStart;
  }
  void thread(unsigned id) {
    for (uint32_t done = 0; done < kBytes;) {
      RL_ASSERT((id == 0 ? mw_producer_look(&p) : mw_consumer_look(&c)) == MW_OK);
      const uint32_t n =
          std::min(id == 0 ? mw_producer_room(&p) : mw_consumer_ready(&c), kBytes - done);
      if (n == 0) rl::yield(1, $);
      for (uint32_t i = 0; i < n; ++i, ++done) {
        uint8_t byte = static_cast<uint8_t>(done);
        if (id == 0) {
          mw_producer_put(&p, &byte, 1);
        } else {
          mw_consumer_get(&c, &byte, 1);
          RL_ASSERT(byte == done);
        }
      }
    }
  }
};

TEST(KmodRingModel, KeepsReaderAndWriterApart) {
  EXPECT_TRUE(explore<RingModel<Shipped>>());
}
TEST(KmodRingModel, NoticesARelaxedLookAtTheOtherIndex) {
  EXPECT_TRUE(explore<RingModel<RelaxedAcquire>>(rl::test_result_data_race));
}
TEST(KmodRingModel, NoticesARelaxedStoreOfAnIndex) {
  EXPECT_TRUE(explore<RingModel<RelaxedRelease>>(rl::test_result_data_race));
}

// ---- one extent that two rings use one after the other, or one ring twice ----

// What the writer does for the pool is private; what is at stake is the memory: it may go to the
// next ring only when the reader is through with it.
template <class Weak>
struct ExtentModel : rl::test_suite<ExtentModel<Weak>, 2> {
  static constexpr uint32_t kRounds = 3;
  struct Ring {
    uint32_t tail, head, ext;
    mw_writer w;
    mw_consumer c;
  };
  Board board;
  Ring rings[2];
  mw_unit units[MW_CHUNK_PAGES / MW_UNIT_PAGES];
  mw_pool pool;
  mw_area area;

  static uint8_t* base() {
    static uint8_t bytes[MW_CHUNK_PAGES * MW_PAGE];
    return bytes;
  }
  void before() {
    board.clear();
    Weak::weaken(board.orders);
    area = {base(), MW_CHUNK_PAGES};
    RL_ASSERT(mw_pool_init(&pool, units, MW_CHUNK_PAGES) == MW_OK);
    RL_ASSERT(mw_pool_grow(&pool) == MW_OK);
    for (Ring& r : rings) {
      board.word(&r.tail, MW_INDEX_START);
      board.word(&r.head, MW_INDEX_START);
      board.word(&r.ext, MW_EXT_NONE);
      mw_writer_init(&r.w, &r.tail, &r.head, &r.ext, MW_EXT_MIN_ORDER);
      mw_consumer_init(&r.c, &r.tail, &r.head);
    }
    // Two extents, as the first ring has one more while the second still holds its own.
    constexpr uint32_t kSize = MW_PAGE << MW_EXT_MIN_ORDER;
    for (uint32_t ext = 0; ext < 2; ++ext) {
      for (uint32_t i = 0; i < 2; ++i)
        board.byte(base() + ext * kSize + ((MW_INDEX_START + i) & (kSize - 1)));
    }
  }
  // The rounds' bytes go into one ring, the other, and the first again.
  void thread(unsigned id) {
    for (uint32_t round = 0; round < kRounds; ++round) {
      Ring& r = rings[round % 2];
      uint8_t byte = static_cast<uint8_t>(round + 1);
      if (id == 0) {
        uint32_t room = 0;
        RL_ASSERT(mw_writer_begin(&r.w, &pool, &area, &room) == MW_OK && room > 0);
        mw_bytes_put(&r.w.ring.mem, r.w.ring.tail, &byte, 1);
        mw_writer_advance(&r.w, 1);
        // Now and then it is free for the next ring at once; else that takes the other extent.
        for (int looks = 0; looks < 3 && !mw_writer_rest(&r.w, &pool, true); ++looks)
          rl::yield(1, $);
      } else {
        for (;;) {
          RL_ASSERT(mw_area_look(&area, &r.c, &r.ext) == MW_OK);
          if (mw_consumer_ready(&r.c) != 0) break;
          rl::yield(1, $);
        }
        mw_consumer_get(&r.c, &byte, 1);
        RL_ASSERT(byte == round + 1);
      }
    }
  }
};

TEST(KmodExtentModel, MemoryMovesOnOnlyWhenItWasRead) {
  EXPECT_TRUE(explore<ExtentModel<Shipped>>());
}
TEST(KmodExtentModel, NoticesARelaxedLookAtTheOtherIndex) {
  EXPECT_FALSE(explore<ExtentModel<RelaxedAcquire>>());
}
TEST(KmodExtentModel, NoticesARelaxedStoreOfAnIndex) {
  EXPECT_FALSE(explore<ExtentModel<RelaxedRelease>>());
}

// ---- a ready set: the module's own, or one of the INS's that the module adds to ----

enum class Consumer {
  module,  // lives by its doorbell, and counts as asleep for good
  ins,     // announces each sleep, as src/ring/ready_set.h does
};

template <class Weak, Consumer kConsumer, unsigned kAdders, uint32_t kSecondMember>
struct RsetModel : rl::test_suite<RsetModel<Weak, kConsumer, kAdders, kSecondMember>, kAdders + 1> {
  static constexpr uint32_t kBits = 128;
  static constexpr unsigned kPostings = 2;  // of each adder
  Board board;
  uint64_t memory[(sizeof(mw_ready_set) + kBits / 8) / 8];
  mw_rset set;
  mw_rset_taken taken;
  rl::atomic<uint32_t> news[2];  // of each adder's member
  rl::atomic<uint32_t> doorbell;
  uint32_t seen[2];
  bool asleep;

  static constexpr uint32_t member(unsigned adder) { return adder == 0 ? 0 : kSecondMember; }

  void before() {
    board.clear();
    Weak::weaken(board.orders);
    mw_rset_init(&set, memory, kBits);
    taken = {};
    board.word(&set.h->sleepers, kConsumer == Consumer::module ? 1 : 0);
    board.word(&set.h->rung, 0);
    board.word(&set.h->top, 0);
    board.word(&set.h->mid[0], 0);
    for (uint32_t w = 0; w < kBits / 64; ++w) board.word(&set.words[w], 0);
    for (auto& n : news) n.store(0, rl::mo_relaxed, $);
    doorbell.store(0, rl::mo_relaxed, $);
    seen[0] = seen[1] = 0;
    asleep = kConsumer == Consumer::module;
  }
  static void take(void* arg, uint32_t i) {
    auto& m = *static_cast<RsetModel*>(arg);
    for (unsigned adder = 0; adder < kAdders; ++adder) {
      if (member(adder) == i) m.seen[adder] = m.news[adder].load(rl::mo_relaxed, $);
    }
  }
  void drain() {
    while (!mw_rset_drain(&set, &taken, 2, take, this)) {
    }
  }
  bool hears_doorbell() {
    for (int looks = 0; looks < 3; ++looks) {
      if (doorbell.exchange(0, rl::mo_relaxed, $) != 0) return true;
      rl::yield(1, $);
    }
    return false;
  }
  void consume_as_module() {
    for (int turn = 0; turn < 4; ++turn) {
      if (!hears_doorbell()) return;
      mw_rset_on_ring(&set);
      drain();
    }
  }
  void change_sleepers(uint64_t by) {
    board.word_of(&set.h->sleepers).fetch_add(by, board.orders.rmw, $);
  }
  void consume_as_ins() {
    for (int turn = 0; turn < 4; ++turn) {
      drain();
      change_sleepers(1);
      mw_rset_on_ring(&set);
      if (mw_load_seq64(&set.h->top) == 0) {
        asleep = true;
        if (!hears_doorbell()) return;
        asleep = false;
      }
      change_sleepers(~uint64_t{0});
      mw_rset_on_ring(&set);
    }
  }
  void thread(unsigned id) {
    if (id == kAdders) {
      if (kConsumer == Consumer::module) {
        consume_as_module();
      } else {
        consume_as_ins();
      }
      return;
    }
    for (uint32_t n = 1; n <= kPostings; ++n) {
      news[id].store(n, rl::mo_relaxed, $);
      if (mw_rset_add(&set, member(id))) doorbell.fetch_add(1, rl::mo_relaxed, $);
    }
  }
  // What was not seen stands in all three levels, and the consumer is awake or has been rung for.
  void after() {
    for (unsigned adder = 0; adder < kAdders; ++adder) {
      if (seen[adder] == kPostings) continue;
      const uint32_t m = member(adder);
      RL_ASSERT((board.value(&set.words[m / 64]) >> (m % 64) & 1) == 1);
      RL_ASSERT((board.value(&set.h->mid[0]) >> (m / 64) & 1) == 1);
      RL_ASSERT(board.value(&set.h->top) == 1);
      RL_ASSERT(!asleep || doorbell.load(rl::mo_relaxed, $) != 0);
    }
  }
};

constexpr auto kModule = Consumer::module, kIns = Consumer::ins;

TEST(KmodRsetModel, OneAdder) {
  EXPECT_TRUE((explore<RsetModel<Shipped, kModule, 1, 0>>()));
  EXPECT_TRUE((explore<RsetModel<Shipped, kIns, 1, 0>>()));
}
TEST(KmodRsetModel, TwoAddersOfOneWord) {
  EXPECT_TRUE((explore<RsetModel<Shipped, kModule, 2, 63>>()));
}
TEST(KmodRsetModel, TwoAddersOfTwoWords) {
  EXPECT_TRUE((explore<RsetModel<Shipped, kModule, 2, 64>>()));
  EXPECT_TRUE((explore<RsetModel<Shipped, kIns, 2, 64>>()));
}
TEST(KmodRsetModel, TwoAddersOfOneMember) {
  EXPECT_TRUE((explore<RsetModel<Shipped, kModule, 2, 0>>()));
}
TEST(KmodRsetModel, NoticesRelaxedReadModifyWrites) {
  constexpr auto kFailed = rl::test_result_user_assert_failed;
  EXPECT_TRUE((explore<RsetModel<RelaxedReadModifyWrites, kModule, 1, 0>>(kFailed)));
  EXPECT_TRUE((explore<RsetModel<RelaxedReadModifyWrites, kIns, 1, 0>>(kFailed)));
}
TEST(KmodRsetModel, NoticesARelaxedLookAtSleepers) {
  EXPECT_TRUE(
      (explore<RsetModel<RelaxedSeqLoads, kIns, 1, 0>>(rl::test_result_user_assert_failed)));
}

// ---- a call ----

template <class Weak>
struct CallModel : rl::test_suite<CallModel<Weak>, 2> {
  static constexpr uint32_t kCalls = 2;
  Board board;
  mw_call shared;
  mw_cell cell;
  mw_calls calls;

  void before() {
    board.clear();
    Weak::weaken(board.orders);
    for (uint32_t* w :
         {&shared.op, &shared.slot, &shared.gen, &shared.seq, &shared.in_len, &shared.flags2,
          &shared.caller, &shared.sent_at, &shared.done_seq, &shared.out_len})
      board.word(w, 0);
    for (int32_t& a : shared.arg) board.word(&a, 0);
    board.word(&shared.ret, 0);
    board.word(&shared.err, 0);
    board.byte(&shared.payload[0]);
    mw_calls_init(&calls, &cell, &shared, 1);
  }
  void module() {
    for (uint8_t n = 1; n <= kCalls; ++n) {
      mw_request r{};
      r.op = MW_OP_SETSOCKOPT;
      r.in = &n;
      r.in_len = r.most_out = 1;
      r.most_ret = 100;
      RL_ASSERT(mw_calls_take(&calls, r.op) == 0);
      RL_ASSERT(mw_calls_post(&calls, 0, &r, this) == MW_OK);
      mw_answer a;
      uint8_t out = 0;
      for (mw_status status = MW_BUSY; status != MW_OK;) {
        status = mw_calls_collect(&calls, 0, &a, &out);
        RL_ASSERT(status == MW_OK || status == MW_BUSY);
        if (status == MW_BUSY) rl::yield(1, $);
      }
      RL_ASSERT(a.ret == n + 10 && out == n + 20);
    }
  }
  // What the INS does in src/ins, over the same words.
  void ins() {
    for (uint8_t n = 1; n <= kCalls; ++n) {
      while (mw_load_acquire32(&shared.seq) != n) rl::yield(1, $);
      uint8_t in = 0;
      mw_shared_read(&in, shared.payload, 1);
      RL_ASSERT(in == n && mw_load_relaxed32(&shared.op) == MW_OP_SETSOCKOPT);
      const uint8_t out = static_cast<uint8_t>(n + 20);
      mw_shared_write(shared.payload, &out, 1);
      board.word_of(&shared.ret).store(n + 10u, rl::mo_relaxed, $);
      mw_store_relaxed32(&shared.out_len, 1);
      mw_store_release32(&shared.done_seq, n);
    }
  }
  void thread(unsigned id) {
    if (id == 0) {
      module();
    } else {
      ins();
    }
  }
};

TEST(KmodCallModel, TheAnswerBelongsToTheCall) {
  EXPECT_TRUE(explore<CallModel<Shipped>>());
}
TEST(KmodCallModel, NoticesARelaxedLookAtTheNumber) {
  EXPECT_FALSE(explore<CallModel<RelaxedAcquire>>());
}
TEST(KmodCallModel, NoticesARelaxedStoreOfTheNumber) {
  EXPECT_FALSE(explore<CallModel<RelaxedRelease>>());
}

// ---- room that somebody waits for, in both directions ----

// module_writes: the module's send ring is full and it asks for news of room, as src/ins gives it.
// Else the INS asks and the module owes the news.
template <class Weak, bool module_writes>
struct RoomModel : rl::test_suite<RoomModel<Weak, module_writes>, 2> {
  Board board;
  uint32_t tail, head, want;
  uint8_t memory[2];
  mw_producer p;
  mw_consumer c;
  bool sleeps, told;

  void before() {
    board.clear();
    Weak::weaken(board.orders);
    board.word(&tail, MW_INDEX_START + 2);
    board.word(&head, MW_INDEX_START);
    board.word(&want, 0);
    mw_producer_init(&p, &tail, &head);
    mw_consumer_init(&c, &tail, &head);
    p.mem = c.mem = {memory, sizeof memory};
    p.tail = c.tail = MW_INDEX_START + 2;
    sleeps = told = false;
  }
  void writer() {
    if (module_writes) {
      RL_ASSERT(mw_producer_ask(&p, &want) == MW_OK);
    } else {
      mw_set_bit32(&want, MW_WANT_RX_ROOM_BIT);
      mw_fence();
      RL_ASSERT(mw_producer_look(&p) == MW_OK);
    }
    sleeps = mw_producer_room(&p) == 0;
  }
  void reader() {
    mw_consumer_advance(&c, 2);
    if (!module_writes) {
      told = mw_consumer_owes_news(&c, &want, 2);
      return;
    }
    mw_fence();
    if ((mw_load_relaxed32(&want) & MW_WANT_OUT_EVENT) != 0)
      told = mw_test_and_clear_bit32(&want, MW_WANT_OUT_EVENT_BIT);
  }
  void thread(unsigned id) {
    if (id == 0) {
      writer();
    } else {
      reader();
    }
  }
  void after() { RL_ASSERT(!sleeps || told); }
};

TEST(KmodRoomModel, AWriterThatSleepsIsTold) {
  EXPECT_TRUE((explore<RoomModel<Shipped, true>>()));
  EXPECT_TRUE((explore<RoomModel<Shipped, false>>()));
}
TEST(KmodRoomModel, NoticesAMissingFence) {
  EXPECT_TRUE((explore<RoomModel<NoFence, true>>(rl::test_result_user_assert_failed)));
  EXPECT_TRUE((explore<RoomModel<NoFence, false>>(rl::test_result_user_assert_failed)));
}

}  // namespace
}  // namespace mw::model
