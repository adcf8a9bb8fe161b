#include "kmod/core/optlog.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <string>
#include <vector>

namespace mw {
namespace {

struct Log {
  explicit Log(uint32_t room = 4096) : memory(room / 4) {
    mw_optlog_init(&log, reinterpret_cast<uint8_t*>(memory.data()), room);
  }
  mw_status add(int level, int name, const std::string& value) {
    const auto* const bytes = reinterpret_cast<const uint8_t*>(value.data());
    const auto len = static_cast<uint32_t>(value.size());
    const bool room = mw_optlog_has_room(&log, level, name, bytes, len);
    const mw_status status = mw_optlog_add(&log, level, name, bytes, len);
    EXPECT_EQ(room, status == MW_OK);
    return status;
  }
  // "level:name=value level:name=value", in the order of a replay.
  std::string text() const {
    std::string out;
    mw_option o;
    const uint8_t* value = nullptr;
    for (uint32_t at = 0; mw_optlog_next(&log, &at, &o, &value) == MW_OK;) {
      out += (out.empty() ? "" : " ") + std::to_string(o.level) + ":" + std::to_string(o.name) +
             "=" + std::string(reinterpret_cast<const char*>(value), o.len);
    }
    return out;
  }
  std::vector<uint32_t> memory;
  mw_optlog log;
};

// A group and an interface, as the values of IP_ADD_MEMBERSHIP begin.
const std::string kGroup = "224.0001", kOther = "224.0002";

TEST(KmodOptlog, KeepsTheLastValueWhereItWasSetLast) {
  Log l;
  l.add(1, 2, "a");
  l.add(6, 1, "bb");
  l.add(1, 8, "ccc");
  l.add(1, 2, "dddd5");
  EXPECT_EQ(l.text(), "6:1=bb 1:8=ccc 1:2=dddd5");
  l.add(6, 1, "");
  EXPECT_EQ(l.text(), "1:8=ccc 1:2=dddd5 6:1=");
}

TEST(KmodOptlog, TheSameNameOfAnotherLevelIsAnotherOption) {
  Log l;
  l.add(1, 2, "a");
  l.add(6, 2, "b");
  EXPECT_EQ(l.text(), "1:2=a 6:2=b");
}

TEST(KmodOptlog, MembershipsAddUpUntilTheyAreLeft) {
  Log l;
  l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kGroup);
  l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kOther);
  EXPECT_EQ(l.text(), "0:35=224.0001 0:35=224.0002");
  l.add(IPPROTO_IP, IP_DROP_MEMBERSHIP, kGroup);
  EXPECT_EQ(l.text(), "0:35=224.0002");
  l.add(IPPROTO_IPV6, IPV6_JOIN_GROUP, kGroup);
  l.add(IPPROTO_IPV6, IPV6_LEAVE_GROUP, kGroup);
  EXPECT_EQ(l.text(), "0:35=224.0002");
}

TEST(KmodOptlog, FiltersEndWithTheMembershipOfTheirGroup) {
  Log l;
  l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kGroup);
  l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kOther);
  l.add(IPPROTO_IP, IP_BLOCK_SOURCE, kGroup + "s1");
  l.add(IPPROTO_IP, IP_BLOCK_SOURCE, kOther + "s1");
  l.add(IPPROTO_IP, IP_BLOCK_SOURCE, kGroup + "s2");
  l.add(IPPROTO_IP, IP_UNBLOCK_SOURCE, kGroup + "s2");
  EXPECT_EQ(l.text(), "0:35=224.0001 0:35=224.0002 0:38=224.0001s1 0:38=224.0002s1");
  l.add(IPPROTO_IP, IP_DROP_MEMBERSHIP, kGroup);
  EXPECT_EQ(l.text(), "0:35=224.0002 0:38=224.0002s1");
}

TEST(KmodOptlog, ALeaveInAnotherFormIsReplayed) {
  Log l;
  l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kGroup + "ifix");  // struct ip_mreqn
  l.add(IPPROTO_IP, IP_DROP_MEMBERSHIP, kGroup);          // struct ip_mreq
  EXPECT_EQ(l.text(), "0:35=224.0001ifix 0:36=224.0001");
}

