#include "frontend/reach.h"

#include <gtest/gtest.h>

namespace mw {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

AddressPlan a_plan() {
  auto plan = choose_addresses({}, {}, true);
  EXPECT_TRUE(plan);
  return *plan;
}

Reach reach_of(const std::string& egress, const std::string& to_host = "",
               std::vector<std::string> name_servers = {}) {
  Reach reach;
  auto parsed = parse_egress(egress);
  EXPECT_TRUE(parsed) << egress;
  reach.egress = *parsed;
  if (!to_host.empty()) {
    auto ports = parse_to_host(to_host);
    EXPECT_TRUE(ports) << to_host;
    reach.to_host = *ports;
  }
  reach.name_servers = std::move(name_servers);
  return reach;
}

TEST(ParseEgress, ReadsWhatItPrints) {
  for (const char* text : {"any", "none", "dns", "192.0.2.0/24", "dns,192.0.2.1,2001:db8::/32",
                           "0.0.0.0/0,::/0", "fe80::/10"}) {
    auto egress = parse_egress(text);
    ASSERT_TRUE(egress) << text;
    EXPECT_EQ(to_string(*egress), text);
  }
  EXPECT_EQ(to_string(*parse_egress("192.0.2.1/32,2001:0db8::1/128")), "192.0.2.1,2001:db8::1");
  EXPECT_EQ(to_string(Egress{}), "any");
}

TEST(ParseEgress, RefusesWhatIsNoPolicy) {
  for (const char* text : {"",
                           ",",
                           "dns,",
                           "all",
                           "Any",
                           "any,dns",
                           "dns,any",
                           "none,192.0.2.0/24",
                           "192.0.2.0/24,none",
                           "any,any",
                           "192.0.2.0/33",
                           "192.0.2.0/",
                           "192.0.2.0/x",
                           "192.0.2.0/-1",
                           "192.0.2.0/24/8",
                           "192.0.2.1/24",
                           "2001:db8::1/64",
                           "2001:db8::/129",
                           "192.0.2",
                           "example.org",
                           "[2001:db8::1]",
                           "fe80::1%eth0",
                           "::ffff:192.0.2.1",
                           "192.0.2.1:80",
                           " dns",
                           "dns 192.0.2.0/24",
                           "192.0.2.0/0x8",
                           "192.0.2.0/000000024"})
    EXPECT_FALSE(parse_egress(text)) << text;
  // A wrong network names the right one.
  auto wrong = parse_egress("10.1.2.3/8");
  ASSERT_FALSE(wrong);
  EXPECT_TRUE(has(wrong.error().text(), "10.0.0.0/8"));
}

TEST(ParseToHost, ReadsPortsOfBothProtocols) {
  auto ports = parse_to_host("3306,53/udp,25/tcp");
  ASSERT_TRUE(ports);
  EXPECT_EQ(to_string(*ports), "3306,53/udp,25");
  for (const char* text : {"", "0", "65536", "x", "80,", ",80", "80/sctp", "80/", "80:81", "-1",
                           "127.0.0.1:80", "80-90", " 80", "080000"})
    EXPECT_FALSE(parse_to_host(text)) << text;
}

TEST(NameServers, AreThoseOfTheFileAndElseThisHost) {
  const auto servers = parse_name_servers(
      "# nameserver 192.0.2.9\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 # x\nsearch a\n"
      "nameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n");
  EXPECT_EQ(servers, (std::vector<std::string>{"192.0.2.1", "2001:db8::1", "fe80::1%eth0"}));
  EXPECT_EQ(parse_name_servers("search a\n"), std::vector<std::string>{"127.0.0.1"});
  Reach reach;
  reach.name_servers = {"192.0.2.1", "::1", "fe80::1%eth0", "fe80::2", "127.0.0.1"};
  EXPECT_EQ(unreachable_name_servers(reach),
            (std::vector<std::string>{"::1", "fe80::1%eth0", "fe80::2"}));
}

std::string text_of(const std::vector<Passage>& all) {
  std::string out;
  for (const Passage& p : all)
    out += p.address + ":" + std::to_string(p.port) + (p.protocol == Protocol::udp ? "/udp " : " ");
  return out;
}

TEST(Passages, AreWhatWasAskedForAndNameServersOfTheHost) {
  EXPECT_EQ(text_of(passages(reach_of("any", "", {"192.0.2.1"}), {})), "");
  EXPECT_EQ(text_of(passages(reach_of("any", "3306,53/udp", {"127.0.0.53", "127.0.0.1"}), {})),
            "127.0.0.1:3306 127.0.0.1:53/udp 127.0.0.53:53/udp 127.0.0.53:53 127.0.0.1:53 ");
  EXPECT_EQ(text_of(passages(reach_of("192.0.2.0/24", "", {"0.0.0.0"}), {})),
            "127.0.0.1:53/udp 127.0.0.1:53 ");
  EXPECT_EQ(text_of(passages(reach_of("none", "3306", {"127.0.0.53"}), {})), "127.0.0.1:3306 ");
  // A name server that is protected is its own.
  EXPECT_EQ(text_of(passages(reach_of("any", "", {"127.0.0.1"}), {*parse_publish("5353:53/udp")})),
            "127.0.0.1:53 ");
}

TEST(Passages, LeadFromTheInsToTheHostUnderAnAddressOfNobody) {
  const Reach reach = reach_of("none", "3306,53/udp");
  const std::string inside = passage_chains({}, reach);
  EXPECT_TRUE(has(inside, "ip daddr 127.0.0.1 tcp dport 3306 dnat ip to 247.0.0.1\n"));
  EXPECT_TRUE(has(inside, "ip daddr 127.0.0.1 udp dport 53 dnat ip to 247.0.0.1\n"));
  const std::string host = reach_rules(a_plan(), {}, reach);
  EXPECT_TRUE(has(host, "ip daddr 247.0.0.1 tcp dport 3306 accept\n"));
  EXPECT_TRUE(has(host, "ip daddr 247.0.0.1 tcp dport 3306 dnat ip to 127.0.0.1:3306\n"));
  EXPECT_TRUE(has(host, "ip daddr 127.0.0.0/8 snat ip to 127.0.0.1\n"));
  EXPECT_FALSE(has(reach_rules(a_plan(), {}, reach_of("any")), "chain lead"));
  EXPECT_EQ(passage_chains({}, reach_of("any", "", {"192.0.2.1"})), "");
}

TEST(Passages, OfAStubLeadToTheServersBehindIt) {
  Reach reach = reach_of("192.0.2.0/24", "", {"2001:db8::1", "198.51.100.1"});
  reach.stubs = {"127.0.0.53"};
  EXPECT_TRUE(
      has(passage_chains({}, reach),
          "ip daddr 127.0.0.53 meta l4proto { tcp, udp } th dport 53 dnat ip to 198.51.100.1\n"));
  EXPECT_TRUE(has(reach_rules(a_plan(), {}, reach), "ip daddr { 198.51.100.1 } meta l4proto"));
  reach.egress = *parse_egress("none");
  EXPECT_EQ(passage_chains({}, reach), "");
}

TEST(ReachRules, JudgeByTheDestinationAndRefuseTheRest) {
  const AddressPlan plan = a_plan();
  auto own = parse_publish("8080:80");
  ASSERT_TRUE(own);
  const std::string any =
      reach_rules(plan, {*own}, reach_of("any", "", {"192.0.2.1", "127.0.0.1"}));
  EXPECT_TRUE(has(any, "ip daddr { 192.0.2.1 } meta l4proto { tcp, udp } th dport 53 accept\n"));
  // Its own port, and then none of the host's.
  const size_t hairpin = any.find("fib daddr type local tcp dport 8080 accept\n");
  const size_t local =
      any.find("fib daddr type { local, anycast, broadcast, multicast } goto refuse");
  ASSERT_NE(hairpin, std::string::npos);
  EXPECT_LT(hairpin, local);
  EXPECT_LT(any.find("169.254.0.0/16"), local);
  const std::string none = reach_rules(plan, {*own}, reach_of("none", "", {"192.0.2.1"}));
  EXPECT_FALSE(has(none, "dport 53"));
  EXPECT_FALSE(has(none, "8080"));
  EXPECT_TRUE(has(none, "ct direction reply accept\n"));
  EXPECT_TRUE(has(none, "    ct status expected accept\n    goto refuse\n"));
  const std::string dns = reach_rules(plan, {}, reach_of("dns", "", {"192.0.2.1", "2001:db8::1"}));
  EXPECT_TRUE(has(dns, "ip6 daddr { 2001:db8::1 } meta l4proto { tcp, udp } th dport 53 accept\n"));
  EXPECT_FALSE(has(reach_rules(plan, {}, reach_of("192.0.2.0/24", "", {"192.0.2.1"})), "dport 53"));
}

TEST(ReachRules, ARangeOpensNeitherTheHostNorItsClouds) {
  const std::string text =
      reach_rules(a_plan(), {},
                  reach_of("10.0.0.0/8,10.1.0.0/16,192.0.2.10,169.254.169.254,::/0,fd00:ec2::/64"));
  const size_t local = text.find("fib daddr type {");
  ASSERT_NE(local, std::string::npos);
  EXPECT_LT(text.find("ip daddr { 192.0.2.10, 169.254.169.254 } accept\n"), local);
  EXPECT_LT(text.find("ip6 daddr { fd00:ec2::/64 } accept\n"), local);
  // Intervals of a set must not overlap.
  const size_t range = text.find("ip daddr { 10.0.0.0/8 } accept\n");
  ASSERT_NE(range, std::string::npos);
  EXPECT_GT(range, local);
  EXPECT_GT(text.find("meta nfproto ipv6 accept\n"), local);
}

}  // namespace
}  // namespace mw
