#include "frontend/refusals.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

// As nft -n prints a table.
std::string table(const std::string& v4, const std::string& v6 = "") {
  const auto set = [](const std::string& name, const std::string& elements) {
    return "\tset " + name + " {\n\t\ttype inet_proto . ipv4_addr . inet_service\n\t\tsize 256\n" +
           (elements.empty() ? "" : "\t\telements = { " + elements + " }\n") + "\t}\n";
  };
  return "table inet mw_a_0 {\n\tquota refusals {\n\t\t1 bytes used 1 bytes\n\t}\n" +
         set("refused4", v4) + set("refused6", v6) +
         "\tchain refuse {\n\t\tmeta l4proto { 6, 17, 136 } update @refused4 { meta l4proto . ip "
         "daddr "
         ". th dport counter }\n\t}\n}\n";
}

std::string element(const std::string& key, int packets) {
  return key + " counter packets " + std::to_string(packets) + " bytes 60 expires 9m59s980ms";
}

using Lines = std::vector<std::string>;

TEST(Refusals, AreToldWithHowManyThereWereSinceTheLastTime) {
  Refusals refusals;
  const std::string tcp = "6 . 10.1.2.3 . 443";
  EXPECT_EQ(refusals.news(table("")), Lines{});
  EXPECT_EQ(refusals.news(table(element(tcp, 1))),
            Lines{"egress refused: tcp 10.1.2.3:443 (1 time)"});
  EXPECT_EQ(refusals.news(table(element(tcp, 1))), Lines{});
  EXPECT_EQ(refusals.news(table(element(tcp, 4))),
            Lines{"egress refused: tcp 10.1.2.3:443 (3 times)"});
  // The rules were made anew.
  EXPECT_EQ(refusals.news(table(element(tcp, 2))),
            Lines{"egress refused: tcp 10.1.2.3:443 (2 times)"});
}

TEST(Refusals, OfBothFamiliesTheMostFrequentFirst) {
  Refusals refusals;
  EXPECT_EQ(refusals.news(table(element("6 . 10.1.2.3 . 443", 1) + ",\n\t\t\t     " +
                                    element("17 . 10.1.2.3 . 53", 7),
                                element("17 . fd00::1 . 53", 3))),
            (Lines{"egress refused: udp 10.1.2.3:53 (7 times)",
                   "egress refused: udp [fd00::1]:53 (3 times)",
                   "egress refused: tcp 10.1.2.3:443 (1 time)"}));
}

TEST(Refusals, OfManyDestinationsAreAFewLines) {
  Refusals refusals;
  std::string all;
  for (int i = 1; i <= 250; ++i)
    all += (all.empty() ? "" : ", ") + element("6 . 10.1.2.3 . " + std::to_string(i), 2);
  const Lines lines = refusals.news(table(all));
  ASSERT_EQ(lines.size(), Refusals::kMostLines + 1);
  EXPECT_EQ(lines.back(), "egress refused: other destinations (480 times)");
  for (int i = 1; i <= 6; ++i) all += ", " + element("6 . 10.1.2.4 . " + std::to_string(i), 1);
  EXPECT_EQ(refusals.news(table(all)).back(), "egress refused: more destinations than are counted");
}

}  // namespace
}  // namespace mw
