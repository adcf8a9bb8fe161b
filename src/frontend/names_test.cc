#include "frontend/names.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

TEST(Names, ServersOnTheLoopback_AreSeen) {
  EXPECT_TRUE(asks_the_loopback(""));
  EXPECT_TRUE(asks_the_loopback("search a b\n"));
  EXPECT_TRUE(asks_the_loopback("nameserver 127.0.0.53\nnameserver ::1\n"));
  EXPECT_FALSE(asks_the_loopback("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
  EXPECT_FALSE(asks_the_loopback("nameserver\t2001:db8::1"));
}

TEST(Names, IsolatedIns_AsksTheServersBehindTheStub) {
  const std::string stub = "nameserver 127.0.0.53\nsearch a\n";
  const std::string upstream = "nameserver 192.0.2.1\nsearch b\n";
  EXPECT_EQ(resolv_conf_for_ins(stub, upstream, true), upstream);
  EXPECT_EQ(resolv_conf_for_ins(stub, upstream, false), stub);
  EXPECT_EQ(resolv_conf_for_ins(stub, "", true), stub);
  const std::string other = "nameserver 192.0.2.9\n";
  EXPECT_EQ(resolv_conf_for_ins(other, upstream, true), other);
}

}  // namespace
}  // namespace mw
