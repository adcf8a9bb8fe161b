#include "shim/socket/from_stack.h"

#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <cstring>
#include <string>
#include <vector>

namespace mw::shim {
namespace {

std::string address(int family, size_t bytes) {
  std::string a(bytes, '\0');
  const auto f = static_cast<sa_family_t>(family);
  std::memcpy(a.data(), &f, sizeof f);
  return a;
}

Verdict judge(int domain, int level, int type, const std::string& data, bool cut = false) {
  cmsghdr h{};
  h.cmsg_level = level;
  h.cmsg_type = type;
  h.cmsg_len = CMSG_LEN(data.size());
  return judge_control_message(domain, h, data.data(), cut);
}

TEST(FromStack, AnAddressHasTheFamilyOfItsSocketAndThatLength) {
  for (const auto& [domain, bytes] : {std::pair<int, size_t>{AF_INET, 16}, {AF_INET6, 28}}) {
    for (const int family : {AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, 0xffff}) {
      for (size_t n = 2; n <= 32; ++n) {
        const std::string a = address(family, n);
        EXPECT_EQ(is_address_of(domain, a.data(), static_cast<uint32_t>(n)),
                  family == domain && n == bytes)
            << family << " in " << n << " bytes for " << domain;
      }
    }
    EXPECT_FALSE(is_address_of(domain, "", 0));
  }
}

TEST(FromStack, AnOldAddressFollowsTheFormOfItsSocket) {
  sockaddr_in6 mapped{};
  mapped.sin6_family = AF_INET6;
  mapped.sin6_port = htons(80);
  mapped.sin6_addr.s6_addr[10] = mapped.sin6_addr.s6_addr[11] = 0xff;
  mapped.sin6_addr.s6_addr[12] = 127;
  mapped.sin6_addr.s6_addr[15] = 1;
  uint32_t len = sizeof mapped;
  sockaddr_in6 kept = mapped;
  EXPECT_TRUE(follow_address_form(AF_INET6, &kept, &len));
  EXPECT_TRUE(is_address_of(AF_INET6, &kept, len)) << "the option is not set yet";
  EXPECT_TRUE(follow_address_form(AF_INET, &mapped, &len));
  sockaddr_in now{};
  std::memcpy(&now, &mapped, sizeof now);
  EXPECT_TRUE(is_address_of(AF_INET, &now, len));
  EXPECT_EQ(now.sin_port, htons(80));
  EXPECT_EQ(now.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
  sockaddr_in6 other{};
  other.sin6_family = AF_INET6;
  other.sin6_addr.s6_addr[0] = 0xfd;
  len = sizeof other;
  EXPECT_TRUE(follow_address_form(AF_INET, &other, &len));
  EXPECT_TRUE(is_address_of(AF_INET, &other, len));
  std::string lie = address(AF_UNIX, 28);
  len = 28;
  EXPECT_FALSE(follow_address_form(AF_INET, lie.data(), &len));
}

TEST(FromStack, OfSolSocketOnlyTimesAndNumbersPass) {
  for (int type = -1; type < 300; ++type) {
    for (size_t n = 0; n <= 64; ++n) {
      const Verdict v = judge(AF_INET6, SOL_SOCKET, type, std::string(n, 'x'));
      if (type >= SCM_RIGHTS && type <= 4) {
        EXPECT_EQ(v, Verdict::lie) << type;
      }
      if (v != Verdict::give) continue;
      EXPECT_TRUE(n == 4 || n == 16 || n == 48 || (type == 54 && n % 4 == 0)) << type << " " << n;
    }
  }
}

TEST(FromStack, WhatHadNoRoomIsNoLie) {
  const std::string part(10, '\0');
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_ORIGDSTADDR, part), Verdict::lie);
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_ORIGDSTADDR, part, true), Verdict::drop);
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_PKTINFO, part, true), Verdict::drop);
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_PKTINFO, std::string(21, '\0'), true), Verdict::lie);
  EXPECT_EQ(judge(AF_INET6, SOL_SOCKET, SCM_RIGHTS, part, true), Verdict::lie);
}

TEST(FromStack, TosIsOneByteOrANumber) {
  for (size_t n = 0; n <= 8; ++n)
    EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_TOS, std::string(n, '\0')),
              n == 1 || n == 4 ? Verdict::give : Verdict::lie);
}

