// inspect.h - can the shim cover this command? Asked before it starts, so that nothing runs
// unprotected.
//
// The shim is a preloaded library: it reaches programs that glibc's dynamic linker starts without
// the kernel's "secure execution" flag. Others are refused here with the reason.
#pragma once

#include <string>
#include <vector>

#include "frontend/failure.h"

namespace mw {

struct Inspection {
  enum class Verdict { coverable, not_found, not_executable, refused };
  Verdict verdict = Verdict::coverable;
  std::string program;  // the file that would be executed
  std::string reason;   // a sentence, unless coverable
};

// Follows PATH, #! lines and env(1) to the programs that would really run and reads their ELF
// headers.
Inspection inspect_command(const std::vector<std::string>& command);

}  // namespace mw
