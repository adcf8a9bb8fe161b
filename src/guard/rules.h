// rules.h - what `mw guard` goes by: limits, from mw-guard(1) or the defaults here.
//
// TRUST       The file is its owner's. All of it is checked before anything is judged by it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "netflow/config.h"
#include "netflow/wire.h"

namespace mw::guard {

// "192.0.2.0/24" or one address.
struct Network {
  netflow::Address address;
  uint32_t bits = 32;
  bool operator==(const Network&) const = default;
  bool holds(const netflow::Address& a) const;
};
std::optional<Network> parse_network(const std::string& text);
bool any_holds(const std::vector<Network>& networks, const netflow::Address& a);

struct ProbeRules {
  std::string target = "auto";  // "auto", "none", "HOST:PORT", "http://HOST[:PORT][/PATH]"
  uint32_t interval_ms = 500;
  uint32_t pressed_interval_ms = 100;  // while the samples look like trouble
  uint32_t slow_ms = 250;              // an answer that takes longer is a bad one
  uint32_t timeout_ms = 1000;
  uint32_t bad_in_a_row = 2;
  uint32_t recovered_s = 3;  // without a bad one
  bool operator==(const ProbeRules&) const = default;
};

// A least rate over all bytes of a turn, and the time before it counts.
struct RateRules {
  uint32_t min_rate = 240;  // bytes a second
  uint32_t grace_s = 10;
  uint32_t grace_denied_s = 5;  // while nobody is served
  bool operator==(const RateRules&) const = default;
};

struct Rules {
  bool always = false;          // else only while the service is degraded
  std::vector<Network> allow;   // never touched
  std::vector<Network> shared;  // many people behind one address: judged one connection at a time
  uint32_t sample_ms = 250;
  uint32_t ttl_s = 60;  // of a block or a cap; doubled for a peer that comes back
  uint32_t ttl_max_s = 3600;
  uint32_t keep = 10;  // room that a capped peer has at least, and idle connections that it keeps

  ProbeRules probe;
  RateRules request;  // what comes, while the application waits for it
  RateRules answer;   // what the peer takes

  // Nothing went out since the connection was accepted.
  uint32_t unfinished_s = 30;
  uint32_t unfinished_piece = 100;  // and what came, came in pieces of fewer bytes

  // The peer lets nothing through, and more is to go.
  uint32_t window_bytes = 1024;  // a window is closed below
  uint32_t window_s = 10;
  uint32_t window_denied_s = 5;
  uint32_t window_progress_s = 60;  // if it took enough before

  // Many connections of one peer that hold something, do not move and got nothing done before.
  uint32_t crowd_connections = 20;
  uint32_t crowd_still_ms = 500;
  uint32_t crowd_progress_percent = 20;  // with more, or a productive one, it is not blocked

  // Many connections of one peer between requests, while clients wait for a connection.
  uint32_t idle_connections = 20;
  uint32_t idle_share_percent = 25;  // of all connections

  // Threads of the application that wait for one peer's connections that get nothing done.
  uint32_t worker_s = 60;
  uint32_t worker_share_percent = 25;
  uint32_t worker_min_rate = 240;  // bytes for each second of a thread

  // A peer whose connections were cut this often within a minute, and that got nothing done.
  uint32_t repeat_cuts = 3;

  // Against mistakes.
  uint32_t doubtful_per_minute = 10;  // cuts of connections or peers that showed progress
  uint32_t blocks_per_minute = 100;
  // Of the connections that are open or were cut within the last minute: those that were cut by a
  // close or by a block. 100: no cap, because an attack may be all but a few of them.
  uint32_t most_share_percent = 100;

  bool operator==(const Rules&) const = default;
};

struct RulesReading {
  Rules rules;  // defaults where the file says nothing
  std::vector<netflow::ConfigFault> faults;
};
RulesReading parse_rules(const std::string& text);
// Errors: sys (the file cannot be read).
Result<RulesReading> read_rules(const std::string& path);

}  // namespace mw::guard
