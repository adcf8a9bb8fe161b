#include "frontend/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <sstream>

#include "frontend/forwarding.h"
#include "frontend/process.h"

namespace mw {
namespace {

constexpr int kKillTimeoutMs = 2000;
constexpr const char* kRootRemedy =
    "run as root on a host that allows network namespaces, or use --net host";

// Settings of the host's stack that a fresh namespace does not inherit, and a server expects as
// tuned.
constexpr const char* kInherited[] = {"core/somaxconn",
                                      "ipv4/tcp_max_syn_backlog",
                                      "ipv4/ip_local_port_range",
                                      "ipv4/tcp_rmem",
                                      "ipv4/tcp_wmem",
                                      "ipv4/tcp_syncookies",
                                      "ipv4/tcp_fin_timeout",
                                      "ipv4/tcp_tw_reuse",
                                      "ipv4/tcp_fastopen",
                                      "ipv4/tcp_keepalive_time",
                                      "ipv4/tcp_keepalive_intvl",
                                      "ipv4/tcp_keepalive_probes",
                                      "ipv4/tcp_congestion_control"};

std::string netns_path(const SessionRecord& r) {
  return "/run/netns/" + r.netns();
}

bool host_has_v6() {
  return read_text("/proc/sys/net/ipv6/conf/all/disable_ipv6").substr(0, 1) == "0";
}

// Writes the namespace's settings from inside it: /proc/sys/net shows the namespace of who looks.
Outcome<Done> apply_settings(int netns) {
  struct Setting {
    std::string path;
    std::string value;
  };
  std::vector<Setting> settings = {{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"}};
  for (const char* name : kInherited) {
    const std::string path = std::string("/proc/sys/net/") + name;
    const std::string value = read_text(path);
    if (!value.empty()) settings.push_back({path, value});
  }
  if (host_has_v6()) {
    settings.push_back({"/proc/sys/net/ipv6/conf/all/accept_ra", "0"});
    settings.push_back({"/proc/sys/net/ipv6/conf/default/accept_ra", "0"});
  }
  const std::string step = "set up the network namespace";
  const pid_t pid = ::fork();
  if (pid < 0) return Failure{step, "fork: " + errno_text(errno), ""};
  if (pid == 0) {
    if (::setns(netns, CLONE_NEWNET) < 0) ::_exit(255);
    for (size_t i = 0; i < settings.size(); ++i) {
      const UniqueFd fd{::open(settings[i].path.c_str(), O_WRONLY | O_CLOEXEC)};
      // A setting that only the first namespace has is not ours to miss; the first one we do need.
      if (!fd && errno == ENOENT && i > 0) continue;
      if (::write(fd.get(), settings[i].value.data(), settings[i].value.size()) < 0) {
        ::_exit(static_cast<int>(i) + 1);
      }
    }
    ::_exit(0);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return Done{};
  const size_t failed = WIFEXITED(status) ? static_cast<size_t>(WEXITSTATUS(status)) : 255;
  const bool known = failed > 0 && failed <= settings.size();
  return Failure{step, "writing " + (known ? settings[failed - 1].path : "in it") + " failed",
                 kRootRemedy};
}

// One `ip -batch` for each side of the pair.
Outcome<Done> build_links(const SessionRecord& r) {
  const AddressPlan& p = r.plan;
  const std::string ns = r.netns();
  std::ostringstream host;
  host << "link add name " << p.link << " type veth peer name eth0 netns " << ns << "\n"
       << "address add " << p.host4 << "/" << kPrefix4 << " dev " << p.link << "\n";
  if (!p.host6.empty()) {
    host << "address add " << p.host6 << "/" << kPrefix6 << " dev " << p.link << " nodad\n";
  }
  host << "link set dev " << p.link << " up\n";
  std::ostringstream ins;
  ins << "link set dev lo up\naddress add " << p.ins4 << "/" << kPrefix4 << " dev eth0\n";
  if (!p.ins6.empty()) {
    ins << "address add " << p.ins6 << "/" << kPrefix6 << " dev eth0 nodad\n";
  }
  ins << "link set dev eth0 up\nroute add default via " << p.host4 << "\n";
  if (!p.ins6.empty()) ins << "route add default via " << p.host6 << "\n";
  auto made = run_tool("connect the namespace " + ns, {"ip", "-batch", "-"}, host.str());
  if (!made) return made.failure();
  made = run_tool("address the namespace " + ns, {"ip", "-n", ns, "-batch", "-"}, ins.str());
  if (!made) return made.failure();
  return Done{};
}

// Connections to 127.0.0.1:PORT are redirected into the veth pair, which the kernel allows only
// with this set; chain `early` keeps the INS from using it in the other direction.
Outcome<Done> allow_loopback(const std::string& link) {
  const std::string path = "/proc/sys/net/ipv4/conf/" + link + "/route_localnet";
  const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!fd || ::write(fd.get(), "1", 1) < 0) {
    return Failure{"set " + path, errno_text(errno), kRootRemedy};
  }
  return Done{};
}

Outcome<UniqueFd> build_all(const std::string& base, const SessionRecord& r) {
  auto made =
      run_tool("create the network namespace " + r.netns(), {"ip", "netns", "add", r.netns()});
  if (!made) {
    return Failure{made.failure().step, made.failure().cause,
                   made.failure().remedy.empty() ? kRootRemedy : made.failure().remedy};
  }
  auto ns = open_network(r);
  if (!ns) return ns;
  if (auto done = apply_settings(ns->get()); !done) return done.failure();
  if (auto done = build_links(r); !done) return done.failure();
  auto guarded = acquire_forwarding(base, r.plan.link);
  if (!guarded) return guarded.failure();
  // Rules before route_localnet: the INS must not reach the host's loopback for a single packet.
  made = run_tool("publish ports with nftables", {"nft", "-f", "-"},
                  ruleset(r.table(), r.plan, r.published, *guarded));
  if (!made) return made.failure();
  if (auto done = allow_loopback(r.plan.link); !done) return done.failure();
  return ns;
}

// Binds one address. A port of another family that the host does not have is no failure.
Outcome<UniqueFd> reserve(const Publish& p, int family) {
  const int type = p.protocol == Protocol::udp ? SOCK_DGRAM : SOCK_STREAM;
  UniqueFd fd{::socket(family, type | SOCK_CLOEXEC, 0)};
  if (!fd) return UniqueFd{};
  const int on = 1;
  const int off = 0;
  sockaddr_storage address{};
  socklen_t size = 0;
  if (family == AF_INET6) {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(p.port);
    if (!p.host.empty()) ::inet_pton(AF_INET6, p.host.c_str(), &in6->sin6_addr);
    size = sizeof(*in6);
    ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
  } else {
    auto* in = reinterpret_cast<sockaddr_in*>(&address);
    in->sin_family = AF_INET;
    in->sin_port = htons(p.port);
    if (!p.host.empty()) ::inet_pton(AF_INET, p.host.c_str(), &in->sin_addr);
    size = sizeof(*in);
  }
  // Reuse for the bind itself (old connections in TIME_WAIT are no obstacle), then not any more, so
  // that nobody else can listen here.
  if (type == SOCK_STREAM) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const int rc = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size);
  const int err = errno;
  if (type == SOCK_STREAM) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off));
  if (rc == 0) return fd;
  if (p.host.empty() && err == EADDRNOTAVAIL) return UniqueFd{};
  const std::string port = (p.protocol == Protocol::udp ? "udp" : "tcp") + std::string(" port ") +
                           std::to_string(p.port);
  if (err == EADDRINUSE) {
    return Failure{"publish " + to_string(p), port + " of the host is in use",
                   "choose another with -p, or look who has it with `ss -tulpn`"};
  }
  return Failure{"publish " + to_string(p), "bind: " + errno_text(err),
                 "use an address that this host has"};
}

void end_process(const ProcId& id, int signal = SIGKILL) {
  if (!is_alive(id)) return;
  const UniqueFd fd{static_cast<int>(::syscall(SYS_pidfd_open, id.pid, 0))};
  if (!fd || !is_alive(id)) return;  // checked again: the pidfd now pins who it is
  ::syscall(SYS_pidfd_send_signal, fd.get(), signal, nullptr, 0);
  pollfd gone{fd.get(), POLLIN, 0};
  ::poll(&gone, 1, kKillTimeoutMs);
}

}  // namespace

