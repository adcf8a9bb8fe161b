// flows.h - `mw flows`: the sockets of a session, as a list or as they come and go.
//
// Exit statuses of this and of changes.h: 0 done; 1 the server said no; 2 usage; 3 no session, or
// it does not answer; 4 not permitted. With --json, standard output is one document (a line for
// each with -w), errors too.
#pragma once

#include <string>
#include <vector>

#include "cli/engine.h"

namespace mw {

class FlowCommands {
 public:
  explicit FlowCommands(CLI::App& app);
  // True if it was given.
  bool given() const;
  int run() const;

 private:
  EngineOptions options_;
  CLI::App* flows_;
  bool watch_ = false;
  uint32_t interval_s_ = 10;
  std::vector<std::string> filter_;
};

}  // namespace mw
