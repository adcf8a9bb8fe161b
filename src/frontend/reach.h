// reach.h - what a session's program reaches by itself: as its options say it, and as rules of nftables.
// Pure functions only.
//
// PROBLEM     An INS is assumed to be taken over. Behind it are the host's own services, those of other
//             sessions, and the addresses at which clouds answer questions about the host: all of them
//             take what comes from the host's address for the host.
// PROMISE     Replies to those who connected go out whatever the policy is. What the INS begins is judged
//             by the destination that it names, each packet anew, before any address is translated. What
//             is refused is refused at once (a reset, or an ICMP error), and counted.
// INVARIANTS  127.0.0.0/8 of the host is reached through passages only. Between the INS and the host
//             127.a.b.c of the host stands as 247.a.b.c, of class E, which no network has. Packets for
//             127.0.0.0/8 that come over a link are dropped before any other rule sees them.
#pragma once

#include <string>
#include <vector>

#include "frontend/plan.h"

namespace mw {

// --egress
struct Egress {
  enum class Kind : uint8_t { any, only, none };
  Kind kind = Kind::any;
  bool dns = false;        // only: port 53 of the name servers
  std::vector<Prefix> to;  // only: these
};
// any, none, or a list of dns and destinations: ADDRESS or ADDRESS/BITS, joined by commas.
Outcome<Egress> parse_egress(const std::string& text);
std::string to_string(const Egress& egress);

// --to-host: a port of the host's 127.0.0.1 that the program reaches under 127.0.0.1.
struct HostPort {
  uint16_t port = 0;
  Protocol protocol = Protocol::tcp;
};
// PORT[/tcp|/udp], joined by commas.
Outcome<std::vector<HostPort>> parse_to_host(const std::string& text);
std::string to_string(const std::vector<HostPort>& ports);

struct Reach {
  Egress egress;
  std::vector<HostPort> to_host;
  std::vector<std::string> name_servers;  // that the INS asks: numeric addresses
  // Name servers of the host's loopback that take nothing from other interfaces: programs that ask them
  // are led to the first of `name_servers`.
  std::vector<std::string> stubs;
};

// The name servers that a resolv.conf names; without any it is 127.0.0.1, as for the C library.
std::vector<std::string> parse_name_servers(const std::string& resolv_conf);
// 127.0.0.0/8
bool is_loopback4(const std::string& address);
// Those that no rule can lead an INS to: of the host's IPv6 loopback, and of a single link.
std::vector<std::string> unreachable_name_servers(const Reach& reach);

// A port of the host's loopback that the program reaches under the same address.
struct Passage {
  Protocol protocol = Protocol::tcp;
  std::string address;  // of 127.0.0.0/8
  uint16_t port = 0;
};
// What --to-host opened, and the name servers of the host's loopback. A session that publishes a name
// server of its own has that one in place of the host's.
std::vector<Passage> passages(const Reach& reach, const std::vector<Publish>& published);

// Under which address the links know one of the host's 127.0.0.0/8.
std::string address_on_links(const std::string& loopback);

// What `ruleset()` has in its table for it: sets, and chains with hooks.
std::string reach_rules(const AddressPlan& plan, const std::vector<Publish>& published,
                        const Reach& reach);
// The names of the sets and of the quota in it. The kernel tells its listeners when the quota is used
// up: at the first refusal after it was reset.
constexpr const char* kRefused4 = "refused4";
constexpr const char* kRefused6 = "refused6";
constexpr const char* kRefusals = "refusals";
constexpr unsigned kMostRefused = 256;  // destinations of a family that are counted

// The INS's own side: the chains of a table in its network namespace. Empty: nothing is led anywhere.
constexpr const char* kPassageTable = "mw_host";
std::string passage_chains(const std::vector<Publish>& published, const Reach& reach);

}  // namespace mw
