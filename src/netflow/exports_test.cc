#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "netflow/exporter.h"
#include "netflow/socket_address.h"

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kStart = 1'700'000'000 * kSecond;

Endpoint v4(uint8_t last, uint16_t port) {
  Endpoint e;
  e.address.bytes = {192, 0, 2, last};
  e.port = port;
  return e;
}

Endpoint v6(uint8_t last, uint16_t port) {
  Endpoint e;
  e.address.af = 6;
  e.address.bytes = {0x20, 0x01, 0x0d, 0xb8};
  e.address.bytes[15] = last;
  e.port = port;
  return e;
}

constexpr uint16_t kAccepted = kConnInbound | kConnEstablished;

ExtendedObservation observe(ObservationKind kind, int64_t socket, uint64_t now_ns, uint64_t in = 0,
                            uint64_t out = 0, uint16_t flags = kAccepted) {
  ExtendedObservation o;
  o.flags = flags;
  o.kind = kind;
  o.socket = socket;
  o.session_start = timestamp_of(kStart);
  o.now = timestamp_of(now_ns);
  o.local = v4(1, 80);
  o.remote = v4(9, 40000);
  o.bytes_in = in;
  o.bytes_out = out;
  return o;
}

ExtendedObservation accepted(int64_t socket, uint64_t now_ns) {
  ExtendedObservation o = observe(ObservationKind::accept, 1, now_ns);
  o.extra = static_cast<uint64_t>(socket);
  return o;
}

// ---- flows ----

class Flows : public ::testing::Test {
 protected:
  FlowCache cache_{
      {.active_s = 60, .idle_s = 15}, [this](const FlowRecord& r) { told_.push_back(r); }, 4};
  std::vector<FlowRecord> told_;
};

TEST_F(Flows, AConnectionIsOneRecordWithBothDirections) {
  cache_.take(accepted(7, kStart));
  cache_.take(observe(ObservationKind::recv, 7, kStart + kSecond, 100, 0));
  cache_.take(observe(ObservationKind::send, 7, kStart + 2 * kSecond, 100, 5000));
  cache_.take(observe(ObservationKind::recv, 7, kStart + 3 * kSecond, 130, 5000));
  EXPECT_TRUE(told_.empty());
  cache_.take(observe(ObservationKind::close, 7, kStart + 4 * kSecond, 130, 5000,
                      kAccepted | kConnPeerFin | kConnOurFin));
  ASSERT_EQ(told_.size(), 1u);
  const FlowRecord& r = told_[0];
  EXPECT_EQ(r.socket, 7);
  EXPECT_TRUE(r.inbound);
  EXPECT_EQ(r.originator(), v4(9, 40000));
  EXPECT_EQ(r.responder(), v4(1, 80));
  EXPECT_EQ(r.reason, FlowEnd::end_of_flow);
  EXPECT_EQ(r.bytes_in, 130u);
  EXPECT_EQ(r.bytes_out, 5000u);
  EXPECT_EQ(r.calls_in, 2u);
  EXPECT_EQ(r.calls_out, 1u);
  EXPECT_EQ(r.start_ns, kStart);
  EXPECT_EQ(r.end_ns, kStart + 4 * kSecond);
  EXPECT_EQ(r.last_bytes_ns, kStart + 3 * kSecond);
  EXPECT_EQ(r.history, "ShADdFf");
  EXPECT_STREQ(state_of(r), "SF");
  EXPECT_EQ(cache_.size(), 0u);
}

TEST_F(Flows, ADatagramSocketThatConnectsEndsItsFlowUnlessThePeerIsTheSame) {
  ExtendedObservation connected = observe(ObservationKind::connect, 8, kStart, 0, 0, 0);
  connected.type = 2;
  cache_.take(connected);
  cache_.take(connected);
  EXPECT_TRUE(told_.empty());
  ++connected.remote.port;
  cache_.take(connected);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].remote.port + 1, connected.remote.port);
}

TEST_F(Flows, TheOneWhoConnectsIsTheOriginator) {
  constexpr uint16_t kConnected = kConnEstablished;
  cache_.take(observe(ObservationKind::connect, 7, kStart, 0, 0, 0));
  cache_.take(observe(ObservationKind::send, 7, kStart, 0, 10, kConnected));
  cache_.take(observe(ObservationKind::recv, 7, kStart, 20, 10, kConnected));
  cache_.take(observe(ObservationKind::close, 7, kStart, 20, 10, kConnected | kConnOurFin));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_FALSE(told_[0].inbound);
  EXPECT_EQ(told_[0].originator(), v4(1, 80));
  EXPECT_EQ(told_[0].history, "ShADdF");
  EXPECT_STREQ(state_of(told_[0]), "S2");  // what the peer did then, nobody saw
}

// One attempt or connection, from what is known of it when it is closed.
struct Ended {
  bool inbound;
  uint16_t flags;
  const char* state;
  const char* history;
};

class Ends : public ::testing::TestWithParam<Ended> {};