Outcome<AddressPlan> plan_network(const std::vector<SessionRecord>& sessions, bool isolated) {
  std::set<unsigned> taken;
  for (const SessionRecord& r : sessions) taken.insert(r.plan.slot);
  if (!isolated) return choose_slot(taken);
  // Asked for before anything is made: without it nothing could be published.
  if (auto nft = run_tool("find nft", {"nft", "--version"}); !nft) return nft.failure();
  auto v4 = run_tool("read the host's routes", {"ip", "-4", "route", "show", "table", "all"});
  if (!v4) return v4.failure();
  std::vector<Prefix> routes = parse_routes(*v4);
  const bool have_v6 = host_has_v6();
  if (have_v6) {
    auto v6 = run_tool("read the host's routes", {"ip", "-6", "route", "show", "table", "all"});
    if (!v6) return v6.failure();
    const std::vector<Prefix> more = parse_routes(*v6);
    routes.insert(routes.end(), more.begin(), more.end());
  }
  return choose_addresses(routes, taken, have_v6);
}

Outcome<std::vector<UniqueFd>> reserve_ports(const std::vector<Publish>& published,
                                             const std::vector<SessionRecord>& sessions) {
  std::vector<UniqueFd> out;
  for (const Publish& p : published) {
    for (const SessionRecord& r : sessions) {
      for (const Publish& other : r.published) {
        const bool same_host = p.host == other.host || p.host.empty() || other.host.empty();
        if (!same_host || p.port != other.port || p.protocol != other.protocol) continue;
        return Failure{"publish " + to_string(p), "session " + r.name + " publishes that port",
                       "choose another with -p, or end that session"};
      }
    }
    const bool v6 = p.host.find(':') != std::string::npos;
    for (const int family : {AF_INET, AF_INET6}) {
      if (!p.host.empty() && v6 != (family == AF_INET6)) continue;
      auto fd = reserve(p, family);
      if (!fd) return fd.failure();
      if (*fd) out.push_back(std::move(*fd));
    }
  }
  return out;
}

