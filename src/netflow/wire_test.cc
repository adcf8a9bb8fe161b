// The bytes in this file are the specification's, written down by hand: engines that exist read
// them.
#include "netflow/wire.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace mw::netflow {
namespace {

std::vector<uint8_t> bytes_of_hex(const std::string& hex) {
  std::vector<uint8_t> out;
  std::string digits;
  for (const char c : hex)
    if (c != ' ') digits += c;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    out.push_back(static_cast<uint8_t>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return out;
}

template <size_t N, class Message>
std::vector<uint8_t> encoded(const Message& message) {
  std::array<uint8_t, N> out;
  out.fill(0xee);
  encode(message, std::span<uint8_t, N>(out));
  return {out.begin(), out.end()};
}

template <size_t N>
std::span<const uint8_t, N> fixed(const std::vector<uint8_t>& v) {
  return std::span<const uint8_t, N>(v.data(), N);
}

Address v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  Address out;
  out.bytes = {a, b, c, d};
  return out;
}

const char kObservationHex[] =
    "d310 00000000"                                        // sig, id 0
    "0003"                                                 // accept
    "0000000065a1b2c3 000000000000002a"                    // session start
    "0000000065a1b2c4 000000003b9ac9ff"                    // now
    "5300070000000012"                                     // 'S', INS 7, socket 0x12
    "00000004 c0000201 000000000000000000000000 0050"      // 192.0.2.1:80
    "00000006 20010db8000000000000000000000001 d431"       // [2001:db8::1]:54321
    "0000000000000102 0000000100000000 5300070000000013";  // in, out, extra

Observation observation() {
  Observation o;
  o.kind = ObservationKind::accept;
  o.session_start = {0x65a1b2c3, 42};
  o.now = {0x65a1b2c4, 999'999'999};
  o.socket = encode(SocketId{7, 0x12});
  o.local = {v4(192, 0, 2, 1), 80};
  o.remote.address.af = 6;
  o.remote.address.bytes = {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  o.remote.port = 54321;
  o.bytes_in = 0x102;
  o.bytes_out = 0x1'0000'0000;
  o.extra = static_cast<uint64_t>(encode(SocketId{7, 0x13}));
  return o;
}

TEST(Wire, ObservationIsTheSpecificationsBytes) {
  const auto golden = bytes_of_hex(kObservationHex);
  ASSERT_EQ(golden.size(), kObservationBytes);
  EXPECT_EQ(encoded<kObservationBytes>(observation()), golden);
  auto back = decode_observation(fixed<kObservationBytes>(golden));
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, observation());
}

TEST(Wire, RequestsAreTheSpecificationsBytes) {
  Request close;
  close.id = 0x01020304;
  close.flags = kRequestWrite;
  close.name = static_cast<uint16_t>(Feature::is_open);
  name_socket(close, {1, 0x8000'0001});
  const auto by_socket = bytes_of_hex(
      "d320 01020304 0003 0101 0000000000000000 0000000000000000"
      "5300010080000001 000000000000000000000000");
  ASSERT_EQ(by_socket.size(), kRequestBytes);
  EXPECT_EQ(encoded<kRequestBytes>(close), by_socket);

  Request block;
  block.id = 9;
  block.flags = kRequestWrite;
  block.name = static_cast<uint16_t>(Feature::address_block);
  block.value0 = 1;
  name_peer(block, v4(203, 0, 113, 9));
  const auto by_peer = bytes_of_hex(
      "d320 00000009 0005 1103 0000000000000001 0000000000000000"
      "00000004 cb007109 000000000000000000000000");
  EXPECT_EQ(encoded<kRequestBytes>(block), by_peer);

  Request timeout;
  timeout.id = 0xffffffff;
  timeout.flags = kRequestWrite;
  timeout.name = static_cast<uint16_t>(Feature::rcvtimeo);
  timeout.value0 = 2;
  timeout.value1 = 500'000;
  name_socket(timeout, {0xffff, 5});
  const auto times = bytes_of_hex(
      "d320 ffffffff 0003 010c 0000000000000002 000000000007a120"
      "53ffff0000000005 000000000000000000000000");
  EXPECT_EQ(encoded<kRequestBytes>(timeout), times);

  for (const auto& [bytes, request] :
       {std::pair{by_socket, close}, std::pair{by_peer, block}, std::pair{times, timeout}}) {
    auto back = decode_request(fixed<kRequestBytes>(bytes));
    ASSERT_TRUE(back);
    EXPECT_EQ(*back, request);
  }
}

TEST(Wire, ResponseIsTheSpecificationsBytes) {
  const Response response{0x0a0b0c0d, 9, 1, 250'000};
  const auto golden = bytes_of_hex("d32f 0a0b0c0d 00000009 0000000000000001 000000000003d090");
  ASSERT_EQ(golden.size(), kResponseBytes);
  EXPECT_EQ(encoded<kResponseBytes>(response), golden);
  auto back = decode_response(fixed<kResponseBytes>(golden));
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, response);
}

TEST(Wire, AFlowComesBackAndMayBeLonger) {
  Flow f;
  f.sequence = 3;
  f.socket = encode(SocketId{7, 0x12});
  f.flags = kFlowListener;
  f.session_start = {0x65a1b2c3, 42};
  f.last = {0x65a1b2c4, 1};
  f.local = {v4(192, 0, 2, 1), 80};
  f.remote = {v4(0, 0, 0, 0), 0};
  f.bytes_in = 5;
  f.bytes_out = 6;
  f.pid = 77;
  f.uid = 33;
  f.command = {'n', 'g', 'i', 'n', 'x'};
  const auto golden = bytes_of_hex(
      "d341 0000008e 0000000000000003 5300070000000012 0001 0001"
      "0000000065a1b2c3 000000000000002a 0000000065a1b2c4 0000000000000001"
      "00000004 c0000201 000000000000000000000000 0050"
      "00000004 00000000 000000000000000000000000 0000"
      "0000000000000005 0000000000000006 0000004d 00000021 6e67696e780000000000000000000000");
  EXPECT_EQ(encoded<kFlowBytes>(f), golden);
  auto back = decode_flow(golden);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, f);
  auto longer = golden;
  longer.resize(150);
  EXPECT_FALSE(decode_flow(longer));  // it says 142
  longer[5] = 150;
  ASSERT_TRUE(decode_flow(longer));
  EXPECT_EQ(*decode_flow(longer), f);
  EXPECT_FALSE(decode_flow(std::span(golden).first(141)));
}

TEST(Wire, CodesAreTheSpecifications) {
  EXPECT_EQ(static_cast<int>(Feature::monitor_on), 0x0001);
  EXPECT_EQ(static_cast<int>(Feature::monitor_off), 0x0002);
  EXPECT_EQ(static_cast<int>(Feature::nodelay), 0x0008);
  EXPECT_EQ(static_cast<int>(Feature::owner_running), 0x0102);
  EXPECT_EQ(static_cast<int>(Feature::error), 0x010f);
  EXPECT_EQ(static_cast<int>(Feature::delack_ticks), 0x1102);
  for (const Feature f :
       {Feature::is_open, Feature::sndbuf, Feature::rcvlowat, Feature::congestion})
    EXPECT_NE(static_cast<int>(f) & kFeatureMitigation, 0);
}

TEST(Wire, SocketIdentifiersArePositiveAndChecked) {
  for (const SocketId id : {SocketId{0, 0}, SocketId{0xffff, 0xffff'ffff}, SocketId{3, 77}}) {
    EXPECT_GT(encode(id), 0);
    EXPECT_EQ(decode_socket(encode(id)), id);
  }
  EXPECT_EQ(encode(SocketId{0x1234, 0x89abcdef}), 0x53'1234'00'89abcdef);
  EXPECT_FALSE(decode_socket(0));
  EXPECT_FALSE(decode_socket(-1));
  EXPECT_FALSE(decode_socket(encode(SocketId{1, 1}) | int64_t{1} << 32));
}

TEST(Wire, AMessagesLengthFollowsFromItsSignature) {
  EXPECT_EQ(message_bytes(0xd310), 116u);
  EXPECT_EQ(message_bytes(0xd320), 46u);
  EXPECT_EQ(message_bytes(0xd32f), 26u);
  EXPECT_EQ(message_bytes(0x0000), 0u);
  EXPECT_EQ(message_bytes(0xd321), 0u);
  const uint8_t start[] = {0xd3, 0x20};
  EXPECT_EQ(signature_of(start), kSigRequest);
}

Request with_identity(const std::string& hex) {
  Request r;
  const auto bytes = bytes_of_hex(hex);
  EXPECT_EQ(bytes.size(), r.identity.size());
  std::copy(bytes.begin(), bytes.end(), r.identity.begin());
  return r;
}

Request with_text(const std::string& text) {
  Request r = with_identity("00000002 00000000000000000000000000000000");
  std::copy(text.begin(), text.end(), r.identity.begin() + 4);
  return r;
}

TEST(Wire, APeerAddressComesInTwoForms) {
  EXPECT_EQ(peer_of(with_text("192.0.2.33")), v4(192, 0, 2, 33));
  EXPECT_EQ(peer_of(with_text("255.255.255.255")), v4(255, 255, 255, 255));
  EXPECT_EQ(peer_of(with_identity("00000004 c0000221 000000000000000000000000")),
            v4(192, 0, 2, 33));
  const auto six = peer_of(with_identity("00000006 20010db8000000000000000000000001"));
  ASSERT_TRUE(six);
  EXPECT_EQ(six->af, 6u);
  EXPECT_EQ(six->bytes[0], 0x20);
}

TEST(Wire, AnAddressThatIsNoneIsRefused) {
  for (const char* text : {"", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "1.2.3.4 ",
                           " 1.2.3.4", "1..2.3", "1.2.3.", "a.b.c.d", "1.2.3.4\n", "1000.1.1.1"})
    EXPECT_FALSE(peer_of(with_text(text))) << text;
  // No NUL at the end is needed, but nothing may follow it.
  EXPECT_FALSE(peer_of(with_text(std::string("1.2.3.4\0x", 9))));
  EXPECT_FALSE(peer_of(with_identity("00000004 c0000221 000000000000000000000001")));
  EXPECT_FALSE(peer_of(with_identity("00000005 c0000221 000000000000000000000000")));
  EXPECT_FALSE(peer_of(with_identity("0000000a 20010db8000000000000000000000001")));
}

TEST(Wire, ASocketIdentityIsFollowedByZeros) {
  EXPECT_TRUE(socket_of(with_identity("5300010000000001 000000000000000000000000")));
  EXPECT_FALSE(socket_of(with_identity("5300010000000001 000000000000000000000001")));
  EXPECT_FALSE(socket_of(with_identity("5400010000000001 000000000000000000000000")));
}

TEST(Wire, WhatIsNoObservationIsRefused) {
  auto bytes = bytes_of_hex(kObservationHex);
  for (const size_t at : {size_t{0}, size_t{1}, size_t{5}, size_t{51}}) {  // sig, id, family
    auto broken = bytes;
    broken[at] ^= 0x40;
    EXPECT_FALSE(decode_observation(fixed<kObservationBytes>(broken))) << at;
  }
}

}  // namespace
}  // namespace mw::netflow
