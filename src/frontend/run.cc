#include "frontend/run.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "base/log.h"
#include "base/pidfd.h"
#include "frontend/app_network.h"
#include "frontend/forwarding.h"
#include "frontend/in_network.h"
#include "frontend/inherited.h"
#include "frontend/inspect.h"
#include "frontend/names.h"
#include "frontend/net.h"
#include "frontend/net_watch.h"
#include "frontend/refusals.h"
#include "frontend/relay.h"
#include "frontend/session.h"
#include "frontend/supervisor.h"
#include "frontend/take_over.h"

namespace mw {
namespace {

constexpr const char* kWho = "mw";

int fail(const Failure& failure, int status = kExitOwnFailure) {
  log_line(kWho, "%s", failure.text().c_str());
  return status;
}

// The lowest free STEM-N. `more`: names that others have.
std::string free_name(const std::string& stem, const std::vector<SessionRecord>& sessions,
                      const std::vector<std::string>& more) {
  std::set<std::string> used(more.begin(), more.end());
  for (const SessionRecord& r : sessions) used.insert(r.name);
  for (unsigned n = 0;; ++n) {
    const std::string name = stem + "-" + std::to_string(n);
    if (used.count(name) == 0) return name;
  }
}

Outcome<SessionRecord> find_session(const std::string& base, const std::string& name) {
  for (const SessionRecord& r : list_sessions(base)) {
    if (r.name == name) return r;
  }
  return Failure{"find session " + name, "there is none of that name in " + base,
                 "`mw ps` lists them"};
}

std::string joined(const std::vector<std::string>& words) {
  std::string s;
  for (const std::string& word : words) s += (s.empty() ? "" : " ") + word;
  return printable(s);
}

// Everything that is made for a session outside of its processes.
class Session {
 public:
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  Session(std::string base, Programs programs)
      : base_(std::move(base)), programs_(std::move(programs)) {}
  ~Session() {
    for (UniqueFd& fd : for_the_end_) fd.reset();
    if (ours_) close();
  }

  // `sockets`: those that the application would have inherited; withdrawn when this succeeds.
  Outcome<Done> open(const RunRequest& request, InheritedSockets* sockets) {
    if (auto done = keep_for_the_end(); !done) return done.error();
    auto lock = BaseLock::acquire(base_);
    if (!lock) return lock.error();
    const Swept swept = sweep(base_);
    for (const std::string& name : swept.buried)
      log_line(kWho, "removed what the dead session %s had left behind", name.c_str());
    for (const Failure& failure : swept.failures) fail(failure);
    const std::vector<SessionRecord> others = list_sessions(base_);
    auto plan = plan_network(others, request.net == NetMode::isolated);
    if (!plan) return plan.error();
    auto ports = claim_ports(request, others, sockets);
    if (!ports) return ports.error();
    std::vector<std::string> used;
    if (request.net == NetMode::isolated) {
      auto names = names_in_use();
      if (!names) return names.error();
      used = std::move(*names);
    }
    record_.name = free_name(session_stem(request.command[0]), others, used);
    record_.owner = identify(::getpid());
    record_.isolated = request.net == NetMode::isolated;
    record_.host_net = this_network();
    record_.plan = *plan;
    record_.published = request.published;
    for (const Publish& p : sockets->published()) record_.published.push_back(p);
    record_.reach = request.reach;
    if (record_.isolated) {
      InsResolver resolver = current_resolver(true);
      record_.reach.name_servers = std::move(resolver.name_servers);
      record_.reach.stubs = std::move(resolver.stubs);
    }
    record_.command = joined(request.command);
    for (const std::string& option : request.driver_options) {
      if (option.find('\n') == std::string::npos) continue;
      return Failure{"write down the option '" + printable(option) + "'",
                     "it has more than one line", "give that file another name"};
    }
    record_.driver_options = request.driver_options;
    if (auto made = make_descriptors(request, std::move(*ports)); !made) return made;
    record_.mark = "MWCOMMS_SESSION=" + descriptors_.attach_name + ":";
    record_.memory = descriptors_.memory;
    ours_ = true;
    if (auto done = make_session_folder(base_, record_); !done) return done.error();
    if (!record_.isolated) return Done{};
    auto netns = build_network(base_, record_);
    if (!netns) return netns.error();
    netns_ = std::move(*netns);
    return show_ins_interfaces(app_network_.get(), netns_.get(), record_.plan);
  }

