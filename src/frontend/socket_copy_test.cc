#include "frontend/socket_copy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

#include <cstring>

#include "base/socket_option.h"

namespace mw {
namespace {

sockaddr_storage loopback(int family) {
  sockaddr_storage a{};
  a.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET6)
    reinterpret_cast<sockaddr_in6&>(a).sin6_addr = in6addr_loopback;
  else
    reinterpret_cast<sockaddr_in&>(a).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

UniqueFd bound(int family, int type) {
  UniqueFd fd{::socket(family, type | SOCK_CLOEXEC, 0)};
  const sockaddr_storage a = loopback(family);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  return fd;
}

template <class T>
void set(const UniqueFd& fd, int level, int name, const T& value) {
  EXPECT_EQ(::setsockopt(fd.get(), level, name, &value, sizeof value), 0) << level << " " << name;
}

template <class T>
T get(const UniqueFd& fd, int level, int name) {
  T value{};
  socklen_t len = sizeof value;
  EXPECT_EQ(::getsockopt(fd.get(), level, name, &value, &len), 0) << level << " " << name;
  return value;
}

SocketCopy copy_of(const UniqueFd& fd) {
  auto copy = describe_socket(fd.get());
  EXPECT_TRUE(copy) << copy.error().text();
  copy->numbers = {fd.get()};
  auto back = decode_socket(encode(*copy));
  EXPECT_TRUE(back);
  EXPECT_EQ(encode(*back), encode(*copy));
  return *back;
}

// Another one like it, made when it is gone.
UniqueFd again(UniqueFd fd) {
  const SocketCopy copy = copy_of(fd);
  fd.reset();
  auto made = make_socket(copy);
  EXPECT_TRUE(made) << made.error().text();
  return std::move(*made);
}

std::string name_of(const UniqueFd& fd) {
  sockaddr_storage a{};
  socklen_t len = sizeof a;
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&a), &len), 0);
  return text_of(a);
}

TEST(SocketCopy, AListenerIsMadeAgainAsItWas) {
  UniqueFd fd{::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, SOL_SOCKET, SO_LINGER, linger{1, 7});
  set(fd, SOL_SOCKET, SO_RCVTIMEO, timeval{3, 0});
  set(fd, SOL_SOCKET, SO_RCVBUF, 20000);
  set(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x10);
  set(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9);
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
  set(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 4321);
  const sockaddr_storage a = loopback(AF_INET6);
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  ASSERT_EQ(::listen(fd.get(), 37), 0);
  ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_NONBLOCK), 0);
  const std::string name = name_of(fd);
  const int deferred = get<int>(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT);

  const UniqueFd made = again(std::move(fd));
  EXPECT_EQ(name_of(made), name);
  EXPECT_EQ(socket_option(made.get(), SO_ACCEPTCONN), 1);
  EXPECT_EQ(get<tcp_info>(made, IPPROTO_TCP, TCP_INFO).tcpi_sacked, 37u);
  EXPECT_NE(::fcntl(made.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(made.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(get<int>(made, IPPROTO_IPV6, IPV6_V6ONLY), 1);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_REUSEPORT), 1);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(get<linger>(made, SOL_SOCKET, SO_LINGER).l_linger, 7);
  EXPECT_EQ(get<timeval>(made, SOL_SOCKET, SO_RCVTIMEO).tv_sec, 3);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_RCVBUF), 40000);
  EXPECT_EQ(get<int>(made, IPPROTO_IPV6, IPV6_TCLASS), 0x10);
  EXPECT_EQ(get<int>(made, IPPROTO_IPV6, IPV6_UNICAST_HOPS), 9);
  EXPECT_EQ(get<int>(made, IPPROTO_TCP, TCP_NODELAY), 1);
  EXPECT_EQ(get<int>(made, IPPROTO_TCP, TCP_KEEPIDLE), 77);
  EXPECT_EQ(get<int>(made, IPPROTO_TCP, TCP_DEFER_ACCEPT), deferred);
  EXPECT_EQ(get<unsigned>(made, IPPROTO_TCP, TCP_USER_TIMEOUT), 4321u);
}

TEST(SocketCopy, ADatagramSocketIsMadeAgainAsItWas) {
  UniqueFd fd = bound(AF_INET, SOCK_DGRAM);
  set(fd, SOL_SOCKET, SO_BROADCAST, 1);
  set(fd, IPPROTO_IP, IP_TOS, 0x10);  // which changes SO_PRIORITY
  set(fd, SOL_SOCKET, SO_PRIORITY, 0);
  set(fd, IPPROTO_IP, IP_PKTINFO, 1);
  set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
  set(fd, IPPROTO_UDP, UDP_GRO, 1);
  const std::string name = name_of(fd);
  const UniqueFd made = again(std::move(fd));
  EXPECT_EQ(name_of(made), name);
  EXPECT_EQ(socket_option(made.get(), SO_TYPE), SOCK_DGRAM);
  EXPECT_EQ(::fcntl(made.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_BROADCAST), 1);
  EXPECT_EQ(get<int>(made, IPPROTO_IP, IP_TOS), 0x10);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_PRIORITY), 0);
  EXPECT_EQ(get<int>(made, IPPROTO_IP, IP_PKTINFO), 1);
  EXPECT_EQ(get<int>(made, SOL_SOCKET, SO_TIMESTAMPNS), 1);
  EXPECT_EQ(get<int>(made, IPPROTO_UDP, UDP_GRO), 1);
}

TEST(SocketCopy, WhatIsNotBoundStaysSo) {
  const UniqueFd made = again(UniqueFd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)});
  EXPECT_EQ(name_of(made), "0.0.0.0:0");
  EXPECT_EQ(socket_option(made.get(), SO_ACCEPTCONN), 0);
}

TEST(SocketCopy, SaysWhichSocketCannotBeMade) {
  const UniqueFd fd = bound(AF_INET, SOCK_STREAM);
  ASSERT_EQ(::listen(fd.get(), 1), 0);
  SocketCopy copy = copy_of(fd);
  copy.numbers = {3, 4};
  auto made = make_socket(copy);  // the address is taken
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().text(), "cannot take over descriptors 3, 4, " + name_of(fd) +
                                     "/tcp: bind " + name_of(fd) + ": Address already in use");
}

TEST(SocketCopy, TakesNothingButItsOwnWords) {
  const std::string word = encode(copy_of(bound(AF_INET, SOCK_STREAM)));
  ASSERT_TRUE(decode_socket(word));
  for (const char* text : {"", ";", "3", "3;2;1;6;0;-1", "x;2;1;6;0;-1;", ";2;1;6;0;-1;",
                           "-1;2;1;6;0;-1;", "3;1;1;0;0;-1;", "3;2;1;6;0;-1;02", "3;2;1;6;0;-1;0",
                           "3;2;1;6;0;-1;zz", "3;2;1;6;0;-1;;1,2", "3;2;1;6;0;-1;;1,2,3",
                           "3;2;1;6;0;-1;;1,999999,00", "3;2;1;6;0;-1;;1,8,00"})
    EXPECT_FALSE(decode_socket(text)) << text;
  // An address of another family than the socket's.
  EXPECT_FALSE(decode_socket("3;2;1;6;0;-1;" + std::string("0a00") + std::string(28, '0')));
}

}  // namespace
}  // namespace mw
