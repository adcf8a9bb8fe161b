#include "kmod/core/extents.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace mw {
namespace {

struct Pool {
  explicit Pool(uint32_t chunks, uint32_t grown) : units(chunks * MW_CHUNK_PAGES / MW_UNIT_PAGES) {
    EXPECT_EQ(mw_pool_init(&pool, units.data(), chunks * MW_CHUNK_PAGES), MW_OK);
    for (uint32_t i = 0; i < grown; ++i) EXPECT_EQ(mw_pool_grow(&pool), MW_OK);
  }
  std::vector<mw_unit> units;
  mw_pool pool;
};

TEST(KmodPool, NeverHandsOutAPageTwice) {
  Pool p(4, 4);
  std::map<uint32_t, uint32_t> taken;  // first page, pages
  std::minstd_rand rnd(3);
  uint32_t pages = 0;
  for (int i = 0; i < 20000; ++i) {
    if (rnd() % 2 == 0) {
      const auto order = static_cast<uint32_t>(2 + rnd() % 7);
      const uint32_t ext = mw_pool_acquire(&p.pool, order);
      if (ext == MW_EXT_NONE) continue;
      ASSERT_EQ(mw_ext_order(ext), order);
      const uint32_t page = mw_ext_page(ext);
      ASSERT_EQ(page % (1u << order), 0u);
      ASSERT_LE(page + (1u << order), p.pool.pages);
      const auto next = taken.lower_bound(page);
      if (next != taken.end()) {
        ASSERT_LE(page + (1u << order), next->first);
      }
      if (next != taken.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second, page);
      }
      taken[page] = 1u << order;
      pages += 1u << order;
    } else if (!taken.empty()) {
      const auto it = std::next(taken.begin(), static_cast<long>(rnd() % taken.size()));
      const auto order = static_cast<uint32_t>(__builtin_ctz(it->second));
      ASSERT_EQ(mw_pool_release(&p.pool, mw_ext_of(it->first, order)), MW_OK);
      pages -= it->second;
      taken.erase(it);
    }
    ASSERT_EQ(p.pool.free_pages, p.pool.pages - pages);
  }
  for (const auto& [page, size] : taken)
    ASSERT_EQ(mw_pool_release(&p.pool, mw_ext_of(page, static_cast<uint32_t>(__builtin_ctz(size)))),
              MW_OK);
  for (int i = 0; i < 4; ++i) EXPECT_NE(mw_pool_acquire(&p.pool, 8), MW_EXT_NONE) << "not joined";
}

TEST(KmodPool, GivesTheExtentThatWasFreedLast) {
  Pool p(1, 1);
  uint32_t ext[64];
  for (uint32_t& e : ext) e = mw_pool_acquire(&p.pool, 2);
  EXPECT_EQ(mw_pool_acquire(&p.pool, 2), MW_EXT_NONE);
  // Of each pair one, so that none are joined.
  for (int i : {6, 40, 22}) EXPECT_EQ(mw_pool_release(&p.pool, ext[i]), MW_OK);
  EXPECT_EQ(mw_pool_acquire(&p.pool, 2), ext[22]);
  EXPECT_EQ(mw_pool_acquire(&p.pool, 2), ext[40]);
}

TEST(KmodPool, RefusesWhatIsNotTaken) {
  Pool p(2, 1);
  const uint32_t ext = mw_pool_acquire(&p.pool, 3);
  EXPECT_EQ(mw_pool_release(&p.pool, mw_ext_of(mw_ext_page(ext), 2)), MW_BUG);
  EXPECT_EQ(mw_pool_release(&p.pool, mw_ext_of(mw_ext_page(ext) + 1, 3)), MW_BUG);
  EXPECT_EQ(mw_pool_release(&p.pool, mw_ext_of(MW_CHUNK_PAGES, 8)), MW_BUG) << "beyond the pool";
  EXPECT_EQ(mw_pool_release(&p.pool, MW_EXT_NONE), MW_BUG);
  EXPECT_EQ(mw_pool_release(&p.pool, ext), MW_OK);
  EXPECT_EQ(mw_pool_release(&p.pool, ext), MW_BUG) << "twice";
  EXPECT_EQ(p.pool.free_pages, MW_CHUNK_PAGES);
}

