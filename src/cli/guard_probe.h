// guard_probe.h - where a session's clients come in, as a probe of the same host can use it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "frontend/session.h"
#include "guard/probe_target.h"
#include "netflow/wire.h"

namespace mw {

struct FoundTarget {
  std::optional<guard::ProbeTarget> target;
  std::string text;  // what it is, or why there is none yet
};

// From the listeners among a round's samples. Nothing while there is none.
FoundTarget find_target(const SessionRecord& session, const std::vector<netflow::Sample>& samples);

}  // namespace mw
