#include "cli/doctor.h"

#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/pidfd.h"
#include "base/unique_fd.h"
#include "frontend/app_network.h"
#include "frontend/inspect.h"
#include "frontend/net.h"
#include "frontend/process.h"
#include "frontend/session.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

using Verdict = Check::Verdict;

// Below these a busy server meets its limits before those of the channel.
constexpr rlim_t kFewDescriptors = 4096;
constexpr rlim_t kFewProcesses = 256;

bool is_permission(int err) {
  return err == EPERM || err == EACCES;
}

class Examiner {
 public:
  Examiner(const Programs& programs, const std::vector<std::string>& command)
      : programs_(programs), root_(::geteuid() == 0) {
    out_.program = command;
  }

  Examination run() {
    kernel();
    memory();
    rights();
    limits();
    installation();
    if (root_) network();
    host_firewall();
    registry();
    if (!out_.program.empty()) program();
    choose();
    return std::move(out_);
  }

 private:
  void group(const char* name) { group_ = name; }
  void ok(const char* name, const std::string& detail) {
    out_.checks.push_back({group_, name, Verdict::ok, detail, "", false});
  }
  void warn(const char* name, const std::string& detail, const std::string& remedy) {
    out_.checks.push_back({group_, name, Verdict::warning, detail, remedy, false});
  }
  void fail(const char* name, const std::string& detail, const std::string& remedy,
            bool not_permitted = false) {
    out_.checks.push_back({group_, name, Verdict::failed, detail, remedy, not_permitted});
  }

  void kernel();
  void memory();
  void rights();
  void limits();
  void installation();
  void network();
  void host_firewall();
  void registry();
  void program();
  void choose();

  const Programs& programs_;
  const bool root_;
  const char* group_ = "";
  Examination out_;
};

// ---- the host ----

void Examiner::kernel() {
  group("kernel");
  utsname name{};
  ::uname(&name);
  const std::string machine = name.machine;
  if (machine == "x86_64") {
    ok("version", std::string(name.sysname) + " " + name.release + ", " + machine);
  } else {
    fail("version", machine + " is not supported", "use a 64-bit x86 machine");
  }
  const UniqueFd self = open_pidfd(::getpid());
  if (self) {
    ok("process descriptors", "pidfd_open works");
  } else {
    fail("process descriptors", "pidfd_open: " + errno_text(errno),
         "use Linux 5.3 or newer, and allow pidfd_open in the container's seccomp profile",
         is_permission(errno));
  }
  // Of no descriptor at all.
  if (::syscall(SYS_close_range, ~0u, ~0u, CLOSE_RANGE_CLOEXEC) == 0) {
    ok("open descriptors", "close_range works");
  } else {
    fail(
        "open descriptors", "close_range: " + errno_text(errno),
        "use Linux 5.11 or newer, and allow close_range in the container's seccomp profile: "
        "without it no session starts, because its processes would keep what their caller has open",
        is_permission(errno));
  }
  uint32_t action = SECCOMP_RET_KILL_PROCESS;
  if (::syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0) {
    ok("seccomp", "filters can end a process");
  } else {
    fail("seccomp", "seccomp: " + errno_text(errno),
         "use a kernel with CONFIG_SECCOMP_FILTER: the INS is not run without its filter",
         is_permission(errno));
  }
}

// The whole memory of a session is made and mapped, as the session's own processes do it. The
// application's map what they use.
void Examiner::memory() {
  group("memory");
  // As they do.
  if (rlimit limit{}; ::getrlimit(RLIMIT_AS, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_AS, &limit);
  }
  auto made = make_session_fds("doctor-" + std::to_string(::getpid()), kDefaultGeometry);
  if (!made) {
    fail("shared region", std::string(made.error().where) + ": " + errno_text(made.error().err),
         "raise the limits of file size (ulimit -f) and open files (ulimit -n)",
         is_permission(made.error().err));
    return;
  }
  struct stat st {};
  void* mapped = MAP_FAILED;
  if (::fstat(made->channel.get(), &st) == 0) {
    mapped = ::mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ | PROT_WRITE, MAP_SHARED,
                    made->channel.get(), 0);
  }
  if (mapped == MAP_FAILED) {
    fail("shared region", "mmap: " + errno_text(errno),
         "raise the limit of address space (ulimit -v), or set vm.overcommit_memory to 0");
    return;
  }
  ::munmap(mapped, static_cast<size_t>(st.st_size));
  ok("shared region", "a session's " + std::to_string(st.st_size >> 20) +
                          " MiB of address space can be made and mapped; pages that are not used "
                          "cost nothing");
}

