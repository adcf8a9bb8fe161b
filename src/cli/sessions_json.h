// sessions_json.h - `mw ps --json`.
#pragma once

#include <string>

#include "cli/exit_status.h"

namespace mw {

// One JSON document with every session in `base`, or with the one that is named; mw(1) describes
// it.
ExitStatus print_sessions_json(const std::string& base, const std::string& only);

}  // namespace mw