Outcome<UniqueFd> build_network(const std::string& base, const SessionRecord& record) {
  auto made = build_all(base, record);
  if (made) return made;
  if (auto removed = remove_network(record); !removed) {
    return Failure{made.failure().step, made.failure().cause,
                   made.failure().remedy + " (and then: " + removed.failure().text() + ")"};
  }
  return made;
}

Outcome<Done> remove_network(const SessionRecord& r) {
  if (!r.isolated) return Done{};
  std::vector<Outcome<std::string>> steps;
  // Naming the table before deleting it makes the deletion work whether or not it exists.
  steps.push_back(
      run_tool("remove the nftables table " + r.table(), {"nft", "-f", "-"},
               "table inet " + r.table() + " {}\ndelete table inet " + r.table() + "\n"));
  if (::access(("/sys/class/net/" + r.plan.link).c_str(), F_OK) == 0) {
    steps.push_back(
        run_tool("remove the interface " + r.plan.link, {"ip", "link", "del", "dev", r.plan.link}));
  }
  if (::access(netns_path(r).c_str(), F_OK) == 0) {
    steps.push_back(
        run_tool("remove the network namespace " + r.netns(), {"ip", "netns", "del", r.netns()}));
  }
  for (const Outcome<std::string>& step : steps) {
    if (!step) return step.failure();
  }
  return Done{};
}

Outcome<UniqueFd> open_network(const SessionRecord& r) {
  UniqueFd ns{::open(netns_path(r).c_str(), O_RDONLY | O_CLOEXEC)};
  if (!ns) return Failure{"open " + netns_path(r), errno_text(errno), kRootRemedy};
  return ns;
}

Outcome<Done> end_application(const SessionRecord& record) {
  // The command first: most servers take their children along.
  end_process(record.application, SIGTERM);
  constexpr int kRounds = 10;  // more than one if they go on forking
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<pid_t> left = processes_of(record);
    if (left.empty()) return Done{};
    for (const pid_t pid : left) end_process(identify(pid));
  }
  return Failure{"end session " + record.name, "its processes do not end", ""};
}

// By their mark, not by the folder that they name: another host that shares our processes, like a
// container, may have a session of the same name in a folder of the same name.
void end_unknown_helpers(const SessionRecord& record) {
  if (record.mark.empty()) return;
  for (const pid_t pid : processes_with_arguments("--mark", record.mark)) {
    const ProcId id = identify(pid);
    const auto is = [&id](const ProcId& known) {
      return known.pid == id.pid && known.start == id.start;
    };
    if (!is(record.driver) && !is(record.ins)) end_process(id);
  }
}

Outcome<Done> bury(const std::string& base, const SessionRecord& record) {
  end_unknown_helpers(record);
  end_process(record.ins);
  end_process(record.driver);
  if (auto removed = remove_network(record); !removed) return removed;
  return remove_session_folder(base, record.name);
}

Outcome<std::vector<std::string>> sweep(const std::string& base) {
  std::vector<std::string> buried;
  bool isolated_left = false;
  for (const SessionRecord& r : list_sessions(base)) {
    const bool here = r.host_net == this_network();
    if (state_of(r) != SessionState::dead) {
      isolated_left = isolated_left || (r.isolated && here);
      continue;
    }
    // Its interface and rules are out of our reach: a start in that namespace, or after its end,
    // will do.
    if (r.isolated && !here) continue;
    if (auto done = bury(base, r); !done) return done.failure();
    buried.push_back(r.name);
  }
  if (!isolated_left && ::geteuid() == 0) {
    if (auto done = release_forwarding(base); !done) return done.failure();
  }
  return buried;
}

std::string resolv_conf_for_ins() {
  static constexpr const char* kUpstream = "/run/systemd/resolve/resolv.conf";
  std::istringstream in(read_text("/etc/resolv.conf"));
  bool reachable = false;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string key;
    std::string server;
    words >> key >> server;
    if (key != "nameserver") continue;
    reachable = reachable || (server.compare(0, 4, "127.") != 0 && server != "::1");
  }
  return !reachable && ::access(kUpstream, R_OK) == 0 ? kUpstream : "";
}

}  // namespace mw
