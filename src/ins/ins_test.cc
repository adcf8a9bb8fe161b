#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <sstream>

#include "ins/control/resolve.h"
#include "ins/policy/options.h"
#include "ins/tables/decode.h"
#include "ins/worker/worker.h"
#include "ring/order.h"
#include "tests/support/fake_pvm.h"

namespace mw {
namespace {

using A = StdAtomics;
using namespace std::string_view_literals;

std::string pattern(size_t n) {
  std::string s(n, '\0');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>(i * 7 + (i >> 11));
  return s;
}
std::string read_exactly(int fd, size_t n) {
  std::string out(n, '\0');
  size_t got = 0;
  while (got < n) {
    const ssize_t k = ::recv(fd, out.data() + got, n - got, 0);
    if (k <= 0) break;
    got += static_cast<size_t>(k);
  }
  out.resize(got);
  return out;
}
void write_all(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t k = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    ASSERT_GT(k, 0);
    data.remove_prefix(static_cast<size_t>(k));
  }
}
std::string as_bytes(int v) {
  return {reinterpret_cast<const char*>(&v), sizeof v};
}

TEST(Ins, CarriesBytesBothWaysAcrossTheWrap) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  const std::string data = pattern(3'000'000);
  std::thread echo([&] {
    const std::string got = read_exactly(peer.get(), data.size());
    write_all(peer.get(), got);
    ::shutdown(peer.get(), SHUT_WR);
  });
  std::string back;
  std::string_view left = data;
  ASSERT_TRUE(eventually([&] {
    left.remove_prefix(pvm.put(s, left));
    back += pvm.take(s);
    return back.size() == data.size();
  }));
  echo.join();
  EXPECT_TRUE(back == data);
  EXPECT_TRUE(pvm.wait_state(s, MW_ST_EOF | MW_ST_RCV_SHUT));
  EXPECT_EQ(pvm.state(s) & MW_ST_CLOSED, 0u);
}

TEST(Ins, ConnectsAndReportsARefusal) {
  FakePvm pvm;
  pvm.begin();
  FakeSock l = pvm.listener();
  const uint16_t port = pvm.port_of(l);
  FakeSock c = pvm.socket();
  auto r = pvm.call(MW_OP_CONNECT, c, {}, FakePvm::raw(loopback(port)));
  EXPECT_EQ(r.ret, -1);
  EXPECT_EQ(r.err, EINPROGRESS);
  ASSERT_TRUE(pvm.wait_state(c, MW_ST_CONNECTED));
  mw_accept_record record{};
  auto s = pvm.accept(l, 20'000, &record);
  ASSERT_TRUE(s);
  EXPECT_EQ(record.local.len, sizeof(sockaddr_in));
  sockaddr_in peer{};
  std::memcpy(&peer, record.peer.bytes, sizeof peer);
  EXPECT_EQ(ntohs(peer.sin_port), pvm.port_of(c));
  pvm.put_all(c, "hello");
  EXPECT_EQ(pvm.take_exactly(*s, 5), "hello");

  l.fd.reset();
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));
  ASSERT_TRUE(pvm.expect<ControlSlot>(ControlType::listener_down));
  FakeSock d = pvm.socket();
  EXPECT_EQ(pvm.call(MW_OP_CONNECT, d, {}, FakePvm::raw(loopback(port))).err, EINPROGRESS);
  EXPECT_EQ(pvm.wait_error(d), ECONNREFUSED);
  ASSERT_TRUE(pvm.wait_state(d, MW_ST_CLOSED));
  EXPECT_EQ(pvm.state(d) & (MW_ST_CONNECTED | MW_ST_CONNECTING), 0u);
}

TEST(Ins, AFailedBlockingConnectLeavesTheSocketAsNew) {
  FakePvm pvm;
  pvm.begin();
  FakeSock l = pvm.listener();
  FakeSock c = pvm.socket();
  EXPECT_EQ(pvm.call(MW_OP_CONNECT, c, {1}, FakePvm::raw(loopback(1))).err, EINPROGRESS);
  EXPECT_EQ(pvm.wait_error(c), ECONNREFUSED);
  ASSERT_TRUE(eventually([&] { return pvm.state(c) == MW_ST_OPEN; }));
  EXPECT_EQ(pvm.call(MW_OP_CONNECT, c, {1}, FakePvm::raw(loopback(pvm.port_of(l)))).err,
            EINPROGRESS);
  EXPECT_TRUE(pvm.wait_state(c, MW_ST_CONNECTED));
  EXPECT_EQ(pvm.state(c) & MW_ST_CLOSED, 0u);
}

TEST(Ins, AcceptsABoundedNumberAheadAndLosesNone) {
  for (const int backlog : {1, 8, 64}) {
    FakePvm pvm(small_geometry(1024, 1));
    pvm.begin();
    FakeSock l = pvm.listener(backlog);
    const uint16_t port = pvm.port_of(l);
    const int count = backlog + 1;  // as the kernel counts; all are in, some of them ahead
    const uint32_t ahead = accepted_ahead(static_cast<uint32_t>(backlog));
    std::vector<UniqueFd> peers;
    for (int k = 0; k < count; ++k) peers.push_back(FakePvm::dial(port));
    ASSERT_TRUE(eventually([&] { return pvm.ins->slots.open_count() >= 1 + ahead; }));
    pvm.call(MW_OP_GETSOCKNAME, l);  // a full turn of the worker later:
    EXPECT_LE(pvm.ins->slots.open_count(), 1 + ahead + 1);
    std::vector<FakeSock> got;
    for (int k = 0; k < count; ++k) {
      auto s = pvm.accept(l);
      ASSERT_TRUE(s) << k << " of " << count << " with backlog " << backlog;
      got.push_back(std::move(*s));
    }
    EXPECT_FALSE(pvm.accept(l, 0));
  }
}

TEST(Ins, AcceptsASmallPartOfABacklogAhead) {
  for (const uint32_t backlog : {8u, 63u, 64u, 128u, 511u, 4096u}) {
    EXPECT_LE(accepted_ahead(backlog), backlog / 8);
    EXPECT_LE(accepted_ahead(backlog), 64u);
  }
  EXPECT_EQ(accepted_ahead(0), 1u) << "or nothing could ever be accepted";
}

// How many of `count` clients that come at once get in. Those that do not are left out for a second
// by their own kernel, so whoever is in is so at once.
int burst(uint16_t port, int count, std::vector<UniqueFd>& clients) {
  std::vector<pollfd> waits;
  for (int k = 0; k < count; ++k) {
    UniqueFd c{::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    const sockaddr_in to = loopback(port);
    ::connect(c.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to);
    waits.push_back({c.get(), POLLOUT, 0});
    clients.push_back(std::move(c));
  }
  // Over the loopback interface the answer is there when connect() returns.
  ::poll(waits.data(), waits.size(), 0);
  return static_cast<int>(
      std::count_if(waits.begin(), waits.end(), [](const pollfd& p) { return p.revents != 0; }));
}

TEST(Ins, ABurstOfTheBacklogFindsRoomWhateverTheInsDoes) {
  for (const int backlog : {1, 2, 5, 16, 100}) {
    FakePvm pvm(small_geometry(1024, 1));
    pvm.begin();
    FakeSock l = pvm.listener(backlog);
    const uint16_t port = pvm.port_of(l);
    for (int round = 0; round < 20; ++round) {
      std::vector<UniqueFd> clients;
      EXPECT_EQ(burst(port, backlog, clients), backlog) << "round " << round;
      for (int k = 0; k < backlog; ++k) {
        ASSERT_TRUE(pvm.accept(l)) << k << " of " << backlog;
        // All that was taken is known to the INS before the next burst.
        if (k == backlog - 1) pvm.call(MW_OP_GETSOCKNAME, l);
      }
    }
  }
}

TEST(Ins, AProgramThatDoesNotAcceptLetsInOneMoreThanItsBacklog) {
  for (const int backlog : {0, 1, 2, 5, 16, 100}) {
    FakePvm pvm(small_geometry(1024, 1));
    pvm.begin();
    FakeSock l = pvm.listener(backlog);
    const uint16_t port = pvm.port_of(l);
    std::vector<UniqueFd> clients;
    int in = 0;
    for (int k = 0; k < backlog + 5; ++k) {
      in += burst(port, 1, clients);
      pvm.call(MW_OP_GETSOCKNAME, l);  // the INS has accepted what it will
    }
    EXPECT_EQ(in, backlog + 1);
  }
}

TEST(Ins, AListenerThatIsClosedResetsWhatWasNotTaken) {
  FakePvm pvm;
  pvm.begin();
  auto l = std::make_unique<FakeSock>(pvm.listener(8));
  const uint16_t port = pvm.port_of(*l);
  const UniqueFd first = FakePvm::dial(port);
  auto taken = pvm.accept(*l);
  ASSERT_TRUE(taken);
  const UniqueFd second = FakePvm::dial(port);
  ASSERT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 3; }));
  l.reset();
  taken.reset();
  char byte = 0;
  EXPECT_EQ(::recv(second.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET) << "it was in the queue";
  EXPECT_EQ(::recv(first.get(), &byte, 1, 0), 0) << "it was accepted and closed";
}

