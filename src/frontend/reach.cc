#include "frontend/reach.h"

#include <arpa/inet.h>
#include <string.h>

#include <algorithm>
#include <sstream>

namespace mw {
namespace {

constexpr const char* kEgressForm =
    "say any, none, or a list of dns and networks such as "
    "dns,192.0.2.0/24,2001:db8::/32";
constexpr const char* kToHostForm = "for example --to-host 3306 or --to-host 25,53/udp";
constexpr const char* kOnLinks = "247";  // for 127: class E, which is assigned to no network
constexpr unsigned kDns = 53;

// Where clouds answer questions about the host, credentials among them, and the hosts of a single link.
// An address of these, or a range within, is meant if it is named; a range around them is not.
constexpr const char* kNever4[] = {"169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32",
                                   "247.0.0.0/8"};
constexpr const char* kNever6[] = {"fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128"};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  for (size_t at = 0;;) {
    const size_t comma = text.find(',', at);
    out.push_back(text.substr(at, comma - at));
    if (comma == std::string::npos) return out;
    at = comma + 1;
  }
}

bool parse_number(const std::string& text, unsigned most, unsigned* out) {
  if (text.empty() || text.size() > 5 || text.find_first_not_of("0123456789") != std::string::npos)
    return false;
  *out = static_cast<unsigned>(std::stoul(text));
  return *out <= most;
}

// The bytes of a Prefix need not stand as an in6_addr has to.
in6_addr address6(const Prefix& p) {
  in6_addr out;
  ::memcpy(&out, p.address, sizeof out);
  return out;
}

bool parse_address(const std::string& text, Prefix* out) {
  *out = Prefix{};
  out->bits = 32;
  if (::inet_pton(AF_INET, text.c_str(), out->address) == 1) return true;
  out->v6 = true;
  out->bits = 128;
  return ::inet_pton(AF_INET6, text.c_str(), out->address) == 1;
}

std::string address_text(const Prefix& p) {
  char text[INET6_ADDRSTRLEN];
  return ::inet_ntop(p.v6 ? AF_INET6 : AF_INET, p.address, text, sizeof text);
}

unsigned whole(const Prefix& p) {
  return p.v6 ? 128 : 32;
}

std::string prefix_text(const Prefix& p) {
  return address_text(p) + (p.bits == whole(p) ? "" : "/" + std::to_string(p.bits));
}

// The network that the address is in.
Prefix masked(Prefix p) {
  for (unsigned i = p.bits; i < whole(p); ++i)
    p.address[i / 8] = static_cast<uint8_t>(p.address[i / 8] & ~(0x80u >> (i % 8)));
  return p;
}

bool is_within(const Prefix& inner, const Prefix& outer) {
  if (inner.v6 != outer.v6 || inner.bits < outer.bits) return false;
  Prefix cut = inner;
  cut.bits = outer.bits;
  return ::memcmp(masked(cut).address, outer.address, sizeof outer.address) == 0;
}

Outcome<Prefix> parse_destination(const std::string& whole_text, const std::string& text) {
  const std::string step = "take --egress '" + whole_text + "'";
  Prefix p;
  const size_t slash = text.find('/');
  if (!parse_address(text.substr(0, slash), &p))
    return Failure{step, "'" + text + "' is neither a network nor any, none or dns", kEgressForm};
  const in6_addr v6 = address6(p);
  if (p.v6 && IN6_IS_ADDR_V4MAPPED(&v6))
    return Failure{step, "'" + text + "' is an IPv4 address in IPv6 clothes",
                   "write the IPv4 address itself"};
  if (slash == std::string::npos) return p;
  unsigned bits = 0;
  if (!parse_number(text.substr(slash + 1), p.bits, &bits))
    return Failure{
        step,
        "'" + text + "' has no number from 0 to " + std::to_string(p.bits) + " behind its slash",
        kEgressForm};
  p.bits = bits;
  const Prefix network = masked(p);
  if (::memcmp(network.address, p.address, sizeof p.address) != 0)
    return Failure{step, "'" + text + "' has bits beyond its prefix",
                   "write the network, " + prefix_text(network) + ", or the address alone, " +
                       address_text(p)};
  return p;
}

const char* name_of(Protocol protocol) {
  return protocol == Protocol::udp ? "udp" : "tcp";
}

bool is_passage(const std::vector<Passage>& all, const Passage& one) {
  return std::any_of(all.begin(), all.end(), [&one](const Passage& p) {
    return p.protocol == one.protocol && p.port == one.port && p.address == one.address;
  });
}

// "{ a, b }"; without those that another one covers: intervals of a set do not overlap.
std::string set_of(const std::vector<Prefix>& prefixes) {
  std::vector<Prefix> kept;
  for (const Prefix& p : prefixes) {
    const auto covers = [&p](const Prefix& other) { return is_within(p, other); };
    if (std::any_of(kept.begin(), kept.end(), covers)) continue;
    std::erase_if(kept, [&p](const Prefix& other) { return is_within(other, p); });
    kept.push_back(p);
  }
  std::string out = "{ ";
  for (const Prefix& p : kept) out += (out.size() > 2 ? ", " : "") + prefix_text(p);
  return out + " }";
}

// A rule for these destinations of each family; none for a family without any.
void add_rules(std::ostringstream& out, const std::vector<Prefix>& to, const std::string& rest) {
  for (const bool v6 : {false, true}) {
    std::vector<Prefix> some;
    bool everything = false;
    for (const Prefix& p : to) {
      if (p.v6 != v6) continue;
      some.push_back(p);
      everything = everything || p.bits == 0;
    }
    if (some.empty()) continue;
    if (everything)
      out << "    meta nfproto " << (v6 ? "ipv6" : "ipv4") << rest << "\n";
    else
      out << "    " << (v6 ? "ip6" : "ip") << " daddr " << set_of(some) << rest << "\n";
  }
}

std::vector<Prefix> prefixes_of(const char* const* begin, const char* const* end) {
  std::vector<Prefix> out;
  for (; begin != end; ++begin) {
    if (auto p = parse_destination(*begin, *begin)) out.push_back(*p);
  }
  return out;
}

std::vector<Prefix> never() {
  std::vector<Prefix> out = prefixes_of(std::begin(kNever4), std::end(kNever4));
  const std::vector<Prefix> more = prefixes_of(std::begin(kNever6), std::end(kNever6));
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

// One host, or hosts that are never meant but by name.
bool is_meant(const Prefix& p) {
  if (p.bits == whole(p)) return true;
  const std::vector<Prefix> all = never();
  return std::any_of(all.begin(), all.end(), [&p](const Prefix& n) { return is_within(p, n); });
}

// Those that packets can be sent to: not of a loopback, not of a link.
std::vector<Prefix> distant_name_servers(const Reach& reach) {
  std::vector<Prefix> out;
  for (const std::string& text : reach.name_servers) {
    Prefix p;
    if (parse_address(text, &p) && !is_loopback4(text)) out.push_back(p);
  }
  return out;
}

bool asks_name_servers(const Reach& reach) {
  switch (reach.egress.kind) {
    case Egress::Kind::any:
      return true;
    case Egress::Kind::none:
      return false;
    case Egress::Kind::only:
      // They stand in for a resolver of the host's loopback, which every policy but none reaches.
      return reach.egress.dns || !reach.stubs.empty();
  }
  return false;
}

// Its own published ports, through the host's addresses.
void own_ports(std::ostringstream& out, const std::vector<Publish>& published) {
  for (const Publish& p : published) {
    const bool v6 = p.host.find(':') != std::string::npos;
    std::string where = (v6 ? "ip6 daddr " : "ip daddr ") + p.host;
    if (is_every_address(p.host)) where = "fib daddr type local";
    if (is_every_address(p.host) && !p.host.empty())
      where = std::string("meta nfproto ") + (v6 ? "ipv6 " : "ipv4 ") + where;
    out << "    " << where << " " << name_of(p.protocol) << " dport " << p.port << " accept\n";
  }
}

void egress_chain(std::ostringstream& out, const std::vector<Publish>& published,
                  const std::vector<Passage>& led, const Reach& reach, const std::string& link) {
  // Before destinations are translated: what counts is whom the INS named.
  out << "  chain egress {\n    type filter hook prerouting priority dstnat - 10; policy accept;\n"
      << "    iifname != " << link
      << " accept\n"
      // Without neighbours there is no IPv6. They are never forwarded.
      << "    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n"
      // A reset in answer to what belongs to no connection could end one that is well.
      << "    ct state invalid drop\n"
      // Not `established`: what was begun while the rules were gone would be for ever.
      << "    ct direction reply accept\n    ct state related accept\n    ct status expected "
         "accept\n";
  for (const Passage& p : led)
    out << "    ip daddr " << address_on_links(p.address) << " " << name_of(p.protocol) << " dport "
        << p.port << " accept\n";
  if (asks_name_servers(reach))
    add_rules(out, distant_name_servers(reach),
              " meta l4proto { tcp, udp } th dport " + std::to_string(kDns) + " accept");
  if (reach.egress.kind == Egress::Kind::none) {
    out << "    goto refuse\n  }\n";
    return;
  }
  std::vector<Prefix> meant;
  std::vector<Prefix> ranges;
  for (const Prefix& p : reach.egress.to) (is_meant(p) ? meant : ranges).push_back(p);
  add_rules(out, meant, " accept");
  if (reach.egress.kind == Egress::Kind::any) own_ports(out, published);
  add_rules(out, never(), " goto refuse");
  out << "    fib daddr type { local, anycast, broadcast, multicast } goto refuse\n";
  add_rules(out, ranges, " accept");
  if (reach.egress.kind == Egress::Kind::only) out << "    goto refuse\n";
  out << "  }\n";
}

}  // namespace

Outcome<Egress> parse_egress(const std::string& text) {
  Egress out;
  const std::vector<std::string> words = split(text);
  for (const std::string& word : words) {
    if (word == "any" || word == "none") {
      if (words.size() > 1)
        return Failure{"take --egress '" + text + "'",
                       "'" + word + "' stands alone: nothing can be added to it", kEgressForm};
      out.kind = word == "any" ? Egress::Kind::any : Egress::Kind::none;
      return out;
    }
    out.kind = Egress::Kind::only;
    if (word == "dns") {
      out.dns = true;
      continue;
    }
    auto to = parse_destination(text, word);
    if (!to) return to.error();
    out.to.push_back(*to);
  }
  return out;
}

std::string to_string(const Egress& egress) {
  if (egress.kind == Egress::Kind::any) return "any";
  if (egress.kind == Egress::Kind::none) return "none";
  std::string out = egress.dns ? "dns" : "";
  for (const Prefix& p : egress.to) out += (out.empty() ? "" : ",") + prefix_text(p);
  return out;
}

Outcome<std::vector<HostPort>> parse_to_host(const std::string& text) {
  std::vector<HostPort> out;
  for (const std::string& word : split(text)) {
    const size_t slash = word.find('/');
    const std::string protocol = slash == std::string::npos ? "tcp" : word.substr(slash + 1);
    unsigned port = 0;
    if (!parse_number(word.substr(0, slash), 65535, &port) || port == 0 ||
        (protocol != "tcp" && protocol != "udp"))
      return Failure{"take --to-host '" + text + "'", "'" + word + "' is not PORT[/udp]",
                     kToHostForm};
    out.push_back({static_cast<uint16_t>(port), protocol == "udp" ? Protocol::udp : Protocol::tcp});
  }
  return out;
}

std::string to_string(const std::vector<HostPort>& ports) {
  std::string out;
  for (const HostPort& p : ports)
    out += (out.empty() ? "" : ",") + std::to_string(p.port) +
           (p.protocol == Protocol::udp ? "/udp" : "");
  return out;
}

std::vector<std::string> parse_name_servers(const std::string& resolv_conf) {
  std::vector<std::string> out;
  std::istringstream in(resolv_conf);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string key;
    std::string server;
    if (!(words >> key >> server) || key != "nameserver") continue;
    Prefix p;
    if (parse_address(server.substr(0, server.find('%')), &p)) out.push_back(server);
  }
  if (out.empty()) out.emplace_back("127.0.0.1");
  return out;
}

