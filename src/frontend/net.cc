#include "frontend/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <set>
#include <sstream>

#include "base/log.h"
#include "base/pidfd.h"
#include "frontend/conntrack.h"
#include "frontend/forwarding.h"
#include "frontend/in_network.h"
#include "frontend/net_watch.h"
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

struct Setting {
  std::string path;
  std::string value;
  bool is_needed = false;  // false: left out where the namespace does not have it
};

std::vector<Setting> inherited_settings() {
  std::vector<Setting> settings;
  for (const char* name : kInherited) {
    const std::string path = std::string("/proc/sys/net/") + name;
    const std::string value = read_text(path);
    if (!value.empty()) settings.push_back({path, value});
  }
  if (host_has_v6()) {
    // Nobody else is on the link: an address can be bound as soon as it is there.
    for (const char* name : {"accept_ra", "accept_dad"})
      for (const char* whose : {"all", "default"})
        settings.push_back({std::string("/proc/sys/net/ipv6/conf/") + whose + "/" + name, "0"});
  }
  return settings;
}

// Writes the namespace's settings from inside it: /proc/sys/net shows the namespace of who looks.
Outcome<Done> write_settings(int netns, const std::vector<Setting>& settings) {
  auto there = InNetwork::enter(netns);
  if (!there) return there.error();
  for (const Setting& setting : settings) {
    const UniqueFd fd{::open(setting.path.c_str(), O_WRONLY | O_CLOEXEC)};
    if (!fd && errno == ENOENT && !setting.is_needed) continue;
    if (!fd || ::write(fd.get(), setting.value.data(), setting.value.size()) < 0)
      return Failure{"set up the network namespace",
                     "write " + setting.path + ": " + errno_text(errno), kRootRemedy};
  }
  return Done{};
}