// The kernel writes as many entries as the list's own count says.
TEST(Ins, AListOfSourcesLongerThanAnAnswerIsRefused) {
  FakePvm pvm;
  pvm.begin();
  int err = 0;
  FakeSock s = pvm.socket(SOCK_DGRAM, &err, AF_INET6);
  if (err == EAFNOSUPPORT) GTEST_SKIP() << "no IPv6 here";
  group_source_req source{};
  source.gsr_interface = 1;
  auto& group = reinterpret_cast<sockaddr_in6&>(source.gsr_group);
  auto& from = reinterpret_cast<sockaddr_in6&>(source.gsr_source);
  group.sin6_family = from.sin6_family = AF_INET6;
  group.sin6_addr.s6_addr[0] = 0xff;
  group.sin6_addr.s6_addr[1] = 0x02;
  group.sin6_addr.s6_addr[15] = 0x77;
  from.sin6_addr.s6_addr[0] = 0xfd;
  group_filter list{};
  list.gf_interface = 1;
  std::memcpy(&list.gf_group, &source.gsr_group, sizeof list.gf_group);
  const auto ask = [&](uint32_t count) {
    list.gf_numsrc = count;
    const std::string_view bytes{reinterpret_cast<const char*>(&list), GROUP_FILTER_SIZE(0)};
    return pvm.call(MW_OP_GETSOCKOPT, s, {IPPROTO_IPV6, MCAST_MSFILTER, MW_CALL_PAYLOAD}, bytes);
  };
  for (uint8_t k = 1; k <= 13; ++k) {
    from.sin6_addr.s6_addr[15] = k;
    const std::string_view bytes{reinterpret_cast<const char*>(&source), sizeof source};
    const auto joined =
        pvm.call(MW_OP_SETSOCKOPT, s, {IPPROTO_IPV6, MCAST_JOIN_SOURCE_GROUP}, bytes);
    ASSERT_EQ(joined.ret, 0) << joined.err;
  }
  const auto whole = ask(64);
  ASSERT_EQ(whole.ret, 0) << whole.err;
  EXPECT_EQ(whole.out.size(), GROUP_FILTER_SIZE(13));
  for (uint8_t k = 14; k <= 40; ++k) {
    from.sin6_addr.s6_addr[15] = k;
    const std::string_view bytes{reinterpret_cast<const char*>(&source), sizeof source};
    pvm.call(MW_OP_SETSOCKOPT, s, {IPPROTO_IPV6, MCAST_JOIN_SOURCE_GROUP}, bytes);
  }
  EXPECT_EQ(ask(64).err, ENOPROTOOPT) << "more than an answer holds was asked for";
  EXPECT_EQ(ask(13).ret, 0) << "as many as it holds";
}

// What a peer sees next: 0 its end, -1 a reset, else how many bytes.
int next_of(const UniqueFd& peer) {
  char bytes[64];
  const ssize_t n = ::recv(peer.get(), bytes, sizeof bytes, 0);
  return n < 0 && errno != ECONNRESET ? -2 : static_cast<int>(n);
}

TEST(Ins, APlaceholderServesOneConnectionAfterAnother) {
  FakePvm pvm(small_geometry(64, 2));
  pvm.begin();
  FakeSock l = pvm.listener();
  const uint16_t port = pvm.port_of(l);
  std::vector<std::pair<uint32_t, UniqueFd>> stock;  // numbers and descriptors
  for (int k = 0; k < 2; ++k) {
    const UniqueFd peer = FakePvm::dial(port);
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    ASSERT_TRUE(s->fd);
    stock.emplace_back(s->number, pvm.close_only(*s));
    EXPECT_EQ(next_of(peer), 0) << "closed, though its placeholder is not";
  }
  EXPECT_NE(stock[0].first % 2, stock[1].first % 2) << "one of each worker";
  pvm.wish_bare(l);
  for (int k = 0; k < 6; ++k) {
    const UniqueFd peer = FakePvm::dial(port);
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    ASSERT_FALSE(s->fd) << "its record came bare";
    auto& [number, fd] = stock[stock[0].first % 2 == s->slot % 2 ? 0 : 1];
    s->fd = std::move(fd);
    ASSERT_TRUE(pvm.claim(*s, number));
    A::fetch_or(pvm.ch.slot(s->slot).want, MW_WANT_TOKEN_IN);
    ASSERT_EQ(::send(peer.get(), "hello", 5, 0), 5);
    char token[8];
    EXPECT_EQ(::recv(s->fd.get(), token, sizeof token, 0), 1) << "on the placeholder it has now";
    EXPECT_EQ(pvm.take_exactly(*s, 5), "hello");
    pvm.put_all(*s, "bye");
    EXPECT_EQ(next_of(peer), 3);
    if (k < 5) {
      fd = pvm.close_only(*s);
    } else {
      s->fd.reset();  // its holder dies
    }
    EXPECT_EQ(next_of(peer), 0);
  }
  EXPECT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 1; }));
}

// Keeps this thread, and those that it starts, on one processor: who is woken runs before the one
// that woke him, now and then.
class OneProcessor {
 public:
  OneProcessor() {
    ::sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(::sched_getcpu(), &one);
    ::sched_setaffinity(0, sizeof one, &one);
  }
  ~OneProcessor() { ::sched_setaffinity(0, sizeof before_, &before_); }
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;

 private:
  cpu_set_t before_{};
};

// The record of a connection reaches the application before the worker that accepted it has handed
// it over: its end may be told to another worker before that one can find it.
TEST(Ins, AHolderThatDiesAtOnceClosesItsConnection) {
  const OneProcessor together;
  FakePvm pvm(small_geometry(64, 2));
  pvm.begin();
  const FakeSock l = pvm.listener();
  const uint16_t port = pvm.port_of(l);
  pvm.wish_bare(l);
  constexpr int kRounds = 3000;
  constexpr timeval kLimit{20, 0};
  for (int k = 0; k < kRounds; ++k) {
    FakeSock stock[2];
    uint32_t numbers[2];
    for (uint32_t w = 0; w < 2; ++w) {
      stock[w].slot = w;
      stock[w].gen = 1;
      const auto number = pvm.new_placeholder(stock[w]);
      ASSERT_TRUE(number);
      numbers[w] = *number;
    }
    const UniqueFd peer = FakePvm::dial(port);
    ::setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &kLimit, sizeof kLimit);
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    ASSERT_FALSE(s->fd) << "its record came bare";
    ASSERT_TRUE(pvm.claim(*s, numbers[s->slot % 2]));
    stock[s->slot % 2].fd.reset();
    ASSERT_EQ(next_of(peer), 0) << "in round " << k;
  }
}

// The same for bytes: the news of them is taken by a worker that does not know the socket yet.
TEST(Ins, BytesBeforeTheHandOverLeaveWithoutTheBeat) {
  const OneProcessor together;
  FakePvm pvm(small_geometry(64, 2));
  pvm.begin();
  const FakeSock l = pvm.listener();
  const uint16_t port = pvm.port_of(l);
  constexpr int kRounds = 3000;
  constexpr timeval kLimit{20, 0};
  for (int k = 0; k < kRounds; ++k) {
    const UniqueFd peer = FakePvm::dial(port);
    ::setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &kLimit, sizeof kLimit);
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    pvm.put_all(*s, "x");
    ASSERT_EQ(next_of(peer), 1) << "in round " << k;
    s->fd.reset();
    ASSERT_EQ(next_of(peer), 0) << "in round " << k;
  }
  for (uint32_t w = 0; w < 2; ++w) EXPECT_EQ(pvm.ch.sock_news(w).repairs(), 0u);
}

TEST(Ins, ABareConnectionThatNobodyClaimsIsReset) {
  FakePvm pvm;
  pvm.begin();
  auto l = std::make_unique<FakeSock>(pvm.listener(8));
  const uint16_t port = pvm.port_of(*l);
  pvm.wish_bare(*l);
  const UniqueFd lost = FakePvm::dial(port);
  const UniqueFd made = FakePvm::dial(port);
  const UniqueFd waits = FakePvm::dial(port);
  auto first = pvm.accept(*l);
  auto second = pvm.accept(*l);
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 4; }));
  const auto number = pvm.new_placeholder(*second);
  ASSERT_TRUE(number);
  ASSERT_TRUE(pvm.claim(*second, *number));
  pvm.let_time_pass(3);
  EXPECT_EQ(next_of(lost), -1) << "whoever took it is dead";
  EXPECT_FALSE(pvm.claim(*first, *number));
  EXPECT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 3; }));
  l.reset();
  EXPECT_EQ(next_of(waits), -1) << "it was in the queue";
  second->fd.reset();
  EXPECT_EQ(next_of(made), 0) << "it was accepted and closed";
  EXPECT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 0; }));
}