TEST_P(Ends, HaveZeeksState) {
  std::vector<FlowRecord> told;
  FlowCache cache({.active_s = 60, .idle_s = 15}, [&](const FlowRecord& r) { told.push_back(r); });
  const Ended& e = GetParam();
  cache.take(e.inbound ? accepted(7, kStart)
                       : observe(ObservationKind::connect, 7, kStart, 0, 0, 0));
  cache.take(observe(ObservationKind::close, 7, kStart + 1, 0, 0, e.flags));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_STREQ(state_of(told[0]), e.state);
  EXPECT_EQ(told[0].history, e.history);
  EXPECT_EQ(told[0].fresh & kConnBits, e.flags & kConnBits);
}

INSTANTIATE_TEST_SUITE_P(
    Flows, Ends,
    ::testing::Values(Ended{false, 0, "S0", "S"}, Ended{false, kConnPeerRst, "REJ", "Sr"},
                      Ended{false, kConnEstablished, "S1", "ShA"},
                      Ended{false, kConnEstablished | kConnOurFin, "S2", "ShAF"},
                      Ended{false, kConnEstablished | kConnPeerFin, "S3", "ShAf"},
                      Ended{false, kConnEstablished | kConnPeerFin | kConnOurFin, "SF", "ShAfF"},
                      Ended{false, kConnEstablished | kConnOurRst, "RSTO", "ShAR"},
                      Ended{false, kConnEstablished | kConnPeerRst, "RSTR", "ShAr"},
                      Ended{true, kAccepted, "S1", "ShA"},
                      Ended{true, kAccepted | kConnPeerFin, "S2", "ShAF"},
                      Ended{true, kAccepted | kConnOurFin, "S3", "ShAf"},
                      Ended{true, kAccepted | kConnPeerFin | kConnOurFin, "SF", "ShAFf"},
                      Ended{true, kAccepted | kConnPeerRst, "RSTO", "ShAR"},
                      Ended{true, kAccepted | kConnOurRst | kConnCut, "RSTR", "ShAr"}));

TEST_F(Flows, ASecondAttemptIsAnotherFlowAndItsOutcomeIsNone) {
  cache_.take(observe(ObservationKind::connect, 7, kStart, 0, 0, 0));
  cache_.take(observe(ObservationKind::none, 7, kStart + 1, 0, 0, kConnPeerRst));
  cache_.take(observe(ObservationKind::connect, 7, kStart + 2, 0, 0, 0));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_STREQ(state_of(told_[0]), "REJ");
  cache_.take(observe(ObservationKind::none, 7, kStart + 3, 0, 0, kConnEstablished));
  cache_.take(observe(ObservationKind::connect, 7, kStart + 4, 0, 0, kConnEstablished));
  EXPECT_EQ(told_.size(), 1u);
  cache_.end_all(kStart + 5);
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_STREQ(state_of(told_[1]), "S1");
  EXPECT_EQ(told_[1].history, "ShA");
}

TEST_F(Flows, AnAttemptThatWasRefusedAtOnceIsAFlow) {
  cache_.take(observe(ObservationKind::none, 7, kStart, 0, 0, kConnPeerRst));
  cache_.take(observe(ObservationKind::close, 7, kStart + 1, 0, 0, kConnPeerRst));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_STREQ(state_of(told_[0]), "REJ");
  EXPECT_EQ(told_[0].history, "Sr");
}

TEST_F(Flows, ADissolvedConnectionHasEnded) {
  cache_.take(accepted(7, kStart));
  cache_.take(observe(ObservationKind::none, 7, kStart, 0, 0, kAccepted | kConnOurRst));
  ExtendedObservation dissolved = observe(ObservationKind::connect, 7, kStart, 0, 0, 0);
  dissolved.remote = {};
  cache_.take(dissolved);
  EXPECT_EQ(cache_.size(), 0u);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_STREQ(state_of(told_[0]), "RSTR");
}

TEST_F(Flows, ACloseThatNobodySawIsNoEnd) {
  cache_.take(accepted(7, kStart));
  cache_.take(observe(ObservationKind::close, 7, kStart, 0, 0, kAccepted | kCloseUnseen));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].reason, FlowEnd::forced_end);
  EXPECT_STREQ(state_of(told_[0]), "S1");
}

TEST_F(Flows, WhoHoldsItIsWhoTookItLast) {
  ExtendedObservation o = accepted(7, kStart);
  o.pid = 10;
  o.command = {'m', 'a', 's', 't', 'e', 'r'};
  o.flags |= kListenersHolder;
  cache_.take(o);
  o = observe(ObservationKind::recv, 7, kStart, 1, 0);
  o.pid = 11;
  o.uid = 33;
  o.command = {'w', 'o', 'r', 'k', 'e', 'r'};
  cache_.take(o);
  cache_.take(observe(ObservationKind::close, 7, kStart, 1, 0));  // and it is gone already
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].pid, 11u);
  EXPECT_EQ(told_[0].uid, 33u);
  EXPECT_STREQ(told_[0].command.data(), "worker");
}

