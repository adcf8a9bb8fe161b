#include "frontend/run.h"

#include <errno.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "base/log.h"
#include "frontend/inspect.h"
#include "frontend/net.h"
#include "frontend/session.h"
#include "frontend/supervisor.h"

namespace mw {
namespace {

constexpr const char* kWho = "mw";

int fail(const Failure& failure) {
  log_line(kWho, "%s", failure.text().c_str());
  return kExitOwnFailure;
}

Outcome<std::string> make_token() {
  unsigned char bytes[16];
  if (::getrandom(bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes))) {
    return Failure{"make the session's token", "getrandom: " + errno_text(errno), ""};
  }
  std::string text;
  for (const unsigned char b : bytes) {
    char hex[3];
    std::snprintf(hex, sizeof(hex), "%02x", b);
    text += hex;
  }
  return text;
}

// The lowest free STEM-N.
std::string free_name(const std::string& stem, const std::vector<SessionRecord>& sessions) {
  std::set<std::string> used;
  for (const SessionRecord& r : sessions) used.insert(r.name);
  for (unsigned n = 0;; ++n) {
    const std::string name = stem + "-" + std::to_string(n);
    if (used.count(name) == 0) return name;
  }
}

std::string joined(const std::vector<std::string>& words) {
  std::string s;
  for (const std::string& word : words) s += (s.empty() ? "" : " ") + word;
  std::replace_if(
      s.begin(), s.end(), [](unsigned char c) { return c < ' '; }, ' ');
  return s;
}

// Everything that is made for a session outside of its processes.
class Session {
 public:
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  explicit Session(const RunRequest& request) : request_(request) {}
  ~Session() {
    if (made_) close();
  }

  Outcome<Done> open() {
    auto lock = BaseLock::acquire(request_.base);
    if (!lock) return lock.failure();
    auto buried = sweep(request_.base);
    if (!buried) return buried.failure();
    for (const std::string& name : *buried) {
      log_line(kWho, "removed what the dead session %s had left behind", name.c_str());
    }
    const std::vector<SessionRecord> others = list_sessions(request_.base);
    auto plan = plan_network(others, request_.net == NetMode::isolated);
    if (!plan) return plan.failure();
    auto ports = reserve_ports(request_.published, others);
    if (!ports) return ports.failure();
    ports_ = std::move(*ports);
    record_.name = free_name(session_stem(request_.command[0]), others);
    record_.owner = identify(::getpid());
    record_.isolated = request_.net == NetMode::isolated;
    record_.host_net = this_network();
    record_.plan = *plan;
    record_.published = request_.published;
    record_.command = joined(request_.command);
    auto descriptors = request_.descriptors(record_.name, request_.workers);
    if (!descriptors) return descriptors.failure();
    descriptors_ = std::move(*descriptors);
    record_.mark = "MWCOMMS_SESSION=" + descriptors_.attach_name + ":";
    made_ = true;
    if (auto done = make_session_folder(request_.base, record_); !done) return done.failure();
    if (!record_.isolated) return Done{};
    auto netns = build_network(request_.base, record_);
    if (!netns) return netns.failure();
    netns_ = std::move(*netns);
    return Done{};
  }

  SessionRecord& record() { return record_; }
  const SessionDescriptors& descriptors() const { return descriptors_; }
  int netns() const { return netns_ ? netns_.get() : -1; }
  std::string folder() const { return session_folder(request_.base, record_.name); }

 private:
  // Also run when opening stopped half-way.
  void close() {
    netns_.reset();
    auto lock = BaseLock::acquire(request_.base);
    if (!lock) {
      fail(lock.failure());
      return;
    }
    // Our own helpers are gone; those pids are nobody's.
    record_.owner = record_.driver = record_.ins = ProcId{};
    if (auto done = bury(request_.base, record_); !done) fail(done.failure());
    if (auto done = sweep(request_.base); !done) fail(done.failure());
  }

