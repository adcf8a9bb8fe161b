// guard.h - `mw guard`: the reference engine, from the command line to the session.
//
// Exit statuses: 0 the session ended, or a signal ended us; 1 the server or the audit log failed;
// 2 usage, or rules that are wrong; 3 no session, or it does not answer; 4 not permitted.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace mw {

class GuardCommand {
 public:
  explicit GuardCommand(CLI::App& app);
  bool given() const { return guard_->parsed(); }
  int run() const;

 private:
  CLI::App* guard_;
  std::string session_;
  std::string rules_file_;
  std::string check_;
  std::string probe_;
  std::string audit_;
  bool act_ = false;
  bool json_ = false;
};

}  // namespace mw
