// json_lines.h - flow records as lines of JSON in a file, under the names of Zeek's conn.log. What
// they hold: docs/exports.md.
//
// INVARIANTS  A line is written whole or not at all. The file is replaced before it grows beyond
//             its size; whoever else renames it gets a fresh one within a second.
// THREADS     One, which the file system may delay.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/exports.h"
#include "netflow/flow_cache.h"

namespace mw::netflow {

// A connection's name in them.
std::string uid_of(int64_t socket);
// One line, with its end.
std::string json_line(const FlowRecord& r, uint64_t monotonic_ns);

class JsonLinesExport {
 public:
  struct Counts {
    uint64_t records = 0;
    uint64_t dropped = 0;
  };

  // Errors: sys (the file cannot be opened or made).
  static Result<std::unique_ptr<JsonLinesExport>> make(const JsonLinesOptions& options);

  void put(const FlowRecord& r, const Instant& now);
  // Every second.
  void flush();
  const Counts& counts() const { return counts_; }

 private:
  static constexpr size_t kWriteAtOnce = 64 * 1024;

  explicit JsonLinesExport(const JsonLinesOptions& options) : options_(options) {}
  Status open();
  Status rotate();
  void write_out();

  const JsonLinesOptions options_;
  UniqueFd file_;
  uint64_t size_ = 0;     // of the file
  std::string lines_;     // that are not written yet
  uint64_t waiting_ = 0;  // their number
  Counts counts_;
};

}  // namespace mw::netflow
