#include "frontend/plan.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>
#include <sys/random.h>

#include <cstdio>
#include <sstream>

#include "frontend/reach.h"

namespace mw {
namespace {

// IPv4 pools, /16 each, tried in turn: private, carrier-grade NAT, private, benchmarking.
constexpr uint32_t kPools4[] = {0x0ad50000, 0x647f0000, 0xac1d0000, 0xc6130000};
// IPv6 unique local /48s; the slot is the subnet number.
constexpr const char* kPools6[] = {"fd6d:7763:6f6d:", "fd9c:4f1b:e2a7:"};
// In none of the ranges from which Debian, systemd or container managers hand out uids. So many that two
// INSs on a host have the same one only by a chance that is not worth a thought; sessions of other
// containers cannot be asked.
constexpr unsigned kFirstUid = 1880000000;
constexpr unsigned kUids = 1u << 27;
// Routes this wide are a default route in disguise (a VPN's 0.0.0.0/1), not somebody's network.
constexpr unsigned kWidestRoute = 4;

Outcome<uint16_t> parse_port(const std::string& whole, const std::string& text) {
  unsigned value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') value = 65536;
    if (value < 65536) value = value * 10 + static_cast<unsigned>(c - '0');
  }
  if (text.empty() || value == 0 || value > 65535) {
    return Failure{"publish '" + whole + "'", "'" + text + "' is not a port number from 1 to 65535",
                   "write [HOST:]PORT[:INSPORT][/udp]"};
  }
  return static_cast<uint16_t>(value);
}

unsigned some_uid() {
  unsigned number = 0;
  // Never fails for so few bytes, and a front end that begins is no hurry.
  while (::getrandom(&number, sizeof number, 0) != sizeof number) continue;
  return kFirstUid + number % kUids;
}

bool is_number(const std::string& s) {
  return !s.empty() && s.find_first_not_of("0123456789") == std::string::npos;
}

bool covers(const Prefix& route, const Prefix& ours) {
  if (route.v6 != ours.v6) return false;
  const unsigned bits = route.bits < ours.bits ? route.bits : ours.bits;
  for (unsigned i = 0; i < bits; ++i) {
    const unsigned byte = i / 8;
    const unsigned mask = 0x80u >> (i % 8);
    if (((route.address[byte] ^ ours.address[byte]) & mask) != 0) return false;
  }
  return true;
}

bool collides(const std::vector<Prefix>& routes, const Prefix& ours) {
  for (const Prefix& route : routes) {
    if (covers(route, ours)) return true;
  }
  return false;
}

std::string text4(uint32_t address) {
  const in_addr in{htonl(address)};
  char buffer[INET_ADDRSTRLEN];
  return ::inet_ntop(AF_INET, &in, buffer, sizeof(buffer));
}

bool place4(const std::vector<Prefix>& routes, unsigned slot, AddressPlan* plan) {
  for (const uint32_t pool : kPools4) {
    const uint32_t base = pool + slot * 4;
    Prefix ours{false, {}, kPrefix4};
    const uint32_t wire = htonl(base);
    ::memcpy(ours.address, &wire, sizeof(wire));
    if (collides(routes, ours)) continue;
    plan->host4 = text4(base + 1);
    plan->ins4 = text4(base + 2);
    return true;
  }
  return false;
}

bool place6(const std::vector<Prefix>& routes, unsigned slot, AddressPlan* plan) {
  for (const char* pool : kPools6) {
    char base[INET6_ADDRSTRLEN];
    std::snprintf(base, sizeof(base), "%s%x::", pool, slot);
    Prefix ours{true, {}, kPrefix6};
    if (::inet_pton(AF_INET6, base, ours.address) != 1 || collides(routes, ours)) continue;
    char text[INET6_ADDRSTRLEN];
    ours.address[15] = 1;
    plan->host6 = ::inet_ntop(AF_INET6, ours.address, text, sizeof(text));
    ours.address[15] = 2;
    plan->ins6 = ::inet_ntop(AF_INET6, ours.address, text, sizeof(text));
    return true;
  }
  return false;
}

std::string quoted_set(const std::vector<std::string>& names) {
  std::string s = "{ ";
  for (const std::string& name : names) s += (s.size() > 2 ? ", \"" : "\"") + name + "\"";
  return s + " }";
}

// `local` rules see packets that the host itself sends. There ::1 is left out: a packet cannot
// leave the loopback interface with ::1 as its source, so it would vanish; without a rule it is
// refused at once and clients go on to 127.0.0.1.
void publish_rules(std::ostringstream& out, const AddressPlan& plan, const Publish& p, bool local) {
  const bool every = is_every_address(p.host);
  const std::string proto = p.protocol == Protocol::udp ? "udp" : "tcp";
  // Only what begins: a connection that the host's stack has at that port goes on.
  const std::string begins =
      p.protocol == Protocol::udp ? "" : "tcp flags & (fin | syn | rst | ack) == syn ";
  const std::string match = begins + proto + " dport " + std::to_string(p.port);
  const std::string port = std::to_string(p.ins_port);
  if (leads_from(p, false)) {
    const std::string where =
        every ? "meta nfproto ipv4 fib daddr type local" : "ip daddr " + p.host;
    out << "    " << where << " " << match << " dnat ip to " << plan.ins4 << ":" << port << "\n";
  }
  // What a session is led to at the host's loopback (reach.h) may be what this one publishes there.
  const bool on_loopback = leads_from(p, false) && (every || is_loopback4(p.host));
  if (!local && on_loopback) {
    const std::string where = every ? "127.0.0.0/8" : p.host;
    out << "    iifname \"" << kLinkPrefix << "*\" ip daddr " << address_on_links(where) << " "
        << match << " dnat ip to " << plan.ins4 << ":" << port << "\n";
  }
  if (plan.ins6.empty()) return;
  if (leads_from(p, true)) {
    const std::string where =
        every ? "meta nfproto ipv6 fib daddr type local" : "ip6 daddr " + p.host;
    const std::string not_loopback = local ? " ip6 daddr != ::1" : "";
    out << "    " << where << not_loopback << " " << match << " dnat ip6 to [" << plan.ins6
        << "]:" << port << "\n";
  }
}

// Between interfaces on which we have turned forwarding on nothing begins to flow.
std::string guard_rules(const GuardedLinks& guarded) {
  std::ostringstream out;
  const std::string beyond = " oifname != \"" + std::string(kLinkPrefix) + "*\" drop\n";
  if (!guarded.v4.empty())
    out << "    meta nfproto ipv4 iifname " << quoted_set(guarded.v4) << beyond;
  if (guarded.all_v6)
    out << "    meta nfproto ipv6 iifname != \"" << kLinkPrefix << "*\"" << beyond;
  else if (!guarded.v6.empty())
    out << "    meta nfproto ipv6 iifname " << quoted_set(guarded.v6) << beyond;
  return out.str();
}

void add_names(const std::string& line, std::vector<std::string>* out) {
  // iifname "eth0" oifname ..., or iifname { "eth0", "eth1" } oifname ...
  const size_t end = line.find(" oifname ");
  for (size_t at = line.find('"'); at < end; at = line.find('"', at + 1)) {
    const size_t close = line.find('"', at + 1);
    if (close == std::string::npos) return;
    out->push_back(line.substr(at + 1, close - at - 1));
    at = close;
  }
}

}  // namespace

