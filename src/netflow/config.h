// config.h - the configuration file of a session: its network and its application, the NetFlow interface
// and the exports. TOML, described in mwcomms.toml(5).
//
// TRUST       The file is its owner's. What it says is checked completely all the same, so that a
//             mistake is found before a session runs with less protection than was meant.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "netflow/exports.h"

namespace mw::netflow {

struct ListenConfig {
  std::string address = "127.0.0.1:0";  // "" listens on none
  bool read_only = false;
  std::string token_file;
  std::string read_token_file;
  std::string certificate_file;
  std::string key_file;
};

// What a session may reach, as its front end reads it: lists are joined by commas.
struct ConfigText {
  std::string text;
  uint32_t line = 0;
  uint32_t column = 0;
};
struct NetworkConfig {
  std::optional<ConfigText> egress;
  std::optional<ConfigText> to_host;
};

// Of the front end; the driver reads past it.
struct ApplicationConfig {
  // Names and absolute paths of programs that may run although the shim does not reach them, or "*".
  std::vector<std::string> allow_uncovered;
};
// Is this one of them? If not, why: the end of a sentence that begins with its name.
const char* fault_of_uncovered(const std::string& program);

struct Config {
  NetworkConfig network;
  ApplicationConfig application;
  ListenConfig listen;
  ExportOptions exports;
};

struct ConfigFault {
  uint32_t line = 0;  // 0: of no single line
  uint32_t column = 0;
  std::string text;
};

struct ConfigReading {
  Config config;                    // defaults where the file says nothing
  std::vector<ConfigFault> faults;  // empty: all of it is right
};

// A whole file of at most 1 MiB. Errors: sys.
Result<std::string> read_text_file(const std::string& path);
// Errors: sys (the file cannot be read).
Result<ConfigReading> read_config(const std::string& path);
// Paths in the text that are relative are faults: a daemon has no folder of its own.
ConfigReading parse_config(const std::string& text);

}  // namespace mw::netflow
