#include "driver/flow_table.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "driver/address_blocks.h"

namespace mw {
namespace {

using netflow::Observation;
using netflow::ObservationKind;

class FlowTableTest : public testing::Test {
 protected:
  bool take(const mw_telemetry_record& r) {
    return static_cast<bool>(table_.take(r, [this](const Seen& o) { seen_.push_back(o); }));
  }
  static mw_telemetry_record who(uint32_t slot, uint32_t gen, uint16_t port = 80) {
    mw_telemetry_record r{};
    r.kind = MW_TEL_WHO;
    r.slot = slot;
    r.gen = gen;
    r.now = 5'000'000'007;
    r.u.who.local = {AF_INET, port, {127, 0, 0, 1}};
    r.u.who.remote = {AF_INET6, 9, {0x20, 1}};
    return r;
  }
  static mw_telemetry_record event(uint32_t kind, uint32_t slot, uint32_t gen, uint64_t in = 0,
                                   uint64_t out = 0, uint32_t extra = 0) {
    mw_telemetry_record r{};
    r.kind = kind;
    r.slot = slot;
    r.gen = gen;
    r.extra = extra;
    r.now = 6'000'000'000;
    r.u.event.bytes_in = in;
    r.u.event.bytes_out = out;
    return r;
  }

  FlowTable table_{16, 1, 7};
  std::vector<Seen> seen_;
};

TEST_F(FlowTableTest, ASocketsLife) {
  ASSERT_TRUE(take(who(1, 100)));
  ASSERT_TRUE(take(who(2, 101, 81)));
  ASSERT_TRUE(take(event(MW_TEL_ACCEPT, 1, 100, 0, 0, 101)));
  ASSERT_TRUE(take(event(MW_TEL_RECV, 2, 101, 10, 0)));
  ASSERT_TRUE(take(event(MW_TEL_TOTALS, 2, 101, 10, 3)));
  ASSERT_TRUE(take(event(MW_TEL_CLOSE, 2, 101, 10, 20)));
  ASSERT_EQ(seen_.size(), 3u);
  EXPECT_EQ(seen_[0].kind, ObservationKind::accept);
  EXPECT_EQ(seen_[0].socket, netflow::encode({7, 100}));
  EXPECT_EQ(seen_[0].extra, static_cast<uint64_t>(netflow::encode({7, 101})));
  EXPECT_EQ(seen_[0].local.port, 81);
  EXPECT_EQ(seen_[0].session_start, (netflow::Timestamp{5, 7}));
  EXPECT_EQ(seen_[1].bytes_in, 10u);
  EXPECT_EQ(seen_[1].remote.address.af, 6u);
  EXPECT_EQ(seen_[2].kind, ObservationKind::close);
  EXPECT_EQ(seen_[2].extra, static_cast<uint64_t>(seen_[2].socket));
  EXPECT_EQ(seen_[2].bytes_out, 20u);
  uint32_t slot = 0;
  EXPECT_EQ(table_.find(101, &slot), nullptr);
  EXPECT_NE(table_.find(100, &slot), nullptr);
  EXPECT_EQ(slot, 1u);
}

TEST_F(FlowTableTest, HowAConnectionStandsIsToldWhenItChanges) {
  using namespace netflow;
  const auto stands = [](uint32_t kind, uint32_t conn) {
    mw_telemetry_record r = event(kind, 2, 101);
    r.u.event.conn = conn;
    return r;
  };
  ASSERT_TRUE(take(who(1, 100)));
  ASSERT_TRUE(take(who(2, 101, 81)));
  ASSERT_TRUE(take(event(MW_TEL_ACCEPT, 1, 100, 0, 0, 101)));
  ASSERT_TRUE(take(stands(MW_TEL_TOTALS, MW_CONN_INBOUND | MW_CONN_ESTABLISHED)));
  ASSERT_EQ(seen_.size(), 1u);
  EXPECT_EQ(seen_[0].flags, kConnInbound | kConnEstablished);
  EXPECT_EQ(seen_[0].slot, 2u);
  EXPECT_EQ(seen_[0].number, 101u);
  EXPECT_EQ(seen_[0].listener_slot, 1u);
  constexpr uint32_t kHalf = MW_CONN_INBOUND | MW_CONN_ESTABLISHED | MW_CONN_PEER_FIN;
  ASSERT_TRUE(take(stands(MW_TEL_TOTALS, kHalf)));
  ASSERT_TRUE(take(stands(MW_TEL_TOTALS, kHalf)));
  ASSERT_TRUE(take(stands(MW_TEL_CLOSE, kHalf | MW_CONN_OUR_RST | 0xffffff80)));
  ASSERT_EQ(seen_.size(), 3u);
  EXPECT_EQ(seen_[1].kind, ObservationKind::none);
  EXPECT_EQ(seen_[1].flags, kConnInbound | kConnEstablished | kConnPeerFin);
  EXPECT_EQ(seen_[2].kind, ObservationKind::close);
  EXPECT_EQ(seen_[2].flags, kConnInbound | kConnEstablished | kConnPeerFin | kConnOurRst);
  EXPECT_EQ(seen_[2].slot, 2u);
}

TEST_F(FlowTableTest, ACloseThatWasLostIsMadeUpFor) {
  ASSERT_TRUE(take(who(1, 100)));
  ASSERT_TRUE(take(event(MW_TEL_CREATE, 1, 100)));
  ASSERT_TRUE(take(who(1, 102)));
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_EQ(seen_[1].kind, ObservationKind::close);
  EXPECT_EQ(seen_[1].socket, netflow::encode({7, 100}));
  EXPECT_EQ(seen_[1].flags, netflow::kCloseUnseen);
  table_.close_all(9, [this](const Seen& o) { seen_.push_back(o); });
  ASSERT_EQ(seen_.size(), 3u);
  EXPECT_EQ(seen_[2].socket, netflow::encode({7, 102}));
  EXPECT_EQ(table_.size(), 0u);
}

TEST_F(FlowTableTest, WhatNobodyIntroducedSaysNothing) {
  EXPECT_TRUE(take(event(MW_TEL_RECV, 3, 50)));
  ASSERT_TRUE(take(who(3, 51)));
  EXPECT_TRUE(take(event(MW_TEL_RECV, 3, 50)));
  EXPECT_TRUE(take(event(MW_TEL_ACCEPT, 3, 51, 0, 0, 99)));
  EXPECT_TRUE(seen_.empty());
}

TEST_F(FlowTableTest, TotalsNeverShrink) {
  ASSERT_TRUE(take(who(1, 100)));
  ASSERT_TRUE(take(event(MW_TEL_RECV, 1, 100, 50, 9)));
  ASSERT_TRUE(take(event(MW_TEL_RECV, 1, 100, 40, 10)));
  EXPECT_EQ(seen_[1].bytes_in, 50u);
  EXPECT_EQ(seen_[1].bytes_out, 10u);
}

TEST_F(FlowTableTest, RecordsThatCannotBeAreTheInssFault) {
  EXPECT_FALSE(take(who(16, 1)));
  EXPECT_FALSE(take(who(1, 0)));
  EXPECT_FALSE(take(event(8, 1, 1)));
  auto strange = who(1, 1);
  strange.u.who.remote.family = AF_UNIX;
  EXPECT_FALSE(take(strange));
  ASSERT_TRUE(take(who(1, 1)));
  EXPECT_FALSE(take(who(2, 1)));  // one number, two sockets
}

TEST_F(FlowTableTest, AWorkersLateIntroductionRaisesNobody) {
  FlowTable two(16, 2, 7);
  const auto none = [](const Observation&) {};
  ASSERT_TRUE(two.take(who(1, 100), none));
  ASSERT_TRUE(two.take(event(MW_TEL_CLOSE, 1, 100), none));
  ASSERT_TRUE(two.take(who(1, 100), none));
  EXPECT_EQ(two.size(), 0u);
}

TEST(BlockRuleset, NamesTheAddressOnceInItsSet) {
  netflow::Address v4;
  v4.bytes = {192, 0, 2, 1};
  const std::string block = block_ruleset(v4, true);
  EXPECT_NE(block.find("add element inet mw_blocks peers4 { 192.0.2.1 }\n"), std::string::npos);
  EXPECT_EQ(block.find("delete"), std::string::npos);
  netflow::Address v6;
  v6.af = 6;
  v6.bytes = {0x20, 0x01, 0x0d, 0xb8};
  EXPECT_NE(block_ruleset(v6, false).find("delete element inet mw_blocks peers6 { 2001:db8:: }\n"),
            std::string::npos);
}

}  // namespace
}  // namespace mw
