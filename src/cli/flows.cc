#include "cli/flows.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <optional>
#include <set>

#include "base/clock.h"
#include "cli/flow_filter.h"
#include "netflow/address.h"
#include "netflow/client.h"

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
    out += "{\"socket\":" + quoted(name_of(f.socket)) + ",\"id\":" + std::to_string(f.socket) +
           ",\"type\":" + quoted(type_of(f)) + ",\"local\":" + quoted(to_string(f.local)) +
           ",\"peer\":" + quoted(to_string(f.remote)) +
           ",\"bytes_in\":" + std::to_string(f.bytes_in) +
           ",\"bytes_out\":" + std::to_string(f.bytes_out) +
           ",\"start\":" + number(seconds(f.session_start)) +
           ",\"age\":" + number(now - seconds(f.session_start)) +
           ",\"idle\":" + number(now - last) + ",\"pid\":" + std::to_string(f.pid) +
           ",\"uid\":" + std::to_string(f.uid) + ",\"command\":" + quoted(text_of(f.command)) + "}";
  }
  std::printf("%s%s]\n", out.c_str(), flows.empty() ? "" : "\n");
}

// A connection, in the names of Zeek's conn.log.
void print_record(const Observation& o, int64_t socket, bool accepted, bool final) {
  const Endpoint& orig = accepted ? o.remote : o.local;
  const Endpoint& resp = accepted ? o.local : o.remote;
  std::printf(
      "{\"ts\":%s,\"uid\":%s,\"id.orig_h\":%s,\"id.orig_p\":%u,\"id.resp_h\":%s,"
      "\"id.resp_p\":%u,\"duration\":%s,\"orig_bytes\":%" PRIu64 ",\"resp_bytes\":%" PRIu64
      ",\"final\":%s}\n",
      number(seconds(o.session_start)).c_str(), quoted(name_of(socket)).c_str(),
      quoted(to_string(orig.address)).c_str(), orig.port, quoted(to_string(resp.address)).c_str(),
      resp.port, number(seconds(o.now) - seconds(o.session_start)).c_str(),
      accepted ? o.bytes_in : o.bytes_out, accepted ? o.bytes_out : o.bytes_in,
      final ? "true" : "false");
  std::fflush(stdout);
}

int list(Client& engine, const FlowFilter& filter, bool json) {
  std::vector<Flow> flows = engine.take_flows();
  std::erase_if(flows,
                [&](const Flow& f) { return !filter.takes(type_of(f), f.local, f.remote, f.pid); });
  std::sort(flows.begin(), flows.end(),
            [](const Flow& a, const Flow& b) { return a.socket < b.socket; });
  const double now = static_cast<double>(realtime_ns()) / 1e9;
  if (json)
    print_document(flows, now);
  else
    print_table(flows, now);
  return 0;
}

int follow(Client& engine, const FlowFilter& filter, bool json) {
  std::set<int64_t> accepted;
  std::set<uint16_t> listening;
  const std::vector<Flow> flows = engine.take_flows();
  for (const Flow& f : flows)
    if ((f.flags & kFlowListener) != 0) listening.insert(f.local.port);
  for (const Flow& f : flows)
    if (listening.count(f.local.port) != 0) accepted.insert(f.socket);
  // What is open already, so that nobody has to wait for its end to know of it.
  for (const Flow& f : flows) {
    if (f.remote.port == 0 || !filter.takes(type_of(f), f.local, f.remote, f.pid)) continue;
    Observation open;
    open.session_start = f.session_start;
    open.now = timestamp_of(static_cast<uint64_t>(realtime_ns()));
    open.local = f.local;
    open.remote = f.remote;
    open.bytes_in = f.bytes_in;
    open.bytes_out = f.bytes_out;
    print_record(open, f.socket, accepted.count(f.socket) != 0, false);
  }
  for (;;) {
    auto seen = engine.next(-1);
    if (!seen) return fail(json, seen.error());
    int64_t socket = seen->socket;
    if (seen->kind == ObservationKind::accept) {
      socket = static_cast<int64_t>(seen->extra);
      accepted.insert(socket);
    } else if (seen->kind != ObservationKind::connect && seen->kind != ObservationKind::close) {
      continue;
    }
    const bool final = seen->kind == ObservationKind::close;
    const bool from_outside = accepted.count(socket) != 0;
    if (final) accepted.erase(socket);
    Flow f;
    f.local = seen->local;
    f.remote = seen->remote;
    // What never was a connection is none of a watcher's business.
    if (f.remote.port != 0 && filter.takes(type_of(f), f.local, f.remote, f.pid))
      print_record(*seen, socket, from_outside, final);
  }
}

}  // namespace

FlowCommands::FlowCommands(CLI::App& app) {
  flows_ = options_.add(app, "flows", "List the sockets of a session");
  flows_->add_flag("-w,--watch", watch_,
                   "Follow connections as JSON lines: one for each that is open, one when it "
                   "begins, one when it ends");
  flows_->add_option("filter", filter_, "listen | tcp | udp | port N | peer ADDRESS | pid N");
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
  Request all;
  all.name = static_cast<uint16_t>(Feature::list);
  auto answer = engine->ask(all);
  if (!answer) return fail(json, answer.error());
  if (answer->status != 0) return refusal(json, answer->status);
  if (watch_) return follow(*engine, filter, json);
  return list(*engine, filter, json);
}

}  // namespace mw
