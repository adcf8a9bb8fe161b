#include "cli/engine.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "frontend/session.h"

namespace mw {

using namespace netflow;

CLI::App* EngineOptions::add(CLI::App& app, const char* name, const char* text) {
  CLI::App* sub = app.add_subcommand(name, text);
  sub->add_option("-s,--session", session, "The session, if several run")->type_name("NAME");
  sub->add_flag("-j,--json", json, "One JSON document on standard output");
  return sub;
}

std::optional<SocketId> parse_socket(const std::string& text) {
  unsigned long long first = 0;
  // As a record of `mw flows -w` has it.
  char end = 0;
  if (text.starts_with('M') && std::sscanf(text.c_str(), "M%16llx%c", &first, &end) == 1)
    return decode_socket(static_cast<int64_t>(first));
  unsigned long long second = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%llu:%llu%c", &first, &second, &rest) == 2 && first <= 0xffff &&
      second <= 0xffffffff)
    return SocketId{static_cast<uint16_t>(first), static_cast<uint32_t>(second)};
  if (std::sscanf(text.c_str(), "%llu%c", &first, &rest) != 1) return std::nullopt;
  return decode_socket(static_cast<int64_t>(first));
}

std::string name_of(int64_t socket) {
  const auto id = decode_socket(socket);
  return id ? std::to_string(id->ins) + ":" + std::to_string(id->number) : "?";
}

std::string process_text(uint32_t pid, const netflow::CommandName& command) {
  return pid == 0 ? "-" : command_text(command) + "[" + std::to_string(pid) + "]";
}

const char* type_text(uint16_t type, bool listener) {
  if (type == 2) return "udp";
  return listener ? "listen" : "tcp";
}

double seconds(const Timestamp& t) {
  return static_cast<double>(t.seconds) + static_cast<double>(t.nanoseconds) / 1e9;
}

std::string quoted(const std::string& text) {
  using Json = nlohmann::json;
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string number(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

int fail(bool json, ExitStatus exit, const std::string& text) {
  const int status = static_cast<int>(exit);
  log_line("mw", "%s", text.c_str());
  if (json) std::printf("{\"error\":%s,\"status\":%d}\n", quoted(text).c_str(), status);
  return status;
}

int print_usage(const CLI::App& command) {
  const bool sub = command.get_parent() != nullptr;
  std::fputs(command.help(sub ? "mw " + command.get_name() : "mw").c_str(), stderr);
  return static_cast<int>(ExitStatus::usage);
}

int usage_fault(const CLI::App& command, bool json, const std::string& text) {
  fail(json, ExitStatus::usage, text);
  return print_usage(command);
}

int fail(bool json, const Error& e) {
  const bool forbidden = e.err == EACCES || e.err == EPERM;
  return fail(json, forbidden ? ExitStatus::not_permitted : ExitStatus::unreachable,
              std::string(e.where) + (e.err != 0 ? ": " + std::string(std::strerror(e.err)) : ""));
}

int refusal(bool json, uint32_t status) {
  return fail(json, status == EPERM ? ExitStatus::not_permitted : ExitStatus::failure,
              std::strerror(static_cast<int>(status)));
}

std::optional<std::string> find_session(const std::string& wanted, std::string* why) {
  const std::string base = default_base();
  std::vector<std::string> found;
  for (const SessionRecord& r : list_sessions(base))
    if (state_of(r) != SessionState::dead && (wanted.empty() || r.name == wanted))
      found.push_back(r.name);
  if (found.size() == 1) return session_folder(base, found[0]) + "/netflow.sock";
  if (!wanted.empty()) {
    *why = "there is no session " + wanted;
  } else if (found.empty()) {
    *why = "no session runs";
  } else {
    *why = "several sessions run; name one with -s:";
    for (const std::string& name : found) *why += " " + name;
  }
  return std::nullopt;
}

std::optional<Client> connect(const EngineOptions& options, int* exit, std::string* session) {
  std::string why;
  const auto path = find_session(options.session, &why);
  if (!path) {
    *exit = fail(options.json, ExitStatus::unreachable, why);
    return std::nullopt;
  }
  if (session != nullptr) *session = std::filesystem::path(*path).parent_path().filename();
  auto engine = Client::connect(*path, kAnswerMs);
  if (engine) return std::move(*engine);
  *exit = fail(options.json, engine.error());
  return std::nullopt;
}

}  // namespace mw
