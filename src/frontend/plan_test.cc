#include "frontend/plan.h"

#include <gtest/gtest.h>

#include "frontend/reach.h"

namespace mw {
namespace {

TEST(ParsePublish, TakesAllForms) {
  struct Case {
    const char* text;
    const char* host;
    int port, ins_port;
    Protocol protocol;
  };
  const Case cases[] = {
      {"80", "", 80, 80, Protocol::tcp},
      {"8080:80", "", 8080, 80, Protocol::tcp},
      {"53/udp", "", 53, 53, Protocol::udp},
      {"5353:53/udp", "", 5353, 53, Protocol::udp},
      {"80/tcp", "", 80, 80, Protocol::tcp},
      {"127.0.0.1:80", "127.0.0.1", 80, 80, Protocol::tcp},
      {"127.0.0.1:8080:80/udp", "127.0.0.1", 8080, 80, Protocol::udp},
      {"[fd00::1]:8080:80", "fd00::1", 8080, 80, Protocol::tcp},
      {"0.0.0.0:8080:80", "", 8080, 80, Protocol::tcp},
      {"65535", "", 65535, 65535, Protocol::tcp},
  };
  for (const Case& c : cases) {
    auto p = parse_publish(c.text);
    ASSERT_TRUE(p) << c.text;
    EXPECT_EQ(p->host, c.host) << c.text;
    EXPECT_EQ(p->port, c.port) << c.text;
    EXPECT_EQ(p->ins_port, c.ins_port) << c.text;
    EXPECT_EQ(p->protocol, c.protocol) << c.text;
  }
}

TEST(ParsePublish, RefusesTheRest) {
  for (const char* text : {"",
                           ":",
                           "0",
                           "65536",
                           "99999999999",
                           "80:",
                           ":80",
                           "80:0",
                           "80/sctp",
                           "80/",
                           "a:80",
                           "1.2.3:80",
                           "1.2.3.4",
                           "1.2.3.4:",
                           "[::1]",
                           "[::1]80",
                           "[::1]:",
                           "[1.2.3.4]:80",
                           "80:81:82",
                           "-1",
                           " 80",
                           "80;drop",
                           "1.2.3.4:80:81:82"}) {
    EXPECT_FALSE(parse_publish(text)) << text;
  }
}

TEST(Publish, RefusesAddressesThatNothingCanLeadFrom) {
  for (const auto& [text, reason] : {std::pair{"[::1]:8080:80", "keeps ::1 on the loopback"},
                                     {"[::ffff:127.0.0.1]:80", "write the IPv4 address"}}) {
    auto p = parse_publish(text);
    ASSERT_FALSE(p) << text;
    EXPECT_NE(p.error().text().find(reason), std::string::npos) << p.error().text();
  }
}

TEST(ParseRoutes, ReadsWhatIpPrints) {
  const auto routes = parse_routes(
      "default via 192.0.2.1 dev eth0 \n"
      "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2 \n"
      "0.0.0.0/1 via 10.8.0.1 dev tun0\n"
      "unreachable 10.213.0.0/16 metric 5\n"
      "local 127.0.0.1 dev lo table local\n"
      "\tnexthop via 10.0.0.1 dev eth0 weight 1\n"
      "fd6d:7763:6f6d::/48 dev eth0\n");
  ASSERT_EQ(routes.size(), 4u);
  EXPECT_EQ(routes[0].bits, 24u);
  EXPECT_EQ(routes[1].bits, 16u);
  EXPECT_EQ(routes[2].bits, 32u);
  EXPECT_TRUE(routes[3].v6);
  EXPECT_EQ(routes[3].bits, 48u);
}

TEST(ChooseAddresses, TakesTheLowestFreeSlot) {
  auto first = choose_addresses({}, {}, true);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->link, "mwv0");
  EXPECT_EQ(first->host4, "10.213.0.1");
  EXPECT_EQ(first->ins4, "10.213.0.2");
  EXPECT_EQ(first->host6, "fd6d:7763:6f6d::1");
  EXPECT_EQ(first->ins6, "fd6d:7763:6f6d::2");
  auto later = choose_addresses({}, {0, 1, 3}, true);
  ASSERT_TRUE(later);
  EXPECT_EQ(later->slot, 2u);
  EXPECT_EQ(later->ins4, "10.213.0.10");
  EXPECT_EQ(later->ins6, "fd6d:7763:6f6d:2::2");
  EXPECT_NE(later->ins_uid, first->ins_uid);
}

TEST(ChooseAddresses, KeepsClearOfTheHostsRoutes) {
  // A VPN that routes 10.0.0.0/8, and one address of the next pool.
  const auto routes = parse_routes("10.0.0.0/8 dev tun0\n100.127.0.1 dev tun1\n");
  auto plan = choose_addresses(routes, {}, false);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->slot, 0u);
  EXPECT_EQ(plan->ins4, "172.29.0.2");
  EXPECT_TRUE(plan->ins6.empty());
}

