// The bytes in this file are the specification's, written down by hand: engines that exist read
// them.
#include "netflow/wire.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/hex.h"
#include "netflow/command_name.h"

namespace mw::netflow {
namespace {

std::vector<uint8_t> bytes_of_hex(const std::string& hex) {
  std::string digits;
  for (const char c : hex)
    if (c != ' ') digits += c;
  std::vector<uint8_t> out(digits.size() / 2);
  EXPECT_TRUE(parse_hex(digits, out)) << hex;
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

// Each member another value, in the order of the specification.
const char kSampleHex[] =
    "d342 00000136 0000000000000003"                         // signature, length, sequence
    "17a1b2c3d4e5f607 000000e8d4a51001 5300070000000012"     // now, monotonic, socket
    "0001 0006"                                              // a stream, inbound and TCP
    "00000004 c0000201 000000000000000000000000 0050"        // local
    "00000006 20010db8000000000000000000000001 d431"         // remote
    "0000004d 00000021 6e67696e780000000000000000000000"     // pid, uid, nginx
    "0000000000000102 0000000100000000 00000007 00000008"    // bytes and calls, in and out
    "00002710 00000bb8 000003e8 ffffffff ffffffff"           // age, first and last in, out
    "0000000000000019 000000000000001a 0000001b 0000001c"    // rates, unread, unsent
    "0000001d 0000001e 000000000000001f"                     // waits
    "00000020 00000021"                                      // queue, backlog
    "00000001 00000023 00000024 00000025 00000026 00000027"  // state ... notsent
    "00000028 00000029 0000002a 0000002b"                    // unacked ... backoff
    "0000002c 0000002d 0000002e"                             // ages of data and of an ACK
    "000000000000002f 0000000000000030 0000000000000031"     // bytes
    "0000000000000032 0000000000000033 0000000000000034"     // times
    "0000000000000035";                                      // delivery rate

Sample sample() {
  Sample s;
  s.sequence = 3;
  s.now_ns = 0x17a1b2c3d4e5f607;
  s.mono_ns = 0xe8d4a51001;
  s.socket = encode(SocketId{7, 0x12});
  s.type = 1;
  s.flags = kSampleInbound | kSampleTcp;
  s.local = observation().local;
  s.remote = observation().remote;
  s.pid = 77;
  s.uid = 33;
  s.command = {'n', 'g', 'i', 'n', 'x'};
  s.bytes_in = 0x102;
  s.bytes_out = 0x1'0000'0000;
  s.calls_in = 7;
  s.calls_out = 8;
  s.age = 10'000;
  s.first_in = 3000;
  s.last_in = 1000;
  s.first_out = s.last_out = kNever;
  s.rate_in = 0x19, s.rate_out = 0x1a, s.unread = 0x1b, s.unsent = 0x1c;
  s.waiting_threads = 0x1d, s.waiting = 0x1e, s.worker_us = 0x1f;
  s.queue = 0x20, s.backlog = 0x21;
  s.tcp_state = 1, s.rtt_us = 0x23, s.rttvar_us = 0x24, s.min_rtt_us = 0x25;
  s.snd_wnd = 0x26, s.notsent = 0x27, s.unacked = 0x28, s.total_retrans = 0x29;
  s.probes = 0x2a, s.backoff = 0x2b;
  s.last_data_recv = 0x2c, s.last_data_sent = 0x2d, s.last_ack_recv = 0x2e;
  s.bytes_acked = 0x2f, s.bytes_received = 0x30, s.bytes_retrans = 0x31;
  s.busy_us = 0x32, s.rwnd_limited_us = 0x33, s.sndbuf_limited_us = 0x34, s.delivery_rate = 0x35;
  return s;
}

// A message of version 2 is the golden bytes, comes back from them, may be longer than today's and
// not shorter, and is not taken for another one.
template <size_t N, class Message, class Decode>
void expect_version_two(const Message& m, std::vector<uint8_t> golden, Decode decode) {
  ASSERT_EQ(golden.size(), N);
  EXPECT_EQ(encoded<N>(m), golden);
  auto back = decode(golden);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, m);
  EXPECT_FALSE(decode(std::span(golden).first(N - 1)));
  auto longer = golden;
  longer.resize(N + 9);
  EXPECT_FALSE(decode(longer));  // it says another length
  longer[4] = static_cast<uint8_t>((N + 9) >> 8);
  longer[5] = static_cast<uint8_t>(N + 9);
  ASSERT_TRUE(decode(longer));
  EXPECT_EQ(*decode(longer), m);
  golden[1] ^= 0x40;
  EXPECT_FALSE(decode(golden));
}

TEST(Wire, ASampleIsTheSpecificationsBytes) {
  expect_version_two<kSampleBytes>(sample(), bytes_of_hex(kSampleHex), decode_sample);
  auto bytes = bytes_of_hex(kSampleHex);
  bytes[45] = 5;  // the local address's family
  EXPECT_FALSE(decode_sample(bytes));
}

TEST(Wire, AnExtendedObservationIsTheSpecificationsBytes) {
  ExtendedObservation o{observation()};
  o.sequence = 0x0102030405060708;
  o.type = 2;
  o.flags = kListenersHolder | kConnInbound | kConnPeerRst;
  o.pid = 77;
  o.uid = 33;
  o.command = {'n', 'g', 'i', 'n', 'x'};
  const std::string body(kObservationHex);
  auto bytes = bytes_of_hex("d346 00000098 0102030405060708" +
                            body.substr(body.find("0003")) +  // of version 1, from kind on
                            "0002 1102 0000004d 00000021 6e67696e780000000000000000000000");
  expect_version_two<kExtendedObservationBytes>(o, bytes, decode_extended_observation);
  bytes[59] = 5;  // the local address's family
  EXPECT_FALSE(decode_extended_observation(bytes));
}

TEST(Wire, AProcessSampleIsTheSpecificationsBytes) {
  ProcessSample s;
  s.sequence = 4;
  s.pid = 77;
  s.uid = 33;
  s.command = {'n', 'g', 'i', 'n', 'x'};
  s.rss_bytes = 0x1'2345'6000;
  s.cpu_us = 0x5060708;
  s.threads = 9;
  s.fds = 10;
  expect_version_two<kProcessSampleBytes>(
      s,
      bytes_of_hex("d343 0000003e 0000000000000004 0000004d 00000021"
                   "6e67696e780000000000000000000000 0000000123456000 0000000005060708"
                   "00000009 0000000a"),
      decode_process_sample);
}

TEST(Wire, ARoundIsTheSpecificationsBytes) {
  Round r;
  r.sequence = 5;
  r.now_ns = 0x17a1b2c3d4e5f607;
  r.mono_ns = 0xe8d4a51001;
  r.round = 6;
  r.sockets = 10'000;
  r.processes = 8;
  r.missed = 0x90;
  r.ins = 7;
  r.ins_pid = 1000;
  r.heartbeat = 11;
  r.slots = 0x10000;
  r.ins_rss_bytes = 0x1'2345'6000;
  r.ins_cpu_us = 0x5060708;
  r.ins_fds = 12;
  r.ins_restarts = 13;
  r.telemetry_dropped = 14;
  expect_version_two<kRoundBytes>(
      r,
      bytes_of_hex("d344 00000066 0000000000000005 17a1b2c3d4e5f607 000000e8d4a51001"
                   "0000000000000006 00002710 00000008 0000000000000090 00000007 000003e8"
                   "0000000b 00010000 0000000123456000 0000000005060708 0000000c 0000000d"
                   "000000000000000e"),
      decode_round);
}

const char kExtendedHex[] =
    "d321 00000043 003c"                                    // sig, length, fixed part
    "01020304 0005 1103 0000000000000001 0000000000000000"  // as in a plain request
    "00000004 cb007109 000000000000000000000000"
    "00000258 00000003"  // 600 s, dry run and bound to the connection
    "746f6f20c3a9 2e";   // the reason

ExtendedRequest extended_request() {
  ExtendedRequest r;
  r.request.id = 0x01020304;
  r.request.flags = kRequestWrite;
  r.request.name = static_cast<uint16_t>(Feature::address_block);
  r.request.value0 = 1;
  name_peer(r.request, v4(203, 0, 113, 9));
  r.ttl_s = 600;
  r.options = kDryRun | kEndsWithConnection;
  r.reason = "too \u00e9.";
  return r;
}

// With three bytes that a later version might add, in front of the texts.
std::vector<uint8_t> of_a_later_version(std::vector<uint8_t> bytes) {
  const size_t fixed = bytes[6] << 8 | bytes[7];
  bytes.insert(bytes.begin() + static_cast<long>(fixed), {1, 2, 3});
  bytes[7] = static_cast<uint8_t>(bytes[7] + 3);
  bytes[5] = static_cast<uint8_t>(bytes[5] + 3);
  return bytes;
}

TEST(Wire, AnExtendedRequestIsTheSpecificationsBytes) {
  const auto golden = bytes_of_hex(kExtendedHex);
  EXPECT_EQ(encoded(extended_request()), golden);
  auto back = decode_extended_request(golden);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, extended_request());
  auto later = decode_extended_request(of_a_later_version(golden));
  ASSERT_TRUE(later);
  EXPECT_EQ(*later, extended_request());
  ExtendedRequest wordy = extended_request();
  wordy.reason = std::string(kMaxReason + 1, 'x');
  EXPECT_EQ(decode_extended_request(encoded(wordy))->reason.size(), kMaxReason);
}

TEST(Wire, AnExtendedRequestWhoseLengthsDoNotFitIsRefused) {
  const auto golden = bytes_of_hex(kExtendedHex);
  for (size_t n = 0; n < golden.size(); ++n)
    EXPECT_FALSE(decode_extended_request(std::span(golden).first(n))) << n;
  for (const auto& [at, value] :
       {std::pair{1, 0x20}, {5, 0x42}, {5, 0x44}, {2, 1}, {7, 0x3b}, {7, 0x44}, {6, 0xff}}) {
    auto broken = golden;
    broken[static_cast<size_t>(at)] = static_cast<uint8_t>(value);
    EXPECT_FALSE(decode_extended_request(broken)) << at;
  }
  auto wordy = golden;
  wordy.resize(kExtendedRequestBytes + kMaxReason + 1);
  wordy[5] = static_cast<uint8_t>(wordy.size());
  EXPECT_FALSE(decode_extended_request(wordy));
}

TEST(Wire, ARuleIsTheSpecificationsBytes) {
  Rule r;
  r.sequence = 9;
  r.id = 0x0a0b0c0d;
  r.name = static_cast<uint16_t>(Feature::min_rate_in);
  r.flags = kRequestWrite | kRequestBySocket;
  r.state = kRuleExpired;
  r.value0 = 500;
  r.value1 = 20;
  r.socket = encode(SocketId{7, 0x12});
  r.peer = {v4(192, 0, 2, 1), 54321};
  r.since = {0x65a1b2c3, 42};
  r.until = {0x65a1b2c4, 1};
  r.hits = 3;
  r.engine = "mw[7]";
  r.reason = "slow";
  const auto golden = bytes_of_hex(
      "d345 00000079 006c 0000000000000009 0a0b0c0d 0310 0003 0002 00000000000001f4"
      "0000000000000014 5300070000000012 00000004 c0000201 000000000000000000000000 d431"
      "0000000065a1b2c3 000000000000002a 0000000065a1b2c4 0000000000000001 00000003"
      "0005 6d775b375d 0004 736c6f77");
  EXPECT_EQ(encoded(r), golden);
  auto back = decode_rule(golden);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, r);
  ASSERT_TRUE(decode_rule(of_a_later_version(golden)));
  EXPECT_EQ(*decode_rule(of_a_later_version(golden)), r);
  for (size_t n = 0; n < golden.size(); ++n) {
    auto shorter = golden;
    shorter.resize(n);
    EXPECT_FALSE(decode_rule(shorter)) << n;
    if (n < 6) continue;
    shorter[5] = static_cast<uint8_t>(n);
    EXPECT_FALSE(decode_rule(shorter)) << n;
  }
}