// The namespace's own number, of the file that stands for it; 0: there is none.
uint64_t inode_of(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

// 0: there is none.
uint64_t index_of_link(const std::string& link) {
  return ::if_nametoindex(link.c_str());
}

// "table inet NAME { # handle 7", the first line that nft prints of it. 0: there is none.
Outcome<uint64_t> handle_of_table(const std::string& table) {
  auto text = run_tool("look at the table " + table, {"nft", "-a", "list", "table", "inet", table});
  if (!text && text.error().cause.find(errno_text(ENOENT)) != std::string::npos) return uint64_t{0};
  if (!text) return text.error();
  const std::string first = text->substr(0, text->find('\n'));
  const size_t at = first.find("# handle ");
  if (at == std::string::npos) return Failure{"look at the table " + table, "it has no handle", ""};
  return std::strtoull(first.c_str() + at + 9, nullptr, 10);
}

// kBeingMade if it cannot be told: then its name decides.
uint64_t handle_or_name(const std::string& table) {
  auto handle = handle_of_table(table);
  return handle ? *handle : kBeingMade;
}

// Links that sessions of any base guard now.
GuardedLinks guarded_now() {
  auto rules = run_tool("read the host's rules", {"nft", "list", "ruleset"});
  return rules ? guarded_in(*rules) : GuardedLinks{};
}

// Saved before and after something is made: whoever buries us knows what may be there.
template <class Make, class Identify>
Outcome<Done> make_known(const std::string& base, SessionRecord& r, uint64_t SessionRecord::*what,
                         Make&& make, Identify&& identity) {
  // What cannot be made anew may still be there as it was.
  const uint64_t before = r.*what;
  r.*what = kBeingMade;
  if (auto saved = save(base, r); !saved) return saved.error();
  Outcome<Done> made = make();
  r.*what = made ? identity() : before;
  if (auto saved = save(base, r); !saved) return saved.error();
  return made;
}

// One `ip -batch` for each side of the pair.
Outcome<Done> build_links(const SessionRecord& r) {
  const AddressPlan& p = r.plan;
  const std::string ns = r.netns();
  std::ostringstream host;
  host << "address add " << p.host4 << "/" << kPrefix4 << " dev " << p.link << "\n";
  if (!p.host6.empty()) {
    host << "address add " << p.host6 << "/" << kPrefix6 << " dev " << p.link << " nodad\n";
  }
  host << "link set dev " << p.link << " up\n";
  auto made = run_tool("connect the namespace " + ns, {"ip", "-batch", "-"}, host.str());
  if (!made) return made.error();
  made = run_tool("address the namespace " + ns, {"ip", "-n", ns, "-batch", "-"}, ins_addresses(p));
  if (!made) return made.error();
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

Outcome<Done> done_if(const Outcome<std::string>& ran) {
  if (!ran) return ran.error();
  return Done{};
}

Outcome<Done> make_netns(const std::string& base, SessionRecord& r) {
  auto made = make_known(
      base, r, &SessionRecord::netns_inode,
      [&r] {
        return done_if(run_tool("create the network namespace " + r.netns(),
                                {"ip", "netns", "add", r.netns()}));
      },
      [&r] { return inode_of(netns_path(r)); });
  if (made || !made.error().remedy.empty()) return made;
  return Failure{made.error().step, made.error().cause, kRootRemedy};
}

Outcome<Done> make_link(const std::string& base, SessionRecord& r) {
  return make_known(
      base, r, &SessionRecord::link_index,
      [&r] {
        return done_if(run_tool("connect the namespace " + r.netns(),
                                {"ip", "link", "add", "name", r.plan.link, "type", "veth", "peer",
                                 "name", kInsInterface, "netns", r.netns()}));
      },
      [&r] { return index_of_link(r.plan.link); });
}

// `create` fails if there is a table of that name, which is somebody else's then.
Outcome<Done> make_table(const std::string& base, SessionRecord& r, const GuardedLinks& guarded) {
  r.guarded = merged(guarded, guarded_now());
  return make_known(
      base, r, &SessionRecord::table_handle,
      [&] {
        return done_if(run_tool("publish ports with nftables", {"nft", "-f", "-"},
                                "create table inet " + r.table() + "\n" +
                                    ruleset(r.table(), r.plan, r.published, r.reach, r.guarded)));
      },
      [&r] { return handle_or_name(r.table()); });
}

// The session works without; those whom it concerns should know.
void say_if_failed(const Outcome<Done>& done) {
  if (!done) log_line("mw", "%s", done.error().text().c_str());
}

Outcome<UniqueFd> build_all(const std::string& base, SessionRecord& r) {
  if (auto made = make_netns(base, r); !made) return made.error();
  auto ns = open_network(r);
  if (!ns) return ns;
  std::vector<Setting> settings = inherited_settings();
  settings.push_back({"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", true});
  if (auto done = write_settings(ns->get(), settings); !done) return done.error();
  if (auto made = make_link(base, r); !made) return made.error();
  if (auto done = build_links(r); !done) return done.error();
  const auto guard = [&](const GuardedLinks& links) { return make_table(base, r, links); };
  auto forwarded = acquire_forwarding(base, r.plan.link, guard);
  if (!forwarded) return forwarded.error();
  // After the rules: the INS must not reach the host's loopback for a single packet.
  if (auto done = allow_loopback(r.plan.link); !done) return done.error();
  if (!passage_chains(r.published, r.reach).empty()) {
    if (auto done = restore_passages(r, ns->get()); !done) return done.error();
  }
  say_if_failed(forget_flows(r.published, r.plan));
  return ns;
}

// Whether a thing that is there now is the one that we made.
bool is_ours(uint64_t recorded, uint64_t found) {
  return found != 0 && (recorded == kBeingMade || recorded == found);
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

// Of the sessions of all bases that this network namespace has.
std::set<unsigned> slots_of_links() {
  std::set<unsigned> out;
  for (const std::string& name : link_names()) {
    const std::string number = name.substr(std::min(name.size(), std::strlen(kLinkPrefix)));
    if (name.compare(0, std::strlen(kLinkPrefix), kLinkPrefix) != 0 || number.empty()) continue;
    out.insert(static_cast<unsigned>(std::strtoul(number.c_str(), nullptr, 10)));
  }
  return out;
}

void end_process(const ProcId& id, int signal = SIGKILL) {
  if (!is_alive(id)) return;
  const UniqueFd fd = open_pidfd(id.pid);
  if (!fd || !is_alive(id)) return;      // checked again: the pidfd now pins who it is
  (void)signal_pidfd(fd.get(), signal);  // it may have died by itself
  (void)has_died(fd.get(), kKillTimeoutMs);
}

}  // namespace

Outcome<AddressPlan> plan_network(const std::vector<SessionRecord>& sessions, bool isolated) {
  std::set<unsigned> taken;
  for (const SessionRecord& r : sessions) taken.insert(r.plan.slot);
  if (!isolated) return choose_slot(taken);
  for (const unsigned slot : slots_of_links()) taken.insert(slot);
  // Asked for before anything is made: without it nothing could be published.
  if (auto nft = run_tool("find nft", {"nft", "--version"}); !nft) return nft.error();
  auto v4 = run_tool("read the host's routes", {"ip", "-4", "route", "show", "table", "all"});
  if (!v4) return v4.error();
  std::vector<Prefix> routes = parse_routes(*v4);
  const bool have_v6 = host_has_v6();
  if (have_v6) {
    auto v6 = run_tool("read the host's routes", {"ip", "-6", "route", "show", "table", "all"});
    if (!v6) return v6.error();
    const std::vector<Prefix> more = parse_routes(*v6);
    routes.insert(routes.end(), more.begin(), more.end());
  }
  return choose_addresses(routes, taken, have_v6);
}

Outcome<Done> check_ports(const std::vector<Publish>& published,
                          const std::vector<SessionRecord>& sessions) {
  for (const Publish& p : published) {
    for (const SessionRecord& r : sessions) {
      for (const Publish& other : r.published) {
        if (!overlap(p, other)) continue;
        return Failure{"publish " + to_string(p), "session " + r.name + " publishes that port",
                       "choose another with -p, or end that session"};
      }
    }
  }
  return Done{};
}

Outcome<std::vector<UniqueFd>> reserve_ports(const std::vector<Publish>& published) {
  std::vector<UniqueFd> out;
  for (const Publish& p : published) {
    const bool v6 = p.host.find(':') != std::string::npos;
    for (const int family : {AF_INET, AF_INET6}) {
      if (!p.host.empty() && v6 != (family == AF_INET6)) continue;
      auto fd = reserve(p, family);
      if (!fd) return fd.error();
      if (*fd) out.push_back(std::move(*fd));
    }
  }
  return out;
}

Outcome<std::vector<std::string>> names_in_use() {
  auto tables = run_tool("look at the host's nftables", {"nft", "list", "tables", "inet"});
  if (!tables) return tables.error();
  std::vector<std::string> out;
  std::istringstream lines(*tables);
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.find(" mw_");
    if (at == std::string::npos) continue;
    std::string name = line.substr(at + 4);
    std::replace(name.begin(), name.end(), '_', '-');
    out.push_back(name);
  }
  std::error_code error;
  for (std::filesystem::directory_iterator it("/run/netns", error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    if (name.compare(0, 3, "mw-") == 0) out.push_back(name.substr(3));
  }
  return out;
}

Outcome<UniqueFd> build_network(const std::string& base, SessionRecord& record) {
  auto made = build_all(base, record);
  if (made) return made;
  if (auto removed = remove_network(record); !removed) {
    return Failure{made.error().step, made.error().cause,
                   made.error().remedy + " (and then: " + removed.error().text() + ")"};
  }
  return made;
}

std::string ins_addresses(const AddressPlan& p) {
  std::ostringstream out;
  const std::string dev = std::string(" dev ") + kInsInterface;
  out << "link set dev lo up\naddress add " << p.ins4 << "/" << kPrefix4 << dev << "\n";
  if (!p.ins6.empty()) out << "address add " << p.ins6 << "/" << kPrefix6 << dev << " nodad\n";
  out << "link set" << dev << " up\nroute add default via " << p.host4 << "\n";
  if (!p.ins6.empty()) out << "route add default via " << p.host6 << "\n";
  return out.str();
}

Outcome<Done> take_over_settings(int netns) {
  return write_settings(netns, inherited_settings());
}

Outcome<Done> remove_network(const SessionRecord& r) {
  if (!r.isolated) return Done{};
  std::vector<Outcome<std::string>> steps;
  if (r.table_handle != 0) {
    auto handle = handle_of_table(r.table());
    if (!handle)
      return Failure{"remove the nftables table " + r.table(), handle.error().cause,
                     handle.error().remedy};
    if (is_ours(r.table_handle, *handle))
      steps.push_back(run_tool("remove the nftables table " + r.table(),
                               {"nft", "delete", "table", "inet", r.table()}));
  }
  if (is_ours(r.link_index, index_of_link(r.plan.link)))
    steps.push_back(
        run_tool("remove the interface " + r.plan.link, {"ip", "link", "del", "dev", r.plan.link}));
  if (is_ours(r.netns_inode, inode_of(netns_path(r))))
    steps.push_back(
        run_tool("remove the network namespace " + r.netns(), {"ip", "netns", "del", r.netns()}));
  for (const Outcome<std::string>& step : steps) {
    if (!step) return step.error();
  }
  // Else whoever gets these addresses next has our clients' flows.
  if (!steps.empty()) say_if_failed(forget_flows(r.published, r.plan));
  return Done{};
}

std::vector<std::string> obstacles(const SessionRecord& r) {
  std::vector<std::string> out;
  for (const std::string& server : unreachable_name_servers(r.reach)) {
    if (r.reach.egress.kind == Egress::Kind::none) break;
    out.push_back(
        "the name server " + server +
        " is out of the INS's reach: only those of the host's IPv4 loopback can be led to it, "
        "and none of a single link");
  }
  auto rules = run_tool("read the host's rules", {"nft", "list", "ruleset"});
  if (!rules) return out;
  if (!passages(r.reach, r.published).empty()) {
    for (const DroppingChain& c : dropping_chains(*rules, "input")) {
      if (c.family == "ip6") continue;  // only IPv4 is led there
      out.push_back("packets to the host itself are dropped by its chain " + c.family + " " +
                    c.table + " " + c.chain + (c.manager.empty() ? "" : " (" + c.manager + ")") +
                    ", its ports and name servers may be out of reach of the program; try: " +
                    commands_to_pass(c));
    }
  }
  for (const DroppingChain& c : dropping_chains(*rules))
    out.push_back("forwarded packets are dropped by the host's chain " + c.family + " " + c.table +
                  " " + c.chain + (c.manager.empty() ? "" : " (" + c.manager + ")") +
                  ", published ports may be out of reach; try: " + commands_to_pass(c));
  return out;
}

bool has_rules(const SessionRecord& r) {
  auto handle = handle_of_table(r.table());
  return handle && *handle != 0 && r.table_handle == *handle;
}

Outcome<Done> restore_rules(const std::string& base, SessionRecord& r) {
  const std::string table = r.table();
  const auto put_back = [&](const GuardedLinks& guarded) -> Outcome<Done> {
    r.guarded = merged(r.guarded, guarded);
    return make_known(
        base, r, &SessionRecord::table_handle,
        [&] {
          // Naming the table before deleting it makes the deletion work whether or not it exists.
          return done_if(run_tool("put the rules of " + r.name + " back", {"nft", "-f", "-"},
                                  "table inet " + table + " {}\ndelete table inet " + table + "\n" +
                                      ruleset(table, r.plan, r.published, r.reach, r.guarded)));
        },
        [&] { return handle_or_name(table); });
  };
  return acquire_forwarding(base, r.plan.link, put_back);
}

Outcome<Done> restore_passages(const SessionRecord& r, int netns) {
  const std::string table = std::string("table inet ") + kPassageTable;
  const std::string rules = table + " {}\ndelete " + table + "\n" + table + " {\n" +
                            passage_chains(r.published, r.reach) + "}\n";
  auto there = InNetwork::enter(netns);
  if (!there) return there.error();
  if (auto done = run_tool("lead ports of 127.0.0.1 to the host", {"nft", "-f", "-"}, rules); !done)
    return done.error();
  // What goes to 127.0.0.1 leaves through eth0, and its answers come back there.
  return write_settings(netns, {{"/proc/sys/net/ipv4/conf/eth0/route_localnet", "1", true}});
}

Outcome<std::string> read_refusals(const SessionRecord& r) {
  // In this order: what comes in between is told once more.
  auto reset =
      run_tool("hear of refused packets", {"nft", "reset", "quota", "inet", r.table(), kRefusals});
  if (!reset) return reset;
  return run_tool("read which packets were refused",
                  {"nft", "-n", "list", "table", "inet", r.table()});
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
    // A driver's keeper shows its arguments until it has run for a moment.
    const bool is_keeper = record.driver.pid != 0 && parent_of(pid) == record.driver.pid;
    if (!is(record.driver) && !is(record.ins) && !is_keeper) end_process(id);
  }
}

namespace {

// Whether a process is in this network namespace, or a file keeps it.
bool is_network_there(uint64_t inode) {
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc", error), end; !error && it != end;
       it.increment(error)) {
    if (inode_of(it->path().string() + "/ns/net") == inode) return true;
  }
  for (std::filesystem::directory_iterator it("/run/netns", error), end; !error && it != end;
       it.increment(error)) {
    if (inode_of(it->path().string()) == inode) return true;
  }
  return false;
}

// The host's side is gone with the namespace that played the host. The session's own is kept by a file.
Outcome<Done> bury_without_network(const std::string& base, const SessionRecord& record) {
  end_unknown_helpers(record);
  end_process(record.ins);
  end_process(record.driver);
  SessionRecord left = record;
  left.table_handle = 0;
  left.link_index = 0;
  if (auto removed = remove_network(left); !removed) return removed;
  return remove_session_folder(base, record.name);
}

}  // namespace

