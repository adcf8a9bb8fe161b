#include "ins/policy/loopback_hint.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace mw {
namespace {

LoopbackTarget target(const char* address, uint16_t port) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_port = htons(port);
  if (::inet_pton(AF_INET, address, &in.sin_addr) == 1)
    return loopback_target(reinterpret_cast<const sockaddr*>(&in), sizeof in);
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  EXPECT_EQ(::inet_pton(AF_INET6, address, &in6.sin6_addr), 1);
  return loopback_target(reinterpret_cast<const sockaddr*>(&in6), sizeof in6);
}

std::string said(LoopbackHint& hint, bool is_udp, const LoopbackTarget& to) {
  ::testing::internal::CaptureStderr();
  hint.refused(is_udp, to);
  return ::testing::internal::GetCapturedStderr();
}

TEST(LoopbackHint, NamesTheOptionOnce) {
  LoopbackHint hint;
  ASSERT_TRUE(hint.init("none"));
  EXPECT_EQ(said(hint, false, target("127.0.0.1", 3306)),
            "mwins: hint: a connection to 127.0.0.1 port 3306 is refused: 127.0.0.1 is the INS's "
            "own; --to-host "
            "3306 lets the program reach the host's port\n");
  EXPECT_EQ(said(hint, false, target("127.0.0.1", 25)), "");
}

TEST(LoopbackHint, OfDatagramsAndOtherLoopbackAddresses) {
  for (const auto& [address, is_udp, part] :
       {std::tuple{"127.0.0.53", true, "--to-host 53/udp"},
        std::tuple{"::1", false, "::1 is the INS's own"},
        std::tuple{"::ffff:127.0.0.1", false, " 127.0.0.1 is the INS's own"},
        std::tuple{"0.0.0.0", false, " 127.0.0.1 is the INS's own"}}) {
    LoopbackHint hint;
    ASSERT_TRUE(hint.init("3306"));
    EXPECT_NE(said(hint, is_udp, target(address, 53)).find(part), std::string::npos) << address;
  }
}

TEST(LoopbackHint, NothingWhereItDoesNotHelp) {
  LoopbackHint hint;
  ASSERT_TRUE(hint.init("3306,53/udp"));
  EXPECT_EQ(said(hint, false, target("127.0.0.1", 3306)), "");
  EXPECT_EQ(said(hint, true, target("127.0.0.1", 53)), "");
  EXPECT_EQ(said(hint, false, target("192.0.2.1", 80)), "");
  EXPECT_EQ(said(hint, false, target("2001:db8::1", 80)), "");
  EXPECT_NE(said(hint, false, target("127.0.0.1", 53)), "") << "the other protocol";
  LoopbackHint on_the_host;
  EXPECT_EQ(said(on_the_host, false, target("127.0.0.1", 80)), "");
}

TEST(LoopbackHint, TakesListsOfPortsOnly) {
  for (const char* text : {"", "x", "0", "80/tcpx", "80/", "65536", "80,x"})
    EXPECT_FALSE(LoopbackHint().init(text)) << text;
}

}  // namespace
}  // namespace mw
