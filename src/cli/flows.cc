#include "cli/flows.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/log.h"
#include "cli/exit_status.h"
#include "frontend/session.h"
#include "netflow/address.h"
#include "netflow/client.h"

namespace mw {
namespace {

using namespace netflow;

constexpr int kAnswerMs = 10'000;

struct Named {
  const char* name;
  Feature feature;
  bool of_socket;
  bool is_time;
};
constexpr Named kFeatures[] = {{"nonblock", Feature::nonblock, true, false},
                               {"reuseaddr", Feature::reuseaddr, true, false},
                               {"reuseport", Feature::reuseport, true, false},
                               {"keepalive", Feature::keepalive, true, false},
                               {"defer-accept", Feature::defer_accept, true, false},
                               {"nodelay", Feature::nodelay, true, false},
                               {"open", Feature::is_open, true, false},
                               {"owner-running", Feature::owner_running, true, false},
                               {"sndbuf", Feature::sndbuf, true, false},
                               {"rcvbuf", Feature::rcvbuf, true, false},
                               {"sndtimeo", Feature::sndtimeo, true, true},
                               {"rcvtimeo", Feature::rcvtimeo, true, true},
                               {"sndlowat", Feature::sndlowat, true, false},
                               {"rcvlowat", Feature::rcvlowat, true, false},
                               {"error", Feature::error, true, false},
                               {"congestion", Feature::congestion, false, false},
                               {"delack-ticks", Feature::delack_ticks, false, false}};

const Named* find_feature(const std::string& name) {
  for (const Named& f : kFeatures)
    if (name == f.name) return &f;
  return nullptr;
}

std::string feature_names() {
  std::string all;
  for (const Named& f : kFeatures) all += (all.empty() ? "" : " ") + std::string(f.name);
  return all;
}

// "1:104" (INS and number), or the whole identifier.
std::optional<SocketId> parse_socket(const std::string& text) {
  unsigned long long first = 0;
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

double seconds(const Timestamp& t) {
  return static_cast<double>(t.seconds) + static_cast<double>(t.nanoseconds) / 1e9;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < ' ' ? '?' : c;
  }
  return out + "\"";
}

std::string number(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

std::string command_of(const Flow& f) {
  const std::string text(f.command.data(), ::strnlen(f.command.data(), f.command.size()));
  return f.pid == 0 ? "-" : text + "[" + std::to_string(f.pid) + "]";
}

const char* type_of(const Flow& f) {
  if (f.type == 2) return "udp";
  return (f.flags & kFlowListener) != 0 ? "listen" : "tcp";
}

int fail(bool json, ExitStatus exit, const std::string& text) {
  const int status = static_cast<int>(exit);
  log_line("mw", "%s", text.c_str());
  if (json) std::printf("{\"error\":%s,\"status\":%d}\n", quoted(text).c_str(), status);
  return status;
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

// Filter words: listen | tcp | udp | port N | peer ADDRESS | pid N, all of which have to hold.
class Filter {
 public:
  // False: `wrong` is a word that is none.
  bool parse(const std::vector<std::string>& words, std::string* wrong) {
    for (size_t k = 0; k < words.size(); ++k) {
      *wrong = words[k];
      if (words[k] == "listen" || words[k] == "tcp" || words[k] == "udp") {
        types_.insert(words[k]);
        continue;
      }
      if (k + 1 == words.size()) return false;
      const std::string& value = words[k + 1];
      char* end = nullptr;
      const unsigned long n = std::strtoul(value.c_str(), &end, 10);
      const bool is_number = !value.empty() && *end == 0;
      if (words[k] == "port" && is_number && n <= 65535)
        port_ = static_cast<uint16_t>(n);
      else if (words[k] == "pid" && is_number)
        pid_ = static_cast<uint32_t>(n);
      else if (words[k] == "peer" && parse_address(value))
        peer_ = *parse_address(value);
      else
        return false;
      ++k;
    }
    return true;
  }
  bool takes(const Flow& f) const {
    return (types_.empty() || types_.count(type_of(f)) != 0) &&
           (!port_ || f.local.port == *port_ || f.remote.port == *port_) &&
           (!pid_ || f.pid == *pid_) && (!peer_ || f.remote.address == *peer_);
  }

 private:
  std::set<std::string> types_;
  std::optional<uint16_t> port_;
  std::optional<uint32_t> pid_;
  std::optional<Address> peer_;
};

void print_table(const std::vector<Flow>& flows, double now) {
  std::printf("%-6s %-26s %-26s %12s %12s %9s %9s %-20s %s\n", "Type", "Local", "Peer", "In", "Out",
              "Age", "Idle", "Process", "Socket");
  for (const Flow& f : flows) {
    const double last = std::max(seconds(f.last), seconds(f.session_start));
    std::printf("%-6s %-26s %-26s %12" PRIu64 " %12" PRIu64 " %8.1fs %8.1fs %-20s %s\n", type_of(f),
                to_string(f.local).c_str(), to_string(f.remote).c_str(), f.bytes_in, f.bytes_out,
                now - seconds(f.session_start), now - last, command_of(f).c_str(),
                name_of(f.socket).c_str());
  }
}

void print_document(const std::vector<Flow>& flows, double now) {
  std::string out = "[";
  for (const Flow& f : flows) {
    const std::string command(f.command.data(), ::strnlen(f.command.data(), f.command.size()));
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
           ",\"uid\":" + std::to_string(f.uid) + ",\"command\":" + quoted(command) + "}";
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

// The local socket of the session that is named, or of the only one.
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

Request request_for(Feature feature, bool write) {
  Request r;
  r.flags = write ? kRequestWrite : 0;
  r.name = static_cast<uint16_t>(feature);
  return r;
}

int list(Client& engine, const Filter& filter, bool json) {
  std::vector<Flow> flows = engine.take_flows();
  std::erase_if(flows, [&](const Flow& f) { return !filter.takes(f); });
  std::sort(flows.begin(), flows.end(),
            [](const Flow& a, const Flow& b) { return a.socket < b.socket; });
  const double now = static_cast<double>(realtime_ns()) / 1e9;
  if (json)
    print_document(flows, now);
  else
    print_table(flows, now);
  return 0;
}

int follow(Client& engine, const Filter& filter, bool json) {
  std::set<int64_t> accepted;
  std::set<uint16_t> listening;
  const std::vector<Flow> flows = engine.take_flows();
  for (const Flow& f : flows)
    if ((f.flags & kFlowListener) != 0) listening.insert(f.local.port);
  for (const Flow& f : flows)
    if (listening.count(f.local.port) != 0) accepted.insert(f.socket);
  // What is open already, so that nobody has to wait for its end to know of it.
  for (const Flow& f : flows) {
    if (f.remote.port == 0 || !filter.takes(f)) continue;
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
    if (f.remote.port != 0 && filter.takes(f)) print_record(*seen, socket, from_outside, final);
  }
}

}  // namespace

CLI::App* FlowCommands::add(CLI::App& app, const char* name, const char* text) {
  CLI::App* sub = app.add_subcommand(name, text);
  sub->add_option("-s,--session", session_, "The session, if several run")->type_name("NAME");
  sub->add_flag("-j,--json", json_, "One JSON document on standard output");
  return sub;
}

FlowCommands::FlowCommands(CLI::App& app) {
  flows_ = add(app, "flows", "List the sockets of a session");
  flows_->add_flag("-w,--watch", watch_,
                   "Follow connections as JSON lines: one for each that is open, one when it "
                   "begins, one when it ends");
  flows_->add_option("filter", filter_, "listen | tcp | udp | port N | peer ADDRESS | pid N");
  close_ = add(app, "close", "Cut a connection: its peer and the application see a reset");
  close_->add_option("socket", socket_, "As `mw flows` shows it")->required();
  get_ = add(app, "get", "Read a feature of a socket, or of the whole stack");
  set_ = add(app, "set", "Set a feature of a socket, or of the whole stack");
  for (CLI::App* sub : {get_, set_}) {
    sub->add_option("socket", socket_, "As `mw flows` shows it, or all")->required();
    sub->add_option("feature", feature_, "One of: " + feature_names())->required();
    sub->footer(
        "Features of all: congestion (144 reno, 146 cubic), delack-ticks (set: difference)");
  }
  set_->add_option("value", value_, "A number; for times, seconds")->required();
  block_ = add(app, "block", "Cut every connection with a peer and let it in no more");
  unblock_ = add(app, "unblock", "Let a peer in again");
  for (CLI::App* sub : {block_, unblock_})
    sub->add_option("address", peer_, "The peer's IPv4 or IPv6 address")->required();
}

bool FlowCommands::given() const {
  return *flows_ || *close_ || *get_ || *set_ || *block_ || *unblock_;
}

int FlowCommands::run() const {
  return *flows_ ? show() : act();
}

// Asks for what there is, and shows that, or follows what becomes of it.
int FlowCommands::show() const {
  Filter filter;
  std::string why;
  if (!filter.parse(filter_, &why)) return fail(json_, ExitStatus::usage, "not a filter: " + why);
  const auto path = find_session(session_, &why);
  if (!path) return fail(json_, ExitStatus::unreachable, why);
  auto engine = Client::connect(*path, kAnswerMs);
  if (!engine) return fail(json_, engine.error());
  auto answer = engine->ask(request_for(Feature::list, false));
  if (!answer) return fail(json_, answer.error());
  if (answer->status != 0) return refusal(json_, answer->status);
  if (watch_) return follow(*engine, filter, json_);
  return list(*engine, filter, json_);
}

int FlowCommands::act() const {
  std::string why;
  const bool write = !*get_;
  Request r;
  const Named* named = nullptr;
  if (*block_ || *unblock_) {
    const auto peer = parse_address(peer_);
    if (!peer) return fail(json_, ExitStatus::usage, "not an address: " + peer_);
    r = request_for(Feature::address_block, true);
    r.value0 = *block_ ? 1 : 0;
    name_peer(r, *peer);
  } else {
    named = find_feature(*close_ ? "open" : feature_);
    if (named == nullptr)
      return fail(json_, ExitStatus::usage,
                  "no feature " + feature_ + "; there are: " + feature_names());
    r = request_for(named->feature, write);
    const auto socket = parse_socket(socket_);
    if (named->of_socket != (socket_ != "all") || (named->of_socket && !socket))
      return fail(json_, ExitStatus::usage,
                  named->of_socket ? "not a socket as `mw flows` shows it: " + socket_
                                   : std::string(named->name) + " is a feature of all");
    if (named->of_socket) name_socket(r, *socket);
  }
  if (*set_) {
    char* end = nullptr;
    const double value = std::strtod(value_.c_str(), &end);
    if (value_.empty() || *end != 0 || !std::isfinite(value) || std::fabs(value) > 1e15)
      return fail(json_, ExitStatus::usage, "not a number: " + value_);
    r.value0 = static_cast<uint64_t>(static_cast<int64_t>(value));
    if (named->is_time) r.value1 = static_cast<uint64_t>(std::fmod(std::fabs(value), 1.0) * 1e6);
  }
  const auto path = find_session(session_, &why);
  if (!path) return fail(json_, ExitStatus::unreachable, why);
  auto engine = Client::connect(*path, kAnswerMs);
  if (!engine) return fail(json_, engine.error());
  auto answer = engine->ask(r);
  if (!answer) return fail(json_, answer.error());
  if (answer->status != 0) return refusal(json_, answer->status);
  const bool is_time = named != nullptr && named->is_time;
  const std::string value =
      is_time
          ? number(static_cast<double>(answer->value0) + static_cast<double>(answer->value1) / 1e6)
          : std::to_string(answer->value0);
  if (json_)
    std::printf("{\"value\":%s}\n", value.c_str());
  else if (*get_ || *set_)
    std::printf("%s\n", value.c_str());
  return 0;
}

}  // namespace mw
