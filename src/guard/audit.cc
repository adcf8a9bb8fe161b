#include "guard/audit.h"

#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "netflow/address.h"

namespace mw::guard {
namespace {

using Json = nlohmann::ordered_json;

// RFC 3339, to the microsecond.
std::string timestamp(uint64_t ns) {
  const auto seconds = static_cast<time_t>(ns / 1'000'000'000);
  tm parts{};
  ::gmtime_r(&seconds, &parts);
  char text[64];
  const size_t n = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + n, sizeof text - n, ".%06uZ", static_cast<unsigned>(ns / 1000 % 1'000'000));
  return text;
}

Json begin(const Moment& when, const char* what) {
  return {{"ts", timestamp(when.realtime_ns)},
          {"ts_mono_ns", when.mono_ns},
          {"schema", 1},
          {"what", what}};
}

Json object(const std::vector<Value>& values) {
  Json out = Json::object();
  for (const Value& v : values) out[v.name] = v.value;
  return out;
}

std::string text(const Json& line) {
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

UniqueFd open_file(const std::string& path) {
  return UniqueFd{::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640)};
}

}  // namespace

Moment this_moment() {
  return {realtime_ns(), monotonic_ns()};
}

std::string line_of(const Moment& when, const Decision& d, bool dry_run, uint32_t status,
                    uint64_t id) {
  Json line = begin(when, d.held_back ? "held" : to_string(d.act));
  if (d.held_back) line["act"] = to_string(d.act);
  if (d.act == Act::close) {
    const auto socket = netflow::decode_socket(d.socket);
    line["socket"] =
        socket ? std::to_string(socket->ins) + ":" + std::to_string(socket->number) : "?";
    line["peer"] = netflow::to_string(d.peer);
  } else {
    line["peer"] = netflow::to_string(d.peer.address);
  }
  if (d.act == Act::cap) line["connections"] = d.value;
  line["rule"] = d.rule;
  line["measured"] = object(d.measured);
  line["limits"] = object(d.limits);
  if (d.held_back) return text(line);
  line["ttl_s"] = d.ttl_s;
  line["dry_run"] = dry_run;
  line["result"] = status == 0 ? "done" : std::strerror(static_cast<int>(status));
  line["status"] = status;
  if (id != 0) line["id"] = id;
  return text(line);
}

std::string line_of(const Moment& when, const Availability& service) {
  Json line = begin(when, "service");
  const ProbeResult& last = service.last();
  line["state"] = to_string(service.state());
  line["measured"] = {{"probe", to_string(last.fate)}, {"ms", last.ms}};
  if (service.bad_since_ns() != 0)
    line["measured"]["bad_for_s"] =
        static_cast<double>(when.mono_ns - service.bad_since_ns()) / 1e9;
  return text(line);
}

std::string line_of(const Moment& when, const char* what, const std::string& said) {
  Json line = begin(when, what);
  line["text"] = said;
  return text(line);
}

Result<AuditLog> AuditLog::open(const std::string& path) {
  UniqueFd fd = open_file(path);
  if (!fd) return Error{Fault::sys, errno, "opening the audit log"};
  return AuditLog(path, std::move(fd));
}

Status AuditLog::reopen() {
  UniqueFd fd = open_file(path_);
  if (!fd) return Error{Fault::sys, errno, "opening the audit log again"};
  fd_ = std::move(fd);
  return Ok{};
}

Status AuditLog::write(const std::string& line) {
  const std::string whole = line + "\n";
  const ssize_t n = ::write(fd_.get(), whole.data(), whole.size());
  if (n != static_cast<ssize_t>(whole.size()))
    return Error{Fault::sys, n < 0 ? errno : ENOSPC, "writing the audit log"};
  return Ok{};
}

}  // namespace mw::guard