TEST(FlowsFollowed, AreToldFromTheirBeginning) {
  std::vector<FlowRecord> told;
  FlowCache cache({.active_s = 5, .idle_s = 5, .tell_beginning = true},
                  [&](const FlowRecord& r) { told.push_back(r); });
  Flow there;
  there.socket = 7;
  there.flags = kAccepted;
  there.session_start = there.last = timestamp_of(kStart - 100 * kSecond);
  there.local = v4(1, 80);
  there.remote = v4(9, 40000);
  there.bytes_in = 10;
  cache.open(there, kStart);
  cache.take(accepted(7, kStart));  // was under way
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].reason, FlowEnd::begun);
  EXPECT_FALSE(told[0].final());
  EXPECT_TRUE(told[0].inbound);
  EXPECT_EQ(told[0].total_in, 10u);
  EXPECT_STREQ(state_of(told[0]), "S1");
  cache.take(accepted(8, kStart));
  ASSERT_EQ(told.size(), 2u);
  cache.expire(kStart + 5 * kSecond);
  EXPECT_EQ(told.size(), 4u);  // both, although they are silent
  cache.expire(kStart + 10 * kSecond);
  ASSERT_EQ(told.size(), 6u);
  EXPECT_FALSE(told[5].final());
  cache.take(observe(ObservationKind::close, 7, kStart + 11 * kSecond, 12, 0, kAccepted));
  ASSERT_EQ(told.size(), 7u);
  EXPECT_TRUE(told[6].final());
  EXPECT_EQ(told[6].bytes_in, 2u);
}

TEST_F(Flows, ActiveTimeoutTellsWhatCameSinceTheLast) {
  cache_.take(accepted(7, kStart));
  for (uint64_t s = 1; s <= 130; ++s) {
    cache_.expire(kStart + s * kSecond);
    cache_.take(observe(ObservationKind::recv, 7, kStart + s * kSecond, s * 10, 0));
  }
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[0].reason, FlowEnd::active_timeout);
  EXPECT_EQ(told_[0].start_ns, kStart);
  EXPECT_EQ(told_[0].end_ns, kStart + 60 * kSecond);
  EXPECT_EQ(told_[0].bytes_in, 590u);  // what came with second 60 came after it
  EXPECT_EQ(told_[1].start_ns, kStart + 60 * kSecond);
  EXPECT_EQ(told_[1].end_ns, kStart + 120 * kSecond);
  EXPECT_EQ(told_[1].bytes_in, 600u);
  EXPECT_EQ(told_[1].number, 1u);
  EXPECT_EQ(told_[1].total_in, 1190u);
  EXPECT_FALSE(told_[1].final());
}

TEST_F(Flows, IdleTimeoutIsHonouredAlsoAfterTheFlowWokeUp) {
  cache_.take(accepted(7, kStart));
  cache_.take(observe(ObservationKind::recv, 7, kStart + 5 * kSecond, 10, 0));
  cache_.expire(kStart + 19 * kSecond);
  EXPECT_TRUE(told_.empty());
  cache_.expire(kStart + 20 * kSecond);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].reason, FlowEnd::idle_timeout);
  EXPECT_EQ(told_[0].end_ns, kStart + 5 * kSecond);
  // Still silent: told at the pace of the active timeout.
  cache_.expire(kStart + 79 * kSecond);
  EXPECT_EQ(told_.size(), 1u);
  cache_.expire(kStart + 80 * kSecond);
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[1].reason, FlowEnd::idle_timeout);
  EXPECT_EQ(told_[1].bytes_in, 0u);
  // Awake for one call: idle again 15 s later, with what that call carried.
  cache_.take(observe(ObservationKind::recv, 7, kStart + 90 * kSecond, 11, 0));
  cache_.expire(kStart + 104 * kSecond);
  EXPECT_EQ(told_.size(), 2u);
  cache_.expire(kStart + 105 * kSecond);
  ASSERT_EQ(told_.size(), 3u);
  EXPECT_EQ(told_[2].bytes_in, 1u);
  EXPECT_EQ(told_[2].start_ns, kStart + 90 * kSecond);
  EXPECT_EQ(told_[2].end_ns, kStart + 90 * kSecond);
}

TEST_F(Flows, RecordsAddUpToTheTotals) {
  uint64_t in = 0;
  cache_.take(accepted(7, kStart));
  for (uint64_t s = 0; s < 500; s += 1 + s % 37) {
    cache_.expire(kStart + s * kSecond);
    in += s;
    cache_.take(observe(ObservationKind::recv, 7, kStart + s * kSecond, in, in / 2));
  }
  cache_.end_all(kStart + 500 * kSecond);
  uint64_t sum_in = 0;
  uint64_t sum_out = 0;
  for (const FlowRecord& r : told_) {
    sum_in += r.bytes_in;
    sum_out += r.bytes_out;
    EXPECT_LE(r.start_ns, r.end_ns);
  }
  EXPECT_EQ(sum_in, in);
  EXPECT_EQ(sum_out, in / 2);
  EXPECT_EQ(told_.back().reason, FlowEnd::forced_end);
  EXPECT_EQ(cache_.counts().bytes_in, in);
}