TEST(Ins, LiesAboutPlaceholdersReachNoOtherSocket) {
  FakePvm pvm;
  pvm.begin();
  auto [s, peer] = pvm.connection();
  auto [other, other_peer] = pvm.connection();
  mw_slot& shared = pvm.ch.slot(s.slot);
  for (const uint32_t lie : {0u, other.slot + 1, kTestGeometry.slots + 1, 0x80000000u, ~0u}) {
    A::store_release(shared.claim, mw_claim(s.gen, lie));
    for (const uint32_t p : {s.number, other.number}) A::store_release(pvm.ch.slot(p).bound, lie);
    A::fetch_or(shared.want, MW_WANT_TOKEN_IN);
    ASSERT_EQ(::send(peer.get(), "x", 1, 0), 1);
    EXPECT_EQ(pvm.take_exactly(s, 1), "x");
  }
  A::store_release(shared.closed, other.gen);
  pvm.news(s);
  pvm.put_all(s, "still here");
  EXPECT_EQ(next_of(peer), 10);
  other.fd.reset();
  EXPECT_EQ(next_of(other_peer), 0);
  pvm.close_only(s).reset();
  EXPECT_EQ(next_of(peer), -1) << "as nobody had claimed it";
}

TEST(Ins, NoDescriptorOrSlotLeftIsNoEndlessLoop) {
  FakePvm pvm(small_geometry(4, 1));
  pvm.begin();
  FakeSock l = pvm.listener();
  std::vector<UniqueFd> peers;
  for (int k = 0; k < 5; ++k) peers.push_back(FakePvm::dial(pvm.port_of(l)));
  std::vector<FakeSock> got;
  for (int k = 0; k < 3; ++k) {
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    got.push_back(std::move(*s));
  }
  int err = 0;
  pvm.socket(SOCK_STREAM, &err);
  EXPECT_EQ(err, ENFILE);
  got.clear();  // slots come free: the other two follow
  EXPECT_TRUE(pvm.accept(l));
  EXPECT_TRUE(pvm.accept(l));
}

TEST(Ins, ClosingWithUnreadBytesResets) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  write_all(peer.get(), "unread");
  ASSERT_TRUE(eventually([&] { return pvm.ready(s) == 6; }));
  s.fd.reset();
  char c = 0;
  EXPECT_EQ(::recv(peer.get(), &c, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 1; }));
}

TEST(Ins, ClosingSendsWhatIsLeft) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  const int small = 4096;
  ::setsockopt(peer.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_SNDBUF}, as_bytes(4096));
  const std::string data = pattern(100'000);
  pvm.put_all(s, data);
  s.fd.reset();
  EXPECT_TRUE(read_exactly(peer.get(), data.size()) == data);
  char c = 0;
  EXPECT_EQ(::recv(peer.get(), &c, 1, 0), 0);
  EXPECT_TRUE(eventually([&] { return pvm.ins->slots.open_count() == 1; }));
}

TEST(Ins, ShutdownComesAfterTheBytes) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_SNDBUF}, as_bytes(4096));
  const std::string data = pattern(120'000);
  pvm.put_all(s, data);
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_WR}).ret, 0);
  EXPECT_NE(pvm.state(s) & MW_ST_SND_SHUT, 0u);
  EXPECT_TRUE(read_exactly(peer.get(), data.size() + 1) == data);
  write_all(peer.get(), "still open");
  EXPECT_EQ(pvm.take_exactly(s, 10), "still open");
}

uint32_t segments_in(const UniqueFd& s) {
  tcp_info info{};
  socklen_t len = sizeof info;
  EXPECT_EQ(::getsockopt(s.get(), IPPROTO_TCP, TCP_INFO, &info, &len), 0);
  return info.tcpi_segs_in;
}

TEST(Ins, TheLastBytesAndTheEndAreOneSegment) {
  FakePvm pvm;
  pvm.begin();
  auto [s, peer] = pvm.connection();
  const uint32_t before = segments_in(peer);
  pvm.put_quietly(s, "last words");
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_WR}).ret, 0);
  EXPECT_EQ(read_exactly(peer.get(), 11), "last words");
  EXPECT_EQ(segments_in(peer), before + 1);
}

TEST(Ins, AnUnconnectedDatagramSocketIsShutWhenTheCallReturns) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket(SOCK_DGRAM);
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_RD}).err, ENOTCONN);
  EXPECT_EQ(pvm.state(s) & (MW_ST_RCV_SHUT | MW_ST_CLOSED), MW_ST_RCV_SHUT);
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_WR}).err, ENOTCONN);
  EXPECT_NE(pvm.state(s) & MW_ST_CLOSED, 0u);
}

TEST(Ins, WhatIsShutOnBothSidesIsClosedWhenTheCallReturns) {
  FakePvm pvm;
  pvm.begin();
  auto [s, peer] = pvm.connection();
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_WR}).ret, 0);
  EXPECT_EQ(pvm.state(s) & MW_ST_CLOSED, 0u);
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_RD}).ret, 0);
  EXPECT_NE(pvm.state(s) & MW_ST_CLOSED, 0u);
}

TEST(Ins, AResetIsDeliveredAfterTheBytesBeforeIt) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  write_all(peer.get(), "last words");
  EXPECT_EQ(pvm.take_exactly(s, 10), "last words");
  const linger now{1, 0};
  ::setsockopt(peer.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  peer.reset();
  EXPECT_EQ(pvm.wait_error(s), ECONNRESET);
  EXPECT_TRUE(pvm.wait_state(s, MW_ST_CLOSED | MW_ST_RCV_SHUT | MW_ST_SND_SHUT | MW_ST_EOF));
  // A send into what is gone: dropped, no second error.
  pvm.put_all(s, "nobody there");
  EXPECT_TRUE(
      eventually([&] { return A::load_acquire(pvm.ch.slot(s.slot).tx_head) == s.tx_tail; }));
  EXPECT_EQ(A::load_acquire(pvm.ch.slot(s.slot).error_seq), s.errors);
}

TEST(Ins, AResetAtTheLastCloseIsOverWhenItIsAnswered) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  std::string value(sizeof(linger), '\0');
  const linger now{1, 0};
  std::memcpy(value.data(), &now, sizeof now);
  ASSERT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_LINGER}, value).ret, 0);
  // Somebody else has a descriptor of it still: nothing happens.
  EXPECT_EQ(pvm.call(MW_OP_CLOSED, s).ret, 0);
  pvm.put_all(s, "alive");
  EXPECT_EQ(read_exactly(peer.get(), 5), "alive");
  s.fd.reset();
  pvm.call(MW_OP_CLOSED, s);
  EXPECT_EQ(pvm.state(s), MW_ST_CLOSED);
  EXPECT_EQ(pvm.call(MW_OP_CLOSED, s).err, ECONNRESET);
  char c = 0;
  EXPECT_EQ(::recv(peer.get(), &c, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST(Ins, ARealSocketIsLentToTheDriverOnly) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  ControlOption wanted{ControlType::lend, s.slot, s.gen, SOL_SOCKET, SO_MARK, 0};
  ASSERT_TRUE(send_message(pvm.driver.get(), bytes_of(wanted), {}, 0));
  UniqueFd real;
  const auto lent = pvm.expect<ControlOption>(ControlType::lent, &real);
  ASSERT_TRUE(lent);
  EXPECT_EQ(lent->slot, s.slot);
  EXPECT_EQ(lent->name, SO_MARK);
  EXPECT_EQ(lent->status, 0u);
  int domain = 0;
  socklen_t len = sizeof domain;
  ASSERT_EQ(::getsockopt(real.get(), SOL_SOCKET, SO_DOMAIN, &domain, &len), 0);
  EXPECT_EQ(domain, AF_INET);
  // One that is gone meanwhile.
  ++wanted.gen;
  ASSERT_TRUE(send_message(pvm.driver.get(), bytes_of(wanted), {}, 0));
  const auto none = pvm.expect<ControlOption>(ControlType::lent);
  ASSERT_TRUE(none);
  EXPECT_EQ(none->status, static_cast<uint32_t>(ECONNRESET));
}

TEST(Ins, BytesOnThePlaceholderAreReportedAndNeverPassedOn) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));
  ASSERT_EQ(::write(s.fd.get(), "raw", 3), 3);
  const auto told = pvm.expect<ControlSlot>(ControlType::bypass);
  ASSERT_TRUE(told);
  EXPECT_EQ(told->slot, s.slot);
  char c = 0;
  EXPECT_EQ(::recv(peer.get(), &c, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(pvm.wait_error(s), ECONNRESET);
  EXPECT_EQ(pvm.call(MW_OP_GETPEERNAME, s).err, ECONNRESET);
}

TEST(Ins, TokensAndGroupNewsAreSentOnceForEachWish) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  mw_slot& shared = pvm.ch.slot(s.slot);
  const UniqueFd bell{::eventfd(0, EFD_NONBLOCK)};
  pvm.tell(ControlType::group_open, 2, 0, bell.get());
  A::fetch_or(shared.want, MW_WANT_TOKEN_IN);
  A::store_relaxed(shared.watches[3], uint64_t{3} << 32);
  ReadySet group = pvm.ch.group_news(2);
  ASSERT_TRUE(group.prepare_sleep());
  write_all(peer.get(), "a");
  pollfd both[] = {{s.fd.get(), POLLIN, 0}, {bell.get(), POLLIN, 0}};
  EXPECT_TRUE(eventually([&] { return ::poll(both, 2, 1000) == 2; }));
  group.wake();
  uint32_t member = 0;
  group.drain([&](uint32_t i) { return member = i, true; });
  EXPECT_EQ(member, s.slot);
  char token = 1;
  EXPECT_EQ(::recv(s.fd.get(), &token, 1, MSG_DONTWAIT), 1);
  write_all(peer.get(), "b");
  ASSERT_TRUE(eventually([&] { return pvm.ready(s) == 2; }));
  pvm.call(MW_OP_GETPEERNAME, s);
  EXPECT_EQ(::recv(s.fd.get(), &token, 1, MSG_DONTWAIT), -1);  // nobody wished for another
}

