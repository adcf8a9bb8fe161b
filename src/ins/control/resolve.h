// resolve.h - host names, looked up where the network is.
//
// Configuration (nsswitch.conf, resolv.conf, hosts) is read before the sandbox; the driver sends what
// changes, and afterwards only sockets are used. A number is no question; names and addresses go to the
// services of nsswitch.conf in their order. Search list and repeated attempts are the resolver's own,
// as the C library has them: c-ares exchanges one question with each name server once.
//
// INVARIANTS  A lookup ends with the configuration that it began with.
// THREADS     The control thread only.
#pragma once

#include <ares.h>
#include <sys/epoll.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/name_files.h"
#include "base/result.h"
#include "ins/control/publish.h"
#include "ins/control/resolv_conf.h"
#include "ins/tables/decode.h"

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

  // Reads the configuration, from files in `folder`. Errors: sys (no memory).
  Status init(const OwnAddresses& own, const std::string& folder);
  // Lookups that begin from now on go by this text of the file; one for which there is no memory is not
  // heeded. Errors: sys.
  Status update(NameFile which, const std::string& text);
  // Its sockets are watched in this epoll set, with `tag` | fd as data.
  void attach(int epoll, uint64_t tag, CallTable* calls);
  void lookup(uint32_t call, const Request& r);
  void on_event(int fd, uint32_t events);
  // Milliseconds until on_timeout() has to be called, -1: not at all.
  int timeout_ms();
  void on_timeout();
  // Answers all lookups that are under way: there will be no answer.
  void give_up();

 private:
  struct Lookup;
  using LookupPtr = std::unique_ptr<Lookup>;
  // How name servers are asked, and which. Lookups that ask them keep it.
  struct Servers {
    explicit Servers(ResolvConf c) : conf(std::move(c)) {}
    Servers(const Servers&) = delete;
    Servers& operator=(const Servers&) = delete;
    ~Servers();
    const ResolvConf conf;
    ares_channel channel = nullptr;
    uint32_t pending = 0;  // questions to them that are under way
  };
  struct Configuration {
    std::shared_ptr<const std::vector<HostEntry>> hosts;
    std::shared_ptr<const std::vector<NameService>> services;
    Servers* servers = nullptr;
  };

  static void on_sock_state(void* self, ares_socket_t fd, int readable, int writable);
  static void on_addrinfo(void* lookup, int status, int timeouts, ares_addrinfo* result);
  static void on_message(void* lookup, int status, int timeouts, unsigned char* message,
                         int length);
  static void on_hostent(void* lookup, int status, int timeouts, hostent* host);

  void lookup_name(uint32_t call, const Request& r);
  void lookup_addr(uint32_t call, const Request& r);
  void exchange(uint32_t call, const Request& r);
  // Asks the services from the current one on, until one answers or ends the lookup.
  void ask_services(LookupPtr lookup);
  // True if the hosts file has answered.
  bool answer_from_files(const Lookup& lookup);
  void begin_dns(LookupPtr lookup);
  // Sends the lookup's question to the name servers, for the first time or again.
  void ask_dns(LookupPtr lookup);
  // What came of that, if it was no answer: the next attempt, name or service, or the failure.
  void dns_failed(LookupPtr lookup, int status);
  void answer_addrs(uint32_t call, uint32_t seq, int flags, const std::vector<mw_addr>& found,
                    const std::string& canonical);
  void answer_text(uint32_t call, uint32_t seq, const std::string& text);
  void fail(uint32_t call, uint32_t seq, int eai);
  LookupPtr begin(uint32_t call, uint32_t seq, uint32_t op);
  Result<std::unique_ptr<Servers>> make_servers(ResolvConf conf);
  // Not from within a callback of c-ares.
  void drop_unused_servers();

  bool library_ = false;
  std::string host_name_;
  Configuration now_;
  // Those that new lookups ask come last.
  std::vector<std::unique_ptr<Servers>> servers_;
  OwnAddresses own_;
  int epoll_ = -1;
  uint64_t tag_ = 0;
  CallTable* calls_ = nullptr;
};

}  // namespace mw