  // Takes over a session that runs without a front end. False: its application has ended; what it
  // had left behind is removed.
  Outcome<bool> adopt(const AdoptRequest& request) {
    if (auto done = keep_for_the_end(); !done) return done.error();
    auto lock = BaseLock::acquire(base_);
    if (!lock) return lock.error();
    auto found = find_session(base_, request.session);
    if (!found) return found.error();
    const std::string step = "adopt session " + found->name;
    if (state_of(*found) == SessionState::running) {
      return Failure{step, "it has its front end, pid " + std::to_string(found->owner.pid), ""};
    }
    if (state_of(*found) == SessionState::dead) {
      const Swept swept = sweep(base_);
      if (!swept.failures.empty()) return swept.failures[0];
      return false;
    }
    record_ = *found;
    if (record_.isolated && record_.host_net != this_network()) {
      return Failure{step, "it was started in another network namespace", "say this there"};
    }
    auto descriptors = request.descriptors(folder());
    if (!descriptors) {
      return Failure{step, descriptors.error().cause,
                     "without its mwcommsd a session cannot be adopted; `mw clean " + record_.name +
                         "` ends it"};
    }
    descriptors_ = std::move(*descriptors);
    if (record_.isolated) {
      auto netns = open_network(record_);
      if (!netns) return netns.error();
      netns_ = std::move(*netns);
    }
    end_unknown_helpers(record_);
    record_.owner = identify(::getpid());
    ours_ = true;
    if (auto saved = save(base_, record_); !saved) return saved.error();
    return true;
  }

  SessionRecord& record() { return record_; }
  const Programs& programs() const { return programs_; }
  const std::string& base() const { return base_; }
  const SessionDescriptors& descriptors() const { return descriptors_; }
  int netns() const { return netns_ ? netns_.get() : -1; }
  int app_network() const { return app_network_ ? app_network_.get() : -1; }
  // A pidfd of this process, which is the session's front end.
  int self() const { return self_.get(); }
  std::string folder() const { return session_folder(base_, record_.name); }

 private:
  Outcome<Done> keep_for_the_end() {
    for (UniqueFd& fd : for_the_end_) {
      fd.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (!fd)
        return Failure{"keep descriptors for the session's end", errno_text(errno),
                       "raise the limit of open files"};
    }
    return Done{};
  }

  // What is open on the host's stack as long as the session lasts, so that its ports are nobody else's.
  static Outcome<std::vector<UniqueFd>> claim_ports(const RunRequest& request,
                                                    const std::vector<SessionRecord>& others,
                                                    InheritedSockets* sockets) {
    for (const std::vector<Publish>& published : {request.published, sockets->published()})
      if (auto free = check_ports(published, others); !free) return free.error();
    auto ports = reserve_ports(request.published);
    if (!ports) return ports;
    auto held = sockets->withdraw();
    if (!held) return held;
    for (UniqueFd& one : *held) ports->push_back(std::move(one));
    return ports;
  }

  // Of the sockets among them one is for the application's processes, which reach it in their own
  // network only.
  Outcome<Done> make_descriptors(const RunRequest& request, std::vector<UniqueFd> ports) {
    std::optional<InNetwork> there;
    if (record_.isolated) {
      auto made = make_app_network();
      if (!made) return made.error();
      app_network_ = std::move(*made);
      auto entered = InNetwork::enter(app_network_.get());
      if (!entered) return entered.error();
      there.emplace(std::move(*entered));
    }
    auto made = request.descriptors(record_.name, request.workers, std::move(ports));
    if (!made) return made.error();
    descriptors_ = std::move(*made);
    return Done{};
  }

  // Also run when opening stopped half-way.
  void close() {
    netns_.reset();
    auto lock = BaseLock::acquire(base_);
    if (!lock) {
      fail(lock.error());
      return;
    }
    // Our own helpers are gone; those pids are nobody's.
    record_.owner = record_.driver = record_.ins = ProcId{};
    for (const Failure& failure : sweep(base_, &record_).failures) fail(failure);
  }