TEST(KmodPool, RefusesOrdersThatThereAreNone) {
  Pool p(1, 1);
  for (uint32_t order : {0u, 1u, 9u, 255u})
    EXPECT_EQ(mw_pool_acquire(&p.pool, order), MW_EXT_NONE) << order;
}

TEST(KmodPool, TakesTheMostThatIsLeft) {
  Pool p(1, 1);
  mw_pool_acquire(&p.pool, 7);
  mw_pool_acquire(&p.pool, 6);
  mw_pool_acquire(&p.pool, 5);  // 32 pages are left
  EXPECT_EQ(mw_pool_acquire_most(&p.pool, 8, 6), MW_EXT_NONE);
  EXPECT_EQ(mw_ext_order(mw_pool_acquire_most(&p.pool, 8, 2)), 5u);
  EXPECT_EQ(mw_pool_acquire_most(&p.pool, 8, 2), MW_EXT_NONE);
}

TEST(KmodPool, GrowsToItsMostAndShrinksWhenAChunkIsFree) {
  Pool p(2, 0);
  EXPECT_EQ(mw_pool_shrink(&p.pool), MW_NONE);
  EXPECT_EQ(mw_pool_acquire(&p.pool, 2), MW_EXT_NONE);
  EXPECT_EQ(mw_pool_grow(&p.pool), MW_OK);
  EXPECT_EQ(mw_pool_grow(&p.pool), MW_OK);
  EXPECT_EQ(mw_pool_grow(&p.pool), MW_FULL);
  const uint32_t high = mw_pool_acquire(&p.pool, 2);  // of the chunk that was added last
  ASSERT_GE(mw_ext_page(high), MW_CHUNK_PAGES);
  EXPECT_EQ(mw_pool_shrink(&p.pool), MW_BUSY);
  EXPECT_EQ(mw_pool_release(&p.pool, high), MW_OK);
  EXPECT_EQ(mw_pool_shrink(&p.pool), MW_OK);
  EXPECT_EQ(p.pool.pages, MW_CHUNK_PAGES);
  EXPECT_LT(mw_ext_page(mw_pool_acquire(&p.pool, 8)), MW_CHUNK_PAGES);
  EXPECT_EQ(mw_pool_acquire(&p.pool, 2), MW_EXT_NONE);
}

TEST(KmodPool, RefusesASizeThatNoExtentCanName) {
  mw_unit none;
  mw_pool pool;
  EXPECT_EQ(mw_pool_init(&pool, &none, MW_CHUNK_PAGES + 1), MW_BUG);
  EXPECT_EQ(mw_pool_init(&pool, &none, MW_MAX_POOL_PAGES + MW_CHUNK_PAGES), MW_BUG);
}

// A pool, its memory, and both ends of rings in it.
struct Rings : Pool {
  explicit Rings(uint32_t chunks = 1)
      : Pool(chunks, chunks),
        memory(size_t{chunks} * MW_CHUNK_PAGES * MW_PAGE),
        area{memory.data(), chunks * MW_CHUNK_PAGES} {}
  std::vector<uint8_t> memory;
  mw_area area;
};
struct Ends {
  explicit Ends(uint32_t least = MW_EXT_MIN_ORDER) {
    mw_writer_init(&w, &tail, &head, &ext, least);
    mw_consumer_init(&c, &tail, &head);
  }
  uint32_t begin(Rings& r, mw_status expected) {
    uint32_t room = 0;
    EXPECT_EQ(mw_writer_begin(&w, &r.pool, &r.area, &room), expected);
    return room;
  }
  void fill(Rings& r) {
    const uint32_t room = begin(r, MW_OK);
    ASSERT_GT(room, 0u);
    mw_writer_advance(&w, room);
    EXPECT_EQ(begin(r, MW_BUSY), 0u);
  }
  void take_all(Rings& r) {
    ASSERT_EQ(mw_area_look(&r.area, &c, &ext), MW_OK);
    mw_consumer_advance(&c, mw_consumer_ready(&c));
  }
  uint32_t tail = MW_INDEX_START, head = MW_INDEX_START, ext = MW_EXT_NONE;
  mw_writer w;
  mw_consumer c;
};

