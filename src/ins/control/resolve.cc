#include "ins/control/resolve.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "base/unique_fd.h"
#include "ins/worker/context.h"

// c-ares numbers its questions with the help of rand() where it cannot open /dev/urandom, as behind the
// sandbox. Numbers that can be guessed would let strangers answer.
extern "C" [[gnu::visibility("default")]] int rand() noexcept {
  unsigned value = 0;
  if (::getrandom(&value, sizeof value, 0) != sizeof value) std::abort();
  return static_cast<int>(value & RAND_MAX);
}

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
    case ARES_ENOTIMP:
    case ARES_EREFUSED:
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

// One question of the application, from its call to its answer.
struct Resolver::Lookup {
  Resolver* self;
  uint32_t call;
  uint32_t seq;
  uint32_t op;
  Configuration by;
  int family = AF_UNSPEC;
  int flags = 0;
  std::string text = {};  // the name, or the message to exchange
  mw_addr addr{};         // RESOLVE_ADDR
  std::vector<std::string> search = {};
  int ndots = 0;
  size_t service = 0;
  int eai = EAI_NONAME;  // what the last service that was asked said

  // While DNS is asked.
  SearchNames names = {};
  size_t at = 0;  // in names
  int attempts = 0;
  int as_it_stands = 0;  // what the name itself gave, 0: not asked yet
  bool no_data = false;
  bool try_again = false;
};

namespace {

// As much of it as is taken from a file of this kind; one that is not there is empty.
std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  text.resize(std::min(text.size(), kMaxNameFileBytes));
  return text;
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "";
}

// No server has answered: the next attempt may do better.
bool is_worth_another_attempt(int status) {
  return status == ARES_ETIMEOUT || status == ARES_ECONNREFUSED || status == ARES_ESERVFAIL ||
         status == ARES_ENOTIMP || status == ARES_EREFUSED;
}

NameStatus name_status_of(int status) {
  switch (status) {
    case ARES_ENOTFOUND:
    case ARES_ENODATA:
    case ARES_EBADNAME:
      return NameStatus::not_found;
    case ARES_ESERVFAIL:
    case ARES_ENOTIMP:
    case ARES_EREFUSED:
      return NameStatus::try_again;
    default:
      return NameStatus::unavailable;
  }
}

// An entry of the hosts file as a question for this family finds it. Loopback and mapped addresses
// of IPv6 have a form in IPv4.
bool as_family(const mw_addr& entry, int family, mw_addr& out) {
  out = entry;
  if (family == AF_UNSPEC || family == family_of(entry)) return true;
  if (family == AF_INET6) return false;
  sockaddr_in6 in6{};
  std::memcpy(&in6, entry.bytes, sizeof in6);
  in_addr v4{htonl(INADDR_LOOPBACK)};
  if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr))
    std::memcpy(&v4, in6.sin6_addr.s6_addr + 12, sizeof v4);
  else if (!IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr))
    return false;
  out = make_v4(v4);
  return true;
}

// The address from which this system would send there; length 0: it cannot.
mw_addr source_for(const mw_addr& to) {
  const UniqueFd probe{::socket(family_of(to), SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  mw_addr at = to;
  const in_port_t port = htons(9);  // at the same place in both families; nothing is sent
  std::memcpy(at.bytes + offsetof(sockaddr_in, sin_port), &port, sizeof port);
  mw_addr out{};
  socklen_t len = sizeof out.bytes;
  if (!probe || ::connect(probe.get(), reinterpret_cast<const sockaddr*>(at.bytes), at.len) < 0 ||
      ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(out.bytes), &len) < 0)
    return {};
  out.len = to.len;
  return out;
}

// A line of RFC 6724's policy table.
struct Policy {
  int precedence;
  int label;
};
Policy policy_of(const mw_addr& a) {
  if (family_of(a) == AF_INET) return {35, 4};
  sockaddr_in6 in6{};
  std::memcpy(&in6, a.bytes, sizeof in6);
  const uint8_t* const b = in6.sin6_addr.s6_addr;
  if (IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr)) return {50, 0};
  if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) return {35, 4};
  if (b[0] == 0x20 && b[1] == 0x02) return {30, 2};
  if (b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0) return {5, 5};
  return (b[0] & 0xfe) == 0xfc ? Policy{3, 13} : Policy{40, 1};
}