TEST(KmodOptlog, JoiningAndLeavingForEverTakesNoRoom) {
  Log l(256);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(l.add(IPPROTO_IP, IP_ADD_MEMBERSHIP, kGroup), MW_OK);
    ASSERT_EQ(l.add(IPPROTO_IP, IP_BLOCK_SOURCE, kGroup + "s1"), MW_OK);
    ASSERT_EQ(l.add(IPPROTO_IP, IP_DROP_MEMBERSHIP, kGroup), MW_OK);
    ASSERT_EQ(l.add(1, 8, std::to_string(i)), MW_OK);
  }
  EXPECT_EQ(l.text(), "1:8=999");
}

TEST(KmodOptlog, IsBoundedAndChangesNothingWhenFull) {
  Log l(64);
  ASSERT_EQ(l.add(1, 1, "0123456789abcdef0123"), MW_OK);  // 32 bytes
  ASSERT_EQ(l.add(1, 2, "0123456789abcdef0123"), MW_OK);
  EXPECT_EQ(l.add(1, 3, ""), MW_FULL);
  EXPECT_EQ(l.add(1, 1, "0123456789abcdef01234"), MW_FULL) << "longer than it was";
  EXPECT_EQ(l.text(), "1:1=0123456789abcdef0123 1:2=0123456789abcdef0123");
  EXPECT_EQ(l.add(1, 1, "another value"), MW_OK) << "its own room";
  EXPECT_EQ(l.text(), "1:2=0123456789abcdef0123 1:1=another value");
}

TEST(KmodOptlog, RefusesALengthThatOverflows) {
  Log l(64);
  const uint8_t byte = 0;
  for (uint32_t len : {65u, 0x7fffffffu, 0xfffffff0u, 0xfffffffdu, 0xffffffffu}) {
    EXPECT_FALSE(mw_optlog_has_room(&l.log, 1, 1, &byte, len)) << len;
    EXPECT_EQ(mw_optlog_add(&l.log, 1, 1, &byte, len), MW_FULL) << len;
  }
}

TEST(KmodOptlog, LeavesOutWhatIsDoneOnce) {
  Log l;
  EXPECT_EQ(l.add(SOL_SOCKET, SO_DETACH_FILTER, "abcd"), MW_OK);
  EXPECT_EQ(l.add(SOL_SOCKET, SO_CNX_ADVICE, "abcd"), MW_OK);
  EXPECT_EQ(l.text(), "");
}

TEST(KmodOptlog, KnowsLinuxNumbers) {
  for (int level : {IPPROTO_IP, IPPROTO_IPV6}) {
    EXPECT_EQ(mw_option_kind(level, MCAST_JOIN_GROUP), MW_OPTION_JOIN);
    EXPECT_EQ(mw_option_kind(level, MCAST_LEAVE_GROUP), MW_OPTION_LEAVE);
    EXPECT_EQ(mw_option_kind(level, MCAST_JOIN_SOURCE_GROUP), MW_OPTION_JOIN);
    EXPECT_EQ(mw_option_kind(level, MCAST_LEAVE_SOURCE_GROUP), MW_OPTION_LEAVE);
    EXPECT_EQ(mw_option_kind(level, MCAST_BLOCK_SOURCE), MW_OPTION_JOIN);
    EXPECT_EQ(mw_option_kind(level, MCAST_UNBLOCK_SOURCE), MW_OPTION_LEAVE);
    EXPECT_EQ(mw_option_kind(level, MCAST_MSFILTER), MW_OPTION_FILTER);
  }
  EXPECT_EQ(mw_option_kind(IPPROTO_IP, IP_MSFILTER), MW_OPTION_FILTER);
  EXPECT_EQ(mw_option_kind(IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP), MW_OPTION_JOIN);
  EXPECT_EQ(mw_option_kind(IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP), MW_OPTION_LEAVE);
  EXPECT_EQ(mw_option_kind(IPPROTO_IPV6, IPV6_JOIN_ANYCAST), MW_OPTION_JOIN);
  EXPECT_EQ(mw_option_kind(IPPROTO_IPV6, IPV6_LEAVE_ANYCAST), MW_OPTION_LEAVE);
  EXPECT_EQ(mw_option_kind(SOL_SOCKET, SO_RCVBUF), MW_OPTION_VALUE);
  EXPECT_EQ(mw_option_kind(IPPROTO_TCP, MCAST_JOIN_GROUP), MW_OPTION_VALUE);
  // The values of which filters know the group.
  static_assert(sizeof(ip_mreq) == 8 && offsetof(ip_mreq_source, imr_sourceaddr) == 8);
  static_assert(sizeof(group_req) == 136 && offsetof(group_source_req, gsr_source) == 136);
}

}  // namespace
}  // namespace mw