Outcome<Done> bury(const std::string& base, const SessionRecord& record) {
  end_unknown_helpers(record);
  end_process(record.ins);
  end_process(record.driver);
  if (auto removed = remove_network(record); !removed) return removed;
  return remove_session_folder(base, record.name);
}

namespace {

// No isolated session of this base will be left. Those of another base still need the forwarding that we
// turned on; then only its guard stays.
Outcome<Done> leave_forwarding(const std::string& base) {
  const GuardedLinks guarded = guarded_links(base);
  const bool is_guarded = !guarded.v4.empty() || !guarded.v6.empty() || guarded.all_v6;
  if (!is_guarded) return release_forwarding(base);
  std::set<unsigned> others = slots_of_links();
  for (const SessionRecord& r : list_sessions(base)) others.erase(r.plan.slot);
  if (!others.empty())
    return done_if(
        run_tool("guard the host's interfaces", {"nft", "-f", "-"}, guard_ruleset(guarded)));
  if (auto done = release_forwarding(base); !done) return done;
  const std::string table = kGuardTable;
  return done_if(run_tool("remove the guard of the host's interfaces", {"nft", "-f", "-"},
                          "table inet " + table + " {}\ndelete table inet " + table + "\n"));
}

bool is_isolated_here(const SessionRecord& r) {
  return r.isolated && r.host_net == this_network();
}

}  // namespace

