#include "guard/decision.h"

#include <cstdio>

namespace mw::guard {
namespace {

std::string list(const std::vector<Value>& values) {
  std::string text;
  for (const Value& v : values) {
    char number[48];
    std::snprintf(number, sizeof number, "%.6g", v.value);
    text += (text.empty() ? "" : ", ") + std::string(v.name) + " " + number;
  }
  return text;
}

netflow::Feature feature_of(Act a) {
  switch (a) {
    case Act::close:
      return netflow::Feature::is_open;
    case Act::block:
      return netflow::Feature::address_block;
    case Act::cap:
      break;
  }
  return netflow::Feature::peer_cap;
}

}  // namespace

const char* to_string(Service s) {
  constexpr const char* kNames[] = {"served", "degraded", "denied"};
  return kNames[static_cast<size_t>(s)];
}

const char* to_string(Act a) {
  constexpr const char* kNames[] = {"close", "block", "cap"};
  return kNames[static_cast<size_t>(a)];
}

std::string reason_of(const Decision& d) {
  const std::string text =
      std::string(d.rule) + ": " + list(d.measured) + "; limits: " + list(d.limits);
  return text.substr(0, netflow::kMaxReason);
}

netflow::ExtendedRequest request_of(const Decision& d, bool dry_run) {
  netflow::ExtendedRequest e;
  e.request.flags = netflow::kRequestWrite;
  e.request.name = static_cast<uint16_t>(feature_of(d.act));
  if (d.act == Act::close) {
    if (const auto id = netflow::decode_socket(d.socket)) netflow::name_socket(e.request, *id);
  } else {
    e.request.value0 = d.act == Act::block ? 1 : d.value;
    netflow::name_peer(e.request, d.peer.address);
  }
  e.ttl_s = d.ttl_s;
  // If we die, what we did ends.
  e.options = netflow::kEndsWithConnection | (dry_run ? netflow::kDryRun : 0);
  e.reason = reason_of(d);
  return e;
}

}  // namespace mw::guard
