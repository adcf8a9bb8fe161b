// changes.h - the commands of `mw` that read and change features, and the rules that changes are.
//
// Exit statuses and --json: cli/flows.h.
#pragma once

#include <string>

#include "cli/engine.h"

namespace mw {

// A rule in a line: what it is, how it stands, who made it and why.
std::string text_of(const netflow::Rule& r, double now);
// The same as a JSON object.
std::string json_of(const netflow::Rule& r);

class ChangeCommands {
 public:
  explicit ChangeCommands(CLI::App& app);
  // True if one of them was given.
  bool given() const { return given_command() != nullptr; }
  int run();

 private:
  // A feature as it is read or written here.
  struct Asking;
  const CLI::App* given_command() const;
  CLI::App* add_change(CLI::App& app, const char* name, const char* text);
  std::optional<Asking> asking(std::string* wrong) const;
  bool take_target(Asking& a, std::string* wrong) const;
  int act() const;
  int list() const;

  EngineOptions options_;
  CLI::App* close_;
  CLI::App* get_;
  CLI::App* set_;
  CLI::App* block_;
  CLI::App* unblock_;
  CLI::App* allow_;
  CLI::App* pause_;
  CLI::App* resume_;
  CLI::App* rules_;
  CLI::App* undo_;
  std::string target_;
  std::string feature_;
  std::string value_;
  uint32_t rule_ = 0;
  uint32_t ttl_ = 0;
  std::string reason_;
  bool dry_run_ = false;
  bool off_ = false;
};

}  // namespace mw
