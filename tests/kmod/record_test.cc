#include "kmod/core/record.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cstring>
#include <functional>
#include <vector>

namespace mw {
namespace {

static_assert(MW_AF_INET == AF_INET && MW_AF_INET6 == AF_INET6);
static_assert(MW_IN_BYTES == sizeof(sockaddr_in) && MW_IN6_BYTES == sizeof(sockaddr_in6));

mw_addr address(uint16_t family) {
  mw_addr a{};
  std::memset(a.bytes, 0x5a, sizeof a.bytes);
  std::memcpy(a.bytes, &family, sizeof family);
  a.len = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  return a;
}

TEST(KmodAddr, KnowsAFamilyByItsLength) {
  mw_addr v4 = address(AF_INET), v6 = address(AF_INET6);
  EXPECT_EQ(mw_addr_family(&v4), uint32_t{AF_INET});
  EXPECT_EQ(mw_addr_family(&v6), uint32_t{AF_INET6});
  for (int number : {AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_PACKET, 0x200, 0xa00, 0xffff}) {
    const auto family = static_cast<uint16_t>(number);
    for (uint32_t len : {0u, 1u, 2u, 15u, 16u, 17u, 24u, 27u, 28u, 29u, 32u, 128u, 0xffffffffu}) {
      mw_addr a = address(family);
      a.len = len;
      const bool right = (family == AF_INET && len == 16) || (family == AF_INET6 && len == 28);
      EXPECT_EQ(mw_addr_family(&a), right ? family : 0u) << family << " " << len;
    }
  }
}

TEST(KmodAddr, ClearsWhatStandsBehindTheAddress) {
  mw_addr a = address(AF_INET);
  ASSERT_EQ(mw_addr_family(&a), uint32_t{AF_INET});
  for (size_t i = 0; i < sizeof a.bytes; ++i) EXPECT_EQ(a.bytes[i] == 0, i == 1 || i >= 16) << i;
}

struct Listener {
  explicit Listener(uint32_t family = AF_INET) : memory(4096), l{family, 1, 11, 64} {
    mw_consumer_init(&c, &tail, &head);
    c.mem = {memory.data(), 4096};
    mw_producer_init(&p, &tail, &head);
    p.mem = c.mem;
  }
  static mw_accept_record record(uint16_t family = AF_INET) {
    mw_accept_record r{};
    r.magic = MW_ACCEPT_MAGIC;
    r.slot = 7;
    r.gen = 12;
    r.flags = MW_ACCEPT_BARE;
    r.local = r.peer = address(family);
    return r;
  }
  void put(const mw_accept_record& r) { mw_producer_put(&p, &r, sizeof r); }
  mw_status take(mw_accept_record* r) {
    EXPECT_EQ(mw_consumer_look(&c), MW_OK);
    return mw_record_take(&c, &l, r);
  }
  std::vector<uint8_t> memory;
  uint32_t tail = MW_INDEX_START, head = MW_INDEX_START;
  mw_listener l;
  mw_consumer c;
  mw_producer p;
};

TEST(KmodRecord, TakesRecordsInOrderOverTheEndOfTheRing) {
  Listener l;
  mw_accept_record got;
  EXPECT_EQ(l.take(&got), MW_NONE);
  for (uint32_t i = 0; i < 200; ++i) {
    for (uint32_t k = 0; k < 2; ++k) {
      mw_accept_record r = Listener::record();
      r.gen = 100 + 2 * i + k;
      l.put(r);
    }
    ASSERT_EQ(mw_consumer_look(&l.c), MW_OK);
    EXPECT_EQ(mw_records_waiting(&l.c), 2u);
    for (uint32_t k = 0; k < 2; ++k) {
      ASSERT_EQ(l.take(&got), MW_OK);
      EXPECT_EQ(got.gen, 100 + 2 * i + k);
      EXPECT_EQ(got.slot, 7u);
    }
    EXPECT_EQ(l.take(&got), MW_NONE);
    ASSERT_EQ(mw_producer_look(&l.p), MW_OK);
  }
}

TEST(KmodRecord, RefusesARecordThatLies) {
  const std::vector<std::function<void(mw_accept_record&)>> lies = {
      [](auto& r) { r.magic ^= 1; },
      [](auto& r) { r.slot = 64; },
      [](auto& r) { r.slot = 0xffffffff; },
      [](auto& r) { r.slot = 1; },  // the listener's own
      [](auto& r) { r.gen = 0; },
      [](auto& r) { r.flags = 0; },
      [](auto& r) { r.flags |= 8; },
      [](auto& r) { r.flags |= 1u << MW_ACCEPT_PLACEHOLDER_SHIFT; },
      [](auto& r) { r.flags |= MW_ACCEPT_ASK; },  // of another slot than the listener's
      [](auto& r) { r.local = address(AF_INET6); },
      [](auto& r) { r.peer = address(AF_INET6); },
      [](auto& r) { r.peer.len = 0; },
      [](auto& r) { r.local.len = 0xffffffff; },
  };
  for (size_t i = 0; i < lies.size(); ++i) {
    Listener l;
    mw_accept_record r = Listener::record(), got;
    lies[i](r);
    l.put(r);
    EXPECT_EQ(l.take(&got), MW_PEER) << i;
    EXPECT_EQ(mw_record_check(&l.l, &r), MW_PEER) << i;
  }
  Listener l(AF_INET6);
  mw_accept_record good = Listener::record(AF_INET6), got;
  l.put(good);
  EXPECT_EQ(l.take(&got), MW_OK);
}

TEST(KmodRecord, RefusesAPieceOfARecord) {
  Listener l;
  mw_accept_record got;
  l.put(Listener::record());
  l.tail += 79;
  EXPECT_EQ(l.take(&got), MW_PEER);
}

TEST(KmodRecord, AnAskNamesTheListenerAndNoAddress) {
  Listener l;
  mw_accept_record r = Listener::record(), got;
  r.flags |= MW_ACCEPT_ASK;
  r.slot = 1;
  r.gen = 11;
  l.put(r);
  ASSERT_EQ(l.take(&got), MW_OK);
  EXPECT_EQ(got.peer.len, 0u);
  EXPECT_EQ(got.peer.bytes[3], 0);
}

}  // namespace
}  // namespace mw
