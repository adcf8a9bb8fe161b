#include "cli/guard.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "cli/check_config.h"
#include "cli/engine.h"
#include "cli/guard_probe.h"
#include "guard/audit.h"
#include "guard/engine.h"
#include "guard/probe.h"
#include "netflow/address.h"
#include "netflow/client.h"

namespace mw {
namespace {

using namespace guard;
using netflow::Client;
using netflow::Feature;

constexpr const char* kWho = "mw guard";
constexpr int kTurnMs = 250;
constexpr int kAgainMs = 200;

// What is to be known before anything is watched.
struct Task {
  SessionRecord session;
  std::string socket;
  Rules rules;
  bool act = false;
  bool json = false;
};

std::string peer_text(const Decision& d) {
  return d.act == Act::close ? netflow::to_string(d.peer) + " (" + name_of(d.socket) + ")"
                             : netflow::to_string(d.peer.address);
}

// One run of `mw guard`, over as many connections to the session as it takes.
class Guard {
 public:
  Guard(Task task, std::optional<AuditLog> audit, UniqueFd signals)
      : task_(std::move(task)),
        audit_(std::move(audit)),
        signals_(std::move(signals)),
        engine_(task_.rules, !task_.act),
        service_(task_.rules.probe) {}

  int run();

 private:
  enum class End : uint8_t { none, stopped, lost, failed };

  Status greet(Client& client);
  int refused(const Error& e) const;
  End watch(Client& client);
  bool session_lives() const;
  Status take_rounds(Client& client);
  void take_probes();
  Status act(Client& client, bool* more);
  Status carry_out(Client& client, const Decision& d);
  void look_for_target(const std::vector<netflow::Sample>& samples);
  bool start_probe(const ProbeTarget& target);
  End wait(int client_fd, int timeout_ms);
  bool stopped();
  void say(const std::string& json, const std::string& text);

