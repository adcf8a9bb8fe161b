// audit.h - what guard saw and did, one JSON object a line: the fields are in mw-guard(1).
#pragma once

#include <string>

#include "base/unique_fd.h"
#include "guard/availability.h"
#include "guard/decision.h"

namespace mw::guard {

// A moment on both clocks.
struct Moment {
  uint64_t realtime_ns = 0;
  int64_t mono_ns = 0;
};
Moment this_moment();

// The lines, without a newline. `status` is the session's answer: 0 or an errno; `id` the number of
// the rule that it made of it, 0 if none. Both of what was held back mean nothing.
std::string line_of(const Moment& when, const Decision& d, bool dry_run, uint32_t status,
                    uint64_t id);
std::string line_of(const Moment& when, const Availability& service);
// `what` is "start", "stop", "connected" or "lost".
std::string line_of(const Moment& when, const char* what, const std::string& text);

// The log file. It is appended to, so that it may be rotated by renaming and reopen().
class AuditLog {
 public:
  // Errors: sys.
  static Result<AuditLog> open(const std::string& path);
  Status reopen();
  // Each line is one write(). Errors: sys (the disk is full).
  Status write(const std::string& line);

 private:
  AuditLog(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
};

}  // namespace mw::guard
