// resolve.h - host names, looked up where the network is.
//
// Configuration (resolv.conf, hosts) is read before the sandbox; afterwards only sockets are used.
// Order: a number, the hosts file, then DNS.
//
// THREADS     The control thread only.
#pragma once

#include <ares.h>
#include <sys/epoll.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "ins/decode.h"
#include "ins/publish.h"

namespace mw {

class CallTable;

struct HostEntry {
  mw_addr addr{};
  std::vector<std::string> names;
};
// Pure: the lines of /etc/hosts.
std::vector<HostEntry> parse_hosts(const std::string& text);

// Pure: what is left of a DNS message that does not fit, with TC set: header and question, or the
// header alone if the question cannot be read. Returns the new length. `length` >= kDnsHeaderBytes.
size_t cut_message(uint8_t* message, size_t length);

class Resolver {
 public:
  Resolver() = default;
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;
  ~Resolver();

  // Reads the configuration. Errors: sys (no memory).
  Status init(const OwnAddresses& own);
  // Its sockets are watched in this epoll set, with `tag` | fd as data.
  void attach(int epoll, uint64_t tag, CallTable* calls);
  void lookup(uint32_t call, const Request& r);
  void on_event(int fd, uint32_t events);
  // Milliseconds until on_timeout() has to be called, -1: not at all.
  int timeout_ms();
  void on_timeout();

 private:
  struct Pending;
  static void on_sock_state(void* self, ares_socket_t fd, int readable, int writable);
  static void on_addrinfo(void* arg, int status, int timeouts, ares_addrinfo* result);
  static void on_message(void* self, int status, int timeouts, unsigned char* message, int length);
  static void on_hostent(void* arg, int status, int timeouts, hostent* host);
  void lookup_name(uint32_t call, const Request& r);
  void lookup_addr(uint32_t call, const Request& r);
  void exchange(uint32_t call, const Request& r);
  void answer_addrs(uint32_t call, uint32_t seq, int flags, const std::vector<mw_addr>& found,
                    const std::string& canonical);
  void answer_text(uint32_t call, uint32_t seq, const std::string& text);
  void fail(uint32_t call, uint32_t seq, int eai);

  ares_channel channel_ = nullptr;
  bool library_ = false;
  std::vector<HostEntry> hosts_;
  OwnAddresses own_;
  int epoll_ = -1;
  uint64_t tag_ = 0;
  CallTable* calls_ = nullptr;
  uint32_t pending_ = 0;
};

}  // namespace mw
