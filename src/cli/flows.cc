#include "cli/flows.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/clock.h"
#include "cli/flow_filter.h"
#include "netflow/address.h"
#include "netflow/client.h"
#include "netflow/flow_cache.h"
#include "netflow/json_lines.h"

namespace mw {
namespace {

using namespace netflow;

const char* type_of(const Flow& f) {
  return type_text(f.type, (f.flags & kFlowListener) != 0);
}

void print_table(const std::vector<Flow>& flows, double now) {
  std::printf("%-6s %-26s %-26s %12s %12s %9s %9s %-20s %s\n", "Type", "Local", "Peer", "In", "Out",
              "Age", "Idle", "Process", "Socket");
  for (const Flow& f : flows) {
    const double last = std::max(seconds(f.last), seconds(f.session_start));
    std::printf("%-6s %-26s %-26s %12" PRIu64 " %12" PRIu64 " %8.1fs %8.1fs %-20s %s\n", type_of(f),
                to_string(f.local).c_str(), to_string(f.remote).c_str(), f.bytes_in, f.bytes_out,
                now - seconds(f.session_start), now - last, process_text(f.pid, f.command).c_str(),
                name_of(f.socket).c_str());
  }
}

void print_document(const std::vector<Flow>& flows, double now) {
  std::string out = "[";
  for (const Flow& f : flows) {
    const double last = std::max(seconds(f.last), seconds(f.session_start));
    out += out.size() == 1 ? "\n" : ",\n";
    out +=
        "{\"socket\":" + quoted(name_of(f.socket)) + ",\"id\":" + std::to_string(f.socket) +
        ",\"type\":" + quoted(type_of(f)) + ",\"local\":" + quoted(to_string(f.local)) +
        ",\"peer\":" + quoted(to_string(f.remote)) + ",\"bytes_in\":" + std::to_string(f.bytes_in) +
        ",\"bytes_out\":" + std::to_string(f.bytes_out) +
        ",\"start\":" + number(seconds(f.session_start)) +
        ",\"age\":" + number(now - seconds(f.session_start)) + ",\"idle\":" + number(now - last) +
        ",\"pid\":" + std::to_string(f.pid) + ",\"uid\":" + std::to_string(f.uid) +
        ",\"command\":" + quoted(command_text(f.command)) + "}";
  }
  std::printf("%s%s]\n", out.c_str(), flows.empty() ? "" : "\n");
}

int list(Client& engine, const FlowFilter& filter, bool json) {
  std::vector<Flow> flows = engine.take_flows();
  std::erase_if(flows, [&](const Flow& f) {
    return !filter.takes({type_of(f), f.local, f.remote, f.pid, f.uid, command_text(f.command)});
  });
  std::sort(flows.begin(), flows.end(),
            [](const Flow& a, const Flow& b) { return a.socket < b.socket; });
  const double now = static_cast<double>(realtime_ns()) / 1e9;
  if (json)
    print_document(flows, now);
  else
    print_table(flows, now);
  return 0;
}

// Who asks in time to tell what lasts.
constexpr int kTickMs = 250;

// From here on the engine gets observations of version 2 only, beginning with what there is.
Result<Response> begin_to_follow(Client& engine) {
  constexpr std::pair<Feature, uint64_t> kSteps[] = {{Feature::monitor_off, 0},
                                                     {Feature::observations, 2},
                                                     {Feature::monitor_on, 0},
                                                     {Feature::list, 0}};
  Result<Response> answer = Response{};
  for (const auto& [feature, value] : kSteps) {
    Request r;
    r.name = static_cast<uint16_t>(feature);
    r.value0 = value;
    if (feature == Feature::observations) r.flags = kRequestWrite;
    answer = engine.ask(r);
    if (!answer || answer->status != 0) break;
    // An engine is told of everything from when it connects: in version 1, which leaves out what a
    // line says.
    if (feature == Feature::monitor_off) (void)engine.take_observations();
  }
  return answer;
}

int follow(Client& engine, const FlowFilter& filter, uint32_t interval_s, bool json) {
  // A silent connection lasts like any other.
  FlowCache cache(
      {.active_s = interval_s, .idle_s = UINT32_MAX, .tell_beginning = true},
      [&](const FlowRecord& r) {
        const char* type = r.protocol == netflow::Protocol::udp ? "udp" : "tcp";
        if (!filter.takes({type, r.local, r.remote, r.pid, r.uid, command_text(r.command)})) return;
        const auto now = static_cast<uint64_t>(monotonic_ns());
        std::fputs(json_line(r, now).c_str(), stdout);
        std::fflush(stdout);
      });
  auto begun = begin_to_follow(engine);
  if (!begun) return fail(json, begun.error());
  if (begun->status != 0) return refusal(json, begun->status);
  for (const Flow& f : engine.take_flows())
    if ((f.flags & kFlowListener) == 0 && f.remote.port != 0) cache.open(f, realtime_ns());
  for (;;) {
    auto seen = engine.next(kTickMs);
    if (seen)
      cache.take(*seen);
    else if (seen.error().fault != Fault::would_block)
      return fail(json, seen.error());
    cache.expire(realtime_ns());
  }
}

}  // namespace

FlowCommands::FlowCommands(CLI::App& app) {
  flows_ = options_.add(app, "flows", "List the sockets of a session");
  flows_->add_flag("-w,--watch", watch_,
                   "Follow connections as JSON lines: one for each that is open, one when it "
                   "begins, one when it ends, and meanwhile one each interval");
  flows_->add_option("-i,--interval", interval_s_, "Seconds between the lines of one that lasts")
      ->type_name("SECONDS")
      ->capture_default_str()
      ->check(CLI::Range(1, 86400));
  flows_->add_option("filter", filter_,
                     "listen | tcp | udp | port N | peer ADDRESS | pid N | uid N | command NAME");
}

bool FlowCommands::given() const {
  return static_cast<bool>(*flows_);
}

// Asks for what there is, and shows that, or follows what becomes of it.
int FlowCommands::run() const {
  FlowFilter filter;
  std::string why;
  const bool json = options_.json;
  if (!filter.parse(filter_, &why)) return usage_fault(*flows_, json, "not a filter: " + why);
  int exit = 0;
  auto engine = connect(options_, &exit);
  if (!engine) return exit;
  if (watch_) return follow(*engine, filter, interval_s_, json);
  Request all;
  all.name = static_cast<uint16_t>(Feature::list);
  auto answer = engine->ask(all);
  if (!answer) return fail(json, answer.error());
  if (answer->status != 0) return refusal(json, answer->status);
  return list(*engine, filter, json);
}

}  // namespace mw