void Examiner::rights() {
  group("rights");
  const std::string who = root_ ? "root" : "user " + std::to_string(::geteuid());
  if (!root_) {
    warn("user", who + ": no network namespace of its own, no published ports (--net host)",
         "run as root for --net isolated");
    return;
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) < 0) {
    fail("capabilities", "capget: " + errno_text(errno), "", is_permission(errno));
    return;
  }
  const std::pair<int, const char*> needed[] = {
      {CAP_NET_ADMIN, "NET_ADMIN"}, {CAP_SYS_ADMIN, "SYS_ADMIN"},   {CAP_SETUID, "SETUID"},
      {CAP_SETGID, "SETGID"},       {CAP_SYS_PTRACE, "SYS_PTRACE"}, {CAP_KILL, "KILL"},
      {CAP_SETPCAP, "SETPCAP"}};
  std::string missing;
  for (const auto& [number, text] : needed) {
    if ((data[number / 32].effective >> (number % 32) & 1) == 0) {
      missing += (missing.empty() ? "" : ", ") + std::string(text);
    }
  }
  if (missing.empty()) {
    ok("capabilities", who + " with all that mw run needs");
  } else {
    fail("capabilities", who + " without " + missing,
         "give the container these capabilities, or use mw run --net host", true);
  }
}

std::string limit_text(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : std::to_string(value);
}

void Examiner::limits() {
  group("limits");
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  const std::string text = "open files " + limit_text(files.rlim_cur) + ", at most " +
                           limit_text(files.rlim_max) +
                           "; the INS and mwcommsd raise theirs, the command keeps the first";
  if (files.rlim_max < kFewDescriptors) {
    warn("RLIMIT_NOFILE", text, "ulimit -Hn 65536, or LimitNOFILE= of the service");
  } else {
    ok("RLIMIT_NOFILE", text);
  }
  rlimit processes{};
  ::getrlimit(RLIMIT_NPROC, &processes);
  if (!root_ && processes.rlim_cur < kFewProcesses) {
    warn("RLIMIT_NPROC", "processes " + limit_text(processes.rlim_cur), "ulimit -u 4096");
  } else {
    ok("RLIMIT_NPROC", "processes " + limit_text(processes.rlim_cur));
  }
  rlimit locked{};
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  ok("RLIMIT_MEMLOCK", "locked bytes " + limit_text(locked.rlim_cur) +
                           "; nothing of MwComms is locked, whatever this is will do");
}

// ---- the installation ----

void Examiner::installation() {
  group("installation");
  const std::pair<const char*, const std::string*> executables[] = {{"mwcommsd", &programs_.driver},
                                                                    {"mwins", &programs_.ins}};
  for (const auto& [name, path] : executables) {
    if (::access(path->c_str(), X_OK) == 0) {
      ok(name, *path);
    } else {
      fail(name, *path + ": " + errno_text(errno), "build or install MwComms completely",
           is_permission(errno));
    }
  }
  if (::access(programs_.shim.c_str(), R_OK) < 0) {
    fail("libmwshim.so", programs_.shim + ": " + errno_text(errno),
         "build or install MwComms completely", is_permission(errno));
    return;
  }
  // The dynamic linker lists what it would load, binds every symbol, and does not start /bin/true.
  auto listed = run_tool("load " + programs_.shim,
                         {"env", "LD_PRELOAD=" + programs_.shim, "LD_TRACE_LOADED_OBJECTS=1",
                          "LD_WARN=1", "LD_BIND_NOW=1", "/bin/true"});
  if (!listed) {
    fail("libmwshim.so", listed.error().cause, listed.error().remedy);
  } else if (listed->find(programs_.shim) == std::string::npos ||
             listed->find("not found") != std::string::npos) {
    fail("libmwshim.so", programs_.shim + " cannot be preloaded by the dynamic linker",
         "it is damaged, or built for another system: build or install MwComms again");
  } else {
    ok("libmwshim.so", programs_.shim + ", can be preloaded");
  }
}

