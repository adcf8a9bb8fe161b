// resolv_conf.h - how this system looks host names up: /etc/nsswitch.conf, /etc/resolv.conf and the
// two variables of the environment that change it, read as the C library reads them. Pure.
#pragma once

#include <netinet/in.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mw {

// What a service says to a question.
enum class NameStatus : uint8_t { success, not_found, unavailable, try_again };

struct NameService {
  enum class Kind : uint8_t { files, dns, other };
  Kind kind = Kind::other;
  std::array<bool, 4> ends{true, false, false, false};  // by NameStatus: no service after this one

  bool ends_with(NameStatus status) const { return ends[static_cast<size_t>(status)]; }
};

// The services for hosts, in their order. Those that are not files or DNS are named, so that their
// actions count, and are never there.
std::vector<NameService> parse_nsswitch(const std::string& text);

struct NameServer {
  int family = AF_INET;
  in_addr v4{};
  in6_addr v6{};
};
// As many as the C library asks; what follows is not read.
constexpr size_t kMaxNameServers = 3;

struct ResolvConf {
  std::vector<NameServer> servers;  // never empty: where none is named it is this system's own
  int timeout = 5;                  // seconds for each server
  int attempts = 2;
  int ndots = 1;
  bool rotate = false;
  bool edns0 = false;
  bool use_vc = false;
  bool no_tld_query = false;
  std::vector<std::string> search;
};

// `res_options`, `localdomain`: the variables' values, null if they are not set. `host`: this
// system's name, whose domain is searched if nothing else is said.
ResolvConf parse_resolv_conf(const std::string& text, const char* res_options,
                             const char* localdomain, const std::string& host);

// What is asked for a name, one after the other, and which of them is the name as it stands.
struct SearchNames {
  std::vector<std::string> names;
  size_t as_it_stands = SIZE_MAX;
};
SearchNames search_names(const std::string& name, int ndots, bool no_tld_query,
                         const std::vector<std::string>& domains);

}  // namespace mw