TEST(Ins, ASleeperIsRungForBeforeTheWorkerSleeps) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  mw_slot& shared = pvm.ch.slot(s.slot);
  const UniqueFd bell{::eventfd(0, EFD_NONBLOCK)};
  pvm.tell(ControlType::group_open, 0, 0, bell.get());
  pollfd known{bell.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&known, 1, 20'000), 1);  // rung once when it becomes known
  ReadySet group = pvm.ch.group_news(0);
  A::store_relaxed(shared.watches[0], uint64_t{1});
  // One piece of news and nothing else: the worker goes straight to sleep after it.
  for (int round = 0; round < 50; ++round) {
    A::fetch_or(shared.want, MW_WANT_OUT_EVENT);
    group.drain([](uint32_t) { return true; });
    ASSERT_TRUE(group.prepare_sleep());
    uint64_t rings = 0;
    (void)!::read(bell.get(), &rings, sizeof rings);
    pvm.put_all(s, "x");
    ASSERT_TRUE(eventually([&] { return !group.empty(); }));
    ASSERT_TRUE(eventually([&] { return pvm.ch.sock_news(0).consumer_rests(); }));
    pollfd p{bell.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&p, 1, 0), 1) << "round " << round;
    group.wake();
    EXPECT_EQ(read_exactly(peer.get(), 1), "x");
  }
  EXPECT_EQ(pvm.ch.sock_news(0).repairs(), 0u);
}

TEST(Ins, TheBeatRepairsWhatNobodyRangForAndCountsIt) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  ReadySet news = pvm.ch.sock_news(0);
  // In the set, and the bell is silent. A worker that is awake, or that something else wakes just
  // now, needs no ring.
  for (int round = 0; round < 10 && news.repairs() == 0; ++round) {
    ASSERT_TRUE(eventually([&] { return news.consumer_rests() && !news.is_watched(); }));
    EXPECT_EQ(pvm.put_quietly(s, "one"), 3u);
    news.put_back(s.slot);
    EXPECT_EQ(read_exactly(peer.get(), 3), "one");
  }
  EXPECT_EQ(news.repairs(), 1u);
  // Not even in the set.
  EXPECT_EQ(pvm.put_quietly(s, "two"), 3u);
  EXPECT_TRUE(eventually([&] {
    pvm.ins->tick.fetch_add(1);
    return A::load_acquire(pvm.ch.slot(s.slot).tx_head) == s.tx_tail;
  }));
  EXPECT_EQ(news.repairs(), 2u);
  // Held back by the program: sent after a while, as by the kernel, and no fault.
  A::fetch_or(pvm.ch.slot(s.slot).want, MW_WANT_HOLD);
  EXPECT_EQ(pvm.put_quietly(s, "three"), 5u);
  EXPECT_TRUE(eventually([&] {
    pvm.ins->tick.fetch_add(1);
    return A::load_acquire(pvm.ch.slot(s.slot).tx_head) == s.tx_tail;
  }));
  EXPECT_EQ(news.repairs(), 2u);
  EXPECT_EQ(read_exactly(peer.get(), 8), "twothree");
}

TEST(Ins, TheBeatWakesASleeperOfAGroupAndCountsIt) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  const UniqueFd bell{::eventfd(0, EFD_NONBLOCK)};
  pvm.tell(ControlType::group_open, 0, 0, bell.get());
  pollfd p{bell.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&p, 1, 20'000), 1);  // what came before it was known may have been missed
  uint64_t rings = 0;
  (void)!::read(bell.get(), &rings, sizeof rings);
  ReadySet group = pvm.ch.group_news(0);
  ASSERT_TRUE(group.prepare_sleep());
  group.put_back(s.slot);
  ASSERT_EQ(::poll(&p, 1, 20'000), 1);
  EXPECT_EQ(pvm.ch.sock_news(0).repairs(), 0u);  // a process that does not run is no lost wake-up
  group.wake();
  EXPECT_TRUE(eventually([&] { return pvm.ch.sock_news(0).repairs() == 1; }));
}

TEST(Ins, TheEndIsToldAfterTheLastByte) {
  for (const bool reset : {false, true}) {
    FakePvm pvm;
    pvm.begin();
    auto s_and_peer = pvm.connection();
    FakeSock& s = s_and_peer.first;
    UniqueFd& peer = s_and_peer.second;
    // More than the ring holds: the rest waits in the kernel.
    const std::string bytes = pattern(kTestGeometry.rx_ring + 20000);
    write_all(peer.get(), bytes);
    ASSERT_TRUE(eventually([&] { return pvm.ready(s) == kTestGeometry.rx_ring; }));
    int under_way = 0;
    ASSERT_TRUE(eventually(
        [&] { return ::ioctl(peer.get(), SIOCOUTQ, &under_way) == 0 && under_way == 0; }));
    const linger now{1, 0};
    if (reset) ::setsockopt(peer.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    peer.reset();
    mw_slot& shared = pvm.ch.slot(s.slot);
    std::string got;
    if (reset) {
      // A writer is told at once; that bytes are missing stands beside the error.
      EXPECT_EQ(pvm.wait_error(s), ECONNRESET);
      EXPECT_NE(pvm.state(s) & MW_ST_SND_SHUT, 0u);
      EXPECT_NE(pvm.state(s) & MW_ST_BEHIND, 0u);
    }
    ASSERT_TRUE(eventually([&] {
      constexpr uint32_t kEnd = MW_ST_RCV_SHUT | MW_ST_EOF | MW_ST_CLOSED;
      const uint32_t state = pvm.state(s);
      if ((state & kEnd) != 0) {
        EXPECT_EQ(got.size() + pvm.ready(s), bytes.size());
      }
      got += pvm.take(s, 1000);
      return got.size() == bytes.size() && (state & MW_ST_EOF) != 0;
    }));
    EXPECT_TRUE(got == bytes);
    EXPECT_EQ(pvm.state(s) & MW_ST_BEHIND, 0u);
    EXPECT_EQ((pvm.state(s) & MW_ST_FIN) != 0, !reset);
    EXPECT_EQ(A::load_acquire(shared.error_seq), reset ? 1u : 0u);
  }
}

TEST(Ins, AnEndBeforeAnErrorIsRemembered) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  s_and_peer.second.reset();
  ASSERT_TRUE(pvm.wait_state(s, MW_ST_EOF | MW_ST_FIN));
  pvm.put_all(s, "nobody there");  // its answer is a reset
  EXPECT_EQ(pvm.wait_error(s), EPIPE);
  EXPECT_NE(pvm.state(s) & MW_ST_FIN, 0u);
}

TEST(Ins, SocketsAreServedInTheOrderOfTheirNews) {
  FakePvm pvm;
  pvm.begin();
  auto first = pvm.connection();
  auto second = pvm.connection();
  ASSERT_LT(first.first.slot, second.first.slot);
  const int on = 1;
  for (const UniqueFd* peer : {&first.second, &second.second})
    ::setsockopt(peer->get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
  const auto arrival = [](const UniqueFd& peer) {
    char byte = 0;
    iovec iov{&byte, 1};
    alignas(cmsghdr) char control[256];
    msghdr m{};
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    EXPECT_EQ(::recvmsg(peer.get(), &m, 0), 1);
    timespec t{};
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c))
      if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS)
        std::memcpy(&t, CMSG_DATA(c), sizeof t);
    return t.tv_sec * 1'000'000'000 + t.tv_nsec;
  };
  // The kernel begins to stamp a while after it was asked to.
  ASSERT_TRUE(eventually([&] {
    pvm.put_all(first.first, "w");
    pvm.put_all(second.first, "w");
    const auto one = arrival(first.second);
    const auto other = arrival(second.second);
    return one != 0 && other != 0;
  }));
  for (int round = 0; round < 20; ++round) {
    // Both are there before the worker looks: the higher slot was first.
    EXPECT_EQ(pvm.put_quietly(second.first, "b"), 1u);
    A::store_relaxed(pvm.ch.slot(second.first.slot).sent_at, order_stamp());
    pvm.ch.sock_news(0).put_back(second.first.slot);
    EXPECT_EQ(pvm.put_quietly(first.first, "a"), 1u);
    A::store_relaxed(pvm.ch.slot(first.first.slot).sent_at, order_stamp());
    pvm.news(first.first);
    EXPECT_LT(arrival(second.second), arrival(first.second)) << "round " << round;
  }
}