  const std::string base_;
  const Programs programs_;
  SessionRecord record_;
  SessionDescriptors descriptors_;
  UniqueFd netns_;
  UniqueFd app_network_;  // until the application holds it
  const UniqueFd self_ = open_pidfd(::getpid());
  // Taking a session apart needs some, also when it failed for want of them.
  std::array<UniqueFd, 8> for_the_end_;
  bool ours_ = false;
};

void announce(const RunRequest& request, const SessionRecord& r) {
  std::string where = "on the host's own network";
  if (r.isolated) {
    where = "isolated in network namespace " + r.netns() + " (" + r.plan.ins4;
    if (!r.plan.ins6.empty()) where += ", " + r.plan.ins6;
    where += ")";
  }
  log_line(kWho, "session %s: INS %s, because %s", r.name.c_str(), where.c_str(),
           request.why_net.c_str());
  if (r.isolated)
    for (const std::string& sentence : obstacles(r)) log_line(kWho, "%s", sentence.c_str());
  if (r.isolated || ::geteuid() != 0) return;
  const std::string first = read_text("/proc/sys/net/ipv4/ip_unprivileged_port_start", 16);
  const unsigned long low = std::strtoul(first.c_str(), nullptr, 10);
  if (low == 0) return;
  log_line(kWho,
           "ports below %lu are refused to this INS, which has no capability; with --net isolated "
           "and -p they can be had",
           low);
}

void say_serving(const std::string& base, const SessionRecord& r) {
  log_line(kWho, "mwcommsd pid %d, mwins pid %d, registry %s", r.driver.pid, r.ins.pid,
           session_folder(base, r.name).c_str());
  for (const Publish& p : r.published) log_line(kWho, "published %s", to_string(p).c_str());
  if (!r.isolated) return;
  log_line(kWho, "egress %s", to_string(r.reach.egress).c_str());
  if (!r.reach.to_host.empty())
    log_line(kWho, "127.0.0.1 is the host's for ports %s", to_string(r.reach.to_host).c_str());
}

SpawnRequest driver_request(Session* session, int ready_fd) {
  SpawnRequest spawn;
  spawn.argv = {session->programs().driver,
                "--registry",
                session->folder(),
                "--session",
                session->record().name,
                "--mark",
                session->record().mark,
                "--token",
                "env",
                "--ready-fd",
                std::to_string(ready_fd),
                "--front-end",
                std::to_string(::getpid()),
                "--adopt-with",
                session->programs().mw};
  const SessionDescriptors& d = session->descriptors();
  spawn.environment = {"MWCOMMS_TOKEN=" + d.token};
  const std::vector<std::string>& options = session->record().driver_options;
  spawn.argv.insert(spawn.argv.end(), options.begin(), options.end());
  spawn.argv.insert(spawn.argv.end(), d.driver_arguments.begin(), d.driver_arguments.end());
  for (const UniqueFd& fd : d.owned) spawn.keep.push_back(fd.get());
  return spawn;
}

SpawnRequest ins_request(Session* session, unsigned id, int ready_fd) {
  SpawnRequest spawn;
  spawn.argv = {session->programs().ins,
                "--registry",
                session->folder(),
                "--mark",
                session->record().mark,
                "--id",
                std::to_string(id),
                "--workers",
                std::to_string(session->descriptors().workers),
                "--names",
                Names::folder(session->folder()),
                "--ready-fd",
                std::to_string(ready_fd)};
  if (session->self() >= 0) {
    spawn.argv.insert(spawn.argv.end(), {"--front-end-fd", std::to_string(session->self())});
    spawn.keep.push_back(session->self());
  }
  if (::geteuid() == 0) {
    const std::string uid = std::to_string(session->record().plan.ins_uid);
    spawn.argv.insert(spawn.argv.end(), {"--uid", uid, "--gid", uid});
  }
  spawn.netns = session->netns();
  if (spawn.netns >= 0) {
    const std::string led = to_string(session->record().reach.to_host);
    spawn.argv.insert(spawn.argv.end(), {"--to-host", led.empty() ? "none" : led});
  }
  spawn.own_pids = true;
  return spawn;
}

// The shim first; what the user has preloaded stays.
std::string preloaded(const std::string& shim) {
  const char* others = std::getenv("LD_PRELOAD");
  return others == nullptr || *others == 0 ? shim : shim + ":" + others;
}

// Keeps the session's rules in force whatever others do to the host's, and tells what they refuse.
class RulesKeeper {
 public:
  RulesKeeper(Session* session, NetWatch watch) : session_(session), watch_(std::move(watch)) {
    if (!has_rules(session_->record())) restore(true);
    // Of a session that is adopted: what was refused meanwhile was told to nobody.
    if (session_->record().application.pid != 0) report_refusals();
  }
  int fd() const { return watch_.fd(); }
  void on_watch() {
    const NetWatch::News news = watch_.take();
    if (news.rules || news.links) restore(news.rules);
    if (news.refusals) report_refusals();
  }
  // The INS is about to ask these name servers, and no longer those before. The former stay reachable while
  // lookups that began with them may run. False: the rules do not let it yet; call this again later.
  bool follow_name_servers(const InsResolver& now) {
    const Clock::time_point until = Clock::now() + kFormerFor;
    for (const std::string& server : asked_) former_[server] = until;
    for (const std::string& server : now.name_servers) former_.erase(server);
    asked_ = now.name_servers;
    stubs_ = now.stubs;
    return admit_name_servers();
  }
  // Readable when former name servers are no longer needed.
  int former_fd() const { return former_timer_.get(); }
  void on_former() {
    uint64_t expired = 0;
    if (::read(former_timer_.get(), &expired, sizeof expired) != sizeof expired) return;
    const Clock::time_point now = Clock::now();
    std::erase_if(former_, [now](const auto& one) { return one.second <= now; });
    (void)admit_name_servers();
  }

