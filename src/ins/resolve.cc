#include "ins/resolve.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <strings.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "ins/context.h"

namespace mw {
namespace {

constexpr size_t kMaxAddresses = 48;

mw_addr make_v4(const in_addr& a) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr = a;
  mw_addr out{};
  out.len = sizeof in;
  std::memcpy(out.bytes, &in, sizeof in);
  return out;
}
mw_addr make_v6(const in6_addr& a, uint32_t scope = 0) {
  sockaddr_in6 in{};
  in.sin6_family = AF_INET6;
  in.sin6_addr = a;
  in.sin6_scope_id = scope;
  mw_addr out{};
  out.len = sizeof in;
  std::memcpy(out.bytes, &in, sizeof in);
  return out;
}
int family_of(const mw_addr& a) {
  return a.len == sizeof(sockaddr_in) ? AF_INET : AF_INET6;
}

bool parse_number(const std::string& text, mw_addr& out) {
  in_addr v4{};
  in6_addr v6{};
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) {
    out = make_v4(v4);
    return true;
  }
  if (::inet_pton(AF_INET6, text.c_str(), &v6) == 1) {
    out = make_v6(v6);
    return true;
  }
  return false;
}

bool same_name(const std::string& a, const std::string& b) {
  return ::strcasecmp(a.c_str(), b.c_str()) == 0;
}

int eai_of(int status) {
  switch (status) {
    case ARES_ENOTFOUND:
    case ARES_EBADNAME:
      return EAI_NONAME;
    case ARES_ENODATA:
      return EAI_NODATA;
    case ARES_ENOMEM:
      return EAI_MEMORY;
    case ARES_ETIMEOUT:
    case ARES_ESERVFAIL:
    case ARES_ECONNREFUSED:
    case ARES_ENOTINITIALIZED:
    case ARES_ECANCELLED:
    case ARES_EDESTRUCTION:
      return EAI_AGAIN;
    default:
      return EAI_FAIL;
  }
}

}  // namespace

struct Resolver::Pending {
  Resolver* self;
  uint32_t call;
  uint32_t seq;
  int flags;
};

std::vector<HostEntry> parse_hosts(const std::string& text) {
  std::vector<HostEntry> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string word;
    HostEntry e;
    if (!(words >> word) || !parse_number(word.substr(0, word.find('%')), e.addr)) continue;
    while (words >> word) e.names.push_back(word);
    if (!e.names.empty()) out.push_back(std::move(e));
  }
  return out;
}

size_t cut_message(uint8_t* message, size_t length) {
  size_t at = kDnsHeaderBytes;
  // One question, as every query has, of plain labels.
  bool readable = message[4] == 0 && message[5] == 1;
  while (readable && at < length && message[at] != 0) {
    readable = message[at] < 64;
    at += size_t{message[at]} + 1;
  }
  const size_t end = at + 1 + 4;  // the root label, type and class
  readable = readable && end <= length && end <= MW_CALL_PAYLOAD;
  if (!readable) message[5] = 0;
  message[4] = 0;
  std::memset(message + 6, 0, 6);  // no answers, authorities, additions
  message[2] |= 2;                 // TC
  return readable ? end : kDnsHeaderBytes;
}

Resolver::~Resolver() {
  if (channel_ != nullptr) ares_destroy(channel_);
  if (library_) ares_library_cleanup();
}

Status Resolver::init(const OwnAddresses& own) {
  own_ = own;
  std::ifstream file("/etc/hosts");
  std::ostringstream text;
  text << file.rdbuf();
  hosts_ = parse_hosts(text.str());
  if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS)
    return Error{Fault::sys, ENOMEM, "name lookup library"};
  library_ = true;
  ares_options o{};
  char lookups[] = "b";
  o.lookups = lookups;
  o.sock_state_cb = &Resolver::on_sock_state;
  o.sock_state_cb_data = this;
  const int got = ares_init_options(&channel_, &o, ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB);
  if (got != ARES_SUCCESS) return Error{Fault::sys, ENOMEM, "name lookup configuration"};
  return Ok{};
}

void Resolver::attach(int epoll, uint64_t tag, CallTable* calls) {
  epoll_ = epoll;
  tag_ = tag;
  calls_ = calls;
}

void Resolver::on_sock_state(void* arg, ares_socket_t fd, int readable, int writable) {
  auto* self = static_cast<Resolver*>(arg);
  epoll_event e{};
  e.events = (readable != 0 ? EPOLLIN : 0u) | (writable != 0 ? EPOLLOUT : 0u);
  e.data.u64 = self->tag_ | static_cast<uint32_t>(fd);
  if (e.events == 0)
    ::epoll_ctl(self->epoll_, EPOLL_CTL_DEL, fd, nullptr);
  else if (::epoll_ctl(self->epoll_, EPOLL_CTL_MOD, fd, &e) < 0)
    ::epoll_ctl(self->epoll_, EPOLL_CTL_ADD, fd, &e);
}

