// exports.h - what is exported where, as configuration files say it.
#pragma once

#include <cstdint>
#include <string>

#include "netflow/flow_cache.h"

namespace mw::netflow {

struct IpfixOptions {
  std::string collector;  // "ADDRESS:PORT"; "" exports none
  bool tcp = false;
  uint32_t domain = 1;       // observation domain
  uint32_t template_s = 60;  // templates are sent again after this time (UDP)
};

struct PrometheusOptions {
  std::string listen;  // "ADDRESS:PORT" of loopback, or "unix:PATH"; "" serves none
};

struct JsonLinesOptions {
  std::string file;  // "" writes none
  uint64_t rotate_bytes = 64u << 20;
  uint32_t keep = 5;  // rotated files beside the one that is written
};

struct ExportOptions {
  FlowTimeouts timeouts{};
  IpfixOptions ipfix{};
  PrometheusOptions prometheus{};
  JsonLinesOptions json_lines{};

  bool any() const {
    return !ipfix.collector.empty() || !prometheus.listen.empty() || !json_lines.file.empty();
  }
};

// Both clocks: one for what is told, the other for what is waited for.
struct Instant {
  uint64_t realtime_ns = 0;
  uint64_t monotonic_ns = 0;
};

}  // namespace mw::netflow
