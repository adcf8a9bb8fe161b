// availability.h - from probes to "served", "degraded" or "denied", with hysteresis. Pure.
#pragma once

#include <cstdint>
#include <optional>

#include "guard/decision.h"
#include "guard/rules.h"

namespace mw::guard {

// A probe is served or refused, or it is late first and then slow or timed out.
enum class Fate : uint8_t {
  served,   // in time
  late,     // no answer yet
  slow,     // a late answer
  refused,  // an error, or an answer that is one
  timeout,
};
const char* to_string(Fate f);

struct ProbeResult {
  int64_t begun_ns = 0;
  int64_t known_ns = 0;
  Fate fate = Fate::served;
  double ms = 0;  // from the beginning to the first byte, or until this was known
};

class Availability {
 public:
  explicit Availability(const ProbeRules& rules) : rules_(rules) {}

  // pressed: the samples look like trouble as well, so that one bad probe is enough. True if the
  // state is another now.
  bool add(const ProbeResult& r, bool pressed);
  Service state() const { return state_; }
  // The first of the bad probes that made it so; 0 while it is served.
  int64_t bad_since_ns() const { return bad_since_ns_; }
  const ProbeResult& last() const { return last_; }

 private:
  ProbeRules rules_;
  Service state_ = Service::served;
  ProbeResult last_;
  uint32_t bad_ = 0;        // in a row
  uint32_t no_answer_ = 0;  // in a row
  int64_t bad_since_ns_ = 0;
  int64_t good_since_ns_ = 0;
};

}  // namespace mw::guard