GuardedLinks merged(const GuardedLinks& a, const GuardedLinks& b) {
  const auto both = [](const std::vector<std::string>& x, const std::vector<std::string>& y) {
    std::set<std::string> all(x.begin(), x.end());
    all.insert(y.begin(), y.end());
    return std::vector<std::string>(all.begin(), all.end());
  };
  return {both(a.v4, b.v4), both(a.v6, b.v6), a.all_v6 || b.all_v6};
}

GuardedLinks guarded_in(const std::string& ruleset) {
  const std::string beyond = " oifname != \"" + std::string(kLinkPrefix) + "*\" drop";
  GuardedLinks out;
  bool ours = false;
  std::istringstream lines(ruleset);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, 6, "table ") == 0) ours = line.compare(0, 14, "table inet mw_") == 0;
    if (!ours || line.find(beyond) == std::string::npos) continue;
    const size_t names = line.find("iifname ");
    if (names == std::string::npos) continue;
    const bool all = line.compare(names, 10, "iifname !=") == 0;
    if (line.find("nfproto ipv4") != std::string::npos) add_names(line.substr(names), &out.v4);
    if (line.find("nfproto ipv6") == std::string::npos) continue;
    if (all)
      out.all_v6 = true;
    else
      add_names(line.substr(names), &out.v6);
  }
  return out;
}