bool is_near(const mw_addr& a) {  // link-local or loopback
  sockaddr_in in{};
  sockaddr_in6 in6{};
  std::memcpy(&in, a.bytes, sizeof in);
  std::memcpy(&in6, a.bytes, sizeof in6);
  const uint32_t v4 = ntohl(in.sin_addr.s_addr);
  if (family_of(a) == AF_INET) return v4 >> 24 == 127 || v4 >> 16 == 0xa9fe;
  return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr) || IN6_IS_ADDR_LINKLOCAL(&in6.sin6_addr);
}

// Smaller is better: the rules 1, 2, 5 and 6 of RFC 6724.
int rank_of(const mw_addr& to) {
  const mw_addr from = source_for(to);
  const Policy policy = policy_of(to);
  if (from.len == 0) return 4000 - policy.precedence;
  return (is_near(from) != is_near(to) ? 2000 : 0) +
         (policy_of(from).label != policy.label ? 1000 : 0) - policy.precedence;
}

// As the C library sorts what it finds, across families.
void sort_addresses(std::vector<mw_addr>& addresses) {
  const bool mixed = std::any_of(addresses.begin(), addresses.end(), [&](const mw_addr& a) {
    return family_of(a) != family_of(addresses.front());
  });
  if (!mixed) return;
  std::vector<std::pair<int, mw_addr>> ranked;
  ranked.reserve(addresses.size());
  for (const mw_addr& a : addresses) ranked.emplace_back(rank_of(a), a);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < ranked.size(); ++i) addresses[i] = ranked[i].second;
}

// AI_V4MAPPED: those of IPv4 stand in for those of IPv6, or beside them.
bool wants_mapped(int family, int flags) {
  return family == AF_INET6 && (flags & AI_V4MAPPED) != 0;
}
void keep_mapped_if_wanted(std::vector<mw_addr>& found, int family, int flags) {
  if (!wants_mapped(family, flags) || (flags & AI_ALL) != 0) return;
  const auto is_v4 = [](const mw_addr& a) { return family_of(a) == AF_INET; };
  if (!std::all_of(found.begin(), found.end(), is_v4))
    found.erase(std::remove_if(found.begin(), found.end(), is_v4), found.end());
}

}  // namespace

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

Resolver::Servers::~Servers() {
  if (channel != nullptr) ares_destroy(channel);
}

Resolver::~Resolver() {
  servers_.clear();
  if (library_) ares_library_cleanup();
}

Status Resolver::init(const OwnAddresses& own, const std::string& folder) {
  own_ = own;
  host_name_ = host_name();
  if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS)
    return Error{Fault::sys, ENOMEM, "name lookup library"};
  library_ = true;
  for (uint32_t k = 0; k < kNameFileCount; ++k)
    if (const Status taken = update(NameFile{k}, read_file(folder + "/" + kNameFiles[k])); !taken)
      return taken;
  return Ok{};
}

Status Resolver::update(NameFile which, const std::string& text) {
  switch (which) {
    case NameFile::hosts:
      now_.hosts.reset();  // there may be no room for two
      now_.hosts = std::make_shared<const std::vector<HostEntry>>(parse_hosts(text));
      break;
    case NameFile::nsswitch:
      now_.services = std::make_shared<const std::vector<NameService>>(parse_nsswitch(text));
      break;
    case NameFile::resolv_conf: {
      auto made = make_servers(parse_resolv_conf(text, std::getenv("RES_OPTIONS"),
                                                 std::getenv("LOCALDOMAIN"), host_name_));
      if (!made) return made.error();
      servers_.push_back(std::move(*made));
      now_.servers = servers_.back().get();
      drop_unused_servers();
      break;
    }
  }
  return Ok{};
}

