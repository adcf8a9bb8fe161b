#include "guard/rules.h"

#include <gtest/gtest.h>

#include "netflow/address.h"

namespace mw::guard {
namespace {

bool holds(const char* network, const char* address) {
  return parse_network(network)->holds(*netflow::parse_address(address));
}

// "LINE: text" of each fault.
std::string faults(const RulesReading& reading) {
  std::string all;
  for (const auto& f : reading.faults) all += std::to_string(f.line) + ": " + f.text + "\n";
  return all;
}

TEST(GuardRules, TheInstalledFileSaysWhatHoldsWithoutIt) {
  auto r_or = read_rules(MW_GUARD_RULES);
  ASSERT_TRUE(r_or);
  const RulesReading& r = *r_or;
  EXPECT_EQ(faults(r), "");
  EXPECT_EQ(r.rules, Rules{});
}

TEST(GuardRules, TheInstalledFileNamesEveryRule) {
  // Each number of the file, changed, changes the rules: none is ignored, none is missing.
  auto text = netflow::read_text_file(MW_GUARD_RULES);
  ASSERT_TRUE(text);
  size_t numbers = 0;
  for (size_t at = text->find(" = "); at != std::string::npos; at = text->find(" = ", at + 1)) {
    if (!isdigit((*text)[at + 3])) continue;
    std::string changed = *text;
    const size_t end = changed.find('\n', at);
    changed.replace(at + 3, end - at - 3, "77");
    const RulesReading r = parse_rules(changed);
    EXPECT_NE(r.rules, Rules{}) << changed.substr(at - 20, 40);
    ++numbers;
  }
  EXPECT_EQ(numbers, 34u);
}

TEST(GuardRules, EveryFaultIsToldWithItsPlace) {
  const RulesReading r = parse_rules(
      "when = \"now\"\n"
      "allow = [\"192.0.2.0/33\", \"example.org\"]\n"
      "ttl_s = 0\n"
      "[crowd]\n"
      "connection = 3\n"
      "still_ms = \"x\"\n"
      "[probe]\n"
      "target = \"example.org\"\n");
  const std::string all = faults(r);
  EXPECT_NE(all.find("1: when has to be"), std::string::npos) << all;
  EXPECT_NE(all.find("2: allow has addresses"), std::string::npos) << all;
  EXPECT_NE(all.find("3: ttl_s has to be 1 to 86400"), std::string::npos) << all;
  EXPECT_NE(all.find("5: crowd.connection is unknown"), std::string::npos) << all;
  EXPECT_NE(all.find("6: still_ms has to be a whole number"), std::string::npos) << all;
  EXPECT_NE(all.find("8: target has to be"), std::string::npos) << all;
  EXPECT_EQ(r.faults.size(), 7u) << all;
}

TEST(GuardRules, WhatIsNoTomlIsAFault) {
  EXPECT_EQ(parse_rules("when = \n").faults.size(), 1u);
}

TEST(GuardRules, NetworksHoldWhatTheyShould) {
  EXPECT_TRUE(holds("192.0.2.7", "192.0.2.7"));
  EXPECT_FALSE(holds("192.0.2.7", "192.0.2.6"));
  EXPECT_TRUE(holds("10.16.0.0/12", "10.31.255.255"));
  EXPECT_FALSE(holds("10.16.0.0/12", "10.32.0.0"));
  EXPECT_TRUE(holds("0.0.0.0/0", "203.0.113.9"));
  EXPECT_FALSE(holds("0.0.0.0/0", "2001:db8::1"));
  EXPECT_TRUE(holds("2001:db8::/32", "2001:db8:7::1"));
  EXPECT_FALSE(holds("2001:db8::/32", "2001:db9::1"));
  EXPECT_TRUE(holds("192.0.2.0/24", "::ffff:192.0.2.9"));
  for (const char* wrong : {"", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/x", "192.0.2", "::/129"})
    EXPECT_FALSE(parse_network(wrong)) << wrong;
}

}  // namespace
}  // namespace mw::guard