TEST(KmodWriter, TakesMemoryWithItsFirstByte) {
  Rings r;
  Ends e;
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES);
  EXPECT_EQ(e.begin(r, MW_OK), 4 * MW_PAGE);
  EXPECT_EQ(e.ext, e.w.ext);
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES - 4);
}

TEST(KmodWriter, DoublesWhenItWasFullTwice) {
  Rings r;
  Ends e;
  e.fill(r);
  e.begin(r, MW_BUSY);
  e.begin(r, MW_BUSY);
  EXPECT_EQ(e.w.next, MW_EXT_NONE) << "one time counts once";
  e.take_all(r);
  e.fill(r);
  ASSERT_NE(e.w.next, MW_EXT_NONE);
  ASSERT_EQ(mw_area_look(&r.area, &e.c, &e.ext), MW_OK);
  mw_consumer_advance(&e.c, 5000);
  e.begin(r, MW_BUSY);  // there is room, but the ring has to run empty
  e.take_all(r);
  EXPECT_EQ(e.begin(r, MW_OK), 8 * MW_PAGE);
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES - 8);
  EXPECT_EQ(mw_ext_order(e.ext), 3u);
}

TEST(KmodWriter, DoublesUpToTheLargestExtent) {
  Rings r(3);
  Ends e;
  for (int i = 0; i < 30; ++i) {
    e.fill(r);
    e.take_all(r);
  }
  EXPECT_EQ(mw_ext_order(e.ext), MW_EXT_MAX_ORDER);
  EXPECT_EQ(r.pool.free_pages, 2 * MW_CHUNK_PAGES);
}

TEST(KmodWriter, StaysWhereItIsWhenThePoolHasNoMore) {
  Rings r;
  Ends e;
  e.begin(r, MW_OK);
  while (mw_pool_acquire(&r.pool, 2) != MW_EXT_NONE) {
  }
  for (int i = 0; i < 5; ++i) {
    e.fill(r);
    e.take_all(r);
  }
  EXPECT_EQ(e.begin(r, MW_OK), 4 * MW_PAGE);
}

TEST(KmodWriter, SaysWhenThePoolIsEmpty) {
  Rings r;
  ASSERT_NE(mw_pool_acquire(&r.pool, 8), MW_EXT_NONE);
  Ends e;
  EXPECT_EQ(e.begin(r, MW_FULL), 0u);
}

TEST(KmodWriter, TakesNothingSmallerThanARecordNeeds) {
  Rings r;
  for (uint32_t order : {7u, 6u, 5u, 4u}) mw_pool_acquire(&r.pool, order);  // 16 pages are left
  Ends records(5), bytes;
  records.begin(r, MW_FULL);
  bytes.begin(r, MW_OK);
}

TEST(KmodWriter, GivesMemoryBackAfterTwoTicksWithoutAByte) {
  Rings r;
  Ends e;
  e.begin(r, MW_OK);
  mw_writer_advance(&e.w, 10);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true)) << "10 bytes";
  e.take_all(r);
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, false));
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true));
  e.begin(r, MW_OK);
  mw_writer_advance(&e.w, 1);
  e.take_all(r);
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true)) << "a byte was written";
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, false));
  EXPECT_TRUE(mw_writer_rest(&e.w, &r.pool, true));
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES);
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true));
}