// Of all that c-ares would read in files nothing is left out, as behind the sandbox there are none.
Result<std::unique_ptr<Resolver::Servers>> Resolver::make_servers(ResolvConf conf) {
  auto servers = std::make_unique<Servers>(std::move(conf));
  const ResolvConf& c = servers->conf;
  ares_options o{};
  char lookups[] = "b";
  o.lookups = lookups;
  o.sock_state_cb = &Resolver::on_sock_state;
  o.sock_state_cb_data = this;
  o.flags = (c.use_vc ? ARES_FLAG_USEVC : 0) | (c.edns0 ? ARES_FLAG_EDNS : 0);
  o.ednspsz = 1200;
  o.timeout = std::max(c.timeout, 1) * 1000;
  o.tries = 1;
  o.ndots = 0;
  o.ndomains = 0;
  o.nsort = 0;
  in_addr none{};  // those of both families follow
  o.servers = &none;
  o.nservers = 1;
  const int got = ares_init_options(
      &servers->channel, &o,
      ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB | ARES_OPT_FLAGS | ARES_OPT_EDNSPSZ |
          ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_NDOTS | ARES_OPT_DOMAINS |
          ARES_OPT_SORTLIST | ARES_OPT_SERVERS | (c.rotate ? ARES_OPT_ROTATE : ARES_OPT_NOROTATE));
  if (got != ARES_SUCCESS) return Error{Fault::sys, ENOMEM, "name lookup configuration"};
  std::vector<ares_addr_node> nodes(c.servers.size());
  for (size_t k = 0; k < nodes.size(); ++k) {
    nodes[k].next = k + 1 < nodes.size() ? &nodes[k + 1] : nullptr;
    nodes[k].family = c.servers[k].family;
    if (nodes[k].family == AF_INET)
      nodes[k].addr.addr4 = c.servers[k].v4;
    else
      std::memcpy(&nodes[k].addr.addr6, &c.servers[k].v6, sizeof nodes[k].addr.addr6);
  }
  if (ares_set_servers(servers->channel, nodes.data()) != ARES_SUCCESS)
    return Error{Fault::sys, ENOMEM, "name servers"};
  return servers;
}

void Resolver::drop_unused_servers() {
  std::erase_if(servers_, [this](const std::unique_ptr<Servers>& s) {
    return s.get() != now_.servers && s->pending == 0;
  });
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
  for (const auto& s : servers_)
    ares_process_fd(s->channel, (events & ~EPOLLOUT) != 0 ? fd : ARES_SOCKET_BAD,
                    (events & EPOLLOUT) != 0 ? fd : ARES_SOCKET_BAD);
  drop_unused_servers();
}

int Resolver::timeout_ms() {
  int least = -1;
  for (const auto& s : servers_) {
    if (s->pending == 0) continue;
    timeval room{};
    const timeval* tv = ares_timeout(s->channel, nullptr, &room);
    if (tv == nullptr) continue;
    const auto ms =
        static_cast<int>(std::min<long>(tv->tv_sec, 60) * 1000 + tv->tv_usec / 1000 + 1);
    least = least < 0 ? ms : std::min(least, ms);
  }
  return least;
}

