// decision.h - what the engine wants done, and by which measured values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "netflow/wire.h"

namespace mw::guard {

enum class Service : uint8_t { served, degraded, denied };
const char* to_string(Service s);

enum class Act : uint8_t {
  close,  // resets one connection
  block,  // resets what a peer has and keeps it out
  cap,    // limits how many connections a peer may have
};
const char* to_string(Act a);

struct Value {
  const char* name;
  double value;
};

struct Decision {
  Act act = Act::close;
  const char* rule = "";
  int64_t socket = 0;      // close only
  netflow::Endpoint peer;  // of a block or a cap the port is 0
  uint64_t value = 0;      // connections of a cap
  uint32_t ttl_s = 0;      // a closed connection stays closed: 0
  std::vector<Value> measured;
  std::vector<Value> limits;
  // The cap on the share of connections forbids it: it is only to be told.
  bool held_back = false;
};

// One line for people, which the session keeps with the rule as well:
// "crowd: connections 131, moving 0; limits: connections 20".
std::string reason_of(const Decision& d);
// As the interface takes it.
netflow::ExtendedRequest request_of(const Decision& d, bool dry_run);

}  // namespace mw::guard