  const RunRequest& request_;
  SessionRecord record_;
  SessionDescriptors descriptors_;
  std::vector<UniqueFd> ports_;
  UniqueFd netns_;
  bool made_ = false;
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
}

void say_serving(const RunRequest& request, const SessionRecord& r) {
  if (!request.verbose) return;
  log_line(kWho, "mwcommsd pid %d, mwins pid %d, registry %s", r.driver.pid, r.ins.pid,
           session_folder(request.base, r.name).c_str());
  for (const Publish& p : r.published) log_line(kWho, "published %s", to_string(p).c_str());
}

SpawnRequest driver_request(const RunRequest& request, Session* session, const std::string& token,
                            int ready_fd) {
  SpawnRequest spawn;
  spawn.argv = {request.programs.driver,
                "--registry",
                session->folder(),
                "--session",
                session->record().name,
                "--token",
                "env",
                "--ready-fd",
                std::to_string(ready_fd)};
  spawn.environment = {"MWCOMMS_TOKEN=" + token};
  const SessionDescriptors& d = session->descriptors();
  spawn.argv.insert(spawn.argv.end(), request.driver_options.begin(), request.driver_options.end());
  spawn.argv.insert(spawn.argv.end(), d.driver_arguments.begin(), d.driver_arguments.end());
  for (const UniqueFd& fd : d.owned) spawn.keep.push_back(fd.get());
  return spawn;
}

SpawnRequest ins_request(const RunRequest& request, Session* session, unsigned id, int ready_fd) {
  SpawnRequest spawn;
  spawn.argv = {request.programs.ins,
                "--registry",
                session->folder(),
                "--id",
                std::to_string(id),
                "--workers",
                std::to_string(request.workers),
                "--ready-fd",
                std::to_string(ready_fd)};
  if (::geteuid() == 0) {
    const std::string uid = std::to_string(session->record().plan.ins_uid);
    spawn.argv.insert(spawn.argv.end(), {"--uid", uid, "--gid", uid});
  }
  spawn.netns = session->netns();
  if (spawn.netns >= 0) spawn.resolv_conf = resolv_conf_for_ins();
  return spawn;
}

// The shim first; what the user has preloaded stays.
std::string preloaded(const std::string& shim) {
  const char* others = std::getenv("LD_PRELOAD");
  return others == nullptr || *others == 0 ? shim : shim + ":" + others;
}

SupervisorConfig supervision(const RunRequest& request, Session* session, const std::string& token,
                             const Supervisor* const* supervisor) {
  SupervisorConfig config;
  config.driver = [&request, session, token](int ready_fd) {
    return driver_request(request, session, token, ready_fd);
  };
  config.ins = [&request, session](unsigned id, int ready_fd) {
    return ins_request(request, session, id, ready_fd);
  };
  config.application.argv = request.command;
  config.application.environment = {
      "LD_PRELOAD=" + preloaded(request.programs.shim),
      "MWCOMMS_SESSION=" + session->descriptors().attach_name + ":" + token};
  config.changed = [&request, session, supervisor] {
    SessionRecord& record = session->record();
    record.application = (*supervisor)->application();
    record.driver = (*supervisor)->driver();
    record.ins = (*supervisor)->ins();
    record.ins_id = (*supervisor)->ins_id();
    // A full disk must not end the session; the record is then only less exact.
    if (auto done = save(request.base, record); !done) fail(done.failure());
  };
  config.ins_gone = [session](unsigned id) {
    std::error_code error;
    std::filesystem::remove_all(session->folder() + "/mw/" + std::to_string(id), error);
    if (error)
      log_line(kWho, "cannot remove the registry of INS %u: %s", id, error.message().c_str());
  };
  config.heartbeat = [session](unsigned id) {
    return read_text(session->folder() + "/mw/" + std::to_string(id) + "/heartbeat");
  };
  config.serving = [&request, session] { say_serving(request, session->record()); };
  config.log = [](const std::string& text) { log_line(kWho, "%s", text.c_str()); };
  return config;
}

int refuse_command(const Inspection& inspection) {
  log_line(kWho, "%s", inspection.reason.c_str());
  return inspection.verdict == Inspection::Verdict::not_found ? kExitNotFound : kExitNotExecutable;
}

std::string pid_text(const ProcId& id) {
  return is_alive(id) ? "pid " + std::to_string(id.pid) : "not running";
}

}  // namespace

int run_session(const RunRequest& request) {
  const Inspection inspection = inspect_command(request.command);
  if (inspection.verdict != Inspection::Verdict::coverable) return refuse_command(inspection);
  for (const std::string* program :
       {&request.programs.driver, &request.programs.ins, &request.programs.shim}) {
    if (::access(program->c_str(), R_OK) == 0) continue;
    return fail({"find " + *program, errno_text(errno), "build or install MwComms completely"});
  }
  if (auto done = check_preload(request.programs.shim, "true"); !done) return fail(done.failure());
  auto token = make_token();
  if (!token) return fail(token.failure());
  const HeldSignals signals;
  Session session(request);
  if (auto done = session.open(); !done) return fail(done.failure());
  announce(request, session.record());
  const Supervisor* self = nullptr;
  Supervisor supervisor(supervision(request, &session, *token, &self), signals);
  self = &supervisor;
  auto status = supervisor.run();
  return status ? *status : fail(status.failure());
}

int print_sessions(const std::string& base, const std::string& only) {
  static constexpr const char* kState[] = {"running", "running without its mw run", "dead"};
  bool found = false;
  for (const SessionRecord& r : list_sessions(base)) {
    if (!only.empty() && r.name != only) continue;
    found = true;
    std::printf("%s  %s\n", r.name.c_str(), kState[static_cast<int>(state_of(r))]);
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
    } else {
      std::printf("  network      the host's own\n");
    }
  }
  if (found || only.empty()) return 0;
  log_line(kWho, "there is no session %s in %s", only.c_str(), base.c_str());
  return kExitUnreachable;
}

int clean_sessions(const std::string& base) {
  auto lock = BaseLock::acquire(base);
  if (!lock) return fail(lock.failure());
  auto buried = sweep(base);
  if (!buried) return fail(buried.failure());
  for (const std::string& name : *buried) std::printf("removed %s\n", name.c_str());
  return 0;
}

}  // namespace mw
