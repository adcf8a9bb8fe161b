#include "cli/check_config.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"
#include "frontend/failure.h"

namespace mw {
namespace {

void print_json(const std::string& path, const std::vector<netflow::ConfigFault>& found) {
  auto faults = nlohmann::json::array();
  for (const netflow::ConfigFault& f : found) {
    faults.push_back({{"line", f.line}, {"column", f.column}, {"text", f.text}});
  }
  const nlohmann::json document = {
      {"schema", 1}, {"file", path}, {"ok", faults.empty()}, {"faults", faults}};
  std::puts(document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

ExitStatus status_of(int err) {
  switch (err) {
    case EACCES:
    case EPERM:
      return ExitStatus::not_permitted;
    case ENOENT:
    case ENOTDIR:
      return ExitStatus::unreachable;
    default:
      return ExitStatus::failure;
  }
}

}  // namespace

ExitStatus report_faults(const std::string& path, const std::vector<netflow::ConfigFault>& faults,
                         bool json) {
  if (json) {
    print_json(path, faults);
  } else {
    for (const netflow::ConfigFault& f : faults) {
      std::fprintf(stderr, "%s:%u:%u: %s\n", path.c_str(), f.line, f.column, f.text.c_str());
    }
  }
  return faults.empty() ? ExitStatus::ok : ExitStatus::usage;
}

ExitStatus report_unreadable(const std::string& path, const Error& error, bool json) {
  const std::string why = errno_text(error.err);
  if (json) print_json(path, {{0, 0, why}});
  log_line("mw", "%s: %s", path.c_str(), why.c_str());
  return status_of(error.err);
}

Result<SessionConfig> read_session_config(const std::string& path) {
  auto reading = netflow::read_config(path);
  if (!reading) return reading.error();
  SessionConfig out;
  out.faults = std::move(reading->faults);
  const auto take = [&out](const std::optional<netflow::ConfigText>& said, auto parse, auto& to) {
    if (!said) return;
    auto parsed = parse(said->text);
    if (parsed)
      to = *parsed;
    else
      out.faults.push_back(
          {said->line, said->column, parsed.error().cause + "; " + parsed.error().remedy});
  };
  const netflow::NetworkConfig& network = reading->config.network;
  take(network.egress, parse_egress, out.egress);
  take(network.to_host, parse_to_host, out.to_host);
  out.uncovered = std::move(reading->config.application.allow_uncovered);
  std::stable_sort(out.faults.begin(), out.faults.end(), [](const auto& a, const auto& b) {
    return std::pair(a.line, a.column) < std::pair(b.line, b.column);
  });
  return out;
}

ExitStatus check_config(const std::string& path, bool json) {
  auto reading = read_session_config(path);
  if (!reading) return report_unreadable(path, reading.error(), json);
  return report_faults(path, reading->faults, json);
}

}  // namespace mw