TEST(FromStack, AMessageHasItsExactLength) {
  struct Row {
    int level, type;
    size_t bytes;
  };
  for (const auto& [level, type, bytes] :
       {Row{IPPROTO_IP, IP_PKTINFO, 12}, Row{IPPROTO_IP, IP_TTL, 4},
        Row{IPPROTO_IPV6, IPV6_PKTINFO, 20}, Row{IPPROTO_IPV6, IPV6_HOPLIMIT, 4},
        Row{IPPROTO_IPV6, IPV6_TCLASS, 4}, Row{IPPROTO_UDP, 104, 4},
        Row{SOL_SOCKET, SO_RXQ_OVFL, 4}, Row{SOL_SOCKET, SO_TIMESTAMPING, 48}}) {
    for (size_t n = 0; n <= 64; ++n) {
      EXPECT_EQ(judge(AF_INET6, level, type, std::string(n, '\0')),
                n == bytes ? Verdict::give : Verdict::lie)
          << level << " " << type << " with " << n;
    }
  }
}

TEST(FromStack, AnAddressInAMessageIsJudgedToo) {
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_ORIGDSTADDR, address(AF_INET, 16)), Verdict::give);
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_ORIGDSTADDR, address(AF_UNIX, 16)), Verdict::lie);
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_ORIGDSTADDR, address(AF_INET, 28)), Verdict::lie);
  const std::string error(16, '\0');
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_RECVERR, error + address(AF_INET, 16)), Verdict::give);
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_RECVERR, error + address(AF_UNSPEC, 16)), Verdict::give);
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, IP_RECVERR, error + address(AF_UNIX, 16)), Verdict::lie);
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IPV6, IPV6_RECVERR, error + address(AF_INET6, 28)),
            Verdict::give);
}

TEST(FromStack, AnIpv4SocketHasNoMessagesOfIpv6) {
  EXPECT_EQ(judge(AF_INET, IPPROTO_IPV6, IPV6_TCLASS, std::string(4, '\0')), Verdict::drop)
      << "it may be older than IPV6_ADDRFORM";
  EXPECT_EQ(judge(AF_INET6, IPPROTO_IP, IP_TTL, std::string(4, '\0')), Verdict::give);
}

TEST(FromStack, WhatIsUnknownIsDropped) {
  EXPECT_EQ(judge(AF_INET, IPPROTO_TCP, 1, "x"), Verdict::drop);
  EXPECT_EQ(judge(AF_INET, IPPROTO_IP, 200, "x"), Verdict::drop);
}

TEST(FromStack, NamesOfInterfacesEnd) {
  const std::string endless(16, 'x');
  EXPECT_FALSE(is_device_answer(SIOCGIFNAME, endless.data(), 16));
  EXPECT_TRUE(is_device_answer(SIOCGIFNAME, "lo\0xxxxxxxxxxxxx", 16));
  std::string entry(sizeof(ifreq), '\0');
  const sa_family_t inet = AF_INET;
  std::memcpy(entry.data() + offsetof(ifreq, ifr_addr), &inet, sizeof inet);
  std::memcpy(entry.data(), "lo", 2);
  const std::string two = entry + entry;
  EXPECT_TRUE(are_interface_entries(two.data(), static_cast<uint32_t>(two.size())));
  EXPECT_FALSE(are_interface_entries(two.data(), static_cast<uint32_t>(two.size()) - 1));
  std::memset(entry.data(), 'x', IFNAMSIZ);
  EXPECT_FALSE(are_interface_entries(entry.data(), static_cast<uint32_t>(entry.size())));
  EXPECT_FALSE(is_device_answer(SIOCGIFADDR, address(AF_UNIX, 16).data(), 16));
  EXPECT_FALSE(is_device_answer(SIOCGARP, std::string(sizeof(arpreq), 'x').data(), sizeof(arpreq)));
}

TEST(FromStack, APeerOfAnOptionHasTheSocketsFamily) {
  EXPECT_TRUE(is_option_value(AF_INET, SOL_SOCKET, SO_PEERNAME, address(AF_INET, 16).data(), 16));
  EXPECT_FALSE(is_option_value(AF_INET, SOL_SOCKET, SO_PEERNAME, address(AF_UNIX, 16).data(), 16));
  EXPECT_TRUE(is_option_value(AF_INET, SOL_SOCKET, SO_PEERNAME, "", 0));
  EXPECT_TRUE(is_option_value(AF_INET, IPPROTO_TCP, TCP_CONGESTION, "cubic\0xxxxxxxxxx", 16));
  EXPECT_FALSE(is_option_value(AF_INET, IPPROTO_TCP, TCP_CONGESTION, "cubiccubiccubicc", 16));
  EXPECT_TRUE(is_option_value(AF_INET, IPPROTO_TCP, TCP_CONGESTION, "cub", 3))
      << "cut by the caller";
  EXPECT_FALSE(is_option_value(AF_INET, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 4));
  const std::string driver(196, 'x');
  EXPECT_FALSE(is_ethtool_answer(3, driver.data(), 196));
  EXPECT_TRUE(is_ethtool_answer(3, std::string(196, '\0').data(), 196));
  EXPECT_TRUE(is_ethtool_answer(1, driver.data(), 44));
}

}  // namespace
}  // namespace mw::shim
