#include "ins/control/publish.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "registry/registry.h"

namespace mw {
namespace {

constexpr const char* kFiles[] = {"ins_dom_id",      "ip_addrs", "heartbeat", "network_stats",
                                  "listening_ports", "sockopts", "repairs"};

Status make_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
    return Error{Fault::sys, errno, "mkdir in the registry"};
  return Ok{};
}

}  // namespace

Result<Publisher> Publisher::open(const std::string& registry, uint32_t id) {
  const std::string top = registry + "/mw";
  const std::string own = top + "/" + std::to_string(id);
  for (const std::string& dir : {registry, top, own})
    if (const Status made = make_dir(dir); !made) return made.error();
  Publisher p;
  p.dir_ = UniqueFd{::open(own.c_str(), O_DIRECTORY | O_RDONLY | O_CLOEXEC)};
  if (!p.dir_) return Error{Fault::sys, errno, "opening the registry directory"};
  for (const char* name : kFiles) {
    UniqueFd fd{
        ::openat(p.dir_.get(), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644)};
    if (!fd) return Error{Fault::sys, errno, "opening a file of the registry"};
    p.files_[name].fd = std::move(fd);
  }
  p.set("ins_dom_id", std::to_string(id));
  return p;
}

Result<UniqueFd> Publisher::listen_channel() {
  UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fd) return Error{Fault::sys, errno, "socket for the driver"};
  // Through the descriptor, so that a long registry path fits; under another name until it listens.
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/channel.new", dir_.get());
  if (::unlinkat(dir_.get(), "channel.new", 0) < 0 && errno != ENOENT)
    return Error{Fault::sys, errno, "removing an old channel"};
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0)
    return Error{Fault::sys, errno, "bind of the channel"};
  if (::listen(fd.get(), 8) < 0) return Error{Fault::sys, errno, "listen on the channel"};
  if (::renameat(dir_.get(), "channel.new", dir_.get(), "channel") < 0)
    return Error{Fault::sys, errno, "naming the channel"};
  dir_.reset();
  return fd;
}

void Publisher::set(const std::string& name, const std::string& value) {
  const auto it = files_.find(name);
  // Cut to what a reader takes: how much there is to say is the application's choice.
  const std::string line = value.substr(0, kMaxRegistryValue - 1) + "\n";
  if (it == files_.end() || it->second.last == line) return;
  File& f = it->second;
  const bool shrinks = line.size() < f.last.size();
  if (::pwrite(f.fd.get(), line.data(), line.size(), 0) != static_cast<ssize_t>(line.size()) ||
      (shrinks && ::ftruncate(f.fd.get(), static_cast<off_t>(line.size())) < 0)) {
    if (!complained_)
      log_line("mwins", "cannot write %s in the registry: %s", name.c_str(), std::strerror(errno));
    complained_ = true;
    return;
  }
  f.last = line;
}

OwnAddresses own_addresses() {
  OwnAddresses out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) < 0) return out;
  for (const ifaddrs* a = list; a != nullptr; a = a->ifa_next) {
    if (a->ifa_addr == nullptr || (a->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET6_ADDRSTRLEN] = "";
    if (a->ifa_addr->sa_family == AF_INET) {
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(a->ifa_addr)->sin_addr, text,
                  sizeof text);
      out.v4 = true;
    } else if (a->ifa_addr->sa_family == AF_INET6) {
      const auto* in6 = reinterpret_cast<const sockaddr_in6*>(a->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr)) continue;
      ::inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text);
      out.v6 = true;
    } else {
      continue;
    }
    if (!out.text.empty()) out.text += ' ';
    out.text += text;
  }
  ::freeifaddrs(list);
  return out;
}

}  // namespace mw
