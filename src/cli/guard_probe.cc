#include "cli/guard_probe.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "cli/engine.h"
#include "netflow/address.h"

namespace mw {
namespace {

using netflow::Sample;

// Where a page may be asked for: a connection alone says little, as the stack accepts it by itself.
bool is_web(const Sample& listener) {
  constexpr std::array<uint16_t, 5> kPorts = {80, 8000, 8008, 8080, 8081};
  constexpr std::array<std::string_view, 7> kServers = {"apache2", "httpd",   "nginx",   "lighttpd",
                                                        "caddy",   "haproxy", "varnishd"};
  const std::string command = netflow::command_text(listener.command);
  return std::find(kPorts.begin(), kPorts.end(), listener.local.port) != kPorts.end() ||
         (listener.local.port != 443 &&
          std::find(kServers.begin(), kServers.end(), command) != kServers.end());
}

const Publish* published(const SessionRecord& session, uint16_t port) {
  for (const Publish& p : session.published)
    if (p.protocol == Protocol::tcp && p.ins_port == port) return &p;
  return nullptr;
}

std::string with_port(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// From outside of the session's namespace, the way that clients take.
std::string way_to(const SessionRecord& session, const Sample& listener) {
  const uint16_t port = listener.local.port;
  if (session.isolated) {
    const Publish* const p = published(session, port);
    if (p == nullptr) return with_port(session.plan.ins4, port);
    if (!is_every_address(p->host)) return with_port(p->host, p->port);
    // No rule leads from the host's ::1.
    return leads_from(*p, false) ? with_port("127.0.0.1", p->port)
                                 : with_port(session.plan.ins6, port);
  }
  const auto& bytes = listener.local.address.bytes;
  const bool any = std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
  return with_port(any ? "127.0.0.1" : netflow::to_string(listener.local.address), port);
}

}  // namespace

FoundTarget find_target(const SessionRecord& session, const std::vector<Sample>& samples) {
  if (session.host_net != this_network())
    return {std::nullopt, "this is not the network in which the session's clients come in"};
  const Sample* best = nullptr;
  const auto rank = [&](const Sample& s) {
    return std::tuple(published(session, s.local.port) == nullptr, !is_web(s), s.local.port);
  };
  for (const Sample& s : samples) {
    if ((s.flags & netflow::kSampleListener) == 0 || s.type != 1 || s.local.port == 0) continue;
    if (best == nullptr || rank(s) < rank(*best)) best = &s;
  }
  if (best == nullptr) return {std::nullopt, "nothing listens in the session"};
  const std::string text = (is_web(*best) ? "http://" : "") + way_to(session, *best);
  return {guard::parse_target(text), text};
}

}  // namespace mw
