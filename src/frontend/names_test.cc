#include "frontend/names.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

std::string text_for(const std::string& resolv_conf, const std::string& upstream, bool isolated) {
  return resolver_for_ins(resolv_conf, upstream, isolated).text;
}

TEST(Names, AnIsolatedInsAsksTheServersBehindTheStub) {
  const std::string stub = "nameserver 127.0.0.53\nsearch a\n";
  const std::string upstream = "nameserver 192.0.2.1\nsearch b\n";
  const InsResolver told = resolver_for_ins(stub, upstream, true);
  EXPECT_EQ(told.text, upstream);
  EXPECT_EQ(told.name_servers, std::vector<std::string>{"192.0.2.1"});
  EXPECT_EQ(told.stubs, std::vector<std::string>{"127.0.0.53"});
  EXPECT_EQ(text_for(stub, upstream, false), stub);
  EXPECT_EQ(text_for(stub, "", true), stub);
  EXPECT_EQ(text_for(stub, "nameserver 127.0.0.1\n", true), stub);
}

TEST(Names, OtherServersAreAskedWhereTheyAre) {
  const std::string upstream = "nameserver 192.0.2.1\n";
  for (const char* text : {"nameserver 192.0.2.9\n", "nameserver 127.0.0.1\n", "nameserver ::1\n",
                           "nameserver 127.0.0.53\nnameserver 192.0.2.9\n", "search a\n", ""}) {
    const InsResolver told = resolver_for_ins(text, upstream, true);
    EXPECT_EQ(told.text, text);
    EXPECT_TRUE(told.stubs.empty()) << text;
  }
}

}  // namespace
}  // namespace mw
