// plan.h - what a session's network will look like, decided before anything is made: pure functions
// only.
//
// INVARIANTS  A session owns one slot number. Interface name and addresses follow from it, so that two
//             live sessions never share any of them. A slot is taken only if no route of the host
//             covers its addresses. An INS's uid is one that nobody else has.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "frontend/failure.h"

namespace mw {

struct Reach;  // reach.h

enum class Protocol : uint8_t { tcp, udp };

// One -p argument: a port of the host that leads to a port of the INS.
struct Publish {
  // Numeric address without brackets. Empty: every address of the host; "0.0.0.0" or "::", which only an
  // inherited socket has: every one of that family.
  std::string host;
  uint16_t port = 0;
  uint16_t ins_port = 0;
  Protocol protocol = Protocol::tcp;
};

// [HOST:]PORT[:INSPORT][/tcp|/udp]; an IPv6 HOST stands in brackets.
Outcome<Publish> parse_publish(const std::string& text);
std::string to_string(const Publish& p);
bool is_every_address(const std::string& host);
// Whether it leads from addresses of that family to the INS.
bool leads_from(const Publish& p, bool v6);
// Whether one packet could be meant by both.
bool overlap(const Publish& a, const Publish& b);

// The host's routes, as `ip route show table all` prints them, reduced to what they cover.
struct Prefix {
  bool v6 = false;
  uint8_t address[16] = {};  // the first 4 bytes for IPv4
  unsigned bits = 0;
};
std::vector<Prefix> parse_routes(const std::string& text);

struct AddressPlan {
  unsigned slot = 0;
  std::string link;   // host end of the veth pair
  std::string host4;  // addresses without prefix length; /30
  std::string ins4;
  std::string host6;  // /126; empty if the host has no IPv6
  std::string ins6;
  unsigned ins_uid = 0;
};

constexpr unsigned kPrefix4 = 30;
constexpr unsigned kPrefix6 = 126;
constexpr const char* kLinkPrefix = "mwv";
constexpr const char* kInsInterface = "eth0";  // the INS's end of the pair
constexpr unsigned kMaxSlots = 4096;

// The lowest free slot whose addresses no route covers.
// Errors: none is left (every slot taken, or the host routes all the pools).
Outcome<AddressPlan> choose_addresses(const std::vector<Prefix>& routes,
                                      const std::set<unsigned>& taken, bool v6);

// The lowest free slot for a session without a network of its own.
AddressPlan choose_slot(const std::set<unsigned>& taken);

// Interfaces on which we had to turn forwarding on ourselves: between them nothing may start to
// flow.
struct GuardedLinks {
  std::vector<std::string> v4;
  std::vector<std::string> v6;
  bool all_v6 = false;  // the switch is global: also those to come
};
// Both together, each link once.
GuardedLinks merged(const GuardedLinks& a, const GuardedLinks& b);
// What the tables of all sessions guard, of this base and of others, as `nft list ruleset` prints them.
GuardedLinks guarded_in(const std::string& ruleset);

// The session's one nftables table, ready for `nft -f -`: filled and active in one transaction.
std::string ruleset(const std::string& table, const AddressPlan& plan,
                    const std::vector<Publish>& published, const Reach& reach,
                    const GuardedLinks& guarded);

// A chain of the host's own that drops packets, so that nothing reaches an INS through it, or an INS not
// what --to-host opened.
struct DroppingChain {
  std::string family;
  std::string table;
  std::string chain;
  std::string manager;  // who made it, as far as its name tells: "docker", "ufw", "firewalld" or ""
  std::string hook;
};
// From what `nft list ruleset` prints, those of this hook: "forward" or "input". A table that speaks of
// INSs' interfaces is taken for one that lets them pass.
std::vector<DroppingChain> dropping_chains(const std::string& ruleset,
                                           const std::string& hook = "forward");
// The commands that let INSs' packets pass there.
std::string commands_to_pass(const DroppingChain& chain);

// The table that guards the links alone, when the sessions that turned them on have ended and those of
// another base go on.
constexpr const char* kGuardTable = "mw_guard";
std::string guard_ruleset(const GuardedLinks& guarded);

// "apache2" from "/usr/sbin/apache2": lower case letters, digits and dashes, at most 20 of them.
std::string session_stem(const std::string& command);

}  // namespace mw