void Resolver::on_timeout() {
  for (const auto& s : servers_)
    if (s->pending != 0) ares_process_fd(s->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
  drop_unused_servers();
}

void Resolver::lookup(uint32_t call, const Request& r) {
  if (r.op == MW_OP_RESOLVE)
    lookup_name(call, r);
  else if (r.op == MW_OP_RESOLVE_ADDR)
    lookup_addr(call, r);
  else
    exchange(call, r);
}

void Resolver::give_up() {
  for (const auto& s : servers_) ares_cancel(s->channel);
}

Resolver::LookupPtr Resolver::begin(uint32_t call, uint32_t seq, uint32_t op) {
  return LookupPtr(new Lookup{this, call, seq, op, now_});
}

void Resolver::lookup_name(uint32_t call, const Request& r) {
  const char* const text = reinterpret_cast<const char*>(r.payload);
  const std::string name(text);
  const int family = r.arg[0];
  const int flags = r.arg[1];
  if (family != AF_UNSPEC && family != AF_INET && family != AF_INET6)
    return fail(call, r.seq, EAI_FAMILY);
  mw_addr number{};
  if (parse_number(name, number)) {
    if (family != AF_UNSPEC && family != family_of(number))
      return fail(call, r.seq, EAI_ADDRFAMILY);
    return answer_addrs(call, r.seq, 0, {number}, name);
  }
  if ((flags & AI_NUMERICHOST) != 0 || name.empty()) return fail(call, r.seq, EAI_NONAME);
  LookupPtr lookup = begin(call, r.seq, MW_OP_RESOLVE);
  lookup->family = family;
  lookup->flags = flags;
  lookup->text = name;
  lookup->ndots = now_.servers->conf.ndots;
  lookup->search = now_.servers->conf.search;
  if (r.arg[2] > 0) {  // the process has a search list of its own
    lookup->ndots = r.arg[2] - 1;
    lookup->search.clear();
    constexpr size_t kMostDomains = 64;
    for (size_t at = name.size() + 1; at < r.in_len && lookup->search.size() < kMostDomains;
         at += lookup->search.back().size() + 1)
      lookup->search.emplace_back(text + at);
  }
  ask_services(std::move(lookup));
}

void Resolver::lookup_addr(uint32_t call, const Request& r) {
  LookupPtr lookup = begin(call, r.seq, MW_OP_RESOLVE_ADDR);
  sockaddr_storage ss{};
  std::memcpy(&ss, r.payload, std::min<size_t>(r.in_len, sizeof ss));
  if (ss.ss_family == AF_INET && r.in_len >= sizeof(sockaddr_in))
    lookup->addr = make_v4(reinterpret_cast<const sockaddr_in&>(ss).sin_addr);
  else if (ss.ss_family == AF_INET6 && r.in_len >= sizeof(sockaddr_in6))
    lookup->addr = make_v6(reinterpret_cast<const sockaddr_in6&>(ss).sin6_addr);
  else
    return fail(call, r.seq, EAI_FAMILY);
  lookup->family = ss.ss_family;
  ask_services(std::move(lookup));
}

void Resolver::ask_services(LookupPtr lookup) {
  for (; lookup->service < lookup->by.services->size(); ++lookup->service) {
    const NameService& service = (*lookup->by.services)[lookup->service];
    NameStatus status = NameStatus::unavailable;
    if (service.kind == NameService::Kind::dns) return begin_dns(std::move(lookup));
    if (service.kind == NameService::Kind::files) {
      if (answer_from_files(*lookup)) return;
      status = NameStatus::not_found;
      lookup->eai = EAI_NONAME;
    }
    if (service.ends_with(status)) break;
  }
  fail(lookup->call, lookup->seq, lookup->eai);
}

bool Resolver::answer_from_files(const Lookup& l) {
  mw_addr found{};
  if (l.op == MW_OP_RESOLVE_ADDR) {
    for (const HostEntry& e : *l.by.hosts) {
      if (!as_family(e.addr, l.family, found) || found.len != l.addr.len ||
          std::memcmp(found.bytes, l.addr.bytes, found.len) != 0)
        continue;
      answer_text(l.call, l.seq, e.names.front());
      return true;
    }
    return false;
  }
  std::vector<mw_addr> addresses;
  std::string canonical;
  bool listed = false;
  const auto gather = [&](int family) {
    for (const HostEntry& e : *l.by.hosts) {
      const bool named = std::any_of(e.names.begin(), e.names.end(),
                                     [&](const std::string& n) { return same_name(n, l.text); });
      listed = listed || named;
      if (!named || !as_family(e.addr, family, found)) continue;
      if (canonical.empty()) canonical = e.names.front();
      addresses.push_back(found);
    }
  };
  gather(l.family);
  if (wants_mapped(l.family, l.flags)) gather(AF_INET);
  keep_mapped_if_wanted(addresses, l.family, l.flags);
  if (!listed && same_name(l.text, "localhost")) {
    canonical = l.text;
    if (l.family != AF_INET) addresses.push_back(make_v6(in6addr_loopback));
    if (l.family != AF_INET6) addresses.push_back(make_v4({htonl(INADDR_LOOPBACK)}));
  }
  if (addresses.empty()) return false;
  sort_addresses(addresses);
  answer_addrs(l.call, l.seq, l.flags, addresses, canonical);
  return true;
}

void Resolver::begin_dns(LookupPtr lookup) {
  lookup->names = {{lookup->text}, SIZE_MAX};
  if (lookup->op == MW_OP_RESOLVE)
    lookup->names = search_names(lookup->text, lookup->ndots, lookup->by.servers->conf.no_tld_query,
                                 lookup->search);
  lookup->at = 0;
  lookup->attempts = std::max(lookup->by.servers->conf.attempts, 1);
  lookup->as_it_stands = 0;
  lookup->no_data = lookup->try_again = false;
  ask_dns(std::move(lookup));
}

void Resolver::ask_dns(LookupPtr lookup) {
  --lookup->attempts;
  ++lookup->by.servers->pending;
  const ares_channel channel = lookup->by.servers->channel;
  Lookup* const l = lookup.release();  // the callback's, which may come before this returns
  if (l->op == MW_OP_QUERY) {
    ares_send(channel, reinterpret_cast<const unsigned char*>(l->text.data()),
              static_cast<int>(l->text.size()), &Resolver::on_message, l);
  } else if (l->op == MW_OP_RESOLVE_ADDR) {
    sockaddr_in6 in6{};
    sockaddr_in in{};
    std::memcpy(&in6, l->addr.bytes, sizeof in6);
    std::memcpy(&in, l->addr.bytes, sizeof in);
    const bool v4 = l->family == AF_INET;
    ares_gethostbyaddr(channel, v4 ? static_cast<const void*>(&in.sin_addr) : &in6.sin6_addr,
                       v4 ? sizeof in.sin_addr : sizeof in6.sin6_addr, l->family,
                       &Resolver::on_hostent, l);
  } else {
    ares_addrinfo_hints hints{};
    hints.ai_family = wants_mapped(l->family, l->flags) ? AF_UNSPEC : l->family;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = (l->flags & AI_CANONNAME) != 0 ? ARES_AI_CANONNAME : 0;
    const std::string name = l->names.names[l->at];
    ares_getaddrinfo(channel, name.c_str(), nullptr, &hints, &Resolver::on_addrinfo, l);
  }
}

void Resolver::dns_failed(LookupPtr lookup, int status) {
  if (status == ARES_EDESTRUCTION) return;
  Lookup& l = *lookup;
  if (status == ARES_ECANCELLED)
    return fail(l.call, l.seq, l.op == MW_OP_QUERY ? ETIMEDOUT : EAI_AGAIN);
  if (is_worth_another_attempt(status) && l.attempts > 0) return ask_dns(std::move(lookup));
  if (l.op == MW_OP_QUERY)
    return fail(l.call, l.seq, status == ARES_ECONNREFUSED ? ECONNREFUSED : ETIMEDOUT);
  if (l.op == MW_OP_RESOLVE) {
    const bool itself = l.at == l.names.as_it_stands;
    if (itself) l.as_it_stands = status;
    l.no_data = l.no_data || status == ARES_ENODATA;
    l.try_again = l.try_again || status == ARES_ESERVFAIL;
    // Where no server answers, none would for the next domain either.
    const bool goes_on = itself || status == ARES_ENOTFOUND || status == ARES_ENODATA ||
                         status == ARES_EBADNAME || status == ARES_ESERVFAIL;
    if (goes_on && l.at + 1 < l.names.names.size()) {
      ++l.at;
      l.attempts = std::max(l.by.servers->conf.attempts, 1);
      return ask_dns(std::move(lookup));
    }
    if (l.as_it_stands != 0)
      status = l.as_it_stands;
    else if (goes_on)
      status = l.no_data ? ARES_ENODATA : l.try_again ? ARES_ESERVFAIL : status;
  }
  l.eai = eai_of(status);
  if ((*l.by.services)[l.service].ends_with(name_status_of(status)))
    return fail(l.call, l.seq, l.eai);
  ++l.service;
  ask_services(std::move(lookup));
}

void Resolver::on_addrinfo(void* arg, int status, int, ares_addrinfo* result) {
  LookupPtr l(static_cast<Lookup*>(arg));
  Resolver* const self = l->self;
  --l->by.servers->pending;
  if (status != ARES_SUCCESS || result == nullptr) {
    self->dns_failed(std::move(l), status != ARES_SUCCESS ? status : ARES_ENODATA);
  } else {
    std::vector<mw_addr> found;
    for (const ares_addrinfo_node* n = result->nodes; n != nullptr; n = n->ai_next) {
      if (n->ai_family == AF_INET)
        found.push_back(make_v4(reinterpret_cast<const sockaddr_in*>(n->ai_addr)->sin_addr));
      else if (n->ai_family == AF_INET6)
        found.push_back(make_v6(reinterpret_cast<const sockaddr_in6*>(n->ai_addr)->sin6_addr));
    }
    keep_mapped_if_wanted(found, l->family, l->flags);
    std::string canonical = result->name != nullptr ? result->name : "";
    for (const ares_addrinfo_cname* c = result->cnames; c != nullptr; c = c->next)
      if (c->name != nullptr) canonical = c->name;
    self->answer_addrs(l->call, l->seq, l->flags, found, canonical);
  }
  if (result != nullptr) ares_freeaddrinfo(result);
}

void Resolver::exchange(uint32_t call, const Request& r) {
  LookupPtr lookup = begin(call, r.seq, MW_OP_QUERY);
  lookup->text.assign(reinterpret_cast<const char*>(r.payload), r.in_len);
  lookup->attempts = std::max(lookup->by.servers->conf.attempts, 1);
  ask_dns(std::move(lookup));
}

void Resolver::on_message(void* arg, int status, int, unsigned char* message, int length) {
  LookupPtr l(static_cast<Lookup*>(arg));
  Resolver* const self = l->self;
  --l->by.servers->pending;
  auto n = static_cast<size_t>(std::max(length, 0));
  if (status != ARES_SUCCESS || message == nullptr || n < kDnsHeaderBytes)
    return self->dns_failed(std::move(l), status != ARES_SUCCESS ? status : ARES_EBADRESP);
  if (n > MW_CALL_PAYLOAD) n = cut_message(message, n);
  Answer a;
  a.ret = 0;
  std::memcpy(a.payload, message, n);
  a.out_len = static_cast<uint32_t>(n);
  self->calls_->answer(l->call, l->seq, a);
}

void Resolver::on_hostent(void* arg, int status, int, hostent* host) {
  LookupPtr l(static_cast<Lookup*>(arg));
  Resolver* const self = l->self;
  --l->by.servers->pending;
  if (status != ARES_SUCCESS || host == nullptr || host->h_name == nullptr)
    return self->dns_failed(std::move(l), status != ARES_SUCCESS ? status : ARES_ENODATA);
  self->answer_text(l->call, l->seq, host->h_name);
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
