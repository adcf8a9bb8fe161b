// flows.h - the commands of `mw` that speak to a session's NetFlow interface.
//
// Exit statuses: 0 done; 1 the server said no; 2 usage; 3 no session, or it does not answer; 4 not
// permitted. With --json, standard output is one document (a line for each with -w), errors too.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace mw {

class FlowCommands {
 public:
  explicit FlowCommands(CLI::App& app);
  // True if one of them was given.
  bool given() const;
  int run() const;

 private:
  CLI::App* add(CLI::App& app, const char* name, const char* text);
  int show() const;
  int act() const;

  CLI::App* flows_;
  CLI::App* close_;
  CLI::App* get_;
  CLI::App* set_;
  CLI::App* block_;
  CLI::App* unblock_;
  std::string session_;
  bool json_ = false;
  bool watch_ = false;
  std::vector<std::string> filter_;
  std::string socket_;
  std::string feature_;
  std::string value_;
  std::string peer_;
};

}  // namespace mw
