// run.h - `mw run` from its parsed arguments to the exit status of the command.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/plan.h"

namespace mw {

constexpr int kExitUsage = 2;
constexpr int kExitUnreachable = 3;      // what was asked for is not there
constexpr int kExitOwnFailure = 125;     // we failed, the command never ran
constexpr int kExitNotExecutable = 126;  // also: refused, because the shim cannot cover it
constexpr int kExitNotFound = 127;

enum class NetMode : uint8_t { isolated, host };

// The session's shared memory and sockets, kept open by us for the session's life.
struct SessionDescriptors {
  std::vector<UniqueFd> owned;
  std::vector<std::string> driver_arguments;  // how mwcommsd learns their numbers
  std::string attach_name;                    // abstract socket on which it serves the shim
};

struct Programs {
  std::string driver;
  std::string ins;
  std::string shim;
};

struct RunRequest {
  std::vector<std::string> command;
  std::vector<Publish> published;
  NetMode net = NetMode::isolated;
  std::string why_net;  // completes "because ..."
  unsigned workers = 1;
  bool verbose = false;
  std::vector<std::string> driver_options;  // passed on to mwcommsd as they are
  std::string base;
  Programs programs;
  // The front end knows nothing of the channel; whoever does makes its descriptors.
  std::function<Outcome<SessionDescriptors>(const std::string& session, unsigned workers)>
      descriptors;
};

// Runs the session and cleans up after it. Returns the exit status for main().
int run_session(const RunRequest& request);

// `mw ps`: one block of lines for each session in `base`, or for the one that is named.
int print_sessions(const std::string& base, const std::string& only);

// `mw clean`: removes what dead sessions left behind.
int clean_sessions(const std::string& base);

}  // namespace mw
