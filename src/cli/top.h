// top.h - `mw top` and `mw why`: the commands that show samples (docs/netflow.md).
//
// Exit statuses: 0 done; 1 there is no such socket; 2 usage; 3 no session, or it does not answer; 4
// not permitted.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/engine.h"

namespace mw {

class SampleCommands {
 public:
  explicit SampleCommands(CLI::App& app);
  // True if one of them was given.
  bool given() const { return *top_ || *why_; }
  int run() const { return *top_ ? show_all() : show_one(); }

 private:
  int show_all() const;
  int show_one() const;

  CLI::App* top_;
  CLI::App* why_;
  EngineOptions options_;
  bool batch_ = false;
  double seconds_ = 1;
  std::string sort_ = "worker";
  std::vector<std::string> filter_;
  std::string socket_;
};

// The table on a terminal, until somebody quits. The exit status.
class TopView;
int run_top_screen(netflow::Client& engine, const std::string& session, TopView& view);

}  // namespace mw