// ---- the network ----

// Runs `what` in a child with a network namespace of its own. Empty, or why it did not work.
struct Attempt {
  std::string cause;
  bool not_permitted = false;
};
Attempt in_fresh_network(const std::function<std::string()>& what) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) < 0) return {"pipe2: " + errno_text(errno), false};
  const UniqueFd from{ends[0]};
  UniqueFd to{ends[1]};
  const pid_t child = ::fork();
  if (child < 0) return {"fork: " + errno_text(errno), false};
  if (child == 0) {
    int status = 0;
    std::string cause;
    if (::unshare(CLONE_NEWNET) < 0) {
      status = is_permission(errno) ? 2 : 1;
      cause = "unshare: " + errno_text(errno);
    } else {
      cause = what();
      status = cause.empty() ? 0 : 1;
    }
    (void)!::write(to.get(), cause.data(), cause.size());
    ::_exit(status);
  }
  to.reset();
  Attempt attempt;
  char part[512];
  for (ssize_t n; (n = ::read(from.get(), part, sizeof part)) > 0;) {
    attempt.cause.append(part, static_cast<size_t>(n));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  attempt.not_permitted = WIFEXITED(status) && WEXITSTATUS(status) == 2;
  if (attempt.cause.empty() && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
    attempt.cause = "the attempt was killed";
  }
  return attempt;
}

std::string cause_of(const Outcome<std::string>& done) {
  return done ? "" : done.error().cause;
}

void Examiner::network() {
  group("network");
  const Attempt made = in_fresh_network([] { return std::string(); });
  if (!made.cause.empty()) {
    fail("namespaces", made.cause,
         "use a kernel with CONFIG_NET_NS; a container needs CAP_SYS_ADMIN for it; or mw run "
         "--net host",
         made.not_permitted);
    return;
  }
  ok("namespaces", "network namespaces can be made");
  const Attempt linked = in_fresh_network([] {
    return cause_of(run_tool(
        "make a veth pair", {"ip", "link", "add", "name", "mwv0", "type", "veth", "peer", "eth0"}));
  });
  if (linked.cause.empty()) {
    ok("veth", "pairs of interfaces can be made");
  } else {
    fail("veth", linked.cause, "install iproute2; load the kernel's module veth",
         linked.not_permitted);
  }
  const Attempt shown = in_fresh_network([] {
    auto end = make_dead_end({});
    return end ? std::string() : end.error().cause;
  });
  if (shown.cause.empty()) {
    ok("dead end", "the application's network can show the INS's interface");
  } else {
    fail("dead end", shown.cause, "load the kernel's module dummy or ifb", shown.not_permitted);
  }
  const Attempt filtered = in_fresh_network([] {
    SessionRecord record;
    record.name = "doctor";
    AddressPlan plan;
    plan.link = "mwv0";
    plan.host4 = "192.0.2.1";
    plan.ins4 = "192.0.2.2";
    Reach reach;
    reach.to_host = {{53, Protocol::udp}};
    return cause_of(
        run_tool("publish ports with nftables", {"nft", "-f", "-"},
                 ruleset(record.table(), plan, {{"", 80, 80, Protocol::tcp}}, reach, {})));
  });
  if (filtered.cause.empty()) {
    ok("nftables", "the rules of a session are taken, in one transaction");
  } else {
    fail(
        "nftables", filtered.cause,
        "install nftables; use a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_CT, "
        "CONFIG_NFT_FIB_INET, CONFIG_NFT_REJECT_INET and CONFIG_NFT_QUOTA",
        filtered.not_permitted);
  }
}

// Forwarded packets have to pass the host's own rules too.
void Examiner::host_firewall() {
  if (!root_) return;
  group("network");
  auto rules = run_tool("read the host's rules", {"nft", "list", "ruleset"});
  if (!rules) return;  // said by network()
  const std::vector<DroppingChain> dropping = dropping_chains(*rules);
  if (dropping.empty())
    ok("host firewall", "no chain of nftables drops forwarded packets by default");
  for (const DroppingChain& c : dropping)
    warn("host firewall",
         "forwarded packets are dropped by default: " + c.family + " " + c.table + " " + c.chain,
         commands_to_pass(c));
}

