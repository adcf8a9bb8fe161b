#include "cli/sessions_json.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "frontend/session.h"

namespace mw {
namespace {

using nlohmann::json;

json pid_of(const ProcId& id) {
  return is_alive(id) ? json(id.pid) : json(nullptr);
}

json described(const std::string& base, const SessionRecord& r) {
  static constexpr const char* kState[] = {"running", "orphaned", "dead"};
  auto published = json::array();
  for (const Publish& p : r.published) {
    published.push_back({{"host", p.host},
                         {"port", p.port},
                         {"ins_port", p.ins_port},
                         {"protocol", p.protocol == Protocol::udp ? "udp" : "tcp"}});
  }
  json session = {{"name", r.name},
                  {"state", kState[static_cast<int>(state_of(r))]},
                  {"command", r.command},
                  {"pids",
                   {{"mw_run", pid_of(r.owner)},
                    {"application", pid_of(r.application)},
                    {"mwcommsd", pid_of(r.driver)},
                    {"mwins", pid_of(r.ins)}}},
                  {"ins", r.ins_id},
                  {"repairs", repairs_of(base, r.name, r.ins_id)},
                  {"registry", session_folder(base, r.name)},
                  {"net", r.isolated ? "isolated" : "host"},
                  {"published", std::move(published)}};
  if (r.isolated) {
    session["network"] = {{"namespace", r.netns()},    {"link", r.plan.link},
                          {"host_ipv4", r.plan.host4}, {"ins_ipv4", r.plan.ins4},
                          {"host_ipv6", r.plan.host6}, {"ins_ipv6", r.plan.ins6},
                          {"ins_uid", r.plan.ins_uid}};
    session["egress"] = to_string(r.reach.egress);
    auto to_host = json::array();
    for (const HostPort& p : r.reach.to_host)
      to_host.push_back(
          {{"port", p.port}, {"protocol", p.protocol == Protocol::udp ? "udp" : "tcp"}});
    session["to_host"] = std::move(to_host);
  }
  return session;
}

}  // namespace

ExitStatus print_sessions_json(const std::string& base, const std::string& only) {
  auto sessions = json::array();
  for (const SessionRecord& r : list_sessions(base)) {
    if (only.empty() || r.name == only) sessions.push_back(described(base, r));
  }
  const bool found = only.empty() || !sessions.empty();
  const json document = {{"schema", 1}, {"sessions", std::move(sessions)}};
  std::puts(document.dump(2, ' ', false, json::error_handler_t::replace).c_str());
  if (found) return ExitStatus::ok;
  log_line("mw", "there is no session %s in %s", only.c_str(), base.c_str());
  return ExitStatus::unreachable;
}

}  // namespace mw
