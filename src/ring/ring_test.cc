#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "abi/mw_slot.h"
#include "ring/byte_ring.h"
#include "ring/channel.h"
#include "ring/ready_set.h"

namespace mw {
namespace {

struct SetMemory {
  explicit SetMemory(uint32_t bits) : words((bits + 63) / 64), set(&h, words.data(), bits) {}
  mw_ready_set h{};
  std::vector<uint64_t> words;
  ReadySet set;
};

std::set<uint32_t> drain_all(ReadySet& s) {
  std::set<uint32_t> out;
  EXPECT_TRUE(s.drain([&](uint32_t i) { return out.insert(i).second; }));
  return out;
}

TEST(ReadySet, DrainsWhatWasAddedOnce) {
  SetMemory m(MW_READY_MAX_BITS);
  for (uint32_t i : {0u, 63u, 64u, 4095u, 4096u, 131071u, MW_READY_MAX_BITS - 1, 63u}) m.set.add(i);
  EXPECT_EQ(drain_all(m.set),
            (std::set<uint32_t>{0, 63, 64, 4095, 4096, 131071, MW_READY_MAX_BITS - 1}));
  EXPECT_TRUE(m.set.empty());
}

TEST(ReadySet, KeepsWhatIsNotTaken) {
  SetMemory m(10000);
  for (uint32_t i = 0; i < 10000; i += 7) m.set.add(i);
  std::set<uint32_t> got;
  while (!m.set.drain([&](uint32_t i) {
    if (got.size() % 10 == 9 && !got.count(i)) {
      got.insert(i);
      return false;  // refused: has to come again
    }
    got.insert(i);
    return true;
  })) {
  }
  EXPECT_EQ(got.size(), (10000 + 6) / 7);
}

TEST(ReadySet, IgnoresBitsBeyondItsSize) {
  SetMemory m(100);
  m.h.top = ~0ull;
  for (auto& w : m.h.mid) w = ~0ull;
  for (auto& w : m.words) w = ~0ull;
  EXPECT_EQ(drain_all(m.set).size(), 100u);
}

TEST(ReadySet, RingsOnceForASleeper) {
  SetMemory m(64);
  EXPECT_FALSE(m.set.add(1));
  EXPECT_FALSE(m.set.prepare_sleep());  // there is work
  drain_all(m.set);
  ASSERT_TRUE(m.set.prepare_sleep());
  EXPECT_TRUE(m.set.add(2));
  EXPECT_FALSE(m.set.add(3));  // the first ring stands
  m.set.wake();
  EXPECT_FALSE(m.set.add(4));
}

TEST(ReadySet, LosesNothingBetweenThreads) {
  SetMemory m(5000);
  constexpr int kRounds = 20000;
  std::vector<uint32_t> posted(5000), seen(5000);
  std::atomic<bool> done{false};
  std::thread producer([&] {
    std::minstd_rand rnd(1);
    for (int r = 0; r < kRounds; ++r) {
      const uint32_t i = static_cast<uint32_t>(rnd()) % 5000;
      StdAtomics::store_relaxed(posted[i], posted[i] + 1);
      m.set.add(i);
    }
    done.store(true);
  });
  auto take = [&](uint32_t i) {
    seen[i] = StdAtomics::load_relaxed(posted[i]);
    return true;
  };
  while (!done.load()) m.set.drain(take);
  producer.join();
  m.set.drain(take);
  EXPECT_EQ(posted, seen);
}

TEST(ByteRing, CarriesBytesAcrossTheIndexWrap) {
  std::vector<std::byte> memory(4096);
  RingBytes ring(memory.data(), 4096);
  uint32_t tail = MW_INDEX_START, head = MW_INDEX_START;
  uint32_t shared_tail = tail, shared_head = head;
  std::thread writer([&] {
    uint32_t sent = 0;
    while (sent < 1000000) {
      const uint32_t room = *ring_room(4096, tail, shared_head);
      std::string chunk(std::min<uint32_t>({room, 777, 1000000 - sent}), '\0');
      for (char& c : chunk) c = static_cast<char>(sent++ * 31 >> 3);
      if (chunk.empty()) std::this_thread::yield();
      ring.copy_in(tail, chunk.data(), static_cast<uint32_t>(chunk.size()));
      tail += static_cast<uint32_t>(chunk.size());
      StdAtomics::store_release(shared_tail, tail);
    }
  });
  uint32_t got = 0;
  bool same = true;
  while (got < 1000000) {
    char buf[500];
    const uint32_t n = std::min<uint32_t>(*ring_ready(4096, head, shared_tail), sizeof buf);
    if (n == 0) std::this_thread::yield();
    ring.copy_out(head, buf, n);
    for (uint32_t i = 0; i < n; ++i) same &= buf[i] == static_cast<char>(got++ * 31 >> 3);
    head += n;
    StdAtomics::store_release(shared_head, head);
  }
  writer.join();
  EXPECT_TRUE(same);
}

TEST(ByteRing, RejectsIndexesOutOfTheWindow) {
  uint32_t head = 10;
  EXPECT_EQ(ring_room(4096, 10 + 4097, head).error().fault, Fault::peer);
  EXPECT_EQ(ring_room(4096, 9, head).error().fault, Fault::peer);
  uint32_t tail = 0;
  EXPECT_EQ(ring_ready(4096, 1, tail).error().fault, Fault::peer);
  EXPECT_EQ(*ring_ready(4096, 0u - 4096u, tail), 4096u);
}

TEST(Layout, RejectsWhatItCannotHold) {
  mw_geometry good{.slots = 1024,
                   .rx_ring = 65536,
                   .tx_ring = 65536,
                   .groups = 4,
                   .workers = 1,
                   .calls = 64,
                   .reserved = {0, 0}};
  mw_layout l{};
  ASSERT_EQ(mw_layout_of(&good, &l), 0);
  EXPECT_EQ(l.bytes % MW_PAGE, 0u);
  EXPECT_GE(l.bytes, l.rings + 1024ull * 131072);
  for (auto change : std::vector<void (*)(mw_geometry&)>{
           [](mw_geometry& g) { g.slots = 0; }, [](mw_geometry& g) { g.slots = MW_MAX_SLOTS + 1; },
           [](mw_geometry& g) { g.rx_ring = 12345; }, [](mw_geometry& g) { g.tx_ring = 1u << 31; },
           [](mw_geometry& g) { g.workers = 0; }, [](mw_geometry& g) { g.calls = ~0u; },
           [](mw_geometry& g) { g.groups = ~0u; }, [](mw_geometry& g) { g.reserved[1] = 1; }}) {
    mw_geometry bad = good;
    change(bad);
    EXPECT_EQ(mw_layout_of(&bad, &l), -1);
  }
}

}  // namespace
}  // namespace mw
