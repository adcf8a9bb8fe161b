// The settings are a folder of plain files here, so that kernels other than the running one can be
// played.
#include "frontend/forwarding.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "frontend/process.h"

namespace mw {
namespace {

using Strings = std::vector<std::string>;

class ForwardingSettings : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-forwarding-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    sys_ = base_ + "/sys";
  }
  void TearDown() override { std::filesystem::remove_all(base_); }

  void set(const std::string& setting, const std::string& value) {
    const std::filesystem::path path = sys_ + "/" + setting;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << value << "\n";
  }

  // A host with two interfaces and an INS's link, as it comes.
  void default_host(bool single) {
    set("ipv4/ip_forward", "0");
    for (const char* link : {"all", "default", "lo", "eth0", "eth1", "mwv0"}) {
      const std::string name = link;
      set("ipv4/conf/" + name + "/forwarding", "0");
      set("ipv6/conf/" + name + "/forwarding", "0");
      set("ipv6/conf/" + name + "/accept_ra", name == "eth1" ? "0" : "1");
      if (single) set("ipv6/conf/" + name + "/force_forwarding", "0");
    }
  }

  std::map<std::string, std::string> all() {
    std::map<std::string, std::string> values;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(sys_)) {
      const std::string path = entry.path();
      if (entry.is_regular_file()) values[path.substr(sys_.size() + 1)] = read_text(path);
    }
    return values;
  }

  std::string value(const std::string& setting) {
    return read_text(sys_ + "/" + setting).substr(0, 1);
  }

  // As acquire_forwarding(), and what was guarded.
  Outcome<GuardedLinks> acquire(const std::string& link) {
    GuardedLinks out;
    auto done = acquire_forwarding(
        base_, link,
        [&out](const GuardedLinks& links) -> Outcome<Done> {
          out = links;
          return Done{};
        },
        sys_);
    if (!done) return done.error();
    return out;
  }

  std::string base_;
  std::string sys_;
};

TEST_F(ForwardingSettings, NewKernelsForwardOnSingleInterfaces) {
  default_host(true);
  auto guarded = acquire("mwv0");
  ASSERT_TRUE(guarded);
  EXPECT_EQ(guarded->v4, (Strings{"eth0", "eth1"}));
  EXPECT_EQ(guarded->v6, (Strings{"eth0", "eth1"}));
  EXPECT_EQ(value("ipv4/ip_forward"), "0") << "never globally";
  EXPECT_EQ(value("ipv6/conf/all/forwarding"), "0") << "never globally where it can be avoided";
  EXPECT_EQ(value("ipv4/conf/eth1/forwarding"), "1");
  EXPECT_EQ(value("ipv4/conf/mwv0/forwarding"), "1");
  EXPECT_EQ(value("ipv6/conf/eth0/force_forwarding"), "1");
  EXPECT_EQ(value("ipv6/conf/mwv0/force_forwarding"), "1");
}

TEST_F(ForwardingSettings, OldKernelsKeepTheirRouterAdvertisements) {
  default_host(false);
  auto guarded = acquire("mwv0");
  ASSERT_TRUE(guarded);
  EXPECT_EQ(value("ipv6/conf/all/forwarding"), "1");
  EXPECT_EQ(value("ipv6/conf/eth0/accept_ra"), "2") << "or the host would lose its IPv6 route";
  EXPECT_EQ(value("ipv6/conf/eth1/accept_ra"), "0") << "not ours to turn on";
  EXPECT_TRUE(guarded->all_v6) << "also those to come";
}

TEST_F(ForwardingSettings, EverythingComesBack) {
  for (const bool single : {true, false}) {
    default_host(single);
    const auto before = all();
    ASSERT_TRUE(acquire("mwv0"));
    // A second session finds it done, and is guarded all the same.
    auto again = acquire("mwv1");
    if (again) ADD_FAILURE() << "mwv1 has no settings";
    set("ipv4/conf/mwv1/forwarding", "0");
    again = acquire("mwv1");
    ASSERT_TRUE(again);
    EXPECT_EQ(again->v4, (Strings{"eth0", "eth1"}));
    std::filesystem::remove_all(sys_ + "/ipv4/conf/mwv1");
    ASSERT_TRUE(release_forwarding(base_, sys_));
    auto after = all();
    for (const char* own : {"ipv4/conf/mwv0/forwarding", "ipv6/conf/mwv0/force_forwarding"}) {
      if (before.count(own) != 0) after[own] = before.at(own);  // goes away with its link
    }
    EXPECT_EQ(after, before);
    ASSERT_TRUE(release_forwarding(base_, sys_)) << "once more changes nothing";
    std::filesystem::remove_all(sys_);
  }
}

TEST_F(ForwardingSettings, NothingIsTurnedOnWithoutItsGuard) {
  default_host(true);
  const auto before = all();
  const auto refuse = [this, &before](const GuardedLinks& links) -> Outcome<Done> {
    EXPECT_EQ(links.v4, (Strings{"eth0", "eth1"}));
    EXPECT_EQ(all(), before) << "nothing before the rules are in force";
    return Failure{"guard", "no", ""};
  };
  EXPECT_FALSE(acquire_forwarding(base_, "mwv0", refuse, sys_));
  EXPECT_EQ(all(), before);
  ASSERT_TRUE(release_forwarding(base_, sys_));
  EXPECT_EQ(all(), before);
}

TEST_F(ForwardingSettings, ARouterIsLeftAsItIs) {
  default_host(true);
  set("ipv4/ip_forward", "1");
  set("ipv6/conf/all/forwarding", "1");
  const auto before = all();
  auto guarded = acquire("mwv0");
  ASSERT_TRUE(guarded);
  EXPECT_TRUE(guarded->v4.empty());
  EXPECT_TRUE(guarded->v6.empty());
  ASSERT_TRUE(release_forwarding(base_, sys_));
  auto after = all();
  after["ipv4/conf/mwv0/forwarding"] = before.at("ipv4/conf/mwv0/forwarding");
  EXPECT_EQ(after, before);
}

TEST_F(ForwardingSettings, WhatSomebodyElseTurnedOnStaysOn) {
  default_host(true);
  ASSERT_TRUE(acquire("mwv0"));
  set("ipv4/ip_forward", "1");                            // a container manager has started
  std::filesystem::remove_all(sys_ + "/ipv6/conf/eth1");  // and an interface has gone
  ASSERT_TRUE(release_forwarding(base_, sys_));
  EXPECT_EQ(value("ipv4/conf/eth0/forwarding"), "1");
  EXPECT_EQ(value("ipv6/conf/eth0/force_forwarding"), "0");
}

}  // namespace
}  // namespace mw