TEST(KmodWriter, GivesMemoryBackAtOnceWhenThePoolIsShort) {
  Rings r;
  Ends e;
  e.begin(r, MW_OK);
  for (uint32_t order : {7u, 6u, 5u}) mw_pool_acquire(&r.pool, order);
  ASSERT_TRUE(mw_pool_is_short(&r.pool));
  const uint32_t before = r.pool.free_pages;
  EXPECT_TRUE(mw_writer_rest(&e.w, &r.pool, false));
  EXPECT_EQ(r.pool.free_pages, before + 4);
}

TEST(KmodWriter, GivesBothExtentsBackWhileItWaitsToMove) {
  Rings r;
  Ends e;
  for (int i = 0; i < 2; ++i) {
    e.fill(r);
    if (i == 0) e.take_all(r);
  }
  ASSERT_NE(e.w.next, MW_EXT_NONE);
  e.take_all(r);
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true));
  EXPECT_TRUE(mw_writer_rest(&e.w, &r.pool, true));
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES);
}

TEST(KmodWriter, LeavesItsExtentToTheSlot) {
  Rings r;
  Ends e;
  for (int i = 0; i < 2; ++i) {
    e.fill(r);
    if (i == 0) e.take_all(r);
  }
  const uint32_t ext = e.w.ext;
  EXPECT_EQ(mw_writer_leave(&e.w, &r.pool), ext);
  EXPECT_EQ(r.pool.free_pages, MW_CHUNK_PAGES - 4) << "the one it would have moved to is free";
  EXPECT_EQ(mw_writer_leave(&e.w, &r.pool), MW_EXT_NONE);
}

TEST(KmodWriter, RefusesAHeadThatLies) {
  Rings r;
  Ends e;
  e.begin(r, MW_OK);
  mw_writer_advance(&e.w, 10);
  e.head += 11;
  e.begin(r, MW_PEER);
  EXPECT_FALSE(mw_writer_rest(&e.w, &r.pool, true));
}

TEST(KmodArea, RefusesExtentsThatAreNotWhollyInIt) {
  uint8_t none = 0;
  const mw_area area{&none, 300};
  mw_bytes b;
  EXPECT_TRUE(mw_area_find(&area, mw_ext_of(0, 8), &b));
  EXPECT_TRUE(mw_area_find(&area, mw_ext_of(296, 2), &b));
  EXPECT_EQ(b.size, 4 * MW_PAGE);
  EXPECT_EQ(b.data, &none + 296 * MW_PAGE);
  for (uint32_t ext : {mw_ext_of(297, 2), mw_ext_of(300, 2), mw_ext_of(45, 8), mw_ext_of(0, 1),
                       mw_ext_of(0, 9), mw_ext_of(0, 31), mw_ext_of(0, 255), mw_ext_of(0xffffff, 8),
                       mw_ext_of(0xffffff, 2), MW_EXT_NONE})
    EXPECT_FALSE(mw_area_find(&area, ext, &b)) << std::hex << ext;
}

TEST(KmodArea, KeepsTheExtentWhileThereAreBytes) {
  Rings r;
  Ends e;
  e.begin(r, MW_OK);
  mw_writer_advance(&e.w, 10);
  ASSERT_EQ(mw_area_look(&r.area, &e.c, &e.ext), MW_OK);
  uint8_t* const data = e.c.mem.data;
  e.ext = mw_ext_of(128, 7);
  mw_writer_advance(&e.w, 10);
  ASSERT_EQ(mw_area_look(&r.area, &e.c, &e.ext), MW_OK);
  EXPECT_EQ(e.c.mem.data, data);
  EXPECT_EQ(e.c.mem.size, 4 * MW_PAGE);
}

TEST(KmodArea, RefusesBytesInNoExtent) {
  Rings r;
  Ends e;
  EXPECT_EQ(mw_area_look(&r.area, &e.c, &e.ext), MW_OK) << "no bytes, no extent";
  e.tail += 1;
  EXPECT_EQ(mw_area_look(&r.area, &e.c, &e.ext), MW_PEER);
  EXPECT_EQ(mw_consumer_ready(&e.c), 0u);
}

}  // namespace
}  // namespace mw