TEST(Wire, OnlyTextThatATerminalMayBeShownIsPlain) {
  for (const char* text : {"", "slow, 20 B/s", "\u00e9\u20ac\U0001f600", "~"})
    EXPECT_TRUE(is_plain_text(text)) << text;
  for (const char* text : {"\x1b[2J", "a\nb", "\x7f", "\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf",
                           "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
                           "\xc2\x9b"
                           "2J",
                           "\xe2\x82"})
    EXPECT_FALSE(is_plain_text(text)) << text;
  EXPECT_FALSE(is_plain_text(std::string("a\0b", 3)));
}

TEST(Wire, CodesAreTheSpecifications) {
  EXPECT_EQ(static_cast<int>(Feature::sampling), 0x0201);
  EXPECT_EQ(static_cast<int>(Feature::observations), 0x0204);
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

TEST(CommandName, IsCutAndPadded) {
  EXPECT_EQ(command_name("nginx"), (CommandName{'n', 'g', 'i', 'n', 'x'}));
  EXPECT_EQ(command_text(command_name("nginx")), "nginx");
  EXPECT_EQ(command_text(command_name("")), "");
  EXPECT_EQ(command_text(command_name("sixteen-bytes-xx")), "sixteen-bytes-xx");
  EXPECT_EQ(command_text(command_name("sixteen-bytes-xx and more")), "sixteen-bytes-xx");
}

}  // namespace
}  // namespace mw::netflow
