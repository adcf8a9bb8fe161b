// options.h - the command line of mwcommsd.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "netflow/exports.h"
#include "netflow/server.h"

namespace mw {

struct DriverOptions {
  std::string registry;
  std::string session;
  std::array<uint8_t, 16> token{};
  int channel_fd = -1;
  int session_fd = -1;
  int attach_fd = -1;
  int placeholders_fd = -1;
  int drop_pvm_fd = -1;
  int drop_ins_fd = -1;
  std::vector<int> bell_fds;
  int ready_fd = -1;
  int store_fds[2] = {-1, -1};  // fd_store.h; absent: -1
  netflow::ExportOptions exports;
  netflow::ServerOptions netflow;  // without an address and a path: no NetFlow interface
  std::vector<int> kept_fds;       // held for the front end (front_end.h)
  uint32_t front_end = 0;          // its pid; 0: not watched
  std::string adopt_with;  // the program that goes on with the session if it dies; may be empty
  // keepers.h; -1: there is none, and what it does cannot be done. Not on the command line.
  int front_end_keeper = -1;
  int blocks_keeper = -1;
  std::chrono::milliseconds adopt_delay{1000};  // least time between two starts of it
  // An INS that left its control connection is killed before a successor gets the region. Tests
  // that play the INS themselves turn this off.
  bool kill_lost_ins = true;
};

extern const char kDriverUsage[];

// Closes all descriptors that are not the session's; no program that the driver starts inherits those.
// False: errno says why.
bool keep_own_descriptors(const DriverOptions& options);

// Nothing if the arguments are wrong; `why` then names the argument. Every descriptor named must be
// open.
std::optional<DriverOptions> parse_driver_options(std::span<const char* const> args,
                                                  std::string* why);

}  // namespace mw
