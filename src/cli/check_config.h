// check_config.h - `mw check-config`, and how faults of configuration files are told.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/exit_status.h"
#include "frontend/reach.h"
#include "netflow/config.h"

namespace mw {

// What a reader of a configuration file found, as `mw check-config` tells it: on stderr like a
// compiler, with json as one document on standard output.
ExitStatus report_faults(const std::string& path, const std::vector<netflow::ConfigFault>& faults,
                         bool json);
ExitStatus report_unreadable(const std::string& path, const Error& error, bool json);

// What a configuration file says of the session itself.
struct SessionConfig {
  std::vector<netflow::ConfigFault> faults;  // of the whole file
  std::optional<Egress> egress;
  std::optional<std::vector<HostPort>> to_host;
  std::vector<std::string> uncovered;  // ApplicationConfig's
};
// Errors: sys (the file cannot be read).
Result<SessionConfig> read_session_config(const std::string& path);

// Says what is wrong with a configuration file, each fault with its place; nothing if it is right.
ExitStatus check_config(const std::string& path, bool json);

}  // namespace mw
