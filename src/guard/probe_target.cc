#include "guard/probe_target.h"

#include <algorithm>

namespace mw::guard {
namespace {

constexpr std::string_view kHttp = "http://";

bool printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

std::optional<ProbeTarget> parse_target(const std::string& text) {
  ProbeTarget t;
  std::string where = text;
  if (text.starts_with(kHttp)) {
    const size_t slash = text.find('/', kHttp.size());
    where = text.substr(kHttp.size(), slash == std::string::npos ? slash : slash - kHttp.size());
    if (slash != std::string::npos) t.path = text.substr(slash);
    t.http = true;
    t.host = where;
    const size_t colon = where.rfind(':');
    const size_t bracket = where.rfind(']');
    const bool port =
        colon != std::string::npos && (bracket == std::string::npos || colon > bracket);
    if (!port) where += ":80";
  }
  const auto address = netflow::parse_socket_address(where);
  if (!address || address->family() == AF_UNIX || !printable(t.path)) return std::nullopt;
  t.address = *address;
  return t;
}

std::string to_string(const ProbeTarget& target) {
  return target.http ? std::string(kHttp) + target.host + target.path
                     : netflow::to_string(target.address);
}

}  // namespace mw::guard