TEST_F(Flows, WhatWasThereBeforeStartsWithItsBytes) {
  cache_.take(observe(ObservationKind::close, 5, kStart, 3, 3));
  EXPECT_TRUE(told_.empty());
  cache_.take(observe(ObservationKind::send, 6, kStart, 3, 4));
  cache_.take(observe(ObservationKind::close, 6, kStart, 3, 4));
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_TRUE(told_[0].inbound);  // the INS says so, whoever speaks first
  EXPECT_EQ(told_[0].bytes_out, 4u);
  EXPECT_EQ(told_[0].history[0], 'D');
  ExtendedObservation datagram = observe(ObservationKind::send, 8, kStart, 0, 4, 0);
  datagram.type = 2;
  cache_.take(datagram);
  cache_.end_all(kStart);
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[1].protocol, Protocol::udp);
  EXPECT_FALSE(told_[1].inbound);
  EXPECT_EQ(told_[1].history, "D");
  EXPECT_STREQ(state_of(told_[1]), "OTH");
}

TEST_F(Flows, LiesCarryNothing) {
  cache_.take(accepted(7, kStart));
  cache_.take(observe(ObservationKind::recv, 7, kStart, 100, 0));
  cache_.take(observe(ObservationKind::recv, 7, 0, 10, 0));  // less, and earlier
  cache_.take(accepted(7, kStart));                          // again
  cache_.take(observe(static_cast<ObservationKind>(99), 7, kStart, 200, 0));
  cache_.end_all(kStart);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].bytes_in, 100u);
}

TEST_F(Flows, TheTableIsBounded) {
  for (int64_t socket = 1; socket <= 100; ++socket) {
    cache_.take(accepted(socket, kStart + static_cast<uint64_t>(socket) * kSecond));
    EXPECT_LE(cache_.size(), 4u);
  }
  EXPECT_EQ(told_.size(), 96u);
  EXPECT_EQ(cache_.counts().evicted, 96u);
  EXPECT_EQ(told_[0].socket, 1);  // whose time would have come first
  EXPECT_EQ(told_[0].reason, FlowEnd::lack_of_resources);
}

// ---- IPFIX ----

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (const uint8_t b : bytes) {
    const auto two = hex_digits(b);
    text.append(two.begin(), two.end());
  }
  return text;
}

FlowRecord record() {
  FlowRecord r;
  r.socket = 0x5300010000000007;
  r.local = v4(1, 80);
  r.remote = v4(9, 40000);
  r.start_ns = 1'700'000'000'123'000'000;
  r.end_ns = 1'700'000'004'456'000'000;
  r.bytes_in = 0x11;
  r.bytes_out = 0x2233;
  r.calls_in = 2;
  r.calls_out = 3;
  r.history = "ShADdFf";
  r.conn = r.fresh = kAccepted | kConnPeerFin | kConnOurFin;
  return r;
}

TEST(Ipfix, TemplatesAreTheBytesOfRfc7011) {
  const std::string elements =
      "00980008"          // 152 flowStartMilliseconds
      "00990008"          // 153 flowEndMilliseconds
      "00010008"          // octetDeltaCount
      "8001000800007279"  // of the reverse direction: enterprise 29305
      "00020008"          // packetDeltaCount
      "8002000800007279"
      "00940008"   // 148 flowId
      "00070002"   // sourceTransportPort
      "000b0002"   // destinationTransportPort
      "00040001"   // protocolIdentifier
      "00060001"   // tcpControlBits
      "00880001"   // 136 flowEndReason
      "00ef0001";  // 239 biflowDirection
  EXPECT_EQ(hex(IpfixEncoder(0x01020304, 1400).templates(0x65000000).bytes),
            "000a00a4650000000000000001020304"  // version 10, 164 bytes, time, sequence, domain
            "00020094"                          // a template set of 148 bytes
            "0100000f"                          // 256: 15 elements
            "00080004000c0004" +                // IPv4 addresses
                elements +
                "0101000f"            // 257
                "001b0010001c0010" +  // IPv6 addresses
                elements);
}

TEST(Ipfix, ARecordIsTheBytesOfItsTemplate) {
  IpfixEncoder e(1, 1400);
  ASSERT_TRUE(e.add(record()));
  EXPECT_EQ(hex(e.take(0x65000000).bytes),
            "000a005c650000000000000000000001"
            "0100004c"
            "c0000209"          // the peer began
            "c0000201"          //
            "0000018bcfe5687b"  // 1700000000123
            "0000018bcfe57968"  // 1700000004456
            "0000000000000011"
            "0000000000002233"
            "0000000000000002"
            "0000000000000003"
            "5300010000000007"
            "9c40"
            "0050"
            "06"
            "1b"  // FIN, SYN, PSH, ACK
            "03"
            "01");
}

