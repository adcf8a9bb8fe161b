#include "frontend/inherited.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/stat.h>

#include <cstring>

#include "base/socket_option.h"

namespace mw {
namespace {

sockaddr_storage address(const char* text, uint16_t port) {
  sockaddr_storage a{};
  auto& in = reinterpret_cast<sockaddr_in&>(a);
  auto& in6 = reinterpret_cast<sockaddr_in6&>(a);
  if (::inet_pton(AF_INET, text, &in.sin_addr) == 1) {
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
  } else {
    EXPECT_EQ(::inet_pton(AF_INET6, text, &in6.sin6_addr), 1) << text;
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(port);
  }
  return a;
}

// Bound to that address whether or not this host has it.
UniqueFd bound(const char* text, int type, uint16_t port = 0, bool only6 = false) {
  const sockaddr_storage a = address(text, port);
  UniqueFd fd{::socket(a.ss_family, type | SOCK_CLOEXEC, 0)};
  const int on = 1;
  const int only = only6 ? 1 : 0;
  EXPECT_EQ(::setsockopt(fd.get(), IPPROTO_IP, IP_FREEBIND, &on, sizeof on), 0);
  if (a.ss_family == AF_INET6) {
    EXPECT_EQ(::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only), 0);
  }
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0) << text;
  return fd;
}

UniqueFd listening(const char* text, bool only6 = false, uint16_t port = 0) {
  UniqueFd fd = bound(text, SOCK_STREAM, port, only6);
  EXPECT_EQ(::listen(fd.get(), 5), 0);
  return fd;
}

sockaddr_storage name_of(const UniqueFd& fd) {
  sockaddr_storage a{};
  socklen_t len = sizeof a;
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&a), &len), 0);
  return a;
}

UniqueFd connected_to(const UniqueFd& listener) {
  const sockaddr_storage a = name_of(listener);
  UniqueFd fd{::socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  return fd;
}

std::string refusal(std::vector<int> fds, bool isolated) {
  auto sockets = InheritedSockets::look_for(fds, isolated);
  EXPECT_FALSE(sockets);
  return sockets ? "" : sockets.error().text();
}

AddressPlan a_plan() {
  AddressPlan plan;
  plan.ins4 = "10.213.0.2";
  plan.ins6 = "fd6d::2";
  return plan;
}

struct Case {
  const char* host;
  bool only6;
  const char* published;  // its host
  const char* in_ins;
};

TEST(Inherited, AnAddressLeadsToTheOneThatTheInsHas) {
  const Case cases[] = {{"0.0.0.0", false, "0.0.0.0", "0.0.0.0"},
                        {"127.0.0.1", false, "127.0.0.1", "0.0.0.0"},
                        {"192.0.2.9", false, "192.0.2.9", "10.213.0.2"},
                        {"::", false, "", "[::]"},
                        {"::", true, "::", "[::]"},
                        {"2001:db8::9", false, "2001:db8::9", "[fd6d::2]"},
                        {"::ffff:192.0.2.9", false, "192.0.2.9", "[::ffff:10.213.0.2]"},
                        {"::ffff:127.0.0.1", false, "127.0.0.1", "[::ffff:0.0.0.0]"}};
  for (const Case& c : cases) {
    for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
      const UniqueFd fd =
          type == SOCK_STREAM ? listening(c.host, c.only6) : bound(c.host, type, 0, c.only6);
      const std::string host_text = text_of(name_of(fd));
      const std::string port = host_text.substr(host_text.rfind(':'));
      auto sockets = InheritedSockets::look_for({fd.get()}, true);
      ASSERT_TRUE(sockets) << c.host << ": " << sockets.error().text();
      const auto published = sockets->published();
      ASSERT_EQ(published.size(), 1u) << c.host;
      EXPECT_EQ(published[0].host, c.published) << c.host;
      EXPECT_EQ(":" + std::to_string(published[0].port), port);
      EXPECT_EQ(published[0].ins_port, published[0].port);
      EXPECT_EQ(published[0].protocol, type == SOCK_STREAM ? Protocol::tcp : Protocol::udp);
      auto copies = sockets->copies_for(a_plan());
      ASSERT_TRUE(copies);
      EXPECT_EQ(text_of((*copies)[0].address), c.in_ins + port) << c.host;
      // On the host's network it is the same, and nothing is published.
      auto same = InheritedSockets::look_for({fd.get()}, false);
      ASSERT_TRUE(same) << c.host;
      EXPECT_TRUE(same->published().empty());
      auto unchanged = same->copies_for(a_plan());
      ASSERT_TRUE(unchanged);
      EXPECT_EQ(text_of((*unchanged)[0].address), host_text);
    }
  }
}

