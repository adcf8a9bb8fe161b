// run.h - `mw run` from its parsed arguments to the exit status of the command, and the commands
// about sessions that run already.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "coverage/coverage.h"
#include "frontend/failure.h"
#include "frontend/plan.h"
#include "frontend/process.h"
#include "frontend/reach.h"

namespace mw {

constexpr int kExitFailed = 1;  // of commands that run no command
constexpr int kExitUsage = 2;
constexpr int kExitUnreachable = 3;      // what was asked for is not there
constexpr int kExitOwnFailure = 125;     // we failed, the command never ran
constexpr int kExitNotExecutable = 126;  // also: refused, because the shim cannot cover it
constexpr int kExitNotFound = 127;

constexpr size_t kMaxUncovered = kMaxAllowedBytes;  // bytes of RunRequest::uncovered

enum class NetMode : uint8_t { isolated, host };

// The session's shared memory and sockets, kept open by us for the session's life.
struct SessionDescriptors {
  std::vector<UniqueFd> owned;
  std::vector<std::string> driver_arguments;  // how mwcommsd learns their numbers
  std::string attach_name;                    // abstract socket on which it serves the shim
  MemoryId memory;                            // what every attached process maps
  std::string token;                          // the session's secret, in hex
  unsigned workers = 1;                       // that it is made for
};

struct Programs {
  std::string mw;  // ourselves: what a driver starts when its front end is gone
  std::string driver;
  std::string ins;
  std::string shim;
};

struct RunRequest {
  std::vector<std::string> command;
  std::vector<Publish> published;
  Reach reach;  // isolated only
  NetMode net = NetMode::isolated;
  std::string why_net;  // completes "because ..."
  unsigned workers = 1;
  // Programs that may run although the shim does not reach them; is_allowed() of
  // coverage/coverage.h says how they are named.
  std::string uncovered;
  bool verbose = false;
  std::vector<std::string> driver_options;  // passed on to mwcommsd as they are
  std::string base;
  Programs programs;
  // The front end knows nothing of the channel; whoever does makes its descriptors. `kept` are
  // ours: the driver holds them too, and has no other use for them.
  std::function<Outcome<SessionDescriptors>(const std::string& session, unsigned workers,
                                            std::vector<UniqueFd> kept)>
      descriptors;
};

struct AdoptRequest {
  std::string session;
  std::string base;
  Programs programs;
  // Asks the driver of the session in this folder for them.
  std::function<Outcome<SessionDescriptors>(const std::string& folder)> descriptors;
};

// Runs the session and cleans up after it. Returns the exit status for main().
int run_session(const RunRequest& request);

// `mw adopt`: becomes the front end of a session whose own has died, and stays until the session
// ends.
int adopt_session(const AdoptRequest& request);

// `mw ps`: one block of lines for each session in `base`, or for the one that is named.
int print_sessions(const std::string& base, const std::string& only);

// `mw clean`: removes what dead sessions left behind. One that is named is ended first if it runs
// without a front end. `removed`: their names.
int clean_sessions(const std::string& base, const std::string& named,
                   std::vector<std::string>* removed);

}  // namespace mw