 private:
  using Clock = std::chrono::steady_clock;

  bool admit_name_servers() {
    Reach& reach = session_->record().reach;
    std::vector<std::string> servers = asked_;
    Clock::time_point next = Clock::time_point::max();
    for (const auto& [server, until] : former_) {
      servers.push_back(server);
      next = std::min(next, until);
    }
    if (!former_.empty()) {
      using namespace std::chrono;
      const auto left =
          duration_cast<nanoseconds>(std::max(next - Clock::now(), Clock::duration{1}));
      const itimerspec when{{0, 0}, {left.count() / 1'000'000'000, left.count() % 1'000'000'000}};
      (void)::timerfd_settime(former_timer_.get(), 0, &when, nullptr);
    }
    if (servers == reach.name_servers && stubs_ == reach.stubs) return !passages_differ_;
    reach.name_servers = std::move(servers);
    reach.stubs = stubs_;
    passages_differ_ = true;
    restore(false);
    return !passages_differ_;
  }

  void report_refusals() {
    const Clock::time_point now = Clock::now();
    if (now < next_report_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_report_ - now);
      return watch_.tell_refusals_in(static_cast<int>(left.count()));
    }
    next_report_ = now + kBetweenReports;
    auto table = read_refusals(session_->record());
    if (!table) return;  // it is gone, which is told, and put back
    for (const std::string& line : refusals_.news(*table)) {
      const char* help = "; --egress and --to-host say what the program may reach, see mw(1)";
      log_line(kWho, "%s%s", line.c_str(), std::exchange(helped_, true) ? "" : help);
    }
  }

  void restore(bool lost) {
    SessionRecord& record = session_->record();
    // The supervisor must not stand still while somebody else begins or ends a session.
    auto lock = BaseLock::acquire(session_->base(), false);
    if (!lock) return watch_.look_again_in(kBusyMs);
    Outcome<Done> done = attempt(&record);
    if (!done) {
      if (!has_rules(record)) stop();
      if (!complained_) fail(done.error());
      complained_ = true;
      return watch_.look_again_in(kAgainMs);
    }
    if (complained_ || lost)
      log_line(kWho, "session %s: its rules in nftables are in force again", record.name.c_str());
    complained_ = false;
  }