TEST(Ipfix, ADirectionOfItsOwnForConnectionsOutAndV6) {
  IpfixEncoder e(1, 1400);
  FlowRecord r = record();
  r.local = v6(1, 80);
  r.remote = v6(9, 40000);
  r.inbound = false;
  r.number = 1;
  r.fresh = 0;
  r.reason = FlowEnd::active_timeout;
  ASSERT_TRUE(e.add(r));
  EXPECT_EQ(hex(e.take(0x65000000).bytes),
            "000a0074650000000000000000000001"
            "01010064"
            "20010db8000000000000000000000001"
            "20010db8000000000000000000000009"
            "0000018bcfe5687b0000018bcfe57968"
            "00000000000022330000000000000011"
            "00000000000000030000000000000002"
            "5300010000000007"
            "00509c40"
            "06"
            "18"
            "02"
            "01");
}

TEST(Ipfix, ControlBitsTellResetsAndAttempts) {
  const auto bits = [](uint16_t conn, const char* history) {
    FlowRecord r = record();
    r.inbound = (conn & kConnInbound) != 0;
    r.conn = r.fresh = conn;
    r.history = history;
    r.bytes_in = r.bytes_out = 0;
    IpfixEncoder e(1, 1400);
    EXPECT_TRUE(e.add(r));
    return hex(e.take(0).bytes).substr(2 * (20 + 69), 2);
  };
  EXPECT_EQ(bits(kAccepted | kConnPeerRst, "ShAR"), "16");  // SYN, RST, ACK
  EXPECT_EQ(bits(kAccepted | kConnPeerFin | kConnOurRst, "ShAFr"), "17");
  EXPECT_EQ(bits(kConnPeerRst, "Sr"), "16");
  EXPECT_EQ(bits(0, "S"), "02");
  EXPECT_EQ(bits(kAccepted, "ShA"), "12");  // unobserved: no end was seen
}

TEST(Ipfix, MappedAddressesAreIpv4AndMixedOnesIpv6) {
  IpfixEncoder e(1, 1400);
  FlowRecord r = record();
  r.remote.address.af = 6;
  r.remote.address.bytes = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 9};
  ASSERT_TRUE(e.add(r));
  const std::string mapped = hex(e.take(0).bytes);
  EXPECT_EQ(mapped.substr(32, 24), "0100004cc0000209c0000201");
  r.local = v6(1, 80);
  ASSERT_TRUE(e.add(r));
  EXPECT_EQ(hex(e.take(0).bytes).substr(32, 72),
            "0101006400000000000000000000ffffc000020920010db8000000000000000000000001");
}

TEST(Ipfix, SequenceCountsRecordsAndMessagesStayBelowTheirSize) {
  IpfixEncoder e(1, 1400);
  uint32_t added = 0;
  while (e.add(record())) ++added;
  EXPECT_EQ(added, 19u);  // 16 + 4 + 19 * 72 = 1388
  IpfixMessage m = e.take(0);
  EXPECT_EQ(m.records, 19u);
  EXPECT_EQ(m.bytes.size(), 1388u);
  EXPECT_EQ(hex(m.bytes).substr(16, 8), "00000000");
  EXPECT_TRUE(e.empty());
  EXPECT_EQ(hex(e.templates(0).bytes).substr(16, 8), "00000013");  // 19, and none of its own
  ASSERT_TRUE(e.add(record()));
  EXPECT_EQ(hex(e.take(0).bytes).substr(16, 8), "00000013");
}

// A collector of this test.
struct Collector {
  explicit Collector(int type) : socket(::socket(AF_INET, type | SOCK_CLOEXEC, 0)) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof a;
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&a), size), 0);
    EXPECT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&a), &size), 0);
    EXPECT_EQ(type == SOCK_STREAM ? ::listen(socket.get(), 4) : 0, 0);
    address = "127.0.0.1:" + std::to_string(ntohs(a.sin_port));
  }
  std::string receive(int fd) const {
    pollfd p{fd, POLLIN, 0};
    if (::poll(&p, 1, 0) != 1) return "";
    std::vector<uint8_t> bytes(65536);
    const ssize_t n = ::recv(fd, bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return hex(bytes);
  }
  UniqueFd socket;
  std::string address;
};

TEST(IpfixExport, UdpRepeatsItsTemplates) {
  const Collector c(SOCK_DGRAM);
  auto made = IpfixExport::make({.collector = c.address, .template_s = 60});
  ASSERT_TRUE(made);
  IpfixExport& e = **made;
  e.flush({0, kSecond});
  EXPECT_EQ(c.receive(c.socket.get()).substr(32, 4), "0002");
  e.put(record(), {0, kSecond});
  EXPECT_EQ(c.receive(c.socket.get()), "");  // waits for more
  e.flush({0, 2 * kSecond});
  EXPECT_EQ(c.receive(c.socket.get()).substr(32, 4), "0100");
  EXPECT_EQ(c.receive(c.socket.get()), "");
  e.flush({0, 60 * kSecond});
  EXPECT_EQ(c.receive(c.socket.get()), "");
  e.flush({0, 61 * kSecond});
  EXPECT_EQ(c.receive(c.socket.get()).substr(32, 4), "0002");
  EXPECT_EQ(e.counts().records, 1u);
  EXPECT_EQ(e.counts().dropped, 0u);
}

