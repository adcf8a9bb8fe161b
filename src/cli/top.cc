#include "cli/top.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "base/clock.h"
#include "cli/changes.h"
#include "cli/engine.h"
#include "cli/sample_text.h"
#include "cli/top_view.h"
#include "netflow/address.h"

namespace mw {

using namespace netflow;

namespace {

// An engine that is sent samples and nothing else. Nothing: `exit` is what to end with.
std::optional<Client> connect_for_samples(const EngineOptions& options, double seconds, int* exit,
                                          std::string* session) {
  auto engine = connect(options, exit, session);
  if (!engine) return std::nullopt;
  const auto every_ms = static_cast<uint64_t>(seconds * 1000);
  for (const Request& r :
       {write_request(Feature::monitor_off), write_request(Feature::sampling, every_ms)}) {
    auto answer = engine->ask(r);
    if (answer && answer->status == 0) continue;
    *exit = answer ? refusal(options.json, answer->status) : fail(options.json, answer.error());
    return std::nullopt;
  }
  return engine;
}

// Text that is no UTF-8 is no reason to say nothing.
std::string dumped(const nlohmann::ordered_json& document) {
  return document.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void print_document(const TopView& view, const std::string& session) {
  nlohmann::ordered_json document = {{"session", session}};
  document["round"] = json_of(view.round().round);
  document["sockets"] = nlohmann::ordered_json::array();
  document["processes"] = nlohmann::ordered_json::array();
  for (const Sample& s : view.rows()) document["sockets"].push_back(json_of(s));
  for (const ProcessSample& p : view.round().processes) document["processes"].push_back(json_of(p));
  std::cout << dumped(document) << '\n';
}

void print_table(const TopView& view, const std::string& session) {
  constexpr int kWidth = 250;
  for (const std::string& line : view.summary(session, kWidth)) std::puts(line.c_str());
  std::puts(TopView::title(kWidth).c_str());
  for (const Sample& s : view.rows()) std::puts(TopView::line(s, kWidth).c_str());
}

std::string seconds_text(uint32_t milliseconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", milliseconds / 1e3);
  return text;
}

// What went one way, in a sentence.
std::string traffic(const char* what, uint64_t bytes, uint32_t calls, uint32_t first, uint32_t last,
                    uint64_t rate) {
  if (bytes == 0 && first == kNever) return std::string(what) + ": nothing yet";
  std::string out = std::string(what) + ": " + std::to_string(bytes) + " bytes";
  if (calls != 0) out += " in " + std::to_string(calls) + " calls since somebody watches";
  if (first != kNever) out += ", the first " + seconds_text(first) + " ago";
  if (last != kNever) out += ", the last " + seconds_text(last) + " ago";
  return out + ", now " + short_number(rate) + " B/s";
}

// Who waits for whom, as far as the values tell.
std::string judgement(const Sample& s) {
  if ((s.flags & kSampleListener) != 0)
    return s.queue == 0 ? "no connection waits to be accepted"
                        : std::to_string(s.queue) + " connections wait to be accepted, " +
                              std::to_string(s.backlog) + " may";
  if (s.unsent != 0 && (s.flags & kSampleTcp) != 0 && s.snd_wnd == 0)
    return "the peer has closed its window: it takes nothing of what waits for it";
  if (s.unsent != 0) return "bytes wait to be sent: the peer or the way to it is slower";
  if (s.unread != 0) return "bytes wait to be read: the application is slower than the peer";
  if (s.bytes_in == 0 && (s.flags & kSampleInbound) != 0) return "the peer has said nothing yet";
  if (s.waiting_threads != 0) return "the application waits for the peer";
  return "nothing waits";
}

std::vector<std::string> explained(const Sample& s) {
  const bool listener = (s.flags & kSampleListener) != 0;
  std::string who = name_of(s.socket) + ": " + type_of(s) + " " + to_string(s.local);
  if (!listener) who += ", peer " + to_string(s.remote);
  who += ", of " + process_of(s);
  if (s.age != kNever)
    who += std::string((s.flags & kSampleInbound) != 0 ? ", accepted " : ", made ") +
           seconds_text(s.age) + " ago";
  std::vector<std::string> lines{who, judgement(s)};
  if (!listener) {
    lines.push_back(traffic("in", s.bytes_in, s.calls_in, s.first_in, s.last_in, s.rate_in) + "; " +
                    std::to_string(s.unread) + " unread");
    lines.push_back(traffic("out", s.bytes_out, s.calls_out, s.first_out, s.last_out, s.rate_out) +
                    "; " + std::to_string(s.unsent) + " unsent");
  }
  std::string cost = "cost: ";
  if (s.waiting_threads != 0)
    cost += std::to_string(s.waiting_threads) + " thread(s) wait for it, since " +
            seconds_text(s.waiting) + "; ";
  char worker[64];
  std::snprintf(worker, sizeof worker, "%.1f s of waiting in all",
                static_cast<double>(s.worker_us) / 1e6);
  lines.push_back(cost + worker);
  if ((s.flags & kSampleTcp) != 0) {
    char tcp[256];
    std::snprintf(tcp, sizeof tcp,
                  "tcp: %s, round trip %.1f ms (least %.1f), the peer's window %u bytes, %u "
                  "segments unacknowledged, %u sent again, %u probes",
                  tcp_state_of(s), s.rtt_us / 1e3, s.min_rtt_us / 1e3, s.snd_wnd, s.unacked,
                  s.total_retrans, s.probes);
    lines.emplace_back(tcp);
  }
  std::string force;
  for (const auto& [bit, name] :
       {std::pair{kSamplePaused, "paused"}, std::pair{kSamplePaced, "paced"},
        std::pair{kSampleMinRate, "held to a minimum rate"},
        std::pair{kSampleAllowed, "its peer is on the allow list"}})
    if ((s.flags & bit) != 0) force += (force.empty() ? "in force: " : ", ") + std::string(name);
  if (!force.empty()) lines.push_back(force);
  return lines;
}

// The rules about a connection: its own, its peer's, and those about all.
std::vector<Rule> rules_about(std::vector<Rule> rules, int64_t socket, const Sample* open) {
  std::erase_if(rules, [&](const Rule& r) {
    if (r.socket != 0) return r.socket != socket;
    if (open == nullptr) return true;
    if ((r.flags & kRequestByPeer) != 0) return r.peer.address != open->remote.address;
    return r.state != kRuleInForce;
  });
  return rules;
}

}  // namespace

SampleCommands::SampleCommands(CLI::App& app) {
  std::string keys;
  for (const TopColumn& c : TopView::columns())
    keys += (keys.empty() ? "" : " ") + std::string(c.key);
  top_ = options_.add(app, "top", "Show the sockets of a session live, the costliest first");
  why_ = options_.add(app, "why", "Say how a connection stands, and what is in force on it");
  top_->add_flag("-b,--batch", batch_, "Print one round and end");
  top_->add_option("-d,--delay", seconds_, "Seconds between two rounds")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.05, 60.0));
  top_->add_option("--sort", sort_, "One of: " + keys)->type_name("COLUMN");
  top_->add_option("filter", filter_,
                   "listen | tcp | udp | port N | peer ADDRESS | pid N, or any text of a line");
  why_->add_option("socket", socket_, "As `mw flows` shows it")->required();
}