bool is_loopback4(const std::string& address) {
  // 0.0.0.0 is this host to who connects to it.
  return address.compare(0, 4, "127.") == 0 || address == "0.0.0.0";
}

std::vector<std::string> unreachable_name_servers(const Reach& reach) {
  std::vector<std::string> out;
  for (const std::string& text : reach.name_servers) {
    Prefix p;
    const bool of_a_link = !parse_address(text, &p);  // with the name of an interface
    const in6_addr v6 = address6(p);
    if (of_a_link || (p.v6 && (IN6_IS_ADDR_LOOPBACK(&v6) || IN6_IS_ADDR_LINKLOCAL(&v6))))
      out.push_back(text);
  }
  return out;
}

std::vector<Passage> passages(const Reach& reach, const std::vector<Publish>& published) {
  std::vector<Passage> out;
  const auto add = [&out](const Passage& p) {
    if (!is_passage(out, p)) out.push_back(p);
  };
  for (const HostPort& p : reach.to_host) add({p.protocol, "127.0.0.1", p.port});
  if (reach.egress.kind == Egress::Kind::none) return out;
  for (const std::string& server : reach.name_servers) {
    if (!is_loopback4(server)) continue;
    for (const Protocol protocol : {Protocol::udp, Protocol::tcp}) {
      const auto is_own = [protocol](const Publish& p) {
        return p.ins_port == kDns && p.protocol == protocol;
      };
      if (std::any_of(published.begin(), published.end(), is_own)) continue;
      add({protocol, server == "0.0.0.0" ? "127.0.0.1" : server, kDns});
    }
  }
  return out;
}

