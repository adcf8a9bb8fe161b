// inspect.h - can the shim cover this command? Asked before it starts, so that nothing runs
// unprotected. What the command starts later, the shim asks about (src/shim/process/exec.h); both use
// src/coverage.
#pragma once

#include <string>
#include <vector>

#include "frontend/failure.h"

namespace mw {

struct Inspection {
  // allowed: it cannot be covered, and --allow-uncovered lets it run.
  enum class Verdict { coverable, not_found, not_executable, refused, allowed };
  Verdict verdict = Verdict::coverable;
  std::string program;  // the file that would be executed
  std::string reason;   // a sentence, unless coverable
  // refused: what --allow-uncovered would have to name. Empty: that would not help.
  std::string to_allow;
};

// Follows PATH, #! lines, glibc's dynamic linker and env(1) to the programs that would really run
// and reads their ELF headers. `uncovered`: those that may run uncovered, as is_allowed() of
// coverage/coverage.h takes them.
Inspection inspect_command(const std::vector<std::string>& command,
                           const std::string& uncovered = {});

}  // namespace mw