  Outcome<Done> attempt(SessionRecord* record) {
    constexpr int kMostTimes = 3;
    for (int time = 0; time < kMostTimes; ++time) {
      if (auto done = restore_rules(session_->base(), *record); !done) return done;
      if (passages_differ_) {
        if (auto done = restore_passages(*record, session_->netns()); !done) return done;
        passages_differ_ = false;
      }
      watch_.forget();  // what we did ourselves
      if (has_rules(*record)) return Done{};
    }
    return Failure{"keep the rules of " + record->name, "somebody removes them again and again",
                   ""};
  }

  void stop() {
    // Without the rules that guard it the host would be an open router.
    if (auto stopped = release_forwarding(session_->base()); !stopped && !complained_)
      log_line(kWho, "the host may forward packets between its interfaces: %s",
               stopped.error().text().c_str());
  }

  static constexpr int kBusyMs = 50;
  static constexpr int kAgainMs = 1000;
  static constexpr std::chrono::seconds kBetweenReports{5};
  // Twice what a lookup takes at most with the resolver's defaults: 3 servers, 2 attempts, 5 s each.
  static constexpr std::chrono::seconds kFormerFor{60};
  Session* const session_;
  NetWatch watch_;
  std::vector<std::string> asked_ = session_->record().reach.name_servers;  // by the INS
  std::vector<std::string> stubs_ = session_->record().reach.stubs;
  std::map<std::string, Clock::time_point> former_;  // until when they are reachable
  const UniqueFd former_timer_{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  Refusals refusals_;
  Clock::time_point next_report_{};
  bool helped_ = false;
  bool passages_differ_ = false;  // from what is in the INS's network namespace
  bool complained_ = false;
};

// Null: there are none to keep, or, as was said, they cannot be.
std::shared_ptr<RulesKeeper> keep_rules(Session* session, SupervisorConfig* config) {
  if (!session->record().isolated) return nullptr;
  auto watch = NetWatch::open(session->record().table());
  if (!watch) {
    fail(watch.error());
    return nullptr;
  }
  auto keeper = std::make_shared<RulesKeeper>(session, std::move(*watch));
  config->watched.push_back({keeper->fd(), [keeper] { keeper->on_watch(); }});
  return keeper;
}

// From here on.
Outcome<Done> refuse_at_held_sockets(const SessionDescriptors& descriptors,
                                     SupervisorConfig* config) {
  auto found = HeldSockets::among(descriptors.owned);
  if (!found) return found.error();
  if (found->empty()) return Done{};
  auto held = std::make_shared<HeldSockets>(std::move(*found));
  for (const std::string& sentence : held->refuse_all()) log_line(kWho, "%s", sentence.c_str());
  config->watched.push_back({held->fd(), [held] { held->refuse(); }});
  return Done{};
}

// From here on the session's rules and the INS's names follow the host.
Outcome<Done> follow_host(Session* session, SupervisorConfig* config) {
  const std::shared_ptr<RulesKeeper> keeper = keep_rules(session, config);
  auto started = Names::start(session->folder(), session->record().isolated);
  if (!started) return started.error();
  std::shared_ptr<Names> names = std::move(*started);
  if (keeper) {
    names->on_resolver = [keeper](const InsResolver& now) {
      return keeper->follow_name_servers(now);
    };
    // It may have changed since the rules were made. Not yet admitted: the keeper tries again by itself.
    (void)keeper->follow_name_servers(current_resolver(true));
    config->watched.push_back({keeper->former_fd(), [keeper] { keeper->on_former(); }});
  }
  config->watched.push_back({names->fd(), [names] { names->on_event(); }});
  return refuse_at_held_sockets(session->descriptors(), config);
}

SupervisorConfig supervision(Session* session, const Supervisor* const* supervisor) {
  SupervisorConfig config;
  config.driver = [session](int ready_fd) { return driver_request(session, ready_fd); };
  config.ins = [session](unsigned id, int ready_fd) { return ins_request(session, id, ready_fd); };
  config.changed = [session, supervisor, saved_last = true]() mutable {
    SessionRecord& record = session->record();
    record.application = (*supervisor)->application();
    record.driver = (*supervisor)->driver();
    record.ins = (*supervisor)->ins();
    record.ins_id = (*supervisor)->ins_id();
    // A full disk must not end the session; the record is then only less exact, which is said once.
    auto done = save(session->base(), record);
    if (!done && saved_last) fail(done.error());
    saved_last = static_cast<bool>(done);
  };
  config.ins_gone = [session](unsigned id) {
    std::error_code error;
    keep_repairs(session->base(), session->record().name, id);
    std::filesystem::remove_all(session->folder() + "/mw/" + std::to_string(id), error);
    if (error)
      log_line(kWho, "cannot remove the registry of INS %u: %s", id, error.message().c_str());
  };
  config.heartbeat = [session](unsigned id) {
    return published(session->base(), session->record().name, std::to_string(id), "heartbeat");
  };
  config.driver_heartbeat = [session] {
    return published(session->base(), session->record().name, "pvm", "heartbeat");
  };
  config.session_processes = [session] { return processes_of(session->record()); };
  config.serving = [] {};
  config.running = [] {};
  config.log = [](const std::string& text) { log_line(kWho, "%s", text.c_str()); };
  return config;
}

std::optional<Failure> missing_program(const Programs& programs) {
  for (const std::string* program : {&programs.driver, &programs.ins, &programs.shim}) {
    if (::access(program->c_str(), R_OK) == 0) continue;
    return Failure{"find " + *program, errno_text(errno), "build or install MwComms completely"};
  }
  return std::nullopt;
}

int refuse_command(const Inspection& inspection) {
  std::string text = inspection.reason;
  if (!inspection.to_allow.empty())
    text += ". It was not started; --allow-uncovered=" + inspection.to_allow + " would let it run.";
  log_line(kWho, "%s", text.c_str());
  return inspection.verdict == Inspection::Verdict::not_found ? kExitNotFound : kExitNotExecutable;
}

std::string pid_text(const ProcId& id) {
  return is_alive(id) ? "pid " + std::to_string(id.pid) : "not running";
}

}  // namespace

int run_session(const RunRequest& request) {
  InheritedDescriptors inherited;
  auto sockets = InheritedSockets::look_for(inherited.all(), request.net == NetMode::isolated);
  if (!sockets) return fail(sockets.error());
  const Inspection inspection = inspect_command(request.command, request.uncovered);
  if (inspection.verdict == Inspection::Verdict::allowed)
    log_line(kWho, "%s. It runs uncovered, as --allow-uncovered says.", inspection.reason.c_str());
  else if (inspection.verdict != Inspection::Verdict::coverable)
    return refuse_command(inspection);
  if (inspection.verdict == Inspection::Verdict::allowed && !sockets->empty())
    return fail({"pass inherited sockets to " + request.command[0],
                 "they are the INS's, and it runs uncovered", "do not pass them"});
  if (auto missing = missing_program(request.programs)) return fail(*missing);
  if (auto done = check_preload(request.programs.shim, "true"); !done) return fail(done.error());
  const HeldSignals signals;
  Session session(request.base, request.programs);
  if (auto done = session.open(request, &*sockets); !done) return fail(done.error());
  announce(request, session.record());
  for (const std::string& sentence : sockets->report()) log_line(kWho, "%s", sentence.c_str());
  const Supervisor* self = nullptr;
  SupervisorConfig config = supervision(&session, &self);
  if (auto done = follow_host(&session, &config); !done) return fail(done.error());
  const SessionDescriptors& d = session.descriptors();
  config.application.argv = request.command;
  if (!sockets->empty()) {
    auto copies = sockets->copies_for(session.record().plan);
    if (!copies) return fail(copies.error());
    config.application.argv = take_over_command(request.programs.mw, *copies, request.command);
  }
  config.application.netns = session.app_network();
  config.application.environment = {"LD_PRELOAD=" + preloaded(request.programs.shim),
                                    "MWCOMMS_SESSION=" + d.attach_name + ":" + d.token};
  // Not what our caller has there: it is ours to say.
  if (!request.uncovered.empty() || std::getenv("MWCOMMS_UNCOVERED") != nullptr)
    config.application.environment.push_back("MWCOMMS_UNCOVERED=" + request.uncovered);
  if (request.verbose) {
    config.serving = [&session] { say_serving(session.base(), session.record()); };
  }
  config.running = [&inherited] { inherited.close(); };
  Supervisor supervisor(std::move(config), signals);
  self = &supervisor;
  auto status = supervisor.run();
  return status ? *status : fail(status.error());
}

int adopt_session(const AdoptRequest& request) {
  InheritedDescriptors().close();
  if (auto missing = missing_program(request.programs)) return fail(*missing, kExitFailed);
  if (auto found = find_session(request.base, request.session); !found) {
    return fail(found.error(), kExitUnreachable);
  }
  const HeldSignals signals;
  Session session(request.base, request.programs);
  auto adopted = session.adopt(request);
  if (!adopted) return fail(adopted.error(), kExitFailed);
  if (!*adopted) {
    log_line(kWho, "session %s has ended; removed what it had left behind",
             request.session.c_str());
    return 0;
  }
  const SessionRecord& r = session.record();
  const Adopted found{r.application, r.driver, r.ins, r.ins_id};
  const Supervisor* self = nullptr;
  SupervisorConfig config = supervision(&session, &self);
  // What the copies say still holds.
  if (auto done = follow_host(&session, &config); !done) fail(done.error());
  Supervisor supervisor(std::move(config), signals);
  self = &supervisor;
  log_line(kWho, "session %s: adopted by pid %d; end it with `kill %d`", r.name.c_str(), ::getpid(),
           ::getpid());
  auto status = supervisor.adopt(found);
  return status ? *status : fail(status.error(), kExitFailed);
}

int print_sessions(const std::string& base, const std::string& only) {
  static constexpr const char* kState[] = {"running", "running without its mw run", "dead"};
  if (auto checked = check_base(base); !checked) return fail(checked.error(), kExitFailed);
  bool found = false;
  for (const SessionRecord& r : list_sessions(base)) {
    if (!only.empty() && r.name != only) continue;
    found = true;
    std::printf("%s  %s\n", r.name.c_str(), kState[static_cast<int>(state_of(r))]);
    if (state_of(r) == SessionState::orphaned) {
      std::printf("  what now     `mw adopt %s` goes on with it, `mw clean %s` ends it\n",
                  r.name.c_str(), r.name.c_str());
    }
    std::printf("  command      %s\n", r.command.c_str());
    std::printf("  mw run       %s\n", pid_text(r.owner).c_str());
    std::printf("  application  %s\n", pid_text(r.application).c_str());
    std::printf("  mwcommsd     %s\n", pid_text(r.driver).c_str());
    std::printf("  mwins        %s, INS %u\n", pid_text(r.ins).c_str(), r.ins_id);
    std::printf("  registry     %s\n", session_folder(base, r.name).c_str());
    if (r.isolated) {
      std::printf("  network      namespace %s, %s %s, host end %s %s %s\n", r.netns().c_str(),
                  r.plan.ins4.c_str(), r.plan.ins6.c_str(), r.plan.link.c_str(),
                  r.plan.host4.c_str(), r.plan.host6.c_str());
      for (const Publish& p : r.published) {
        std::printf("  published    %s\n", to_string(p).c_str());
      }
      std::printf("  egress       %s\n", to_string(r.reach.egress).c_str());
      if (!r.reach.to_host.empty())
        std::printf("  to host      %s\n", to_string(r.reach.to_host).c_str());
    } else {
      std::printf("  network      the host's own\n");
    }
  }
  if (found || only.empty()) return 0;
  log_line(kWho, "there is no session %s in %s", only.c_str(), base.c_str());
  return kExitUnreachable;
}

int clean_sessions(const std::string& base, const std::string& named,
                   std::vector<std::string>* removed) {
  auto lock = BaseLock::acquire(base);
  if (!lock) return fail(lock.error(), kExitFailed);
  if (!named.empty()) {
    auto found = find_session(base, named);
    if (!found) return fail(found.error(), kExitUnreachable);
    if (state_of(*found) == SessionState::running) {
      const std::string pid = std::to_string(found->owner.pid);
      return fail({"clean session " + named, "it runs, and its front end is pid " + pid,
                   "`kill " + pid + "` ends it"},
                  kExitFailed);
    }
    if (auto done = end_application(*found); !done) return fail(done.error(), kExitFailed);
  }
  Swept swept = sweep(base);
  *removed = std::move(swept.buried);
  for (const Failure& failure : swept.failures) fail(failure);
  return swept.failures.empty() ? 0 : kExitFailed;
}

}  // namespace mw
