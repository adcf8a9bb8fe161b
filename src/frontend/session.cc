#include "frontend/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "base/clock.h"
#include "base/log.h"
#include "registry/local_registry.h"
#include "registry/registry.h"

namespace mw {
namespace {

constexpr const char* kRecordFile = "owner";

std::string text_of(const ProcId& id) {
  return std::to_string(id.pid) + " " + std::to_string(id.start);
}

bool parse(const std::string& text, ProcId* id) {
  std::istringstream in(text);
  return static_cast<bool>(in >> id->pid >> id->start);
}

bool valid_name(const std::string& name) {
  return !name.empty() && name.size() <= 40 &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
}

bool parse_published(const std::string& text, Publish* p) {
  // "udp 8080 80 HOST", HOST may be empty.
  std::istringstream in(text);
  std::string protocol;
  if (!(in >> protocol >> p->port >> p->ins_port)) return false;
  if (protocol != "udp" && protocol != "tcp") return false;
  p->protocol = protocol == "udp" ? Protocol::udp : Protocol::tcp;
  in >> p->host;
  return true;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

bool is_private(const struct stat& folder) {
  return S_ISDIR(folder.st_mode) && folder.st_uid == ::geteuid() &&
         (folder.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

// What a lost power supply cannot leave: /run is empty after a reboot. /tmp is not, so pids and
// start times there could fit by chance.
std::string boot_id() {
  return read_text("/proc/sys/kernel/random/boot_id").substr(0, 36);
}

bool is_own_folder(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0 && is_private(st);
}

// Of a user who has no folder of his own. Anybody may make any name in /tmp, so the name is nobody's to
// foresee, and what counts is whose it is. `make`: if there is none.
std::string base_in_tmp(bool make) {
  const std::string stem = "mwcomms-" + std::to_string(::geteuid()) + "-";
  std::string found;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/tmp", error), end; !error && it != end;
       it.increment(error)) {
    const std::string path = it->path();
    if (it->path().filename().string().compare(0, stem.size(), stem) != 0) continue;
    if (is_own_folder(path) && (found.empty() || path < found)) found = path;
  }
  if (!found.empty() || !make) return found.empty() ? "/tmp/" + stem : found;
  std::string fresh = "/tmp/" + stem + "XXXXXX";
  return ::mkdtemp(fresh.data()) != nullptr ? fresh : "/tmp/" + stem;
}

}  // namespace

std::string default_base(bool make) {
  if (::geteuid() == 0) return "/run/mwcomms";
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && runtime[0] == '/') return std::string(runtime) + "/mwcomms";
  const std::string usual = "/run/user/" + std::to_string(::geteuid());
  if (is_own_folder(usual)) return usual + "/mwcomms";
  return base_in_tmp(make);
}

uint64_t this_network() {
  struct stat st {};
  return ::stat("/proc/self/ns/net", &st) == 0 ? st.st_ino : 0;
}

std::string SessionRecord::table() const {
  std::string s = "mw_" + name;
  std::replace(s.begin(), s.end(), '-', '_');
  return s;
}

std::string encode(const SessionRecord& r) {
  std::ostringstream out;
  out << "boot=" << boot_id() << "\nowner=" << text_of(r.owner)
      << "\napplication=" << text_of(r.application) << "\ndriver=" << text_of(r.driver)
      << "\nins=" << text_of(r.ins) << "\nins_id=" << r.ins_id << "\nisolated=" << r.isolated
      << "\nhost_net=" << r.host_net << "\nmark=" << r.mark << "\nmemory=" << r.memory.inode << " "
      << r.memory.name << "\ncommand=" << r.command << "\nslot=" << r.plan.slot
      << "\nins_uid=" << r.plan.ins_uid << "\n";
  if (r.isolated) {
    out << "link=" << r.plan.link << "\nhost4=" << r.plan.host4 << "\nins4=" << r.plan.ins4
        << "\nhost6=" << r.plan.host6 << "\nins6=" << r.plan.ins6
        << "\nnetns_inode=" << r.netns_inode << "\nlink_index=" << r.link_index
        << "\ntable_handle=" << r.table_handle << "\nguard4=" << joined(r.guarded.v4)
        << "\nguard6=" << joined(r.guarded.v6) << "\nguard6_all=" << r.guarded.all_v6
        << "\negress=" << to_string(r.reach.egress) << "\nto_host=" << to_string(r.reach.to_host)
        << "\nname_servers=" << joined(r.reach.name_servers) << "\nstubs=" << joined(r.reach.stubs)
        << "\n";
  }
  for (const Publish& p : r.published) {
    out << "publish=" << (p.protocol == Protocol::udp ? "udp " : "tcp ") << p.port << " "
        << p.ins_port << " " << p.host << "\n";
  }
  for (const std::string& option : r.driver_options) out << "driver_option=" << option << "\n";
  return out.str();
}

Outcome<SessionRecord> decode(const std::string& name, const std::string& text) {
  const Failure bad{"read the record of session " + name, "it is damaged",
                    "look at its folder and remove it by hand"};
  SessionRecord r;
  r.name = name;
  if (!valid_name(name)) return bad;
  std::map<std::string, std::string> field;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t eq = line.find('=');
    if (eq == std::string::npos) return bad;
    const std::string key = line.substr(0, eq);
    const std::string value = line.substr(eq + 1);
    Publish p;
    if (key == "publish") {
      if (!parse_published(value, &p)) return bad;
      r.published.push_back(p);
    } else if (key == "driver_option") {
      r.driver_options.push_back(value);
    } else {
      field[key] = value;
    }
  }
  if (!parse(field["owner"], &r.owner) || !parse(field["application"], &r.application) ||
      !parse(field["driver"], &r.driver) || !parse(field["ins"], &r.ins)) {
    return bad;
  }
  r.ins_id = static_cast<unsigned>(std::strtoul(field["ins_id"].c_str(), nullptr, 10));
  r.isolated = field["isolated"] == "1";
  r.host_net = std::strtoull(field["host_net"].c_str(), nullptr, 10);
  r.mark = field["mark"];
  std::istringstream memory(field["memory"]);
  memory >> r.memory.inode >> r.memory.name;
  if (field["boot"] != boot_id()) {
    r.owner = r.application = r.driver = r.ins = ProcId{};
    r.memory = MemoryId{};
  }
  r.command = field["command"];
  r.plan.slot = static_cast<unsigned>(std::strtoul(field["slot"].c_str(), nullptr, 10));
  r.plan.ins_uid = static_cast<unsigned>(std::strtoul(field["ins_uid"].c_str(), nullptr, 10));
  if (!r.isolated) return r;
  r.plan.link = field["link"];
  r.plan.host4 = field["host4"];
  r.plan.ins4 = field["ins4"];
  r.plan.host6 = field["host6"];
  r.plan.ins6 = field["ins6"];
  const auto made = [&field](const char* key) {
    const auto it = field.find(key);
    // A record of an older version: what bears its names is its own.
    return it == field.end() ? kBeingMade : std::strtoull(it->second.c_str(), nullptr, 10);
  };
  r.guarded = {words_of(field["guard4"]), words_of(field["guard6"]), field["guard6_all"] == "1"};
  r.netns_inode = made("netns_inode");
  r.link_index = made("link_index");
  r.table_handle = made("table_handle");
  // Absent in a record of an older version, which knew no such limits.
  if (!field["egress"].empty()) {
    auto egress = parse_egress(field["egress"]);
    if (!egress) return bad;
    r.reach.egress = *egress;
  }
  if (!field["to_host"].empty()) {
    auto ports = parse_to_host(field["to_host"]);
    if (!ports) return bad;
    r.reach.to_host = *ports;
  }
  r.reach.name_servers = words_of(field["name_servers"]);
  r.reach.stubs = words_of(field["stubs"]);
  if (r.plan.link != kLinkPrefix + std::to_string(r.plan.slot)) return bad;
  return r;
}

namespace {

// Other bases, of containers perhaps, make things in the same network namespace. What they have in common
// is that namespace, and names of sockets in it that no file stands for. A name that another user holds,
// who has nothing to do with sessions, is no lock.
UniqueFd lock_network(bool wait) {
  constexpr int kPatienceMs = 20'000;
  constexpr int kMostRefusals = 1000;
  constexpr char kName[] = "\0mwcomms-network";
  if (::geteuid() != 0) return {};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::memcpy(a.sun_path, kName, sizeof kName - 1);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + sizeof kName - 1);
  const auto* address = reinterpret_cast<const sockaddr*>(&a);
  const int64_t until = monotonic_ms() + (wait ? kPatienceMs : 1);
  int refusals = 0;
  while (monotonic_ms() < until) {
    UniqueFd mine{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    if (!mine) return {};
    if (::bind(mine.get(), address, size) == 0) {
      (void)::listen(mine.get(), SOMAXCONN);
      return mine;
    }
    // Its end is told to whoever is connected.
    const UniqueFd waiting{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!waiting) return {};
    if (::connect(waiting.get(), address, size) < 0) {
      // Bound, and not listening yet, or ever.
      if (++refusals == kMostRefusals) return {};
      (void)::poll(nullptr, 0, 1);
      continue;
    }
    ucred holder{};
    socklen_t len = sizeof holder;
    if (::getsockopt(waiting.get(), SOL_SOCKET, SO_PEERCRED, &holder, &len) == 0 && holder.uid != 0)
      return {};
    pollfd gone{waiting.get(), 0, 0};
    (void)::poll(&gone, 1, static_cast<int>(std::max<int64_t>(0, until - monotonic_ms())));
  }
  return {};
}

}  // namespace

Outcome<Done> check_base(const std::string& base) {
  struct stat st {};
  if (::lstat(base.c_str(), &st) < 0) return Done{};
  if (is_private(st)) return Done{};
  return Failure{"open the registry " + base, "it belongs to, or can be written by, somebody else",
                 "remove that folder"};
}

Outcome<BaseLock> BaseLock::acquire(const std::string& base, bool wait) {
  const std::string step = "open the registry " + base;
  const mode_t mode = ::geteuid() == 0 ? 0755 : 0700;
  if (::mkdir(base.c_str(), mode) < 0 && errno != EEXIST) {
    return Failure{step, errno_text(errno), "make its parent folder writable for you"};
  }
  UniqueFd folder{::open(base.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  struct stat st {};
  if (!folder || ::fstat(folder.get(), &st) < 0) return Failure{step, errno_text(errno), ""};
  // In /tmp somebody else may have been first.
  if (!is_private(st)) {
    return Failure{step, "it belongs to, or can be written by, somebody else",
                   "remove that folder"};
  }
  UniqueFd fd{::openat(folder.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (!fd) return Failure{step, errno_text(errno), kWriteRemedy};
  while (::flock(fd.get(), wait ? LOCK_EX : LOCK_EX | LOCK_NB) < 0) {
    if (errno != EINTR) return Failure{step, "flock: " + errno_text(errno), ""};
  }
  return BaseLock(std::move(fd), lock_network(wait));
}

std::string session_folder(const std::string& base, const std::string& name) {
  return base + "/" + name;
}

Outcome<Done> save(const std::string& base, const SessionRecord& record) {
  return write_text_atomically(session_folder(base, record.name) + "/" + kRecordFile,
                               encode(record));
}

Outcome<Done> make_session_folder(const std::string& base, const SessionRecord& record) {
  const std::string folder = session_folder(base, record.name);
  for (const char* sub : {"", "/mw", "/mw/pvm"}) {
    if (::mkdir((folder + sub).c_str(), 0700) < 0) {
      return Failure{"make " + folder + sub, errno_text(errno), kWriteRemedy};
    }
    if (*sub != '\0') continue;
    if (auto saved = save(base, record); !saved) return saved.error();
  }
  return Done{};
}

std::string published(const std::string& base, const std::string& name, const std::string& who,
                      const std::string& value) {
  auto registry = LocalRegistry::open(session_folder(base, name));
  if (!registry) return {};
  auto text = registry->read("mw/" + who + "/" + value);
  if (!text) return {};
  if (!text->empty() && text->back() == '\n') text->pop_back();
  return *text;
}

uint64_t repairs_of(const std::string& base, const std::string& name, unsigned id) {
  return parse_registry_number(published(base, name, std::to_string(id), "repairs")).value_or(0);
}

void keep_repairs(const std::string& base, const std::string& name, unsigned id) {
  const uint64_t repairs = repairs_of(base, name, id);
  if (repairs == 0) return;
  const std::string line = name + " " + std::to_string(repairs) + "\n";
  const UniqueFd file{::open((base + "/repairs").c_str(),
                             O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (!file || ::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    log_line("mw", "cannot note that session %s repaired %llu lost wake-ups", name.c_str(),
             static_cast<unsigned long long>(repairs));
}

Outcome<Done> remove_session_folder(const std::string& base, const std::string& name) {
  std::error_code error;
  // What is left of INSs whose front end died.
  for (std::filesystem::directory_iterator it(session_folder(base, name) + "/mw", error), end;
       !error && it != end; it.increment(error)) {
    const auto id = parse_registry_number(it->path().filename().string());
    if (id && *id <= UINT32_MAX) keep_repairs(base, name, static_cast<unsigned>(*id));
  }
  std::filesystem::remove_all(session_folder(base, name), error);
  if (error) return Failure{"remove " + session_folder(base, name), error.message(), ""};
  return Done{};
}

std::vector<SessionRecord> list_sessions(const std::string& base) {
  std::vector<SessionRecord> out;
  std::error_code error;
  for (std::filesystem::directory_iterator it(base, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    if (!it->is_directory(error)) continue;
    auto record = decode(name, read_text(it->path().string() + "/" + kRecordFile));
    if (record) {
      out.push_back(*record);
    } else if (valid_name(name) && !std::filesystem::exists(it->path() / kRecordFile, error)) {
      // Its maker died between mkdir and the record, before anything else was made.
      SessionRecord empty;
      empty.name = name;
      out.push_back(empty);
    }
  }
  std::sort(out.begin(), out.end(),
            [](const SessionRecord& a, const SessionRecord& b) { return a.name < b.name; });
  return out;
}

SessionState state_of(const SessionRecord& record) {
  if (is_alive(record.owner)) return SessionState::running;
  if (is_alive(record.application)) return SessionState::orphaned;
  return processes_of(record).empty() ? SessionState::dead : SessionState::orphaned;
}

std::vector<pid_t> processes_of(const SessionRecord& r) {
  std::set<pid_t> found;
  if (!r.mark.empty()) {
    for (const pid_t pid : processes_with_environment(r.mark)) found.insert(pid);
  }
  for (const pid_t pid : processes_with_memory(r.memory)) found.insert(pid);
  for (const ProcId& ours : {r.owner, r.driver, r.ins}) {
    if (is_alive(ours)) found.erase(ours.pid);
  }
  return {found.begin(), found.end()};
}

}  // namespace mw