TEST(Ins, ASlowReaderStopsItsOwnConnectionOnly) {
  FakePvm pvm;
  pvm.begin();
  auto slow_and_peer = pvm.connection();
  FakeSock& slow = slow_and_peer.first;
  UniqueFd& slow_peer = slow_and_peer.second;
  auto fast_and_peer = pvm.connection();
  FakeSock& fast = fast_and_peer.first;
  UniqueFd& fast_peer = fast_and_peer.second;
  ::fcntl(slow_peer.get(), F_SETFL, O_NONBLOCK);
  const std::string block = pattern(65536);
  std::string sent;
  ASSERT_TRUE(eventually([&] {
    const ssize_t n = ::send(slow_peer.get(), block.data(), block.size(), MSG_NOSIGNAL);
    if (n > 0) sent += block.substr(0, static_cast<size_t>(n));
    return n < 0 && pvm.ready(slow) == kTestGeometry.rx_ring;
  }));
  write_all(fast_peer.get(), "through");
  EXPECT_EQ(pvm.take_exactly(fast, 7), "through");
  EXPECT_TRUE(pvm.take_exactly(slow, sent.size()) == sent);
}

TEST(Ins, ASmallReceiveBufferBoundsWhatIsReadAhead) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  mw_slot& shared = pvm.ch.slot(s.slot);
  EXPECT_EQ(A::load_relaxed(shared.rx_limit), kTestGeometry.rx_ring);
  ASSERT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_RCVBUF}, as_bytes(5000)).ret, 0);
  ASSERT_EQ(A::load_relaxed(shared.rx_limit), 5000u);
  const int few = 20000;
  ::setsockopt(peer.get(), SOL_SOCKET, SO_SNDBUF, &few, sizeof few);
  ::fcntl(peer.get(), F_SETFL, O_NONBLOCK);
  const std::string block = pattern(65536);
  std::string sent;
  ASSERT_TRUE(eventually([&] {
    const ssize_t n = ::send(peer.get(), block.data(), block.size(), MSG_NOSIGNAL);
    if (n > 0) sent += block.substr(0, static_cast<size_t>(n));
    return n < 0 && pvm.ready(s) == 5000;
  }));
  std::string got;
  ASSERT_TRUE(eventually([&] {
    EXPECT_LE(pvm.ready(s), 5000u);
    got += pvm.take(s, 700);
    return got.size() == sent.size();
  }));
  EXPECT_TRUE(got == sent);
  // More room than before, while the INS waits for half of it.
  write_all(peer.get(), pattern(5000));
  ASSERT_TRUE(eventually([&] { return pvm.ready(s) == 5000; }));
  write_all(peer.get(), "x");
  ASSERT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_RCVBUF}, as_bytes(50000)).ret, 0);
  EXPECT_TRUE(eventually([&] { return pvm.ready(s) == 5001; }));
}

TEST(Ins, UrgentDataKeepsItsPlace) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  write_all(peer.get(), "abc");
  ASSERT_EQ(::send(peer.get(), "!", 1, MSG_OOB), 1);
  write_all(peer.get(), "def");
  EXPECT_EQ(pvm.take_exactly(s, 6), "abcdef");
  ASSERT_TRUE(pvm.wait_state(s, MW_ST_PRI | MW_ST_AT_MARK));
  EXPECT_EQ(pvm.ch.slot(s.slot).oob_mark, MW_INDEX_START + 3);
  const auto r = pvm.call(MW_OP_RECVMSG, s, {MSG_OOB, 0, 0, 1});
  ASSERT_EQ(r.ret, 1);
  EXPECT_EQ(r.out.substr(sizeof(mw_recv_head)), "!");
  EXPECT_EQ(pvm.state(s) & MW_ST_PRI, 0u);
  EXPECT_EQ(pvm.call(MW_OP_RECVMSG, s, {MSG_OOB, 0, 0, 1}).err, EINVAL);

  pvm.put(s, "xy");
  EXPECT_EQ(pvm.call(MW_OP_SENDMSG, s, {MSG_OOB, 0, 0, 1}, "?", MW_SEND_INLINE).ret, 1);
  EXPECT_EQ(read_exactly(peer.get(), 2), "xy");
  char byte = 0;
  ASSERT_EQ(::recv(peer.get(), &byte, 1, MSG_OOB), 1);
  EXPECT_EQ(byte, '?');
}

TEST(Ins, UrgentDataIsToldWithTheBytesBeforeIt) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  for (int round = 0; round < 300; ++round) {
    ASSERT_EQ(::send(s_and_peer.second.get(), "abc!", 4, MSG_OOB), 4);
    // Awake, so that the moment between the two, if there is one, is seen.
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while ((pvm.state(s) & MW_ST_PRI) == 0)
      ASSERT_LT(std::chrono::steady_clock::now(), patience) << round;
    ASSERT_EQ(pvm.ready(s), 3u) << round;
    ASSERT_EQ(pvm.take_exactly(s, 3), "abc") << round;
    ASSERT_EQ(pvm.call(MW_OP_RECVMSG, s, {MSG_OOB, 0, 0, 1}).ret, 1) << round;
  }
}

TEST(Ins, OptionsReachTheSocketAndDangerousOnesDoNot) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  EXPECT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {IPPROTO_TCP, TCP_NODELAY}, as_bytes(1)).ret, 0);
  auto r = pvm.call(MW_OP_GETSOCKOPT, s, {IPPROTO_TCP, TCP_NODELAY, 4}, as_bytes(0));
  EXPECT_EQ(r.out, as_bytes(1));
  EXPECT_EQ(pvm.call(MW_OP_GETSOCKOPT, s, {SOL_SOCKET, 9999, 4}, as_bytes(0)).err, ENOPROTOOPT);
  EXPECT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_ZEROCOPY}, as_bytes(1)).err, ENOPROTOOPT);
  EXPECT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_ATTACH_FILTER}, pattern(16)).err,
            ENOPROTOOPT);
  EXPECT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {SOL_SOCKET, SO_RCVLOWAT}, as_bytes(1000)).ret, 0);
  EXPECT_EQ(pvm.call(MW_OP_GETSOCKOPT, s, {SOL_SOCKET, SO_RCVLOWAT, 4}).out, as_bytes(1000));
  EXPECT_EQ(pvm.call(MW_OP_IOCTL, s, {0x1234}).err, ENOTTY);
  const char device[] = "lo\0\0\0\0\0\0\0\0\0\0\0\0\0";
  EXPECT_EQ(pvm.call(MW_OP_IOCTL, s, {SIOCSIFFLAGS}, {device, sizeof device}).err, EPERM);
  EXPECT_EQ(pvm.call(MW_OP_IOCTL, s, {SIOCDEVPRIVATE}, {device, sizeof device}).err, EOPNOTSUPP);
  EXPECT_EQ(pvm.call(MW_OP_CONNECT, s, {}, "x").err, EINVAL);
  EXPECT_EQ(pvm.call(MW_OP_SHUTDOWN, s, {SHUT_WR}).err, ENOTCONN);
  int err = 0;
  pvm.socket(SOCK_RAW, &err, AF_INET, IPPROTO_ICMP);
  EXPECT_EQ(err, EPERM);
  pvm.socket(SOCK_RAW, &err);
  EXPECT_EQ(err, EPROTONOSUPPORT) << "judged before the privilege";
}

TEST(Ins, DatagramsKeepTheirBoundariesAndAddresses) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket(SOCK_DGRAM);
  ASSERT_EQ(pvm.call(MW_OP_BIND, s, {}, FakePvm::raw(loopback(0))).ret, 0);
  const sockaddr_in here = loopback(pvm.port_of(s));
  const UniqueFd peer{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  const sockaddr_in any = loopback(0);
  ASSERT_EQ(::bind(peer.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any), 0);
  sockaddr_in there{};
  socklen_t len = sizeof there;
  ::getsockname(peer.get(), reinterpret_cast<sockaddr*>(&there), &len);
  EXPECT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {IPPROTO_IP, IP_PKTINFO}, as_bytes(1)).ret, 0);
  const std::vector<std::string> messages{"one", "", pattern(65507), "four"};
  for (const std::string& m : messages) {
    ASSERT_EQ(::sendto(peer.get(), m.data(), m.size(), 0, reinterpret_cast<const sockaddr*>(&here),
                       sizeof here),
              static_cast<ssize_t>(m.size()));
    mw_dgram_head head{};
    const std::string raw = pvm.take_exactly(s, sizeof head);
    std::memcpy(&head, raw.data(), sizeof head);
    EXPECT_EQ(head.name_len, sizeof there);
    EXPECT_EQ(std::memcmp(head.name, &there, sizeof there), 0);
    EXPECT_GE(head.control_len, sizeof(in_pktinfo));
    pvm.take_exactly(s, head.control_len);
    EXPECT_TRUE(pvm.take_exactly(s, head.data_len) == m);
    const size_t used = sizeof head + head.control_len + head.data_len;
    pvm.take_exactly(s, mw_dgram_bytes(head.control_len, head.data_len) - used);
  }
  const std::string out = pattern(9000);
  ASSERT_EQ(pvm.put(s, out), out.size());
  auto r = pvm.call(MW_OP_SENDMSG, s, {0, sizeof there, 0, 9000}, FakePvm::raw(there));
  EXPECT_EQ(r.ret, 9000);
  EXPECT_EQ(A::load_acquire(pvm.ch.slot(s.slot).tx_head), s.tx_tail);
  std::string got(10000, '\0');
  EXPECT_EQ(::recv(peer.get(), got.data(), got.size(), 0), 9000);
  EXPECT_TRUE(got.substr(0, 9000) == out);
  // Too long for a datagram: the kernel's errno, and the bytes are consumed all the same.
  const std::string long_one = pattern(70000);
  ASSERT_EQ(pvm.put(s, long_one), long_one.size());
  EXPECT_EQ(pvm.call(MW_OP_SENDMSG, s, {0, sizeof there, 0, 70000}, FakePvm::raw(there)).err,
            EMSGSIZE);
  EXPECT_EQ(A::load_acquire(pvm.ch.slot(s.slot).tx_head), s.tx_tail);
}