std::string address_on_links(const std::string& loopback) {
  return kOnLinks + loopback.substr(loopback.find('.'));
}

std::string reach_rules(const AddressPlan& plan, const std::vector<Publish>& published,
                        const Reach& reach) {
  const std::string link = "\"" + plan.link + "\"";
  const std::string others = "    iifname " + link + " oifname \"" + kLinkPrefix + "*\" ";
  const std::vector<Passage> led = passages(reach, published);
  std::ostringstream out;
  for (const char* v : {"4", "6"})
    out << "  set refused" << v << " {\n    type inet_proto . ipv" << v
        << "_addr . inet_service; size " << kMostRefused
        << "; flags dynamic,timeout; timeout 10m;\n  }\n";
  out << "  quota " << kRefusals << " { until 1 bytes }\n  chain refuse {\n";
  for (const bool v6 : {false, true})
    out << "    meta l4proto { tcp, udp, udplite } update @" << (v6 ? kRefused6 : kRefused4)
        << " { meta l4proto . " << (v6 ? "ip6" : "ip") << " daddr . th dport counter }\n";
  out << "    meta l4proto { tcp, udp, udplite } quota name \"" << kRefusals << "\"\n"
      << "    meta l4proto tcp reject with tcp reset\n"
      << "    reject with icmpx type admin-prohibited\n  }\n";
  egress_chain(out, published, led, reach, link);
  // Other INSs are reached by published ports only, through an address of the host that was asked for.
  out << "  chain apart {\n    type filter hook forward priority filter - 10; policy accept;\n"
      << others << "ct status dnat accept\n"
      << others << "goto refuse\n  }\n";
  if (led.empty()) return out.str();
  // After the ports that sessions publish: what a program of the host reaches at 127.0.0.1 is meant.
  out << "  chain lead {\n    type nat hook prerouting priority dstnat + 10; policy accept;\n";
  for (const Passage& p : led)
    out << "    iifname " << link << " ip daddr " << address_on_links(p.address) << " "
        << name_of(p.protocol) << " dport " << p.port << " dnat ip to " << p.address << ":"
        << p.port << "\n";
  // Services that are for this host alone look at the peer's address too.
  out << "  }\n  chain trusted {\n    type nat hook input priority 100; policy accept;\n"
      << "    iifname " << link << " ip daddr 127.0.0.0/8 snat ip to 127.0.0.1\n  }\n";
  return out.str();
}

std::string passage_chains(const std::vector<Publish>& published, const Reach& reach) {
  std::ostringstream lead;
  for (const Passage& p : passages(reach, published))
    lead << "    ip daddr " << p.address << " " << name_of(p.protocol) << " dport " << p.port
         << " dnat ip to " << address_on_links(p.address) << "\n";
  const std::vector<Prefix> servers = distant_name_servers(reach);
  const auto v4 =
      std::find_if(servers.begin(), servers.end(), [](const Prefix& p) { return !p.v6; });
  if (v4 != servers.end() && asks_name_servers(reach)) {
    for (const std::string& stub : reach.stubs)
      lead << "    ip daddr " << stub << " meta l4proto { tcp, udp } th dport " << kDns
           << " dnat ip to " << address_text(*v4) << "\n";
  }
  if (lead.str().empty()) return "";
  return "  chain lead {\n    type nat hook output priority -100; policy accept;\n" + lead.str() +
         "  }\n  chain leave {\n    type nat hook postrouting priority srcnat; policy accept;\n"
         "    oifname \"eth0\" ip saddr 127.0.0.0/8 masquerade\n  }\n";
}

}  // namespace mw