Swept sweep(const std::string& base, const SessionRecord* ending) {
  Swept out;
  std::vector<SessionRecord> sessions = list_sessions(base);
  if (ending != nullptr) {
    std::erase_if(sessions, [ending](const SessionRecord& r) { return r.name == ending->name; });
    sessions.push_back(*ending);
  }
  const auto is_over = [ending](const SessionRecord& r) {
    return (ending != nullptr && r.name == ending->name) || state_of(r) == SessionState::dead;
  };
  const bool any_left = std::any_of(sessions.begin(), sessions.end(), [&](const SessionRecord& r) {
    return is_isolated_here(r) && !is_over(r);
  });
  // Before the rules go that guard it.
  if (!any_left && ::geteuid() == 0) {
    if (auto done = leave_forwarding(base); !done) out.failures.push_back(done.error());
  }
  for (const SessionRecord& r : sessions) {
    if (!is_over(r)) continue;
    // Its interface and rules are out of our reach: a start in that namespace will do. If that is gone,
    // they went with it.
    Outcome<Done> done = Done{};
    if (!r.isolated || is_isolated_here(r))
      done = bury(base, r);
    else if (!is_network_there(r.host_net))
      done = bury_without_network(base, r);
    else
      continue;
    if (done)
      out.buried.push_back(r.name);
    else
      out.failures.push_back(done.error());
  }
  return out;
}

}  // namespace mw