TEST(Ins, AnIcmpErrorOfADatagramSocketIsPublished) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket(SOCK_DGRAM);
  ASSERT_EQ(pvm.call(MW_OP_CONNECT, s, {}, FakePvm::raw(loopback(1))).ret, 0);
  EXPECT_EQ(pvm.call(MW_OP_SENDMSG, s, {0, 0, 0, 1}, "x", MW_SEND_INLINE).ret, 1);
  EXPECT_EQ(pvm.wait_error(s), ECONNREFUSED);
}

TEST(Ins, ABindSeesTheClosesBeforeIt) {
  for (const uint32_t workers : {1u, 3u}) {
    FakePvm pvm(small_geometry(64, workers));
    pvm.begin();
    for (int k = 0; k < 100; ++k) {
      FakeSock before = pvm.socket(SOCK_DGRAM);
      ASSERT_EQ(pvm.call(MW_OP_BIND, before, {}, FakePvm::raw(loopback(0))).ret, 0);
      const sockaddr_in here = loopback(pvm.port_of(before));
      FakeSock after = pvm.socket(SOCK_DGRAM);
      EXPECT_EQ(pvm.call(MW_OP_BIND, after, {}, FakePvm::raw(here)).err, EADDRINUSE);
      before.fd.reset();
      ASSERT_EQ(pvm.call(MW_OP_BIND, after, {}, FakePvm::raw(here)).ret, 0) << workers << " " << k;
    }
  }
}

TEST(Ins, AnErrorThatIsReadFromTheQueueIsTakenBack) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket(SOCK_DGRAM);
  ASSERT_EQ(pvm.call(MW_OP_SETSOCKOPT, s, {IPPROTO_IP, IP_RECVERR}, as_bytes(1)).ret, 0);
  ASSERT_EQ(pvm.call(MW_OP_CONNECT, s, {}, FakePvm::raw(loopback(1))).ret, 0);
  ASSERT_EQ(pvm.call(MW_OP_SENDMSG, s, {0, 0, 0, 1}, "x", MW_SEND_INLINE).ret, 1);
  ASSERT_EQ(pvm.wait_error(s), ECONNREFUSED);
  EXPECT_TRUE(pvm.wait_state(s, MW_ST_ERRQ));
  EXPECT_EQ(pvm.call(MW_OP_RECVMSG, s, {MSG_ERRQUEUE, 32, 512, 100}).ret, 1);
  EXPECT_EQ(pvm.wait_error(s), 0);
  EXPECT_EQ(pvm.state(s) & MW_ST_ERRQ, 0u);
}

TEST(Ins, AStaleGenerationIsReset) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  FakeSock stale;
  stale.slot = s.slot;
  stale.gen = s.gen + 1;
  EXPECT_EQ(pvm.call(MW_OP_LISTEN, stale, {1}).err, ECONNRESET);
  stale.slot = s.slot + 1;
  EXPECT_EQ(pvm.call(MW_OP_LISTEN, stale, {1}).err, ECONNRESET);
  // Announcing slots that are not open is no offence.
  pvm.news(stale);
  EXPECT_EQ(pvm.call(MW_OP_LISTEN, s, {1}).ret, 0);
}

// A lie of the application's side ends its session: told to the driver, exit code 3, no crash.
void expect_poisoned(FakePvm& pvm) {
  EXPECT_TRUE(eventually([&] { return pvm.ended(); }));
  EXPECT_EQ(pvm.exit_code.load(), kExitPoisoned);
}

TEST(InsHostile, TailOutOfTheWindow) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));
  A::store_release(pvm.ch.slot(s.slot).tx_tail, MW_INDEX_START + kTestGeometry.tx_ring + 1);
  pvm.news(s);
  EXPECT_TRUE(pvm.expect<ControlSlot>(ControlType::poisoned));
  expect_poisoned(pvm);
}
TEST(InsHostile, HeadAheadOfTheTail) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  A::store_release(pvm.ch.slot(s.slot).rx_head, MW_INDEX_START + 1);
  write_all(peer.get(), "x");
  expect_poisoned(pvm);
}
TEST(InsHostile, HeadAheadOfTheTailAtTheEnd) {
  FakePvm pvm;
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  A::store_release(pvm.ch.slot(s.slot).rx_head, MW_INDEX_START + 1);
  s.fd.reset();
  expect_poisoned(pvm);
}
TEST(InsHostile, CallThatCannotBe) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  EXPECT_FALSE(pvm.call(77, s).answered);
  expect_poisoned(pvm);
}
TEST(InsHostile, CallAboutASlotThatDoesNotExist) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s;
  s.slot = kTestGeometry.slots;
  EXPECT_FALSE(pvm.call(MW_OP_LISTEN, s, {1}).answered);
  expect_poisoned(pvm);
}
TEST(InsHostile, MessageThatIsNotInTheRing) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket(SOCK_DGRAM);
  EXPECT_FALSE(pvm.call(MW_OP_SENDMSG, s, {0, 0, 0, 100}).answered);
  expect_poisoned(pvm);
}
TEST(InsHostile, PlaceholderThatIsNone) {
  FakePvm pvm;
  pvm.begin();
  pvm.fill(MW_OP_SOCKET, 0, 0, {AF_INET, SOCK_STREAM, 0}, {});
  const mw_drop_record record{MW_DROP_MAGIC, 0, 1};
  const int fds[] = {0};
  ASSERT_TRUE(send_message(pvm.fds().drop_pvm.get(), bytes_of(record), fds, 0));
  expect_poisoned(pvm);
}
// The driver announces a new socket for a process that died, which may have done so itself.
TEST(Ins, AnAnnouncementIsForItsRequestOnly) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  mw_call& later = pvm.fill(MW_OP_GETSOCKNAME, s.slot, s.gen, {}, {});
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd ours{pair[0]};
  UniqueFd theirs{pair[1]};
  const mw_drop_record again{MW_DROP_MAGIC, 0, 1};
  const int fds[] = {theirs.get()};
  ASSERT_TRUE(send_message(pvm.fds().drop_pvm.get(), bytes_of(again), fds, 0));
  theirs.reset();
  EXPECT_TRUE(eventually([&] {
    pollfd p{ours.get(), 0, 0};
    return ::poll(&p, 1, 0) == 1;
  }));
  pvm.ring(pvm.ch.call_news(pvm.ch.worker_of(s.slot)), 0, pvm.ch.worker_of(s.slot));
  const FakePvm::Reply r = pvm.finish(later);
  EXPECT_TRUE(r.answered);
  EXPECT_EQ(r.ret, 0);
}
// A close() in one thread does not overtake the call that another one made before. The worker is
// woken by the close, as it is when it sees both at once.
TEST(Ins, WhatWasCalledBeforeACloseIsAnsweredBeforeIt) {
  FakePvm pvm;
  pvm.begin();
  for (int round = 0; round < 20; ++round) {
    FakeSock s = pvm.socket();
    ASSERT_EQ(pvm.call(MW_OP_BIND, s, {}, FakePvm::raw(loopback(0))).ret, 0);
    mw_call& call = pvm.fill(MW_OP_GETSOCKNAME, s.slot, s.gen, {}, {});
    (void)pvm.ch.call_news(pvm.ch.worker_of(s.slot)).add(0);
    s.fd.reset();
    const FakePvm::Reply r = pvm.finish(call);
    ASSERT_TRUE(r.answered);
    EXPECT_EQ(r.err, 0);
    EXPECT_EQ(r.out.size(), sizeof(sockaddr_in));
  }
}

TEST(InsHostile, EveryBitOfNewsAtOnceIsSurvived) {
  FakePvm pvm;
  pvm.begin();
  FakeSock s = pvm.socket();
  for (const uint64_t at : {pvm.ch.layout().sock_news, pvm.ch.layout().call_news}) {
    auto* set = reinterpret_cast<mw_ready_set*>(pvm.ch.base() + at);
    auto* words = reinterpret_cast<uint64_t*>(set + 1);
    A::store_relaxed(*words, ~uint64_t{0});
    for (uint64_t& w : set->mid) A::store_relaxed(w, ~uint64_t{0});
    A::store_release(set->top, ~uint64_t{0});
  }
  EXPECT_EQ(pvm.call(MW_OP_LISTEN, s, {1}).ret, 0);
}