TEST(Inherited, ASessionWithoutIpv6CannotStandForAnAddressOfIt) {
  const UniqueFd fd = listening("2001:db8::9");
  auto sockets = InheritedSockets::look_for({fd.get()}, true);
  ASSERT_TRUE(sockets);
  AddressPlan plan = a_plan();
  plan.ins6.clear();
  EXPECT_FALSE(sockets->copies_for(plan));
}

TEST(Inherited, WhatIsLocalIsLeftAlone) {
  const UniqueFd local{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const UniqueFd netlink{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)};
  const UniqueFd file{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  constexpr int kClosed = 999;
  auto sockets =
      InheritedSockets::look_for({local.get(), netlink.get(), file.get(), kClosed}, true);
  ASSERT_TRUE(sockets);
  EXPECT_TRUE(sockets->empty());
}

TEST(Inherited, AConnectionIsRefused) {
  const UniqueFd listener = listening("127.0.0.1");
  const UniqueFd client = connected_to(listener);
  UniqueFd server{::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)};
  const UniqueFd datagrams = bound("127.0.0.1", SOCK_DGRAM);
  const sockaddr_storage peer = address("127.0.0.1", 9);
  ASSERT_EQ(::connect(datagrams.get(), reinterpret_cast<const sockaddr*>(&peer), sizeof peer), 0);
  for (const bool isolated : {true, false}) {
    for (const UniqueFd* fd : {&client, &datagrams})
      EXPECT_NE(refusal({fd->get()}, isolated).find("it is a connection"), std::string::npos);
  }
  // One that is over, too: to the kernel it is then a socket that is bound.
  const linger reset{1, 0};
  ASSERT_EQ(::setsockopt(server.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  server.reset();
  pollfd over{client.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&over, 1, 10000), 1);
  EXPECT_NE(refusal({client.get()}, false).find("it is a connection"), std::string::npos);
}

TEST(Inherited, WhatAnInsCannotBeIsRefusedWithTheReason) {
  const UniqueFd filtered = listening("0.0.0.0");
  // struct sock_fprog: one instruction, "take all".
  const uint64_t instruction = 0xffffffff00000006u;
  struct {
    uint16_t length;
    const void* program;
  } const filter{1, &instruction};
  ASSERT_EQ(::setsockopt(filtered.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter), 0);
  EXPECT_NE(refusal({filtered.get()}, false).find("packet filter"), std::string::npos);
  const UniqueFd group = bound("224.0.0.251", SOCK_DGRAM);
  EXPECT_NE(refusal({group.get()}, false).find("multicast"), std::string::npos);
  const UniqueFd one = listening("::1");
  EXPECT_NE(refusal({one.get()}, true).find("::1"), std::string::npos);
  EXPECT_TRUE(InheritedSockets::look_for({one.get()}, false));
}

TEST(Inherited, TwoAddressesOfOnePortCannotBothLeadToTheIns) {
  const UniqueFd a = listening("127.0.0.1");
  auto described = describe_socket(a.get());
  ASSERT_TRUE(described);
  const uint16_t port = described->port();
  const UniqueFd b = listening("127.0.0.2", false, port);
  const UniqueFd other_protocol = bound("127.0.0.2", SOCK_DGRAM, port);
  EXPECT_NE(refusal({a.get(), b.get()}, true).find("one address for both"), std::string::npos);
  EXPECT_TRUE(InheritedSockets::look_for({a.get(), other_protocol.get()}, true));
  EXPECT_TRUE(InheritedSockets::look_for({a.get(), b.get()}, false));
}

TEST(Inherited, OneSocketUnderTwoNumbersStaysOne) {
  UniqueFd fd = listening("0.0.0.0");
  UniqueFd twin{::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)};
  auto sockets = InheritedSockets::look_for({fd.get(), twin.get()}, true);
  ASSERT_TRUE(sockets);
  auto copies = sockets->copies_for(a_plan());
  ASSERT_TRUE(copies);
  ASSERT_EQ(copies->size(), 1u);
  EXPECT_EQ((*copies)[0].numbers, (std::vector<int>{fd.get(), twin.get()}));
  auto held = sockets->withdraw();
  ASSERT_TRUE(held);
  EXPECT_EQ(held->size(), 1u);
  struct stat st {};
  for (const UniqueFd* one : {&fd, &twin}) {
    ASSERT_EQ(::fstat(one->get(), &st), 0);
    EXPECT_TRUE(S_ISCHR(st.st_mode));  // /dev/null keeps the number
  }
}