TEST(ChooseAddresses, SaysWhenNothingIsLeft) {
  const auto routes = parse_routes(
      "10.0.0.0/8 dev a\n100.64.0.0/10 dev a\n172.16.0.0/12 dev a\n198.18.0.0/15 dev a\n");
  auto plan = choose_addresses(routes, {}, false);
  ASSERT_FALSE(plan);
  EXPECT_NE(plan.error().remedy.find("--net host"), std::string::npos);
}

TEST(ChooseAddresses, EverySlotHasItsOwn) {
  std::set<unsigned> taken;
  std::set<std::string> seen;
  for (unsigned i = 0; i < kMaxSlots; ++i) {
    auto plan = choose_addresses({}, taken, true);
    ASSERT_TRUE(plan);
    taken.insert(plan->slot);
    EXPECT_TRUE(seen.insert(plan->ins4).second);
    EXPECT_TRUE(seen.insert(plan->host4).second);
    EXPECT_TRUE(seen.insert(plan->ins6).second);
    EXPECT_TRUE(seen.insert(plan->link).second);
  }
  EXPECT_FALSE(choose_addresses({}, taken, true));
}

TEST(Ruleset, GuardsOnlyWhatWasOpened) {
  auto plan = choose_addresses({}, {}, true);
  ASSERT_TRUE(plan);
  const std::string closed = ruleset("mw_a_0", *plan, {}, {}, {});
  EXPECT_EQ(closed.find("oifname != \"mwv*\""), std::string::npos);
  const std::string guarded = ruleset("mw_a_0", *plan, {}, {}, {{"eth0"}, {}});
  EXPECT_NE(guarded.find("meta nfproto ipv4 iifname { \"eth0\" } oifname != \"mwv*\" drop"),
            std::string::npos);
  EXPECT_EQ(guarded.find("nfproto ipv6 iifname"), std::string::npos);
}

TEST(Ruleset, WhatItGuardsCanBeReadBack) {
  auto plan = choose_addresses({}, {}, true);
  ASSERT_TRUE(plan);
  const GuardedLinks one{{"eth0", "wlan0"}, {"eth0"}, false};
  // As nft prints it: one name stands without brackets.
  std::string text = ruleset("mw_a_0", *plan, {}, {}, one);
  text.replace(text.find("{ \"eth0\" }"), 10, "\"eth0\"");
  const GuardedLinks back =
      guarded_in("table ip other {\n  iifname \"eth9\" oifname != \"mwv*\" drop\n}\n" + text);
  EXPECT_EQ(back.v4, one.v4);
  EXPECT_EQ(back.v6, one.v6);
  EXPECT_FALSE(back.all_v6);
  EXPECT_TRUE(guarded_in(guard_ruleset({{}, {}, true})).all_v6);
  const GuardedLinks both = merged(one, {{"eth0", "eth1"}, {}, true});
  EXPECT_EQ(both.v4, (std::vector<std::string>{"eth0", "eth1", "wlan0"}));
  EXPECT_TRUE(both.all_v6);
}

// What a rule for a port of TCP takes: the packet that begins a connection.
const std::string kBegins = "tcp flags & (fin | syn | rst | ack) == syn ";

TEST(Ruleset, LeavesLoopbackV6Alone) {
  auto plan = choose_addresses({}, {}, true);
  ASSERT_TRUE(plan);
  auto publish = parse_publish("8080:80");
  ASSERT_TRUE(publish);
  const std::string text = ruleset("mw_a_0", *plan, {*publish}, {}, {});
  EXPECT_NE(text.find(kBegins + "tcp dport 8080 dnat ip to 10.213.0.2:80"), std::string::npos);
  EXPECT_NE(text.find("ip6 daddr != ::1 " + kBegins + "tcp dport 8080 dnat ip6"),
            std::string::npos);
}

TEST(Ruleset, LeadsFromTheFamilyThatAnInheritedSocketHas) {
  auto plan = choose_addresses({}, {}, true);
  ASSERT_TRUE(plan);
  Publish p{"0.0.0.0", 8080, 8080, Protocol::tcp};
  std::string text = ruleset("mw_a_0", *plan, {p}, {}, {});
  EXPECT_NE(text.find("nfproto ipv4 fib daddr type local " + kBegins + "tcp dport 8080 dnat ip to"),
            std::string::npos);
  EXPECT_NE(text.find("ip daddr 247.0.0.0/8 " + kBegins + "tcp dport 8080 dnat ip to"),
            std::string::npos);
  EXPECT_EQ(text.find("dnat ip6"), std::string::npos);
  EXPECT_NE(text.find("meta nfproto ipv4 fib daddr type local tcp dport 8080 accept"),
            std::string::npos);
  p.host = "::";
  text = ruleset("mw_a_0", *plan, {p}, {}, {});
  EXPECT_EQ(text.find("dnat ip to"), std::string::npos);
  EXPECT_NE(text.find("nfproto ipv6 fib daddr type local ip6 daddr != ::1 " + kBegins +
                      "tcp dport 8080 dnat ip6"),
            std::string::npos);
  EXPECT_NE(text.find("meta nfproto ipv6 fib daddr type local tcp dport 8080 accept"),
            std::string::npos);
}

