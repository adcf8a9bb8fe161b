#include "cli/sample_text.h"

#include <cstdio>
#include <cstring>

#include "cli/engine.h"
#include "netflow/address.h"

namespace mw {

using namespace netflow;
using Json = nlohmann::ordered_json;

namespace {

Json seconds_of(uint32_t milliseconds) {
  return milliseconds == kNever ? Json(nullptr) : Json(milliseconds / 1e3);
}

std::string formatted(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

std::string process_of(const Sample& s) {
  return process_text(s.pid, s.command);
}

const char* type_of(const Sample& s) {
  return type_text(s.type, (s.flags & kSampleListener) != 0);
}

const char* tcp_state_of(const Sample& s) {
  static constexpr const char* kStates[] = {"-",       "ESTAB",    "SYN-SENT", "SYN-RECV",
                                            "FIN-W1",  "FIN-W2",   "TIME-W",   "CLOSED",
                                            "CLOSE-W", "LAST-ACK", "LISTEN",   "CLOSING"};
  return s.tcp_state < std::size(kStates) ? kStates[s.tcp_state] : "-";
}

std::string short_number(uint64_t n) {
  if (n < 10'000) return std::to_string(n);
  auto value = static_cast<double>(n);
  for (const char unit : {'k', 'M', 'G', 'T', 'P', 'E'}) {
    value /= 1000;
    if (value < 999.5) return formatted(value < 99.5 ? "%.1f" : "%.0f", value) + unit;
  }
  return "many";
}

std::string short_age(uint64_t milliseconds) {
  if (milliseconds == kNever) return "-";
  const double s = static_cast<double>(milliseconds) / 1e3;
  if (s < 600) return formatted("%.1fs", s);
  if (s < 36'000) return formatted("%.0fm", s / 60);
  return formatted(s < 3.6e7 ? "%.0fh" : "%.2gh", s / 3600);
}

Json json_of(const Sample& s) {
  return {{"socket", name_of(s.socket)},
          {"id", s.socket},
          {"type", type_of(s)},
          {"inbound", (s.flags & kSampleInbound) != 0},
          {"paused", (s.flags & kSamplePaused) != 0},
          {"paced", (s.flags & kSamplePaced) != 0},
          {"min_rate", (s.flags & kSampleMinRate) != 0},
          {"allowed", (s.flags & kSampleAllowed) != 0},
          {"local", to_string(s.local)},
          {"peer", to_string(s.remote)},
          {"pid", s.pid},
          {"uid", s.uid},
          {"command", command_text(s.command)},
          {"bytes_in", s.bytes_in},
          {"bytes_out", s.bytes_out},
          {"calls_in", s.calls_in},
          {"calls_out", s.calls_out},
          {"age", seconds_of(s.age)},
          {"first_in", seconds_of(s.first_in)},
          {"last_in", seconds_of(s.last_in)},
          {"first_out", seconds_of(s.first_out)},
          {"last_out", seconds_of(s.last_out)},
          {"rate_in", s.rate_in},
          {"rate_out", s.rate_out},
          {"unread", s.unread},
          {"unsent", s.unsent},
          {"waiting_threads", s.waiting_threads},
          {"waiting", s.waiting / 1e3},
          {"worker_seconds", static_cast<double>(s.worker_us) / 1e6},
          {"queue", s.queue},
          {"backlog", s.backlog},
          {"tcp_state", tcp_state_of(s)},
          {"rtt_us", s.rtt_us},
          {"rttvar_us", s.rttvar_us},
          {"min_rtt_us", s.min_rtt_us},
          {"snd_wnd", s.snd_wnd},
          {"notsent", s.notsent},
          {"unacked", s.unacked},
          {"total_retrans", s.total_retrans},
          {"probes", s.probes},
          {"backoff", s.backoff},
          {"last_data_recv", s.last_data_recv / 1e3},
          {"last_data_sent", s.last_data_sent / 1e3},
          {"last_ack_recv", s.last_ack_recv / 1e3},
          {"bytes_acked", s.bytes_acked},
          {"bytes_received", s.bytes_received},
          {"bytes_retrans", s.bytes_retrans},
          {"busy_us", s.busy_us},
          {"rwnd_limited_us", s.rwnd_limited_us},
          {"sndbuf_limited_us", s.sndbuf_limited_us},
          {"delivery_rate", s.delivery_rate}};
}

Json json_of(const ProcessSample& s) {
  return {{"pid", s.pid},
          {"uid", s.uid},
          {"command", command_text(s.command)},
          {"rss_bytes", s.rss_bytes},
          {"cpu_seconds", static_cast<double>(s.cpu_us) / 1e6},
          {"threads", s.threads},
          {"fds", s.fds}};
}

Json json_of(const Round& r) {
  return {{"round", r.round},
          {"ts", static_cast<double>(r.now_ns) / 1e9},
          {"sockets", r.sockets},
          {"processes", r.processes},
          {"missed", r.missed},
          {"ins", r.ins},
          {"ins_pid", r.ins_pid},
          {"heartbeat", seconds_of(r.heartbeat)},
          {"slots", r.slots},
          {"ins_rss_bytes", r.ins_rss_bytes},
          {"ins_cpu_seconds", static_cast<double>(r.ins_cpu_us) / 1e6},
          {"ins_fds", r.ins_fds},
          {"ins_restarts", r.ins_restarts},
          {"telemetry_dropped", r.telemetry_dropped}};
}

}  // namespace mw