TEST(Inherited, OnTheHostsNetworkNobodyElseMayHaveIt) {
  UniqueFd fd = listening("127.0.0.1");
  UniqueFd elsewhere{::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)};
  auto sockets = InheritedSockets::look_for({fd.get()}, false);
  ASSERT_TRUE(sockets);
  auto withdrawn = sockets->withdraw();
  ASSERT_FALSE(withdrawn);
  EXPECT_NE(withdrawn.error().text().find("still in use"), std::string::npos);

  UniqueFd alone = listening("127.0.0.1");
  const UniqueFd client = connected_to(alone);
  sockets = InheritedSockets::look_for({alone.get()}, false);
  ASSERT_TRUE(sockets);
  EXPECT_TRUE(sockets->withdraw());
  const auto said = sockets->report();
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[1].rfind("1 connection that waited at 127.0.0.1:", 0), 0u) << said[1];
}

TEST(Inherited, WhatComesToAHeldSocketIsRefused) {
  std::vector<UniqueFd> fds;
  fds.push_back(listening("127.0.0.1"));
  fds.push_back(bound("127.0.0.1", SOCK_DGRAM));
  fds.push_back(bound("127.0.0.1", SOCK_STREAM));  // as reserve_ports() makes it: nobody reaches it
  fds.emplace_back(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const int mode = ::fcntl(fds[0].get(), F_GETFL);
  const UniqueFd first = connected_to(fds[0]);
  auto held = HeldSockets::among(fds);
  ASSERT_TRUE(held);
  auto said = held->refuse_all();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].rfind("1 connection that waited at 127.0.0.1:", 0), 0u) << said[0];
  const auto is_reset = [](const UniqueFd& fd) {
    char byte = 0;
    return ::recv(fd.get(), &byte, 1, 0) < 0 && errno == ECONNRESET;
  };
  EXPECT_TRUE(is_reset(first));

  const UniqueFd second = connected_to(fds[0]);
  const UniqueFd sender{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  const sockaddr_storage to = name_of(fds[1]);
  ASSERT_EQ(::sendto(sender.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to),
            1);
  pollfd ready{held->fd(), POLLIN, 0};
  while (::poll(&ready, 1, 0) == 1) held->refuse();
  EXPECT_TRUE(is_reset(second));
  EXPECT_TRUE(held->refuse_all().empty());
  EXPECT_EQ(::fcntl(fds[0].get(), F_GETFL), mode);
}

}  // namespace
}  // namespace mw