TEST(IpfixExport, SilentRecordsAreNotRepeated) {
  const Collector c(SOCK_DGRAM);
  auto made = IpfixExport::make({.collector = c.address});
  ASSERT_TRUE(made);
  (*made)->flush({0, 0});
  (void)c.receive(c.socket.get());
  FlowRecord r = record();
  r.bytes_in = r.bytes_out = 0;
  r.reason = FlowEnd::idle_timeout;
  for (r.number = 0; r.number < 3; ++r.number) (*made)->put(r, {});
  r.reason = FlowEnd::end_of_flow;
  (*made)->put(r, {});
  (*made)->flush({0, 1});
  EXPECT_EQ((*made)->counts().records, 2u);  // the first and the last
}

TEST(IpfixExport, TcpComesBackWithTemplatesAndCountsWhatItLost) {
  Collector c(SOCK_STREAM);
  auto made = IpfixExport::make({.collector = c.address, .tcp = true});
  ASSERT_TRUE(made);
  IpfixExport& e = **made;
  const auto ready = [&e](short events) {
    pollfd p{e.fd(), events, 0};
    return ::poll(&p, 1, 5000) == 1;
  };
  e.put(record(), {});  // nobody is there yet
  EXPECT_EQ(e.counts().dropped, 1u);
  e.flush({0, 0});
  ASSERT_TRUE(ready(POLLOUT));
  e.handle_events({0, 0});
  UniqueFd first{::accept(c.socket.get(), nullptr, nullptr)};
  e.put(record(), {});
  e.flush({0, 1});
  EXPECT_EQ(e.counts().records, 1u);
  const std::string said = c.receive(first.get());
  EXPECT_EQ(said.substr(32, 4), "0002");
  EXPECT_EQ(said.substr(2 * 164 + 32, 4), "0100");
  // The collector goes: seen, counted, tried again after its time, from sequence 0.
  first.reset();
  ASSERT_TRUE(ready(POLLIN));
  e.handle_events({0, 2});
  e.put(record(), {});
  EXPECT_EQ(e.counts().dropped, 2u);
  EXPECT_EQ(e.fd(), -1);
  e.flush({0, kSecond / 2});
  EXPECT_EQ(e.fd(), -1);
  e.flush({0, 2 * kSecond});
  ASSERT_TRUE(ready(POLLOUT));
  e.handle_events({0, 2 * kSecond});
  const UniqueFd second{::accept(c.socket.get(), nullptr, nullptr)};
  const std::string again = c.receive(second.get());
  EXPECT_EQ(again.substr(16, 8), "00000000");
  EXPECT_EQ(again.substr(32, 4), "0002");
}

