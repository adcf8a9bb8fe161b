#include "netflow/json_lines.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <ctime>

#include "netflow/address.h"

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

// RFC 3339, UTC.
std::string time_text(uint64_t ns) {
  const auto seconds = static_cast<time_t>(ns / kSecond);
  tm utc{};
  ::gmtime_r(&seconds, &utc);
  char text[64];
  const size_t n = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + n, sizeof text - n, ".%09" PRIu64 "Z", ns % kSecond);
  return text;
}

std::string seconds_text(uint64_t ns) {
  char text[32];
  std::snprintf(text, sizeof text, "%" PRIu64 ".%06" PRIu64, ns / kSecond, ns % kSecond / 1000);
  return text;
}

const char* text_of(FlowEnd reason) {
  switch (reason) {
    case FlowEnd::begun:
      return "begun";
    case FlowEnd::idle_timeout:
      return "idle";
    case FlowEnd::active_timeout:
      return "active";
    case FlowEnd::end_of_flow:
      return "closed";
    case FlowEnd::forced_end:
      return "unobserved";
    default:
      return "evicted";
  }
}

void add(std::string& line, const char* name, const std::string& value) {
  line.append(",\"").append(name).append("\":").append(value);
}

void add_text(std::string& line, const char* name, const std::string& value) {
  line.append(",\"").append(name).append("\":\"").append(value).append("\"");
}

// A process chooses its own name.
std::string escaped(const CommandName& command) {
  std::string text;
  for (const char c : command_text(command)) {
    if (c == '"' || c == '\\') text += '\\';
    text += c < ' ' || c > '~' ? '?' : c;
  }
  return text;
}

}  // namespace

std::string uid_of(int64_t socket) {
  char uid[24];
  std::snprintf(uid, sizeof uid, "M%016" PRIx64, static_cast<uint64_t>(socket));
  return uid;
}

// Nothing but the command needs escaping: numbers, addresses and words of ours.
std::string json_line(const FlowRecord& r, uint64_t monotonic_ns) {
  const uint64_t last = r.end_ns > r.session_start_ns ? r.end_ns : r.session_start_ns;
  std::string line = "{\"schema\":1";
  add_text(line, "ts", time_text(r.session_start_ns));
  add(line, "mono_ns", std::to_string(monotonic_ns));
  add_text(line, "uid", uid_of(r.socket));
  add_text(line, "id.orig_h", to_string(r.originator().address));
  add(line, "id.orig_p", std::to_string(r.originator().port));
  add_text(line, "id.resp_h", to_string(r.responder().address));
  add(line, "id.resp_p", std::to_string(r.responder().port));
  add_text(line, "proto", r.protocol == Protocol::tcp ? "tcp" : "udp");
  add(line, "duration", seconds_text(last - r.session_start_ns));
  add(line, "orig_bytes", std::to_string(r.inbound ? r.total_in : r.total_out));
  add(line, "resp_bytes", std::to_string(r.inbound ? r.total_out : r.total_in));
  add_text(line, "conn_state", state_of(r));
  add(line, "local_orig", r.inbound ? "false" : "true");
  add_text(line, "history", r.history);
  if (r.pid != 0) {
    add(line, "pid", std::to_string(r.pid));
    add(line, "user_id", std::to_string(r.uid));
    add_text(line, "command", escaped(r.command));
  }
  add_text(line, "last_bytes", time_text(r.last_bytes_ns));
  add(line, "cut", (r.conn & kConnCut) != 0 ? "true" : "false");
  add_text(line, "reason", text_of(r.reason));
  add(line, "final", r.final() ? "true" : "false");
  return line + "}\n";
}

Result<std::unique_ptr<JsonLinesExport>> JsonLinesExport::make(const JsonLinesOptions& options) {
  std::unique_ptr<JsonLinesExport> made{new JsonLinesExport(options)};
  if (const Status opened = made->open(); !opened) return opened.error();
  return made;
}

Status JsonLinesExport::open() {
  file_ =
      UniqueFd{::open(options_.file.c_str(),
                      O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640)};
  struct stat st {};
  if (!file_ || ::fstat(file_.get(), &st) < 0)
    return Error{Fault::sys, errno, "opening the file of JSON lines"};
  if (!S_ISREG(st.st_mode)) return Error{Fault::sys, EINVAL, "the file of JSON lines is no file"};
  size_ = static_cast<uint64_t>(st.st_size);
  return Ok{};
}

// FILE becomes FILE.1, FILE.1 becomes FILE.2, and so on.
Status JsonLinesExport::rotate() {
  const auto numbered = [this](uint32_t n) {
    return n == 0 ? options_.file : options_.file + "." + std::to_string(n);
  };
  if (options_.keep == 0 && ::unlink(options_.file.c_str()) < 0 && errno != ENOENT)
    return Error{Fault::sys, errno, "removing a file of JSON lines"};
  for (uint32_t n = options_.keep; n > 0; --n) {
    if (::rename(numbered(n - 1).c_str(), numbered(n).c_str()) < 0 && errno != ENOENT)
      return Error{Fault::sys, errno, "renaming a file of JSON lines"};
  }
  return open();
}

void JsonLinesExport::put(const FlowRecord& r, const Instant& now) {
  const std::string line = json_line(r, now.monotonic_ns);
  if (size_ + lines_.size() + line.size() > options_.rotate_bytes) {
    write_out();
    // Where nothing can be renamed, the file grows on: that is the smaller evil.
    if (size_ != 0 && !rotate() && !file_) {
      ++counts_.dropped;
      return;
    }
  }
  lines_ += line;
  ++waiting_;
  if (lines_.size() >= kWriteAtOnce) write_out();
}

void JsonLinesExport::write_out() {
  if (lines_.empty()) return;
  ssize_t n = -1;
  if (file_) n = ::write(file_.get(), lines_.data(), lines_.size());
  if (n == static_cast<ssize_t>(lines_.size())) {
    size_ += lines_.size();
    counts_.records += waiting_;
  } else {
    // The disk is full: half a line is taken back.
    if (n > 0) (void)!::ftruncate(file_.get(), static_cast<off_t>(size_));
    counts_.dropped += waiting_;
  }
  lines_.clear();
  waiting_ = 0;
}

void JsonLinesExport::flush() {
  write_out();
  struct stat named {};
  struct stat ours {};
  const bool same = file_ && ::stat(options_.file.c_str(), &named) == 0 &&
                    ::fstat(file_.get(), &ours) == 0 && named.st_dev == ours.st_dev &&
                    named.st_ino == ours.st_ino;
  if (!same) (void)!!open();  // tried again in a second
}

}  // namespace mw::netflow