void Resolver::on_event(int fd, uint32_t events) {
  ares_process_fd(channel_, (events & ~EPOLLOUT) != 0 ? fd : ARES_SOCKET_BAD,
                  (events & EPOLLOUT) != 0 ? fd : ARES_SOCKET_BAD);
}

int Resolver::timeout_ms() {
  if (pending_ == 0) return -1;
  timeval room{};
  const timeval* tv = ares_timeout(channel_, nullptr, &room);
  if (tv == nullptr) return -1;
  return static_cast<int>(std::min<long>(tv->tv_sec, 60) * 1000 + tv->tv_usec / 1000 + 1);
}

void Resolver::on_timeout() {
  if (pending_ != 0) ares_process_fd(channel_, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
}

void Resolver::lookup(uint32_t call, const Request& r) {
  if (r.op == MW_OP_RESOLVE)
    lookup_name(call, r);
  else if (r.op == MW_OP_RESOLVE_ADDR)
    lookup_addr(call, r);
  else
    exchange(call, r);
}

void Resolver::lookup_name(uint32_t call, const Request& r) {
  const std::string name(reinterpret_cast<const char*>(r.payload), r.in_len - 1);
  const int family = r.arg[0];
  const int flags = r.arg[1];
  const auto fits = [family](const mw_addr& a) {
    return family == AF_UNSPEC || family == family_of(a);
  };
  if (family != AF_UNSPEC && family != AF_INET && family != AF_INET6)
    return fail(call, r.seq, EAI_FAMILY);
  std::vector<mw_addr> found;
  mw_addr number{};
  if (parse_number(name, number)) {
    if (!fits(number)) return fail(call, r.seq, EAI_ADDRFAMILY);
    return answer_addrs(call, r.seq, 0, {number}, name);
  }
  if ((flags & AI_NUMERICHOST) != 0 || name.empty()) return fail(call, r.seq, EAI_NONAME);
  std::string canonical;
  bool listed = false;
  for (const HostEntry& e : hosts_) {
    for (const std::string& n : e.names) {
      if (!same_name(n, name)) continue;
      listed = true;
      if (!fits(e.addr)) break;
      if (canonical.empty()) canonical = e.names.front();
      found.push_back(e.addr);
      break;
    }
  }
  if (!listed && same_name(name, "localhost")) {
    listed = true;
    canonical = name;
    if (family != AF_INET) found.push_back(make_v6(in6addr_loopback));
    if (family != AF_INET6) found.push_back(make_v4({htonl(INADDR_LOOPBACK)}));
  }
  if (!found.empty()) return answer_addrs(call, r.seq, 0, found, canonical);
  if (listed) return fail(call, r.seq, EAI_ADDRFAMILY);
  ares_addrinfo_hints hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = (flags & AI_CANONNAME) != 0 ? ARES_AI_CANONNAME : 0;
  ++pending_;
  ares_getaddrinfo(channel_, name.c_str(), nullptr, &hints, &Resolver::on_addrinfo,
                   new Pending{this, call, r.seq, flags});
}

void Resolver::on_addrinfo(void* arg, int status, int, ares_addrinfo* result) {
  const std::unique_ptr<Pending> p(static_cast<Pending*>(arg));
  --p->self->pending_;
  if (status != ARES_SUCCESS || result == nullptr) {
    p->self->fail(p->call, p->seq, eai_of(status));
  } else {
    std::vector<mw_addr> found;
    for (const ares_addrinfo_node* n = result->nodes; n != nullptr; n = n->ai_next) {
      if (n->ai_family == AF_INET)
        found.push_back(make_v4(reinterpret_cast<const sockaddr_in*>(n->ai_addr)->sin_addr));
      else if (n->ai_family == AF_INET6)
        found.push_back(make_v6(reinterpret_cast<const sockaddr_in6*>(n->ai_addr)->sin6_addr));
    }
    std::string canonical = result->name != nullptr ? result->name : "";
    for (const ares_addrinfo_cname* c = result->cnames; c != nullptr; c = c->next)
      if (c->name != nullptr) canonical = c->name;
    p->self->answer_addrs(p->call, p->seq, p->flags, found, canonical);
  }
  if (result != nullptr) ares_freeaddrinfo(result);
}

void Resolver::lookup_addr(uint32_t call, const Request& r) {
  mw_addr addr{};
  sockaddr_storage ss{};
  std::memcpy(&ss, r.payload, std::min<size_t>(r.in_len, sizeof ss));
  int len = 0;
  const void* raw = nullptr;
  if (ss.ss_family == AF_INET && r.in_len >= sizeof(sockaddr_in)) {
    raw = &reinterpret_cast<const sockaddr_in&>(ss).sin_addr;
    len = sizeof(in_addr);
    addr = make_v4(reinterpret_cast<const sockaddr_in&>(ss).sin_addr);
  } else if (ss.ss_family == AF_INET6 && r.in_len >= sizeof(sockaddr_in6)) {
    raw = &reinterpret_cast<const sockaddr_in6&>(ss).sin6_addr;
    len = sizeof(in6_addr);
    addr = make_v6(reinterpret_cast<const sockaddr_in6&>(ss).sin6_addr);
  } else {
    return fail(call, r.seq, EAI_FAMILY);
  }
  for (const HostEntry& e : hosts_)
    if (e.addr.len == addr.len && std::memcmp(e.addr.bytes, addr.bytes, addr.len) == 0)
      return answer_text(call, r.seq, e.names.front());
  ++pending_;
  ares_gethostbyaddr(channel_, raw, len, ss.ss_family, &Resolver::on_hostent,
                     new Pending{this, call, r.seq, 0});
}

void Resolver::exchange(uint32_t call, const Request& r) {
  ++pending_;
  ares_send(channel_, r.payload, static_cast<int>(r.in_len), &Resolver::on_message,
            new Pending{this, call, r.seq, 0});
}

void Resolver::on_message(void* arg, int status, int, unsigned char* message, int length) {
  const std::unique_ptr<Pending> p(static_cast<Pending*>(arg));
  --p->self->pending_;
  auto n = static_cast<size_t>(std::max(length, 0));
  if (status != ARES_SUCCESS || message == nullptr || n < kDnsHeaderBytes)
    return p->self->fail(p->call, p->seq, status == ARES_ECONNREFUSED ? ECONNREFUSED : ETIMEDOUT);
  if (n > MW_CALL_PAYLOAD) n = cut_message(message, n);
  Answer a;
  a.ret = 0;
  std::memcpy(a.payload, message, n);
  a.out_len = static_cast<uint32_t>(n);
  p->self->calls_->answer(p->call, p->seq, a);
}

void Resolver::on_hostent(void* arg, int status, int, hostent* host) {
  const std::unique_ptr<Pending> p(static_cast<Pending*>(arg));
  --p->self->pending_;
  if (status != ARES_SUCCESS || host == nullptr || host->h_name == nullptr)
    return p->self->fail(p->call, p->seq, eai_of(status));
  p->self->answer_text(p->call, p->seq, host->h_name);
}

void Resolver::answer_addrs(uint32_t call, uint32_t seq, int flags,
                            const std::vector<mw_addr>& found, const std::string& canonical) {
  Answer a;
  a.out_len = 0;
  a.ret = 0;
  // AI_ADDRCONFIG: no addresses of a family that we could not reach anyway, unless there are no
  // others.
  const bool filter = (flags & AI_ADDRCONFIG) != 0 && (own_.v4 || own_.v6);
  for (const mw_addr& addr : found) {
    if (static_cast<size_t>(a.ret) == kMaxAddresses) break;
    if (filter && !(family_of(addr) == AF_INET ? own_.v4 : own_.v6)) continue;
    std::memcpy(a.payload + a.out_len, &addr, sizeof addr);
    a.out_len += sizeof addr;
    ++a.ret;
  }
  if (a.ret == 0) return fail(call, seq, EAI_NONAME);
  const size_t room = sizeof a.payload - a.out_len - 1;
  const size_t n = std::min(canonical.size(), room);
  std::memcpy(a.payload + a.out_len, canonical.data(), n);
  a.payload[a.out_len + n] = 0;
  a.out_len += static_cast<uint32_t>(n) + 1;
  calls_->answer(call, seq, a);
}

void Resolver::answer_text(uint32_t call, uint32_t seq, const std::string& text) {
  Answer a;
  a.ret = 0;
  const size_t n = std::min(text.size(), sizeof a.payload - 1);
  std::memcpy(a.payload, text.data(), n);
  a.payload[n] = 0;
  a.out_len = static_cast<uint32_t>(n) + 1;
  calls_->answer(call, seq, a);
}

void Resolver::fail(uint32_t call, uint32_t seq, int eai) {
  Answer a;
  a.ret = -1;
  a.err = eai;
  a.out_len = 0;
  calls_->answer(call, seq, a);
}

}  // namespace mw
