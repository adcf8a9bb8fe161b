// calls_datagram.cc - what takes many calls to see of ports that are given back and of datagram
// sockets; each prints a summary.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <ctime>

#include "call.h"

namespace sockagent {
namespace {

// Ends the only descriptor of a socket, or its only process: HOW is close, dup2, close_range, or
// exit (of a child that has the last copy).
void end_socket(int fd, const std::string& how) {
  if (how == "close") {
    ::close(fd);
  } else if (how == "dup2") {
    const int other = ::open("/dev/null", O_RDWR);
    ::dup2(other, fd);
    ::close(other);
    ::close(fd);
  } else if (how == "close_range") {
    ::close_range(static_cast<unsigned>(fd), static_cast<unsigned>(fd), 0);
  } else if (how == "exit") {
    int ends[2];
    if (::pipe(ends) < 0) throw ScriptError("no pipe");
    const pid_t child = ::fork();
    char byte = 0;
    if (child == 0) {
      ::close(ends[1]);
      ::_exit(static_cast<int>(::read(ends[0], &byte, 1)));
    }
    ::close(fd);
    ::close(ends[1]);
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
  } else {
    throw ScriptError("no such end");
  }
}

// A socket bound to HOST with a port of the kernel's choice, and its address.
int bound(int type, const std::string& host, Address& out) {
  out = parse_address(host + ":0");
  const int fd = ::socket(out.storage.ss_family, type, 0);
  if (::bind(fd, out.get(), out.length) < 0 || ::getsockname(fd, out.get(), &out.length) < 0)
    throw ScriptError("cannot bind");
  return fd;
}

// rebinds TYPE HOST HOW COUNT: how often a socket that exists already cannot have the address of one
// that has just ended.
void do_rebinds(const Call& call, Reply& reply) {
  const int type = static_cast<int>(call.number(0));
  long refused = 0;
  for (long k = 0; k < call.number(3); ++k) {
    Address address;
    const int old = bound(type, call.text(1), address);
    const int next = ::socket(address.storage.ss_family, type, 0);
    end_socket(old, call.text(2));
    if (::bind(next, address.get(), address.length) < 0) ++refused;
    ::close(next);
  }
  reply.field("refused", refused);
}

// rebinds_client HOST HOW COUNT: the same for the port that connect() chose, after the peer's close.
void do_rebinds_client(const Call& call, Reply& reply) {
  long refused = 0;
  for (long k = 0; k < call.number(2); ++k) {
    Address there;
    const int listener = bound(SOCK_STREAM, call.text(0), there);
    ::listen(listener, 1);
    const int client = ::socket(there.storage.ss_family, SOCK_STREAM, 0);
    ::connect(client, there.get(), there.length);
    Address here;
    here.length = sizeof here.storage;
    ::getsockname(client, here.get(), &here.length);
    ::close(::accept(listener, nullptr, nullptr));
    char byte = 0;
    if (::recv(client, &byte, 1, 0) != 0) throw ScriptError("no end");
    const int next = ::socket(there.storage.ss_family, SOCK_STREAM, 0);
    end_socket(client, call.text(1));
    if (::bind(next, here.get(), here.length) < 0) ++refused;
    ::close(next);
    ::close(listener);
  }
  reply.field("refused", refused);
}

// unheard HOST HOW COUNT: how often what is sent to a socket that has just ended comes back with no
// error.
void do_unheard(const Call& call, Reply& reply) {
  long unheard = 0;
  for (long k = 0; k < call.number(2); ++k) {
    Address address;
    const int receiver = bound(SOCK_DGRAM, call.text(0), address);
    const int sender = ::socket(address.storage.ss_family, SOCK_DGRAM, 0);
    ::connect(sender, address.get(), address.length);
    end_socket(receiver, call.text(1));
    ::send(sender, "x", 1, 0);
    pollfd one{sender, 0, 0};
    constexpr int kLongMilliseconds = 1000;
    if (::poll(&one, 1, kLongMilliseconds) != 1 || (one.revents & POLLERR) == 0) ++unheard;
    ::close(sender);
  }
  reply.field("unheard", unheard);
}

// stamp FD REQUEST: SIOCGSTAMP and SIOCGSTAMPNS, and whether the time is of this minute.
void do_stamp(const Call& call, Reply& reply) {
  timespec when{};
  const long result = reply.call([&] {
    return ::ioctl(static_cast<int>(call.number(0)), static_cast<unsigned long>(call.number(1)),
                   &when);
  });
  const std::time_t now = std::time(nullptr);
  if (result == 0) reply.field("now", when.tv_sec > now - 60 && when.tv_sec <= now + 1 ? 1 : 0);
}

// kept FD COUNT LENGTH LEAST MOST: sends so many to the socket itself and prints whether it kept
// LEAST to MOST of them.
void do_kept(const Call& call, Reply& reply) {
  const int fd = static_cast<int>(call.number(0));
  Address address;
  address.length = sizeof address.storage;
  ::getsockname(fd, address.get(), &address.length);
  const int sender = ::socket(address.storage.ss_family, SOCK_DGRAM, 0);
  const std::string bytes(static_cast<std::size_t>(call.number(2)), 'k');
  for (long k = 0; k < call.number(1); ++k)
    ::sendto(sender, bytes.data(), bytes.size(), 0, address.get(), address.length);
  ::close(sender);
  long kept = 0;
  pollfd one{fd, POLLIN, 0};
  constexpr int kQuietMilliseconds = 200;
  while (::poll(&one, 1, kQuietMilliseconds) == 1) {
    char byte = 0;
    if (::recv(fd, &byte, 1, MSG_DONTWAIT) >= 0) ++kept;
  }
  const bool within = kept >= call.number(3) && kept <= call.number(4);
  reply.field("kept", within ? "as bounded" : std::to_string(kept));
}

}  // namespace

void add_datagram_calls(Table& table) {
  table.insert({{"rebinds", do_rebinds},
                {"rebinds_client", do_rebinds_client},
                {"unheard", do_unheard},
                {"stamp", do_stamp},
                {"kept", do_kept}});
}

}  // namespace sockagent