TEST(Ins, TellsANewDriverItsListenersAndMakesAPredecessorsAgain) {
  FakePvm pvm;
  pvm.begin();
  FakeSock l = pvm.listener(5);
  const uint16_t port = pvm.port_of(l);
  pvm.call(MW_OP_SETSOCKOPT, l, {SOL_SOCKET, SO_REUSEADDR}, as_bytes(1));
  UniqueFd placeholder;
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));
  auto up = pvm.expect<ControlListener>(ControlType::listener_up, &placeholder);
  ASSERT_TRUE(up);
  EXPECT_EQ(up->option_count, 1u);
  EXPECT_EQ(up->backlog, 5);
  pvm.connect_driver(1);
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));

  pvm.stop();  // as if killed: everything of it is closed
  pvm.exit_code = -1;
  pvm.start(100);
  up->type = ControlType::replay;
  const int fd = placeholder.get();
  ASSERT_TRUE(send_message(pvm.driver.get(), bytes_of(*up), {&fd, 1}, 0));
  const auto done = pvm.expect<ControlSlot>(ControlType::replayed);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->status, 0u);
  placeholder.reset();
  pvm.begin();
  ASSERT_TRUE(pvm.expect<ControlListener>(ControlType::listener_up));
  const UniqueFd peer = FakePvm::dial(port);
  auto s = pvm.accept(l);
  ASSERT_TRUE(s);
  EXPECT_GE(s->gen, 100u);
  EXPECT_NE(s->slot, l.slot);
  EXPECT_EQ(pvm.port_of(l), port);
  l.fd.reset();
  EXPECT_TRUE(pvm.expect<ControlSlot>(ControlType::listener_down));
}

TEST(Ins, GivesMemoryBackWhenASocketIsIdle) {
  FakePvm pvm;
  pvm.begin();
  const auto blocks = [&] {
    struct stat st {};
    ::fstat(pvm.fds().channel.get(), &st);
    return st.st_blocks / 8;  // pages
  };
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  const auto before = blocks();
  write_all(peer.get(), pattern(65536));
  ASSERT_EQ(pvm.take_exactly(s, 65536).size(), 65536u);
  EXPECT_GE(blocks(), before + 16);
  EXPECT_TRUE(eventually([&] {
    pvm.let_time_pass(1);
    return blocks() <= before + 2;
  }));
  write_all(peer.get(), "on it goes");
  EXPECT_EQ(pvm.take_exactly(s, 10), "on it goes");
}

// An INS for each lookup: a cell that the control thread has answered and a worker then reads is
// ordered by this program's mapping of it, but ThreadSanitizer knows order by address, and the INS
// has a mapping of its own.
TEST(Ins, LooksNamesUpWithoutANetwork) {
  const auto look_up = [](int family, std::string_view name) {
    FakePvm pvm;
    pvm.begin();
    return pvm.call(MW_OP_RESOLVE, FakeSock{}, {family, 0}, name);
  };
  const auto r = look_up(AF_INET, std::string_view("192.0.2.7\0", 10));
  ASSERT_EQ(r.ret, 1);
  mw_addr a{};
  std::memcpy(&a, r.out.data(), sizeof a);
  sockaddr_in in{};
  std::memcpy(&in, a.bytes, sizeof in);
  EXPECT_EQ(in.sin_addr.s_addr, htonl(0xc0000207));
  EXPECT_EQ(r.out.substr(sizeof a), std::string("192.0.2.7\0", 10));
  EXPECT_GE(look_up(AF_INET, std::string_view("localhost\0", 10)).ret, 1);
  EXPECT_EQ(look_up(99, std::string_view("localhost\0", 10)).err, EAI_FAMILY);
}