TEST(Publish, OverlapsWhereOnePacketCouldBeMeantByBoth) {
  const auto of = [](const char* host, uint16_t port = 80, Protocol protocol = Protocol::tcp) {
    return Publish{host, port, 8080, protocol};
  };
  for (const char* other : {"", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1"}) {
    EXPECT_TRUE(overlap(of(""), of(other))) << other;
    EXPECT_TRUE(overlap(of(other), of(other))) << other;
    EXPECT_FALSE(overlap(of(other), of(other, 81))) << other;
    EXPECT_FALSE(overlap(of(other), of(other, 80, Protocol::udp))) << other;
  }
  EXPECT_TRUE(overlap(of("192.0.2.1"), of("0.0.0.0")));
  EXPECT_FALSE(overlap(of("192.0.2.1"), of("::")));
  EXPECT_TRUE(overlap(of("::"), of("2001:db8::1")));
  EXPECT_FALSE(overlap(of("0.0.0.0"), of("2001:db8::1")));
  EXPECT_FALSE(overlap(of("0.0.0.0"), of("::")));
  EXPECT_FALSE(overlap(of("192.0.2.1"), of("192.0.2.2")));
}

constexpr const char* kHosts =
    "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy "
    "drop;\n"
    "\t\tcounter packets 0 bytes 0 jump DOCKER-USER\n\t}\n\tchain DOCKER-USER {\n\t}\n}\n"
    "table ip6 filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy "
    "drop;\n"
    "\t\tjump ufw-before-forward\n\t}\n\tchain ufw-before-forward {\n\t}\n}\n"
    "table inet mine {\n\tchain fwd {\n\t\ttype filter hook forward priority 0; policy drop;\n\t}\n"
    "\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t}\n}\n"
    "table inet open {\n\tchain fwd {\n\t\ttype filter hook forward priority 0; policy "
    "accept;\n\t}\n}\n"
    "table inet firewalld {\n\tchain filter_FORWARD {\n"
    "\t\ttype filter hook forward priority filter + 10; policy accept;\n\t}\n}\n";

TEST(DroppingChains, AreFoundWithWhoMadeThem) {
  const auto found = dropping_chains(kHosts);
  ASSERT_EQ(found.size(), 4u);
  EXPECT_EQ(found[0].manager, "docker");
  EXPECT_EQ(commands_to_pass(found[0]),
            "nft insert rule ip filter DOCKER-USER iifname '\"mwv*\"' accept && "
            "nft insert rule ip filter DOCKER-USER oifname '\"mwv*\"' accept");
  EXPECT_EQ(found[1].manager, "ufw");
  EXPECT_EQ(found[2].table + " " + found[2].chain + found[2].manager, "mine fwd");
  EXPECT_EQ(found[3].manager, "firewalld");
  EXPECT_NE(commands_to_pass(found[3]).find("firewall-cmd"), std::string::npos);
}

TEST(DroppingChains, OfPacketsToTheHostItself) {
  const auto found = dropping_chains(kHosts, "input");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].table + " " + found[0].chain, "mine in");
  EXPECT_EQ(commands_to_pass(found[0]),
            "nft insert rule inet mine in iifname '\"mwv*\"' ct status dnat accept");
  EXPECT_EQ(found[1].chain, "filter_INPUT");
}

TEST(DroppingChains, ThatLetInssPassAreNoTrouble) {
  std::string passes = kHosts;
  passes.insert(passes.find("\t\tcounter"), "\t\tiifname \"mwv*\" accept\n");
  EXPECT_EQ(dropping_chains(passes).size(), 3u);
  EXPECT_TRUE(dropping_chains("").empty());
}

TEST(SessionStem, IsAlwaysAName) {
  EXPECT_EQ(session_stem("/usr/sbin/apache2"), "apache2");
  EXPECT_EQ(session_stem("Redis_Server"), "redis-server");
  EXPECT_EQ(session_stem("./7z"), "s7z");
  EXPECT_EQ(session_stem("/"), "s");
  EXPECT_EQ(session_stem("..\n\xc3\xa4"), "s");
  EXPECT_EQ(session_stem("a-very-long-command-name-indeed").size(), 20u);
}

}  // namespace
}  // namespace mw