std::string guard_ruleset(const GuardedLinks& guarded) {
  return "table inet " + std::string(kGuardTable) + " {}\ndelete table inet " + kGuardTable +
         "\ntable inet " + kGuardTable +
         " {\n  chain pass {\n    type filter hook forward priority filter; policy accept;\n" +
         guard_rules(guarded) + "  }\n}\n";
}

Outcome<Publish> parse_publish(const std::string& text) {
  const Failure malformed{"publish '" + text + "'", "it is not [HOST:]PORT[:INSPORT][/udp]",
                          "for example -p 8080:80 or -p 127.0.0.1:5353:53/udp"};
  Publish p;
  std::string rest = text;
  const size_t slash = rest.rfind('/');
  if (slash != std::string::npos) {
    const std::string protocol = rest.substr(slash + 1);
    if (protocol != "udp" && protocol != "tcp") return malformed;
    if (protocol == "udp") p.protocol = Protocol::udp;
    rest.resize(slash);
  }
  if (!rest.empty() && rest[0] == '[') {
    const size_t close = rest.find(']');
    if (close == std::string::npos || close + 1 >= rest.size() || rest[close + 1] != ':') {
      return malformed;
    }
    p.host = rest.substr(1, close - 1);
    in6_addr address;
    if (::inet_pton(AF_INET6, p.host.c_str(), &address) != 1) return malformed;
    if (IN6_IS_ADDR_LOOPBACK(&address)) {
      return Failure{"publish '" + text + "'",
                     "the kernel keeps ::1 on the loopback interface, so nothing can lead from it "
                     "to the INS",
                     "use 127.0.0.1, or another IPv6 address of this host"};
    }
    if (IN6_IS_ADDR_V4MAPPED(&address)) {
      return Failure{"publish '" + text + "'", "it is an IPv4 address in IPv6 clothes",
                     "write the IPv4 address itself"};
    }
    rest.erase(0, close + 2);
  } else {
    const std::string first = rest.substr(0, rest.find(':'));
    if (!is_number(first)) {
      in_addr address;
      if (::inet_pton(AF_INET, first.c_str(), &address) != 1) return malformed;
      if (first.size() == rest.size()) return malformed;
      p.host = first;
      rest.erase(0, first.size() + 1);
    }
  }
  if (p.host == "0.0.0.0" || p.host == "::") p.host.clear();
  const size_t colon = rest.find(':');
  auto port = parse_port(text, rest.substr(0, colon));
  if (!port) return port.error();
  p.port = *port;
  auto ins_port = colon == std::string::npos ? port : parse_port(text, rest.substr(colon + 1));
  if (!ins_port) return ins_port.error();
  p.ins_port = *ins_port;
  return p;
}

std::string to_string(const Publish& p) {
  const bool v6 = p.host.find(':') != std::string::npos;
  std::string s = p.host.empty() ? "*" : v6 ? "[" + p.host + "]" : p.host;
  s += ":" + std::to_string(p.port) + " -> INS port " + std::to_string(p.ins_port);
  return s + (p.protocol == Protocol::udp ? "/udp" : "/tcp");
}

