// exit_status.h - the exit statuses of `mw`, as mw(1) has them. `mw run` ends with its command's,
// and with those of frontend/run.h.
#pragma once

#include "frontend/run.h"

namespace mw {

enum class ExitStatus : int {
  ok = 0,
  failure = 1,
  usage = kExitUsage,              // the command line, or a configuration file, is wrong
  unreachable = kExitUnreachable,  // what was asked is not there, or does not answer
  not_permitted = 4,
};

}  // namespace mw