void Examiner::registry() {
  group("registry");
  const std::string base = default_base();
  struct stat st {};
  if (::lstat(base.c_str(), &st) < 0) {
    const std::string parent = std::filesystem::path(base).parent_path();
    if (errno == ENOENT && ::access(parent.c_str(), W_OK) == 0) {
      ok("folder", base + " will be made");
    } else {
      fail("folder", base + ": " + errno_text(errno), "make " + parent + " writable for you",
           is_permission(errno));
    }
  } else if (!S_ISDIR(st.st_mode) || st.st_uid != ::geteuid() ||
             (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    fail("folder", base + " is no folder, or belongs to or can be written by somebody else",
         "remove it");
  } else {
    const size_t sessions = list_sessions(base).size();
    ok("folder",
       base + ", " + std::to_string(sessions) + (sessions == 1 ? " session" : " sessions"));
  }
}

// ---- the program ----

void Examiner::program() {
  group("program");
  const Inspection found = inspect_command(out_.program);
  if (found.verdict == Inspection::Verdict::coverable) {
    ok("coverage", found.program + " is a program that the shim reaches");
    return;
  }
  std::string remedy;
  switch (found.verdict) {
    case Inspection::Verdict::not_found:
      remedy = "install it, or name its path";
      break;
    case Inspection::Verdict::not_executable:
      remedy = "chmod +x, or name another file";
      break;
    default:
      remedy = "mw run refuses it, because its sockets would bypass the INS";
      if (!found.to_allow.empty())
        remedy += "; with --allow-uncovered=" + found.to_allow + " it runs uncovered";
  }
  fail("coverage", found.reason, remedy);
}

void Examiner::choose() {
  const std::string name = out_.program.empty() ? "" : " of " + session_stem(out_.program[0]);
  if (!root_) {
    out_.choice = "--net host: the INS" + name +
                  " on the host's own network, as the same user, because only root can make "
                  "network namespaces";
    return;
  }
  auto plan = plan_network(list_sessions(default_base()), true);
  if (!plan) {
    group("network");
    fail("addresses", plan.error().cause, plan.error().remedy);
    out_.choice = "--net isolated, which cannot work now";
    return;
  }
  out_.choice = "--net isolated: the INS" + name + " in a network namespace of its own with " +
                plan->ins4 + (plan->ins6.empty() ? "" : " and " + plan->ins6) + ", as user id " +
                std::to_string(plan->ins_uid);
}

const char* text_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::ok:
      return "ok";
    case Verdict::warning:
      return "warning";
    default:
      return "failed";
  }
}

}  // namespace

ExitStatus Examination::status() const {
  ExitStatus status = ExitStatus::ok;
  for (const Check& check : checks) {
    if (check.verdict != Verdict::failed) continue;
    if (!check.not_permitted) return ExitStatus::failure;
    status = ExitStatus::not_permitted;
  }
  return status;
}

Examination examine(const Programs& programs, const std::vector<std::string>& command) {
  return Examiner(programs, command).run();
}

void print_examination(const Examination& examination) {
  std::string group;
  for (const Check& check : examination.checks) {
    if (check.group != group) std::printf("%s\n", check.group.c_str());
    group = check.group;
    std::printf("  %-8s %s: %s\n", text_of(check.verdict), check.name.c_str(),
                check.detail.c_str());
    if (!check.remedy.empty()) std::printf("           -> %s\n", check.remedy.c_str());
  }
  std::printf("mw run would choose %s\n", examination.choice.c_str());
}

void print_examination_json(const Examination& examination) {
  auto checks = nlohmann::json::array();
  for (const Check& check : examination.checks) {
    nlohmann::json one = {{"group", check.group},
                          {"name", check.name},
                          {"result", text_of(check.verdict)},
                          {"detail", check.detail}};
    if (!check.remedy.empty()) one["remedy"] = check.remedy;
    checks.push_back(std::move(one));
  }
  const nlohmann::json document = {{"schema", 1},
                                   {"ok", examination.status() == ExitStatus::ok},
                                   {"program", examination.program},
                                   {"choice", examination.choice},
                                   {"checks", std::move(checks)}};
  // What is no UTF-8 (a file name) must not end us.
  std::puts(document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace mw