bool is_every_address(const std::string& host) {
  return host.empty() || host == "0.0.0.0" || host == "::";
}

bool leads_from(const Publish& p, bool v6) {
  return p.host.empty() || v6 == (p.host.find(':') != std::string::npos);
}

bool overlap(const Publish& a, const Publish& b) {
  if (a.port != b.port || a.protocol != b.protocol) return false;
  if (!(leads_from(a, false) && leads_from(b, false)) &&
      !(leads_from(a, true) && leads_from(b, true)))
    return false;
  return a.host == b.host || is_every_address(a.host) || is_every_address(b.host);
}

std::vector<Prefix> parse_routes(const std::string& text) {
  static const std::set<std::string> kTypes = {"unicast",     "local",    "broadcast",
                                               "multicast",   "throw",    "anycast",
                                               "unreachable", "prohibit", "blackhole"};
  std::vector<Prefix> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (kTypes.count(word) != 0) words >> word;
    const size_t slash = word.find('/');
    const std::string address = word.substr(0, slash);
    Prefix p;
    if (::inet_pton(AF_INET, address.c_str(), p.address) == 1) {
      p.bits = 32;
    } else if (::inet_pton(AF_INET6, address.c_str(), p.address) == 1) {
      p.v6 = true;
      p.bits = 128;
    } else {
      continue;  // "default", or a continuation line of a multipath route
    }
    if (slash != std::string::npos) {
      unsigned bits = 0;
      if (std::sscanf(word.c_str() + slash, "/%u", &bits) == 1 && bits < p.bits) p.bits = bits;
    }
    if (p.bits >= kWidestRoute) out.push_back(p);
  }
  return out;
}

AddressPlan choose_slot(const std::set<unsigned>& taken) {
  AddressPlan plan;
  while (taken.count(plan.slot) != 0) ++plan.slot;
  plan.ins_uid = some_uid();
  return plan;
}

Outcome<AddressPlan> choose_addresses(const std::vector<Prefix>& routes,
                                      const std::set<unsigned>& taken, bool v6) {
  for (unsigned slot = 0; slot < kMaxSlots; ++slot) {
    if (taken.count(slot) != 0) continue;
    AddressPlan plan;
    plan.slot = slot;
    plan.link = kLinkPrefix + std::to_string(slot);
    plan.ins_uid = some_uid();
    if (!place4(routes, slot, &plan)) continue;
    if (v6 && !place6(routes, slot, &plan)) continue;
    return plan;
  }
  return Failure{"choose addresses for the INS",
                 "the host has routes to 10.213.0.0/16, 100.127.0.0/16, 172.29.0.0/16 and "
                 "198.19.0.0/16, or too many sessions run",
                 "end some sessions or use --net host"};
}

