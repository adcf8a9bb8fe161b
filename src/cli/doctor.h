// doctor.h - `mw doctor`: would `mw run` work here, and could it cover this program?
//
// INVARIANTS  Nothing of the host is changed: what has to be tried is tried in a network namespace
//             that ends with the process that made it.
#pragma once

#include <string>
#include <vector>

#include "cli/exit_status.h"
#include "frontend/run.h"

namespace mw {

struct Check {
  enum class Verdict { ok, warning, failed };
  std::string group;
  std::string name;
  Verdict verdict = Verdict::ok;
  std::string detail;
  std::string remedy;          // unless ok
  bool not_permitted = false;  // failed only because we may not
};

struct Examination {
  std::vector<Check> checks;
  std::vector<std::string> program;  // what was asked about; may be empty
  std::string choice;                // what `mw run` would do

  ExitStatus status() const;
};

Examination examine(const Programs& programs, const std::vector<std::string>& command);

void print_examination(const Examination& examination);
// One JSON document; mw(1) describes it.
void print_examination_json(const Examination& examination);

}  // namespace mw