  Task task_;
  std::optional<AuditLog> audit_;
  UniqueFd signals_;
  Engine engine_;
  Availability service_;
  std::unique_ptr<Prober> prober_;
  std::string no_target_;  // why, as it was said last
  bool audit_failed_ = false;
};

void Guard::say(const std::string& json, const std::string& text) {
  std::puts((task_.json ? json : text).c_str());
  std::fflush(stdout);
  if (!audit_) return;
  const Status written = audit_->write(json);
  if (!written && !audit_failed_)
    log_line(kWho, "%s: %s", written.error().where, std::strerror(written.error().err));
  audit_failed_ = !written;
}

Status Guard::greet(Client& client) {
  // Samples say it all; a copy of every call would only cost.
  auto quiet = client.ask(netflow::write_request(Feature::monitor_off));
  if (!quiet) return quiet.error();
  if (task_.act) {
    // May we? A socket that cannot be tells, and harms nobody.
    netflow::ExtendedRequest try_it;
    try_it.request = netflow::write_request(Feature::is_open, netflow::SocketId{0, 0});
    try_it.options = netflow::kDryRun;
    auto may = client.ask(try_it);
    if (!may) return may.error();
    if (may->status == EPERM) return Error{Fault::sys, EPERM, "acting on this session"};
  }
  auto answer = client.ask(netflow::write_request(Feature::sampling, task_.rules.sample_ms));
  if (!answer) return answer.error();
  if (answer->status != 0)
    return Error{Fault::sys, static_cast<int>(answer->status), "asking for samples"};
  return Ok{};
}

int Guard::refused(const Error& e) const {
  return fail(task_.json, e);
}

bool Guard::session_lives() const {
  for (const SessionRecord& r : list_sessions(default_base()))
    if (r.name == task_.session.name && r.mark == task_.session.mark)
      return state_of(r) != SessionState::dead;
  return false;
}

int Guard::run() {
  const std::string mode = task_.act ? "acts" : "only watches";
  say(line_of(this_moment(), "start", task_.session.name + ": " + mode),
      "guards " + task_.session.name + ", " + mode +
          (task_.rules.always ? ", at any time" : ", while its clients are not served"));
  if (task_.rules.probe.target != "auto" && task_.rules.probe.target != "none" &&
      !start_probe(*parse_target(task_.rules.probe.target)))
    return static_cast<int>(ExitStatus::failure);
  bool connected_before = false;
  for (;;) {
    auto client = Client::connect(task_.socket, kAnswerMs);
    Status greeted = Ok{};
    if (client) greeted = greet(*client);
    if (client && greeted) {
      connected_before = true;
      if (watch(*client) == End::stopped) return 0;
      engine_.released();
      say(line_of(this_moment(), "lost", "the connection to the session ended"),
          "the connection to the session ended, and with it what was in force");
    } else {
      const Error why = client ? greeted.error() : client.error();
      const bool for_good = why.err == EPERM || why.err == EACCES || why.fault == Fault::peer;
      if (!connected_before || for_good) return refused(why);
    }
    if (!session_lives()) {
      say(line_of(this_moment(), "stop", "the session has ended"), "the session has ended");
      return 0;
    }
    if (wait(-1, kAgainMs) == End::stopped) return 0;
  }
}

Guard::End Guard::watch(Client& client) {
  for (;;) {
    if (const Status taken = take_rounds(client); !taken) return End::lost;
    take_probes();
    if (prober_) prober_->hurry(engine_.suspicious() || service_.state() != Service::served);
    bool more = false;
    if (const Status acted = act(client, &more); !acted) return End::lost;
    if (const End end = wait(client.fd(), more ? 0 : kTurnMs); end != End::none) return end;
  }
}

Status Guard::take_rounds(Client& client) {
  for (;;) {
    auto seen = client.next_round(0);
    if (!seen && seen.error().fault == Fault::would_block) return Ok{};
    if (!seen) return seen.error();
    engine_.observe(seen->samples, seen->round);
    if (!prober_ && task_.rules.probe.target == "auto") look_for_target(seen->samples);
  }
}

void Guard::look_for_target(const std::vector<netflow::Sample>& samples) {
  const FoundTarget found = find_target(task_.session, samples);
  if (found.target) {
    start_probe(*found.target);
  } else if (found.text != no_target_) {
    no_target_ = found.text;
    log_line(kWho, "no probe yet: %s", found.text.c_str());
  }
}

bool Guard::start_probe(const ProbeTarget& target) {
  auto prober = Prober::start(target, task_.rules.probe);
  if (!prober) {
    log_line(kWho, "no probe: %s: %s", prober.error().where, std::strerror(prober.error().err));
    return false;
  }
  prober_ = std::move(*prober);
  const std::string text =
      "the probe " + std::string(target.http ? "asks for " : "connects to ") + to_string(target);
  say(line_of(this_moment(), "probe", text), text);
  return true;
}

void Guard::take_probes() {
  if (!prober_) return;
  for (const ProbeResult& r : prober_->take()) {
    if (!service_.add(r, engine_.pressed())) continue;
    char text[96];
    std::snprintf(text, sizeof text, "the service is %s (probe: %s after %.0f ms)",
                  to_string(service_.state()), to_string(r.fate), r.ms);
    say(line_of(this_moment(), service_), text);
  }
}

Status Guard::act(Client& client, bool* more) {
  const auto decisions = engine_.decide(monotonic_ns(), service_.state());
  *more = !decisions.empty();
  for (const Decision& d : decisions)
    if (const Status done = carry_out(client, d); !done) return done;
  return Ok{};
}

Status Guard::carry_out(Client& client, const Decision& d) {
  if (d.held_back) {
    say(line_of(this_moment(), d, !task_.act, 0, 0),
        "the cap on the share of connections forbids: " + std::string(to_string(d.act)) + " " +
            peer_text(d) + ": " + reason_of(d));
    return Ok{};
  }
  auto answer = client.ask(request_of(d, !task_.act));
  if (!answer) return answer.error();
  const Moment now = this_moment();
  engine_.result(d, answer->status, now.mono_ns);
  const uint64_t id = task_.act && answer->status == 0 && d.act != Act::close ? answer->value1 : 0;
  std::string text = std::string(task_.act ? "" : "would ") + to_string(d.act) + " " + peer_text(d);
  if (d.ttl_s != 0) text += " for " + std::to_string(d.ttl_s) + " s";
  text += ": " + reason_of(d);
  if (answer->status != 0)
    text += " (" + std::string(std::strerror(static_cast<int>(answer->status))) + ")";
  say(line_of(now, d, !task_.act, answer->status, id), text);
  return Ok{};
}

Guard::End Guard::wait(int client_fd, int timeout_ms) {
  pollfd polled[3] = {{signals_.get(), POLLIN, 0},
                      {client_fd, POLLIN, 0},
                      {prober_ ? prober_->fd() : -1, POLLIN, 0}};
  if (::poll(polled, 3, timeout_ms) < 0 && errno != EINTR) return End::failed;
  return polled[0].revents != 0 && stopped() ? End::stopped : End::none;
}

bool Guard::stopped() {
  signalfd_siginfo info{};
  if (::read(signals_.get(), &info, sizeof info) != sizeof info) return false;
  if (info.ssi_signo == SIGHUP) {
    if (!audit_) return false;
    if (const Status again = audit_->reopen(); !again)
      log_line(kWho, "%s: %s", again.error().where, std::strerror(again.error().err));
    return false;
  }
  say(line_of(this_moment(), "stop", "a signal"), "stopped; what was in force ends");
  return true;
}

// Beside ourselves, as an installation can be moved as a whole; empty if there is none.
std::string installed_rules() {
  std::error_code error;
  const std::filesystem::path bin =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  const auto path = (bin / MW_SYSCONF_FROM_BIN / "guard.toml").lexically_normal();
  return std::filesystem::exists(path, error) ? path.string() : "";
}

UniqueFd signals() {
  sigset_t wanted;
  sigemptyset(&wanted);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&wanted, signal);
  // Before there is a thread, so that it takes none of them.
  ::sigprocmask(SIG_BLOCK, &wanted, nullptr);
  return UniqueFd{::signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK)};
}

}  // namespace