std::string ruleset(const std::string& table, const AddressPlan& plan,
                    const std::vector<Publish>& published, const Reach& reach,
                    const GuardedLinks& guarded) {
  const std::string link = "\"" + plan.link + "\"";
  std::ostringstream out;
  out << "table inet " << table
      << " {\n"
      // What comes out of the INS carries the INS's address, and never names the host's loopback
      // (route_localnet would let it): what may reach it is led there later.
      << "  chain early {\n    type filter hook prerouting priority raw; policy accept;\n"
      << "    iifname " << link << " ip daddr 127.0.0.0/8 drop\n"
      << "    iifname " << link << " ip saddr != " << plan.ins4 << " drop\n";
  if (!plan.ins6.empty())
    out << "    iifname " << link << " ip6 saddr != { ::, fe80::/10, " << plan.ins6 << " } drop\n";
  out << "  }\n"
      << reach_rules(plan, published, reach)
      << "  chain publish {\n    type nat hook prerouting priority dstnat; policy accept;\n";
  for (const Publish& p : published) publish_rules(out, plan, p, false);
  out << "  }\n  chain publish_local {\n    type nat hook output priority -100; policy accept;\n";
  for (const Publish& p : published) publish_rules(out, plan, p, true);
  out << "  }\n  chain leave {\n    type nat hook postrouting priority srcnat; policy accept;\n"
      << "    oifname " << link << " ip saddr 127.0.0.0/8 masquerade\n"
      << "    ip saddr " << plan.ins4 << " masquerade\n";
  if (!plan.ins6.empty()) out << "    ip6 saddr " << plan.ins6 << " masquerade\n";
  // Through the host only published ports lead to the INS.
  out << "  }\n  chain pass {\n    type filter hook forward priority filter; policy accept;\n"
      << guard_rules(guarded) << "    oifname " << link << " ct state established,related accept\n"
      << "    oifname " << link << " ct status dnat accept\n"
      << "    oifname " << link << " drop\n  }\n}\n";
  return out.str();
}

std::vector<DroppingChain> dropping_chains(const std::string& ruleset, const std::string& hook) {
  struct Table {
    std::string family, name, text;
  };
  std::vector<Table> tables;
  std::istringstream lines(ruleset);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first, family, name;
    if (line.compare(0, 6, "table ") == 0 && words >> first >> family >> name)
      tables.push_back({family, name, {}});
    else if (!tables.empty())
      tables.back().text += line + "\n";
  }
  std::vector<DroppingChain> out;
  for (const Table& t : tables) {
    if (t.text.find(kLinkPrefix) != std::string::npos) continue;
    if (t.name == "firewalld") {
      out.push_back({t.family, t.name, hook == "input" ? "filter_INPUT" : "filter_FORWARD",
                     "firewalld", hook});
      continue;
    }
    std::istringstream inside(t.text);
    std::string chain;
    for (std::string line; std::getline(inside, line);) {
      std::istringstream words(line);
      std::string first, name;
      if (words >> first >> name && first == "chain") chain = name;
      if (line.find(" hook " + hook + " ") == std::string::npos ||
          line.find("policy drop") == std::string::npos)
        continue;
      const bool docker = t.text.find("chain DOCKER-USER") != std::string::npos;
      const bool ufw = t.text.find("chain ufw-") != std::string::npos;
      out.push_back({t.family, t.name, chain, docker ? "docker" : ufw ? "ufw" : "", hook});
    }
  }
  return out;
}

std::string commands_to_pass(const DroppingChain& chain) {
  const std::string links = std::string(kLinkPrefix) + "*";
  if (chain.manager == "firewalld")
    return "firewall-cmd --permanent --zone=trusted --add-interface=" + std::string(kLinkPrefix) +
           "+ && firewall-cmd --reload";
  const bool forwards = chain.hook == "forward";
  const std::string into = chain.manager == "docker" && forwards ? "DOCKER-USER" : chain.chain;
  const std::string insert = "nft insert rule " + chain.family + " " + chain.table + " " + into;
  // Only what a session was led to: what else an INS sends to the host is none of its business.
  if (!forwards) return insert + " iifname '\"" + links + "\"' ct status dnat accept";
  return insert + " iifname '\"" + links + "\"' accept && " + insert + " oifname '\"" + links +
         "\"' accept";
}

std::string session_stem(const std::string& command) {
  constexpr size_t kLongest = 20;
  std::string stem;
  for (const char c : command.substr(command.rfind('/') + 1)) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (stem.size() == kLongest) break;
    stem += ::isalnum(u) != 0 && u < 128 ? static_cast<char>(::tolower(u)) : '-';
  }
  while (!stem.empty() && stem[0] == '-') stem.erase(0, 1);
  if (stem.empty() || ::isalpha(static_cast<unsigned char>(stem[0])) == 0) stem.insert(0, "s");
  return stem;
}

}  // namespace mw