TEST(IpfixExport, ACollectorThatReadsNothingCostsABound) {
  Collector c(SOCK_STREAM);
  auto made = IpfixExport::make({.collector = c.address, .tcp = true});
  ASSERT_TRUE(made);
  IpfixExport& e = **made;
  e.flush({0, 0});
  pollfd p{e.fd(), POLLOUT, 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  e.handle_events({0, 0});
  for (uint64_t i = 0; i < 200'000; ++i) {
    e.put(record(), {});
    if (i % 1000 == 0) e.flush({0, 0});
  }
  e.flush({0, 0});
  EXPECT_GT(e.counts().dropped, 0u);
  EXPECT_GT(e.counts().records, 0u);
}

// ---- JSON lines ----

class JsonLines : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-exports-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  static std::vector<nlohmann::json> lines(const std::string& path) {
    std::vector<nlohmann::json> all;
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  std::string folder_;
};

TEST_F(JsonLines, ALineHasZeeksNames) {
  FlowRecord r = record();
  r.session_start_ns = 1'700'000'000'000'000'005;
  r.last_bytes_ns = 1'700'000'003'000'000'000;
  r.total_in = 17;
  r.total_out = 8755;
  r.pid = 12;
  r.uid = 33;
  r.command = {'a', '"', '\\', '\n'};
  const nlohmann::json expected = {{"schema", 1},
                                   {"ts", "2023-11-14T22:13:20.000000005Z"},
                                   {"mono_ns", 99},
                                   {"uid", "M5300010000000007"},
                                   {"id.orig_h", "192.0.2.9"},
                                   {"id.orig_p", 40000},
                                   {"id.resp_h", "192.0.2.1"},
                                   {"id.resp_p", 80},
                                   {"proto", "tcp"},
                                   {"duration", 4.455999},
                                   {"orig_bytes", 17},
                                   {"resp_bytes", 8755},
                                   {"conn_state", "SF"},
                                   {"local_orig", false},
                                   {"history", "ShADdFf"},
                                   {"pid", 12},
                                   {"user_id", 33},
                                   {"command", "a\"\\?"},
                                   {"cut", false},
                                   {"last_bytes", "2023-11-14T22:13:23.000000000Z"},
                                   {"reason", "closed"},
                                   {"final", true}};
  EXPECT_EQ(nlohmann::json::parse(json_line(r, 99)), expected);
}

TEST_F(JsonLines, RotatesAndKeeps) {
  const std::string file = folder_ + "/flows.json";
  const size_t line = json_line(record(), 0).size();
  auto made = JsonLinesExport::make({.file = file, .rotate_bytes = 3 * line, .keep = 2});
  ASSERT_TRUE(made);
  FlowRecord r = record();
  for (r.socket = 0; r.socket < 8; ++r.socket) (*made)->put(r, {});
  (*made)->flush();
  const auto uids = [](const std::string& path) {
    std::string all;
    for (const auto& l : lines(path)) all += std::string(l["uid"]).back();
    return all;
  };
  EXPECT_EQ(uids(file), "67");
  EXPECT_EQ(uids(file + ".1"), "345");
  EXPECT_EQ(uids(file + ".2"), "012");
  for (; r.socket < 10; ++r.socket) (*made)->put(r, {});
  (*made)->flush();
  EXPECT_EQ(uids(file), "9");
  EXPECT_EQ(uids(file + ".2"), "345");
  EXPECT_FALSE(std::filesystem::exists(file + ".3"));
  EXPECT_EQ((*made)->counts().records, 10u);
  EXPECT_EQ((*made)->counts().dropped, 0u);
}

TEST_F(JsonLines, FollowsWhoeverRenamesItsFile) {
  const std::string file = folder_ + "/flows.json";
  auto made = JsonLinesExport::make({.file = file});
  ASSERT_TRUE(made);
  (*made)->put(record(), {});
  (*made)->flush();
  std::filesystem::rename(file, file + ".mine");
  (*made)->flush();
  (*made)->put(record(), {});
  (*made)->flush();
  EXPECT_EQ(lines(file).size(), 1u);
  EXPECT_EQ(lines(file + ".mine").size(), 1u);
}

TEST_F(JsonLines, AFullDiskLeavesNoHalfLines) {
  // A size limit of the process is the disk that is full.
  const std::string file = folder_ + "/flows.json";
  auto made = JsonLinesExport::make({.file = file});
  ASSERT_TRUE(made);
  const size_t line = json_line(record(), 0).size();
  const auto attempt = [&] {
    rlimit limit{};
    limit.rlim_cur = limit.rlim_max = line + line / 2;
    std::signal(SIGXFSZ, SIG_IGN);
    ::setrlimit(RLIMIT_FSIZE, &limit);
    for (int i = 0; i < 2; ++i) {
      (*made)->put(record(), {});
      (*made)->flush();
    }
    ::_exit((*made)->counts().records == 1 && (*made)->counts().dropped == 1 ? 0 : 1);
  };
  EXPECT_EXIT(attempt(), ::testing::ExitedWithCode(0), "");
  EXPECT_EQ(lines(file).size(), 1u);
}

TEST_F(JsonLines, ADirectoryAndALinkAreRefused) {
  EXPECT_FALSE(JsonLinesExport::make({.file = folder_}));
  std::filesystem::create_symlink("/etc/passwd", folder_ + "/link");
  EXPECT_FALSE(JsonLinesExport::make({.file = folder_ + "/link"}));
  EXPECT_FALSE(JsonLinesExport::make({.file = folder_ + "/none/flows.json"}));
}

// ---- Prometheus ----

class Prometheus : public JsonLines {
 protected:
  void SetUp() override {
    JsonLines::SetUp();
    path_ = folder_ + "/metrics";
    auto made = PrometheusServer::make({.listen = "unix:" + path_}, [] { return "a_total 1\n"; });
    ASSERT_TRUE(made);
    server_ = std::move(*made);
  }
  UniqueFd connect() const {
    const auto a = parse_socket_address("unix:" + path_);
    UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    EXPECT_EQ(::connect(fd.get(), a->get(), a->len), 0);
    return fd;
  }
  // The whole answer, or what there is without waiting.
  std::string ask(int fd, const std::string& request, uint64_t now = 0) {
    EXPECT_EQ(::send(fd, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    for (int i = 0; i < 8; ++i) server_->handle_events(now);
    std::string answer(65536, '\0');
    const ssize_t n = ::recv(fd, answer.data(), answer.size(), MSG_DONTWAIT);
    answer.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return answer;
  }
  std::string path_;
  std::unique_ptr<PrometheusServer> server_;
};

TEST_F(Prometheus, AnswersInPiecesAndRefusesTheRest) {
  const UniqueFd one = connect();
  EXPECT_EQ(ask(one.get(), "GET /metrics HTTP/1.1\r\n"), "");
  EXPECT_EQ(ask(one.get(), "Host: x\r\n\r\n"),
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            "Content-Length: 10\r\nConnection: close\r\n\r\na_total 1\n");
  EXPECT_NE(ask(connect().get(), "GET / HTTP/1.0\r\n\r\n").find(" 404 "), std::string::npos);
  EXPECT_NE(ask(connect().get(), "POST /metrics HTTP/1.0\r\n\r\n").find(" 405 "),
            std::string::npos);
  EXPECT_NE(ask(connect().get(), "GET").find(""), std::string::npos);
  EXPECT_NE(ask(connect().get(), std::string(5000, 'x')).find(" 431 "), std::string::npos);
  struct stat st {};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0117, 0u);
}

TEST_F(Prometheus, WhoHoldsAConnectionIsDropped) {
  std::vector<UniqueFd> idle;
  for (size_t i = 0; i < PrometheusServer::kMaxClients; ++i) idle.push_back(connect());
  server_->handle_events(1);
  const UniqueFd late = connect();
  server_->handle_events(1);
  char byte = 0;
  EXPECT_EQ(::recv(late.get(), &byte, 1, MSG_DONTWAIT), 0);  // one too many
  EXPECT_EQ(::recv(idle[0].get(), &byte, 1, MSG_DONTWAIT), -1);
  server_->drop_slow(PrometheusServer::kPatienceNs + 2);
  for (const UniqueFd& fd : idle) EXPECT_EQ(::recv(fd.get(), &byte, 1, MSG_DONTWAIT), 0);
  const UniqueFd next = connect();
  EXPECT_NE(ask(next.get(), "GET /metrics HTTP/1.0\n\n").find(" 200 "), std::string::npos);
}

TEST_F(Prometheus, OnlyOnThisHostAndNotInSomebodyElsesPlace) {
  const auto metrics = [] { return std::string(); };
  EXPECT_FALSE(PrometheusServer::make({.listen = "0.0.0.0:0"}, metrics));
  EXPECT_FALSE(PrometheusServer::make({.listen = "[::]:0"}, metrics));
  EXPECT_FALSE(PrometheusServer::make({.listen = "localhost:0"}, metrics));
  EXPECT_FALSE(PrometheusServer::make({.listen = "unix:" + path_}, metrics));  // it is served
  server_.reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
  auto loopback = PrometheusServer::make({.listen = "127.0.0.1:0"}, metrics);
  ASSERT_TRUE(loopback);
  EXPECT_TRUE((*loopback)->address().starts_with("127.0.0.1:"));
}

TEST(MetricsText, IsPrometheusText) {
  MetricsText m;
  m.counters("bytes_total", "Bytes.", "direction", {{"in", 1}, {"out", 2}});
  MetricsText::Histogram h;
  h.observe(1000);
  h.observe(1001);
  h.observe(90'000'000);
  m.histogram("seconds", "S.", h);
  EXPECT_EQ(m.text(),
            "# HELP mwcomms_bytes_total Bytes.\n# TYPE mwcomms_bytes_total counter\n"
            "mwcomms_bytes_total{direction=\"in\"} 1\nmwcomms_bytes_total{direction=\"out\"} 2\n"
            "# HELP mwcomms_seconds S.\n# TYPE mwcomms_seconds histogram\n"
            "mwcomms_seconds_bucket{le=\"1\"} 1\nmwcomms_seconds_bucket{le=\"5\"} 2\n"
            "mwcomms_seconds_bucket{le=\"15\"} 2\nmwcomms_seconds_bucket{le=\"60\"} 2\n"
            "mwcomms_seconds_bucket{le=\"300\"} 2\nmwcomms_seconds_bucket{le=\"1800\"} 2\n"
            "mwcomms_seconds_bucket{le=\"7200\"} 2\nmwcomms_seconds_bucket{le=\"86400\"} 2\n"
            "mwcomms_seconds_bucket{le=\"+Inf\"} 3\n"
            "mwcomms_seconds_sum 90002.001\nmwcomms_seconds_count 3\n");
}

// ---- the whole ----

TEST_F(JsonLines, AnExporterThatCannotKeepUpDropsAndCounts) {
  const std::string file = folder_ + "/flows.json";
  auto made = Exporter::start(
      {.prometheus = {.listen = "unix:" + folder_ + "/m"}, .json_lines = {.file = file}},
      [] { return uint64_t{3}; });
  ASSERT_TRUE(made);
  const auto now = static_cast<uint64_t>(::time(nullptr)) * kSecond;
  std::vector<ExtendedObservation> many;
  many.push_back(accepted(7, now));
  many.resize(Exporter::kQueue + 10, observe(ObservationKind::recv, 7, now, 5, 0));
  (*made)->offer(many);  // in one piece: ten more than fit
  const auto a = parse_socket_address((*made)->prometheus_address());
  ASSERT_TRUE(a);
  const UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  ASSERT_EQ(::connect(fd.get(), a->get(), a->len), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  ASSERT_GT(::send(fd.get(), request.data(), request.size(), 0), 0);
  std::string answer;
  char part[4096];
  for (ssize_t n; (n = ::recv(fd.get(), part, sizeof part, 0)) > 0;)
    answer.append(part, static_cast<size_t>(n));
  EXPECT_NE(answer.find("mwcomms_repairs_total 3\n"), std::string::npos);
  EXPECT_NE(answer.find("mwcomms_observations_lost_total{where=\"export_queue\"} 10\n"),
            std::string::npos)
      << answer;
  made->reset();  // tells the flow as ended
  const auto all = lines(file);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0]["reason"], "unobserved");
  EXPECT_EQ(all[0]["orig_bytes"], 5);
}

}  // namespace
}  // namespace mw::netflow