// Through the program: see above.
TEST(InsProgram, ANewTextAboutNamesHoldsForTheNextLookup) {
  FakePvm pvm(kTestGeometry, MWINS_PROGRAM);
  pvm.begin();
  const auto tell = [&](NameFile which, std::string_view text) {
    const UniqueFd file{::memfd_create("text", MFD_CLOEXEC)};
    EXPECT_EQ(::write(file.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    const int fds[] = {file.get()};
    const ControlSlot message{ControlType::names, static_cast<uint32_t>(which), 0, 0};
    EXPECT_TRUE(send_message(pvm.driver.get(), bytes_of(message), fds, 0));
  };
  const auto look_up = [&] {
    const auto r = pvm.call(MW_OP_RESOLVE, FakeSock{}, {AF_INET, 0}, std::string_view("mine\0", 5));
    return r.ret == 1 ? std::string(r.out).substr(8, 4) : std::to_string(r.err);
  };
  tell(NameFile::resolv_conf, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n");
  tell(NameFile::nsswitch, "hosts: files\n");
  tell(NameFile::hosts, "192.0.2.50 mine\n");
  EXPECT_TRUE(eventually([&] { return look_up() == "\xc0\x00\x02\x32"sv; }));
  tell(NameFile::hosts, std::string(1 << 20, '#') + "\n192.0.2.51 mine\n");
  EXPECT_TRUE(eventually([&] { return look_up() == "\xc0\x00\x02\x33"sv; }));
  tell(NameFile::hosts, "");
  EXPECT_TRUE(eventually([&] { return look_up() == std::to_string(EAI_NONAME); }));
  // No file: the driver is not believed any more. (The test's deadline is eventually()'s.)
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const int ends[] = {pipe[0]};
  const ControlSlot message{ControlType::names, 0, 0, 0};
  EXPECT_TRUE(send_message(pvm.driver.get(), bytes_of(message), ends, 0));
  ::close(pipe[0]);
  ::close(pipe[1]);
  EXPECT_TRUE(eventually([&] {
    pollfd p{pvm.driver.get(), 0, 0};
    return ::poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0;
  }));
}

TEST(Ins, CutsADnsMessageBehindItsQuestion) {
  const auto message = [](std::string_view question) {
    std::string m("\x12\x34\x81\x80\0\1\0\7\0\7\0\7", 12);
    m += question;
    return m + std::string(3000, 'x');
  };
  const auto cut = [](std::string m) {
    m.resize(cut_message(reinterpret_cast<uint8_t*>(m.data()), m.size()));
    return m;
  };
  const std::string question("\4name\4test\0\0\20\0\1", 15);
  EXPECT_EQ(cut(message(question)), std::string("\x12\x34\x83\x80\0\1\0\0\0\0\0\0", 12) + question);
  // What cannot be read is left out: a pointer, labels without end, no question at all.
  const std::string bare("\x12\x34\x83\x80\0\0\0\0\0\0\0\0", 12);
  EXPECT_EQ(cut(message(std::string("\xc0\x0c\0\1\0\1", 6))), bare);
  EXPECT_EQ(cut(message(std::string(3000, '\x3f'))), bare);
  EXPECT_EQ(cut(message("")), bare);
  EXPECT_EQ(cut(std::string("\x12\x34\x81\x80\0\1\0\0\0\0\0\0", 12)), bare);
}

TEST(InsProgram, ServesFromInsideItsSandbox) {
  FakePvm pvm(kTestGeometry, MWINS_PROGRAM);
  pvm.begin();
  auto s_and_peer = pvm.connection();
  FakeSock& s = s_and_peer.first;
  UniqueFd& peer = s_and_peer.second;
  write_all(peer.get(), pattern(200));
  EXPECT_EQ(pvm.take_exactly(s, 200), pattern(200));
  pvm.put_all(s, "answer");
  EXPECT_EQ(read_exactly(peer.get(), 6), "answer");
  FakeSock d = pvm.socket(SOCK_DGRAM);
  EXPECT_EQ(pvm.call(MW_OP_CONNECT, d, {}, FakePvm::raw(loopback(1))).ret, 0);
  EXPECT_EQ(pvm.call(MW_OP_SENDMSG, d, {0, 0, 0, 1}, "x", MW_SEND_INLINE).ret, 1);
  EXPECT_EQ(pvm.wait_error(d), ECONNREFUSED);
  char interface[40] = "lo";
  EXPECT_EQ(pvm.call(MW_OP_IOCTL, d, {SIOCGIFINDEX}, {interface, sizeof interface}).ret, 0);
  // Two heartbeats further everything that is done by the clock was done.
  const auto beats = [&] {
    std::ifstream file(pvm.root() / "mw/1/heartbeat");
    int n = 0;
    file >> n;
    return n;
  };
  const int first = beats();
  EXPECT_TRUE(eventually([&] { return beats() >= first + 4; }));
  std::ifstream stats(pvm.root() / "mw/1/network_stats");
  std::string line;
  std::getline(stats, line);
  EXPECT_EQ(line, "40:3:c8:7");
  std::ifstream ports(pvm.root() / "mw/1/listening_ports");
  std::getline(ports, line);
  EXPECT_FALSE(line.empty());

  std::ifstream status("/proc/" + std::to_string(pvm.child) + "/status");
  std::stringstream text;
  text << status.rdbuf();
  EXPECT_NE(text.str().find("Seccomp:\t2"), std::string::npos);
  EXPECT_NE(text.str().find("NoNewPrivs:\t1"), std::string::npos);
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"})
    EXPECT_NE(text.str().find(std::string(set) + ":\t0000000000000000"), std::string::npos) << set;
  if (::geteuid() == 0) {
    EXPECT_NE(text.str().find("Uid:\t65534\t65534\t65534\t65534"), std::string::npos);
    EXPECT_NE(text.str().find("Groups:\t \n"), std::string::npos);
    const std::filesystem::path root = "/proc/" + std::to_string(pvm.child) + "/root/";
    EXPECT_TRUE(std::filesystem::is_empty(root));
    EXPECT_LT(::mkdir((root / "x").c_str(), 0700), 0);
  }
  EXPECT_EQ(pvm.wait_child(SIGTERM), 0);
}

TEST(InsProgram, EndsASessionWhoseOtherSideLies) {
  FakePvm pvm(kTestGeometry, MWINS_PROGRAM);
  pvm.begin();
  FakeSock s = pvm.socket();
  pvm.fill(99, s.slot, s.gen, {}, {});
  pvm.ring(pvm.ch.call_news(0), 0);
  EXPECT_TRUE(pvm.expect<ControlSlot>(ControlType::poisoned));
  const int status = pvm.wait_child();
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), kExitPoisoned);
}

TEST(InsProgram, WrongArgumentsAreUsageErrors) {
  const std::string program = MWINS_PROGRAM;
  for (const char* args :
       {"", "--registry", "--id x --registry /tmp", "--registry /tmp --id 1 --workers 0",
        "--registry /tmp --id 1 --uid 0", "--bogus 1"}) {
    const int status = std::system((program + " " + args + " 2>/dev/null").c_str());
    EXPECT_EQ(WEXITSTATUS(status), 2) << args;
  }
}

TEST(Hosts, AreReadAsTheLibraryDoes) {
  const auto h = parse_hosts(
      "127.0.0.1 localhost lh # no\n#x\nbad line\n::1\tip6-localhost\nfe80::1%eth0 ll\n1.2.3.4\n");
  ASSERT_EQ(h.size(), 3u);
  EXPECT_EQ(h[0].names, (std::vector<std::string>{"localhost", "lh"}));
  EXPECT_EQ(h[1].addr.len, sizeof(sockaddr_in6));
}

TEST(ResolvConf, SwitchHasServicesAndActions) {
  const auto kinds = [](const std::string& text) {
    std::string out;
    for (const NameService& s : parse_nsswitch(text)) {
      out += s.kind == NameService::Kind::files ? 'f'
             : s.kind == NameService::Kind::dns ? 'd'
                                                : 'o';
      for (const bool ends : s.ends) out += ends ? '1' : '0';
    }
    return out;
  };
  EXPECT_EQ(kinds("hosts: files dns\n"), "f1000d1000");
  EXPECT_EQ(kinds("#hosts: dns\npasswd: files\n"), "f1000d1000");
  EXPECT_EQ(kinds("hosts:dns[!UNAVAIL=return]files # no"), "d1101f1000");
  EXPECT_EQ(kinds(" hosts :\tfiles mdns4 [NOTFOUND=return TRYAGAIN=Return] dns"),
            "f1000o1101d1000");
  EXPECT_EQ(kinds("hosts: files [SUCCESS=continue] dns"), "f0000d1000");
  EXPECT_EQ(kinds("hosts: [NOTFOUND=return] files [nonsense] [x=y"), "f1000");
  EXPECT_EQ(kinds("hosts:"), "");
}

TEST(ResolvConf, OptionsAreCappedAndTheEnvironmentGoesOver) {
  const char* const text =
      "nameserver 192.0.2.1\ndomain one.test\nsearch a.test b.test\nsearch\n#options rotate\n"
      "options timeout:99 attempts:9 ndots:99 edns0 unknown:1\n";
  const ResolvConf c = parse_resolv_conf(text, nullptr, nullptr, "host.home.test");
  EXPECT_EQ(c.search, (std::vector<std::string>{"a.test", "b.test"}));
  EXPECT_EQ((std::array{c.timeout, c.attempts, c.ndots}), (std::array{30, 5, 15}));
  EXPECT_TRUE(c.edns0 && !c.rotate && !c.use_vc);
  const ResolvConf d = parse_resolv_conf(text, "timeout:1 use-vc rotate", "x y", "h");
  EXPECT_EQ(d.search, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(d.timeout == 1 && d.use_vc && d.rotate);
  EXPECT_EQ(parse_resolv_conf("", nullptr, nullptr, "host.home.test").search,
            std::vector<std::string>{"home.test"});
  EXPECT_TRUE(parse_resolv_conf("", nullptr, nullptr, "host").search.empty());
}

TEST(ResolvConf, TheFirstThreeServersAreAsked) {
  const auto servers = [](const std::string& text) {
    std::string out;
    for (const NameServer& s : parse_resolv_conf(text, nullptr, nullptr, "h").servers) {
      char name[INET6_ADDRSTRLEN];
      const void* const address = s.family == AF_INET ? static_cast<const void*>(&s.v4) : &s.v6;
      out += ::inet_ntop(s.family, address, name, sizeof name) + std::string(" ");
    }
    return out;
  };
  EXPECT_EQ(servers(""), "127.0.0.1 ");
  EXPECT_EQ(servers("nameserver\nnameserver name.test\nnameservers 192.0.2.1\n"), "127.0.0.1 ");
  EXPECT_EQ(servers("nameserver 192.0.2.1 x\n nameserver 192.0.2.2\nnameserver\t2001:db8::3\n"
                    "nameserver ::1\nnameserver 192.0.2.5"),
            "192.0.2.1 2001:db8::3 ::1 ");
}

// c-ares must not draw the numbers of its questions from the C library's generator, which nobody seeds.
TEST(Resolver, RandomNumbersAreTheKernels) {
  void* const found = ::dlsym(RTLD_DEFAULT, "rand");
  EXPECT_EQ(found, reinterpret_cast<void*>(&::rand));
  void* const libc = ::dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  ASSERT_NE(libc, nullptr);
  EXPECT_NE(found, ::dlsym(libc, "rand"));
  ::dlclose(libc);
  ::srand(1);
  const int first = ::rand();
  const int second = ::rand();
  ::srand(1);
  EXPECT_FALSE(first == ::rand() && second == ::rand());
}

TEST(ResolvConf, NamesAreSearchedAsTheCLibraryDoes) {
  const auto names = [](const char* name, int ndots, bool no_tld,
                        const std::vector<std::string>& domains) {
    return search_names(name, ndots, no_tld, domains).names;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names("a", 1, false, {"x", "y"}), (Names{"a.x", "a.y", "a"}));
  EXPECT_EQ(names("a.b", 1, false, {"x"}), (Names{"a.b", "a.b.x"}));
  EXPECT_EQ(names("a.", 9, false, {"x"}), (Names{"a."}));
  EXPECT_EQ(names("a", 1, true, {"x"}), (Names{"a.x"}));
  EXPECT_EQ(names("a", 1, true, {}), (Names{"a"}));
  EXPECT_EQ(names("a.b", 1, false, {"."}), (Names{"a.b", "a.b"}));
  EXPECT_EQ(names("a", 1, false, {"x", "."}), (Names{"a.x", "a"}));
}

TEST(Decode, RefusesWhatCannotBe) {
  Request r;
  r.op = MW_OP_SENDMSG;
  r.arg[1] = -1;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.arg[1] = 0;
  r.arg[2] = -1;
  r.arg[3] = 1;
  r.flags2 = MW_SEND_INLINE;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.arg[2] = 0;
  r.arg[3] = 65535;
  r.flags2 = MW_SEND_TOO_LONG;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.arg[3] = 65536;
  EXPECT_TRUE(check_request(r, kTestGeometry, 0));
  r.flags2 |= MW_SEND_INLINE;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.op = MW_OP_RECVMSG;
  r.arg[1] = r.arg[2] = r.arg[3] = 0x7fffffff;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.op = MW_OP_RESOLVE;
  r.arg[2] = 0;
  r.in_len = 3;
  std::memcpy(r.payload, "a\0b", 3);
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.op = MW_OP_QUERY;
  r.in_len = kDnsHeaderBytes - 1;
  EXPECT_FALSE(check_request(r, kTestGeometry, 0));
  r.op = MW_OP_LISTEN;
  mw_geometry two = kTestGeometry;
  two.workers = 2;
  EXPECT_FALSE(check_request(r, two, 1));
  mw_call cell{};
  cell.in_len = MW_CALL_PAYLOAD + 1;
  EXPECT_EQ(copy_request(cell, r).error().fault, Fault::peer);
}

TEST(Ins, SpreadsSocketsOverItsWorkers) {
  mw_geometry g = kTestGeometry;
  g.workers = 3;
  FakePvm pvm(g);
  pvm.begin();
  FakeSock l = pvm.listener(32);
  const uint16_t port = pvm.port_of(l);
  std::vector<FakeSock> got;
  std::vector<UniqueFd> peers;
  std::vector<int> per_worker(3);
  for (int k = 0; k < 30; ++k) {
    peers.push_back(FakePvm::dial(port));
    auto s = pvm.accept(l);
    ASSERT_TRUE(s);
    ++per_worker[pvm.ch.worker_of(s->slot)];
    got.push_back(std::move(*s));
    write_all(peers.back().get(), pattern(1000));
  }
  EXPECT_EQ(per_worker, (std::vector<int>{10, 10, 10}));
  for (FakeSock& s : got) {
    EXPECT_EQ(pvm.take_exactly(s, 1000), pattern(1000));
    pvm.put_all(s, "back");
  }
  for (const UniqueFd& p : peers) EXPECT_EQ(read_exactly(p.get(), 4), "back");
}

}  // namespace
}  // namespace mw