int SampleCommands::show_all() const {
  TopView view;
  const auto sort = TopView::find_column(sort_);
  if (!sort) return usage_fault(*top_, options_.json, "no column " + sort_);
  view.set_sort(*sort);
  std::string filter;
  for (const std::string& word : filter_) filter += (filter.empty() ? "" : " ") + word;
  view.set_filter(filter);
  const bool once = batch_ || options_.json;
  if (!once && (::isatty(STDIN_FILENO) == 0 || ::isatty(STDOUT_FILENO) == 0))
    return usage_fault(*top_, options_.json,
                       "this is no terminal: -b prints one round, --json too");
  int exit = 0;
  std::string session;
  auto engine = connect_for_samples(options_, seconds_, &exit, &session);
  if (!engine) return exit;
  if (!once) return run_top_screen(*engine, session, view);
  auto round = engine->next_round(kAnswerMs);
  if (!round) return fail(options_.json, round.error());
  view.set_round(std::move(*round));
  if (options_.json)
    print_document(view, session);
  else
    print_table(view, session);
  return 0;
}

int SampleCommands::show_one() const {
  const auto socket = parse_socket(socket_);
  if (!socket)
    return usage_fault(*why_, options_.json, "not a socket as `mw flows` shows it: " + socket_);
  int exit = 0;
  auto engine = connect_for_samples(options_, 1, &exit, nullptr);
  if (!engine) return exit;
  auto round = engine->next_round(kAnswerMs);
  if (!round) return fail(options_.json, round.error());
  const int64_t id = encode(*socket);
  auto all = engine->rules();
  if (!all) return fail(options_.json, all.error());
  const auto found = std::find_if(round->samples.begin(), round->samples.end(),
                                  [id](const Sample& s) { return s.socket == id; });
  const Sample* open = found == round->samples.end() ? nullptr : &*found;
  const auto rules = rules_about(std::move(*all), id, open);
  if (open == nullptr && rules.empty())
    return fail(options_.json, ExitStatus::failure, "no socket " + socket_ + " is open");
  if (options_.json) {
    nlohmann::ordered_json document;
    if (open != nullptr) document = json_of(*open);
    document["id"] = id;
    document["state"] = open == nullptr ? "it is closed" : judgement(*open);
    document["rules"] = nlohmann::ordered_json::array();
    for (const Rule& r : rules)
      document["rules"].push_back(nlohmann::ordered_json::parse(json_of(r), nullptr, false));
    std::cout << dumped(document) << '\n';
    return 0;
  }
  if (open == nullptr) std::printf("%s is closed\n", name_of(id).c_str());
  if (open != nullptr)
    for (const std::string& line : explained(*open)) std::puts(line.c_str());
  const double now = static_cast<double>(realtime_ns()) / 1e9;
  for (const Rule& r : rules) std::puts(text_of(r, now).c_str());
  return 0;
}

}  // namespace mw