GuardCommand::GuardCommand(CLI::App& app)
    : guard_(app.add_subcommand("guard", "Watch a session for slow attacks, and stop them")) {
  guard_->add_option("-s,--session,session", session_, "The session, if several run");
  guard_->add_flag("--act", act_, "Do what is decided; else it is only told");
  guard_
      ->add_option("--rules", rules_file_, "Instead of the file that is installed; see mw-guard(1)")
      ->type_name("FILE");
  guard_
      ->add_option(
          "--probe", probe_,
          "What tells whether clients are served: auto, none, ADDRESS:PORT, http://ADDRESS[/PATH]")
      ->type_name("TARGET");
  guard_->add_option("--audit", audit_, "Append a JSON line for everything that is decided")
      ->type_name("FILE");
  guard_->add_option("--check", check_, "Only say whether this file of rules is right")
      ->type_name("FILE");
  guard_->add_flag("-j,--json", json_, "JSON lines on standard output");
  guard_->footer("mw guard [--act] [--rules FILE] [--probe TARGET] [--audit FILE] [SESSION]");
}

int GuardCommand::run() const {
  const auto check = [this](const std::string& path) {
    auto reading = read_rules(path);
    return static_cast<int>(reading ? report_faults(path, reading->faults, json_)
                                    : report_unreadable(path, reading.error(), json_));
  };
  if (!check_.empty()) return check(check_);
  Task task;
  task.act = act_;
  task.json = json_;
  const std::string path = rules_file_.empty() ? installed_rules() : rules_file_;
  if (!path.empty()) {
    auto reading = read_rules(path);
    if (!reading) return check(path);
    if (!reading->faults.empty()) return check(path), print_usage(*guard_);
    task.rules = reading->rules;
  }
  if (!probe_.empty()) task.rules.probe.target = probe_;
  const std::string& target = task.rules.probe.target;
  if (target != "auto" && target != "none" && !parse_target(target))
    return usage_fault(*guard_, json_, "not something to probe: " + target);
  if (target == "none" && !task.rules.always)
    return usage_fault(
        *guard_, json_,
        "without a probe nothing tells when to act: name one, or say when = \"always\" in "
        "the rules");
  std::string why;
  const auto socket = find_session(session_, &why);
  if (!socket) return fail(json_, ExitStatus::unreachable, why);
  task.socket = *socket;
  const std::string name = std::filesystem::path(*socket).parent_path().filename();
  for (const SessionRecord& r : list_sessions(default_base()))
    if (r.name == name) task.session = r;
  std::optional<AuditLog> audit;
  if (!audit_.empty()) {
    auto opened = AuditLog::open(audit_);
    if (!opened)
      return fail(json_,
                  opened.error().err == EACCES ? ExitStatus::not_permitted : ExitStatus::failure,
                  audit_ + ": " + std::strerror(opened.error().err));
    audit = std::move(*opened);
  }
  return Guard(std::move(task), std::move(audit), signals()).run();
}

}  // namespace mw
