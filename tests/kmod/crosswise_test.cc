// The core and src/ring as the two ends of one channel: each writes what the other reads, as two
// threads over one memory. Under ThreadSanitizer this also shows that their orders pair.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <cstring>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "kmod/core/calls.h"
#include "kmod/core/extents.h"
#include "kmod/core/rset.h"
#include "ring/byte_ring.h"
#include "ring/call_cell.h"
#include "ring/ready_set.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr uint32_t kTotal = 400000;

uint8_t byte_at(uint32_t n) {
  return static_cast<uint8_t>(n * 31 >> 3);
}

struct Bell {
  void ring() {
    const uint64_t one = 1;
    if (::write(fd.get(), &one, sizeof one) < 0) std::abort();
  }
  // False: nobody rang within a minute.
  bool hear() {
    pollfd p{fd.get(), POLLIN, 0};
    uint64_t n = 0;
    return ::poll(&p, 1, 60000) == 1 && ::read(fd.get(), &n, sizeof n) == sizeof n;
  }
  UniqueFd fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

struct Shared {
  Shared() {
    slot.tx_tail = slot.tx_head = slot.rx_tail = slot.rx_head = MW_INDEX_START;
    if (mw_pool_init(&pool, units.data(), 2 * MW_CHUNK_PAGES) != MW_OK ||
        mw_pool_grow(&pool) != MW_OK || mw_pool_grow(&pool) != MW_OK)
      std::abort();
  }
  mw_slot slot{};
  uint32_t ext = MW_EXT_NONE;
  std::vector<mw_unit> units = std::vector<mw_unit>(2 * MW_CHUNK_PAGES / MW_UNIT_PAGES);
  mw_pool pool;
  std::vector<uint8_t> memory = std::vector<uint8_t>(size_t{2} * MW_CHUNK_PAGES * MW_PAGE);
  mw_area area{memory.data(), 2 * MW_CHUNK_PAGES};
};

// The module sends: it takes extents, moves to larger ones, and gives them back when the ring stays
// empty. The INS reads with src/ring, in the extent that the slot names; at first only rings that are
// full, so that they grow.
TEST(KmodCrosswise, ModuleWritesInExtentsAndInsReads) {
  Shared s;
  std::atomic<bool> right = true;
  std::thread ins([&] {
    uint32_t head = MW_INDEX_START, got = 0;
    bool was_full = false;
    uint8_t chunk[3000];
    while (got < kTotal) {
      if (A::load_acquire(s.slot.tx_tail) == head) {
        was_full = false;
        std::this_thread::yield();
        continue;
      }
      const uint32_t ext = A::load_relaxed(s.ext);
      const RingBytes ring(
          reinterpret_cast<std::byte*>(s.memory.data()) + (ext >> 8) * size_t{MW_PAGE},
          MW_PAGE << (ext & 0xff));
      auto ready = ring_ready(ring.capacity(), head, s.slot.tx_tail);
      if (!ready) {
        right = false;
        return;
      }
      was_full = was_full || *ready == ring.capacity();
      if (got < kTotal / 4 && !was_full) {
        std::this_thread::yield();
        continue;
      }
      const uint32_t n = std::min<uint32_t>(*ready, sizeof chunk);
      ring.copy_out(head, chunk, n);
      for (uint32_t i = 0; i < n; ++i) right = right && chunk[i] == byte_at(got++);
      A::store_release(s.slot.tx_head, head += n);
    }
  });
  mw_writer w;
  mw_writer_init(&w, &s.slot.tx_tail, &s.slot.tx_head, &s.ext, MW_EXT_MIN_ORDER);
  uint32_t sent = 0, largest = 0, rests = 0;
  bool kept = true;
  while (sent < kTotal && kept && right) {
    uint32_t room = 0;
    const mw_status status = mw_writer_begin(&w, &s.pool, &s.area, &room);
    kept = status == MW_OK || status == MW_BUSY;
    largest = std::max(largest, mw_ext_order(w.ext));
    if (room == 0) {
      std::this_thread::yield();
      continue;
    }
    const uint32_t n = std::min({room, kTotal - sent, 7000u});
    mw_piece p[2];
    mw_producer_pieces(&w.ring, n, p);
    for (const mw_piece& piece : p) {
      for (uint32_t i = 0; i < piece.len; ++i) piece.at[i] = byte_at(sent++);
    }
    mw_writer_advance(&w, n);
    // The last quarter comes in small pieces with pauses between them.
    while (sent > kTotal / 4 * 3 && right && w.ext != MW_EXT_NONE) {
      if (mw_writer_rest(&w, &s.pool, true)) ++rests;
      std::this_thread::yield();
    }
  }
  ins.join();
  EXPECT_TRUE(kept);
  EXPECT_TRUE(right);
  EXPECT_EQ(sent, kTotal);
  EXPECT_GT(largest, MW_EXT_MIN_ORDER);
  EXPECT_GT(rests, 5u);
  EXPECT_EQ(s.pool.free_pages, 2 * MW_CHUNK_PAGES);
}

// The INS receives with src/ring into an extent; the module reads, sleeps for its doorbell, and tells
// the INS of room when that waits for it.
TEST(KmodCrosswise, InsWritesAndModuleReads) {
  Shared s;
  Bell to_module, to_ins;
  std::vector<uint64_t> set_memory(mw_ready_set_bytes(4096) / 8), ins_memory(set_memory.size());
  constexpr uint32_t kSlot = 4095, kOrder = 2, kCapacity = MW_PAGE << kOrder;
  ReadySet group_news(reinterpret_cast<mw_ready_set*>(set_memory.data()),
                      set_memory.data() + sizeof(mw_ready_set) / 8, 4096);
  ReadySet sock_news(reinterpret_cast<mw_ready_set*>(ins_memory.data()),
                     ins_memory.data() + sizeof(mw_ready_set) / 8, 4096);
  mw_rset to_drain, to_add;
  mw_rset_init(&to_drain, set_memory.data(), 4096);
  mw_rset_init(&to_add, ins_memory.data(), 4096);
  mw_rset_stay_asleep(&to_drain);
  bool ins_right = true;
  std::thread ins([&] {
    const uint32_t ext = mw_ext_of(8, kOrder);
    const RingBytes ring(reinterpret_cast<std::byte*>(s.memory.data()) + size_t{8} * MW_PAGE,
                         kCapacity);
    uint32_t tail = MW_INDEX_START, sent = 0;
    uint8_t chunk[5000];
    A::store_relaxed(s.ext, ext);
    while (sent < kTotal) {
      auto room = ring_room(kCapacity, tail, s.slot.rx_head);
      if (room && *room == 0) {
        A::fetch_or(s.slot.want, MW_WANT_RX_ROOM);
        A::fence();
        room = ring_room(kCapacity, tail, s.slot.rx_head);
      }
      if (!room) {
        ins_right = false;
        return;
      }
      if (*room == 0) {
        sock_news.drain([](uint32_t) { return true; });
        if (A::load_relaxed(s.slot.want) == 0 || !sock_news.prepare_sleep()) continue;
        if (!to_ins.hear()) {
          ins_right = false;
          return;
        }
        sock_news.wake();
        continue;
      }
      const uint32_t n = std::min<uint32_t>({*room, kTotal - sent, uint32_t{sizeof chunk}});
      for (uint32_t i = 0; i < n; ++i) chunk[i] = byte_at(sent++);
      ring.copy_in(tail, chunk, n);
      A::store_release(s.slot.rx_tail, tail += n);
      if (group_news.add(kSlot)) to_module.ring();
    }
  });
  mw_consumer c;
  mw_consumer_init(&c, &s.slot.rx_tail, &s.slot.rx_head);
  mw_rset_taken taken{};
  uint32_t got = 0;
  bool right = true, rung = true;
  while (got < kTotal && right && rung) {
    uint32_t members = 0;
    while (!mw_rset_drain(
        &to_drain, &taken, 64,
        [](void* n, uint32_t i) { *static_cast<uint32_t*>(n) += i == kSlot; }, &members)) {
    }
    if (members == 0) {
      rung = to_module.hear();
      mw_rset_on_ring(&to_drain);
      continue;
    }
    for (;;) {
      right = right && mw_area_look(&s.area, &c, &s.ext) == MW_OK;
      uint8_t chunk[900];
      const uint32_t n = std::min<uint32_t>(mw_consumer_ready(&c), sizeof chunk);
      if (!right || n == 0) break;
      mw_consumer_get(&c, chunk, n);
      for (uint32_t i = 0; i < n; ++i) right = right && chunk[i] == byte_at(got++);
      if (mw_consumer_owes_news(&c, &s.slot.want, kCapacity) && mw_rset_add(&to_add, kSlot))
        to_ins.ring();
    }
  }
  ins.join();
  EXPECT_TRUE(right);
  EXPECT_TRUE(rung);
  EXPECT_TRUE(ins_right);
  EXPECT_EQ(got, kTotal);
}

// Members that each side adds for the other; plain memory says what the news is, so that the sets
// alone have to order it.
TEST(KmodCrosswise, SetsLoseNothingEitherWay) {
  constexpr uint32_t kBits = 5000;
  std::vector<uint64_t> memory(mw_ready_set_bytes(kBits) / 8), other_memory(memory.size());
  ReadySet cxx_set(reinterpret_cast<mw_ready_set*>(memory.data()),
                   memory.data() + sizeof(mw_ready_set) / 8, kBits);
  ReadySet cxx_other(reinterpret_cast<mw_ready_set*>(other_memory.data()),
                     other_memory.data() + sizeof(mw_ready_set) / 8, kBits);
  mw_rset set, other;
  mw_rset_init(&set, memory.data(), kBits);
  mw_rset_init(&other, other_memory.data(), kBits);
  std::vector<uint32_t> to_module(kBits), to_ins(kBits);
  bool ins_right = true;
  std::thread ins([&] {
    uint32_t taken = 0;
    for (uint32_t i = 0; i < kBits; ++i) {
      to_module[i] = i + 1;
      cxx_set.add(i);
    }
    while (taken < kBits) {
      std::this_thread::yield();
      cxx_other.drain([&](uint32_t i) {
        ins_right = ins_right && to_ins[i] == i + 1;
        ++taken;
        return true;
      });
    }
  });
  struct Got {
    std::vector<uint32_t>* news;
    uint32_t taken = 0;
    bool right = true;
  } got{&to_module};
  mw_rset_taken taken{};
  uint32_t added = 0;
  while (added < kBits || got.taken < kBits) {
    if (added < kBits) {
      to_ins[added] = added + 1;
      mw_rset_add(&other, added++);
    } else {
      std::this_thread::yield();
    }
    mw_rset_drain(
        &set, &taken, 16,
        [](void* arg, uint32_t i) {
          Got& g = *static_cast<Got*>(arg);
          g.right = g.right && (*g.news)[i] == i + 1;
          ++g.taken;
        },
        &got);
  }
  ins.join();
  EXPECT_TRUE(got.right);
  EXPECT_TRUE(ins_right);
  EXPECT_EQ(got.taken, kBits);
}

// The module posts calls in cells; the INS finds them in call_news, answers with src/ring's
// answer_call(), and puts the cells into done_news.
TEST(KmodCrosswise, CallsAreAnsweredThroughSets) {
  constexpr uint32_t kCells = 8, kCalls = 3000;
  std::vector<mw_call> shared(kCells);
  std::vector<uint64_t> call_memory(mw_ready_set_bytes(kCells) / 8),
      done_memory(call_memory.size());
  ReadySet call_news(reinterpret_cast<mw_ready_set*>(call_memory.data()),
                     call_memory.data() + sizeof(mw_ready_set) / 8, kCells);
  ReadySet done_news(reinterpret_cast<mw_ready_set*>(done_memory.data()),
                     done_memory.data() + sizeof(mw_ready_set) / 8, kCells);
  mw_rset calls_set, done_set;
  mw_rset_init(&calls_set, call_memory.data(), kCells);
  mw_rset_init(&done_set, done_memory.data(), kCells);
  bool ins_right = true;
  std::thread ins([&] {
    std::vector<uint32_t> last(kCells);
    uint32_t answered = 0;
    while (answered < kCalls) {
      std::this_thread::yield();
      call_news.drain([&](uint32_t i) {
        mw_call& cell = shared[i];
        const uint32_t seq = A::load_acquire(cell.seq);
        if (seq == last[i]) return true;
        last[i] = seq;
        uint32_t in = 0;
        std::memcpy(&in, cell.payload, sizeof in);
        ins_right = ins_right && A::load_relaxed(cell.in_len) == sizeof in &&
                    A::load_relaxed(cell.op) == MW_OP_GETSOCKOPT;
        const uint32_t out = ~in;
        std::memcpy(cell.payload, &out, sizeof out);
        A::store_relaxed(cell.ret, 0);
        A::store_relaxed(cell.err, 0);
        A::store_relaxed(cell.out_len, uint32_t{sizeof out});
        answer_call(cell, seq);
        done_news.add(i);
        ++answered;
        return true;
      });
    }
  });
  std::vector<mw_cell> cells(kCells);
  struct Module {
    mw_calls calls;
    std::vector<uint32_t> asked = std::vector<uint32_t>(kCells);
    uint32_t collected = 0;
    bool right = true;
  } m;
  mw_calls_init(&m.calls, cells.data(), shared.data(), kCells);
  mw_rset_taken taken{};
  uint32_t posted = 0;
  while (m.collected < kCalls && m.right) {
    const uint32_t i = posted < kCalls ? mw_calls_take(&m.calls, MW_OP_GETSOCKOPT) : MW_NOTHING;
    if (i != MW_NOTHING) {
      m.asked[i] = posted * 2654435761u;
      mw_request r{};
      r.op = MW_OP_GETSOCKOPT;
      r.in = &m.asked[i];
      r.in_len = r.most_out = sizeof m.asked[i];
      m.right = mw_calls_post(&m.calls, i, &r, &m) == MW_OK;
      mw_rset_add(&calls_set, i);
      ++posted;
    } else {
      std::this_thread::yield();
    }
    mw_rset_drain(
        &done_set, &taken, 64,
        [](void* arg, uint32_t cell) {
          auto& module = *static_cast<Module*>(arg);
          mw_status status;
          if (mw_calls_on_news(&module.calls, cell, &status) == nullptr) {
            module.right = module.right && status == MW_OK;
            return;
          }
          mw_answer a;
          uint32_t out = 0;
          module.right = module.right && mw_calls_collect(&module.calls, cell, &a, &out) == MW_OK &&
                         a.out_len == sizeof out && out == ~module.asked[cell];
          ++module.collected;
        },
        &m);
  }
  ins.join();
  EXPECT_TRUE(m.right);
  EXPECT_TRUE(ins_right);
  EXPECT_EQ(m.calls.busy, 0u);
}

}  // namespace
}  // namespace mw
