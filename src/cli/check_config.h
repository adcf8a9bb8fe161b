// check_config.h - `mw check-config`.
#pragma once

#include <string>

#include "cli/exit_status.h"

namespace mw {

// Says what is wrong with a configuration file, each fault with its place; nothing if it is right.
// As text it goes to stderr, like a compiler's.
ExitStatus check_config(const std::string& path, bool json);

}  // namespace mw
