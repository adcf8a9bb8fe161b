#include "netflow/server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "netflow/peer.h"
#include "netflow/socket_address.h"

namespace mw::netflow {
namespace {

constexpr const char* kWho = "mwcommsd";
constexpr uint64_t kTagTcp = 1;
constexpr uint64_t kTagUnix = 2;
constexpr int kAcceptsPerTurn = 64;
constexpr int kEventsPerTurn = 64;
constexpr size_t kReadAtOnce = 4096;
constexpr int kPieces = 16;
constexpr int64_t kSilentMs = 3'000;     // until a stranger's first byte
constexpr int64_t kStrangerMs = 10'000;  // until his token
constexpr int64_t kBriskMs = 1'000;      // a handshake that takes longer may be displaced
constexpr uint64_t kShortestRoundMs = 50;
constexpr uint64_t kLongestRoundMs = 60'000;
constexpr int64_t kRoundSlackMs = 5;  // who is due a little later is served with the others

Error sys(const char* where) {
  return {Fault::sys, errno, where};
}

// Who can have one address there can have many: /24, /64.
std::string network_of(const SocketAddress& from) {
  constexpr size_t kBytes4 = 3;
  constexpr size_t kBytes6 = 8;
  const auto* in = reinterpret_cast<const char*>(
      from.family() == AF_INET6
          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(from.get())->sin6_addr)
          : &reinterpret_cast<const sockaddr_in*>(from.get())->sin_addr);
  return {in, from.family() == AF_INET6 ? kBytes6 : kBytes4};
}

}  // namespace

Result<std::unique_ptr<Server>> Server::make(const ServerOptions& options) {
  std::unique_ptr<Server> server{new Server(options)};
  if (const Status started = server->start(); !started) return started.error();
  return server;
}

Server::~Server() = default;

Status Server::start() {
  epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  if (!epoll_) return sys("epoll_create1 for engines");
  if (!options_.address.empty())
    if (Status listening = listen_tcp(); !listening) return listening;
  if (!options_.unix_path.empty())
    if (Status listening = listen_unix(); !listening) return listening;
  return Ok{};
}

Status Server::listen_tcp() {
  auto parsed = parse_socket_address(options_.address);
  if (!parsed || parsed->family() == AF_UNIX)
    return Error{Fault::limit, 0, "the NetFlow address is not ADDRESS:PORT"};
  SocketAddress& a = *parsed;
  tcp_over_tls_ = !options_.token_file.empty() || !options_.read_token_file.empty();
  if (!a.is_loopback() && !tcp_over_tls_)
    return Error{Fault::limit, 0,
                 "NetFlow beyond this host's loopback needs a token file, a certificate and a key"};
  if (tcp_over_tls_) {
    for (const auto& [path, token] : {std::pair{&options_.token_file, &token_},
                                      std::pair{&options_.read_token_file, &read_token_}}) {
      if (path->empty()) continue;
      auto read = netflow::read_token(*path);
      if (!read) return read.error();
      *token = *read;
    }
    auto tls = TlsServer::make(options_.certificate_file, options_.key_file);
    if (!tls) return tls.error();
    tls_ = std::move(*tls);
  }
  tcp_ = UniqueFd{::socket(a.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!tcp_) return sys("socket for engines");
  const int on = 1;
  ::setsockopt(tcp_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (a.bytes.ss_family == AF_INET6)
    ::setsockopt(tcp_.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  if (::bind(tcp_.get(), a.get(), a.len) < 0) return sys("bind of the NetFlow address");
  if (::listen(tcp_.get(), 128) < 0) return sys("listen for engines");
  a.len = sizeof a.bytes;
  if (::getsockname(tcp_.get(), a.get(), &a.len) < 0) return sys("getsockname");
  address_ = to_string(a);
  if (!watch(tcp_.get(), EPOLLIN, kTagTcp, EPOLL_CTL_ADD)) return sys("epoll_ctl for engines");
  return Ok{};
}

Status Server::listen_unix() {
  // Through the folder's descriptor, so that a long path fits.
  const size_t slash = options_.unix_path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : options_.unix_path.substr(0, slash);
  const std::string name = options_.unix_path.substr(slash + 1);
  const UniqueFd dir{::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!dir) return sys("opening the folder of the NetFlow socket");
  if (::unlinkat(dir.get(), name.c_str(), 0) < 0 && errno != ENOENT)
    return sys("removing an old NetFlow socket");
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const int n =
      std::snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/%s", dir.get(), name.c_str());
  if (n < 0 || n >= static_cast<int>(sizeof a.sun_path))
    return Error{Fault::limit, 0, "the name of the NetFlow socket is too long"};
  unix_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!unix_) return sys("socket for engines");
  if (::bind(unix_.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0)
    return sys("bind of the NetFlow socket");
  if (::chmod(a.sun_path, 0600) < 0) return sys("chmod of the NetFlow socket");
  if (::listen(unix_.get(), 128) < 0) return sys("listen for engines");
  if (!watch(unix_.get(), EPOLLIN, kTagUnix, EPOLL_CTL_ADD)) return sys("epoll_ctl for engines");
  return Ok{};
}

bool Server::watch(int fd, uint32_t events, uint64_t tag, int op) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = tag;
  return ::epoll_ctl(epoll_.get(), op, fd, &e) == 0;
}

void Server::handle_events() {
  epoll_event events[kEventsPerTurn];
  const int n = ::epoll_wait(epoll_.get(), events, kEventsPerTurn, 0);
  for (int k = 0; k < n; ++k) {
    const uint64_t tag = events[k].data.u64;
    if (tag == kTagTcp)
      accept_from(tcp_.get(), tcp_over_tls_);
    else if (tag == kTagUnix)
      accept_from(unix_.get(), false);
    else
      on_events(tag, events[k].events);
  }
}

// ---- coming and going ----

void Server::accept_from(int listener, bool over_tls) {
  for (int k = 0; k < kAcceptsPerTurn; ++k) {
    SocketAddress from;
    from.len = sizeof from.bytes;
    UniqueFd socket{::accept4(listener, from.get(), &from.len, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!socket) {
      // Out of descriptors: whoever waits would be reported again and again.
      if ((errno == EMFILE || errno == ENFILE) && spare_) {
        spare_.reset();
        socket = UniqueFd{::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)};
        socket.reset();
        spare_ = UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
        full_.say("NetFlow: an engine is refused: no descriptor is left");
      }
      return;
    }
    if (!over_tls && engines_.size() - strangers_ >= kMaxEngines) {
      full_.say("NetFlow: %zu engines are connected, further ones are refused", kMaxEngines);
      continue;
    }
    const int on = 1;
    if (from.bytes.ss_family != AF_UNIX)
      ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const auto uid = over_tls ? std::nullopt : peer_uid(socket.get());
    if (!over_tls && (!uid || (*uid != 0 && *uid != options_.owner))) {
      refusals_.say("NetFlow: %s is refused: it belongs to %s%s", to_string(from).c_str(),
                    uid ? "user " : "nobody that could be told",
                    uid ? std::to_string(*uid).c_str() : "");
      continue;
    }
    const EngineId id = next_id_++;
    Engine& e = engines_[id];
    e.socket = std::move(socket);
    e.name = to_string(from);
    e.local = from.bytes.ss_family == AF_UNIX;
    if (e.local) e.process = peer_process(e.socket.get());
    e.since_ms = monotonic_ms();
    e.over_tls = over_tls;
    e.watched = EPOLLIN;
    if (!watch(e.socket.get(), e.watched, id, EPOLL_CTL_ADD)) {
      engines_.erase(id);
      continue;
    }
    if (over_tls) {
      e.source = network_of(from);
      ++strangers_;
      keep_strangers_below(kMaxStrangers, false);
    } else {
      admit(e, !options_.read_only);
    }
  }
  if (over_tls) drop_late_strangers();
}

void Server::admit(Engine& e, bool may_act) {
  e.admitted = true;
  if (e.over_tls) --strangers_;
  e.may_act = may_act;
  on_listening();
  if (!e.local)
    arrivals_.say("NetFlow: engine %s connected, %s", e.name.c_str(),
                  may_act ? "may act" : "read-only");
}

// ---- strangers ----
// Whoever may reach the port may connect thousands of times a second, from one network or from many. A
// stranger who has said nothing costs a descriptor; TLS begins with his first byte. Of too many strangers
// one of the network goes that has the most: of the silent ones the oldest; of those in a handshake the
// oldest if that takes him long, else any, so that a flood hardly ever hits somebody whose handshake
// takes a few milliseconds.

void Server::drop_late_strangers() {
  const int64_t now = monotonic_ms();
  if (strangers_ == 0 || now - looked_for_late_ms_ < kSilentMs / 10) return;
  looked_for_late_ms_ = now;
  std::vector<EngineId> late;
  for (const auto& [id, e] : engines_) {
    const int64_t limit = e.tls == nullptr ? kSilentMs : kStrangerMs;
    if (e.over_tls && !e.admitted && now - e.since_ms > limit) late.push_back(id);
  }
  for (const EngineId id : late) close(id, "it showed no token in time");
}

bool Server::is_stranger(const Engine& e, bool in_handshake) const {
  return e.over_tls && !e.admitted && (e.tls != nullptr) == in_handshake;
}

void Server::keep_strangers_below(size_t most, bool in_handshake) {
  if (strangers_ <= most) return;
  std::map<std::string_view, size_t> of_network;
  size_t there = 0;
  size_t largest = 0;
  for (const auto& [id, e] : engines_) {
    if (!is_stranger(e, in_handshake)) continue;
    ++there;
    largest = std::max(largest, ++of_network[e.source]);
  }
  if (there == 0 || (in_handshake && there <= most)) return;
  // Ids grow: the first one in the map is the oldest.
  std::vector<EngineId> candidates;
  for (const auto& [id, e] : engines_) {
    if (!is_stranger(e, in_handshake) || of_network[e.source] != largest) continue;
    candidates.push_back(id);
    if (!in_handshake || monotonic_ms() - engines_.at(candidates[0]).since_ms > kBriskMs) break;
  }
  close(candidates[random_() % candidates.size()], nullptr);
}

// A stranger has said something, or has gone. False: he is gone.
bool Server::begin_handshake(EngineId id, Engine& e) {
  char first = 0;
  const ssize_t n = ::recv(e.socket.get(), &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n > 0) e.tls = tls_->accept(e.socket.get());
  if (e.tls == nullptr) {
    close(id, nullptr);
    return false;
  }
  keep_strangers_below(kMaxHandshakes, true);
  return engines_.count(id) != 0;
}

void Server::close(EngineId id, const char* why) {
  const auto it = engines_.find(id);
  if (it == engines_.end()) return;
  const Engine& e = it->second;
  if (why != nullptr) faults_.say("NetFlow: engine %s: %s; connection closed", e.name.c_str(), why);
  if (e.admitted && (!e.local || e.missed != 0))
    departures_.say("NetFlow: engine %s disconnected, missed %" PRIu64 " observations",
                    e.name.c_str(), e.missed);
  const bool admitted = e.admitted;
  if (!admitted && e.over_tls) --strangers_;
  engines_.erase(it);
  if (admitted) on_gone(id);
}

// ---- reading ----

void Server::on_events(EngineId id, uint32_t events) {
  const auto it = engines_.find(id);
  if (it == engines_.end()) return;
  Engine& e = it->second;
  const char* why = nullptr;
  if (e.over_tls && e.tls == nullptr) {
    if (!begin_handshake(id, e) || e.tls == nullptr) return;
  }
  if (!flush(e)) return close(id, nullptr);
  // TLS may hold bytes that epoll knows nothing about.
  const bool may_read = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 || e.tls != nullptr;
  if (may_read && !read_requests(id, e, &why)) return close(id, why);
  if (!flush(e)) return close(id, nullptr);
  update_watch(id, e);
}

Result<size_t> Server::receive(Engine& e, std::span<uint8_t> room) {
  if (e.tls != nullptr) return e.tls->read(room);
  const ssize_t n = ::recv(e.socket.get(), room.data(), room.size(), MSG_DONTWAIT);
  if (n > 0) return static_cast<size_t>(n);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return Error{Fault::would_block, errno, "recv"};
  return Error{Fault::shutdown, n < 0 ? errno : 0, "recv"};
}

// False: the engine is gone, or has to go, for `why` unless it left by itself.
bool Server::read_requests(EngineId id, Engine& e, const char** why) {
  uint8_t room[kReadAtOnce];
  // An engine that asks faster than it is answered waits; its bytes stay in the kernel.
  while (e.outstanding + e.responses < kMaxOutstanding) {
    // What is read is used at once: so many requests as there may be answers to come.
    const size_t most = (kMaxOutstanding - e.outstanding - e.responses) * kRequestBytes;
    auto got = receive(e, std::span(room).first(std::min(sizeof room, most)));
    if (!got) {
      if (got.error().fault == Fault::peer) *why = got.error().where;
      if (got.error().fault == Fault::shutdown && !e.requests.at_boundary())
        *why = "it left in the middle of a request";
      return got.error().fault == Fault::would_block;
    }
    std::span<const uint8_t> bytes(room, *got);
    if (!e.admitted) {
      if (!read_token_line(e, bytes)) {
        *why = "what it showed is not the token";
        return false;
      }
      if (bytes.empty()) continue;
    }
    const auto used = e.requests.feed(bytes, [&](const Asking& asking) {
      take(id, e, asking);
      return true;
    });
    if (!used) {
      *why = "it sent a message that no engine sends";
      return false;
    }
  }
  return true;
}

// Takes what belongs to the token off the front of `bytes`. False: it is wrong.
bool Server::read_token_line(Engine& e, std::span<const uint8_t>& bytes) {
  const size_t n = std::min(bytes.size(), kTokenLine - e.shown.size());
  e.shown.insert(e.shown.end(), bytes.begin(), bytes.begin() + static_cast<long>(n));
  bytes = bytes.subspan(n);
  if (e.shown.size() < kTokenLine) return true;
  const bool acts = token_ && token_matches(e.shown, *token_);
  const bool looks = acts || (read_token_ && token_matches(e.shown, *read_token_));
  if (looks && engines_.size() - strangers_ >= kMaxEngines)
    full_.say("NetFlow: %zu engines are connected, further ones are refused", kMaxEngines);
  else if (looks)
    admit(e, acts && !options_.read_only);
  e.shown.clear();
  return e.admitted;
}

void Server::take(EngineId id, Engine& e, const Asking& asking) {
  const Request& r = asking.request.request;
  ++e.outstanding;
  const auto answer = [&](int err) { respond(id, {r.id, static_cast<uint32_t>(err), 0, 0}); };
  if ((r.flags & ~kRequestFlags) != 0 || (asking.request.options & ~kRequestOptions) != 0 ||
      !is_plain_text(asking.request.reason))
    return answer(EINVAL);
  if (r.name == static_cast<uint16_t>(Feature::monitor_on) ||
      r.name == static_cast<uint16_t>(Feature::monitor_off)) {
    e.monitoring = r.name == static_cast<uint16_t>(Feature::monitor_on);
    if (!e.monitoring) forget(e, false);
    e.behind = false;
    on_listening();
    return answer(0);
  }
  if (r.name == static_cast<uint16_t>(Feature::sampling)) return set_sampling(id, e, asking);
  if (r.name == static_cast<uint16_t>(Feature::observations)) return set_version(id, e, asking);
  if (r.write() && !e.may_act) return answer(EPERM);
  on_request(id, asking);
}

// How often this engine is sent samples. Looking needs no right to act.
void Server::set_sampling(EngineId id, Engine& e, const Asking& asking) {
  const Request& r = asking.request.request;
  const bool possible =
      r.value0 == 0 || (r.value0 >= kShortestRoundMs && r.value0 <= kLongestRoundMs);
  if ((r.flags & ~kRequestWrite) != 0 || (r.write() && !possible))
    return respond(id, {r.id, EINVAL, 0, 0});
  if ((asking.request.options & kDryRun) != 0 && r.write())
    return respond(id, {r.id, 0, r.value0, 0});
  if (r.write()) {
    e.sampling_ms = static_cast<int64_t>(r.value0);
    e.round_due_ms = monotonic_ms();
    if (e.sampling_ms == 0) forget(e, true);
  }
  respond(id, {r.id, 0, static_cast<uint64_t>(e.sampling_ms), 0});
}

// Which version of observations it gets from now on.
void Server::set_version(EngineId id, Engine& e, const Asking& asking) {
  const Request& r = asking.request.request;
  if ((r.flags & ~kRequestWrite) != 0 || (r.write() && r.value0 != 1 && r.value0 != 2))
    return respond(id, {r.id, EINVAL, 0, 0});
  if (r.write() && (asking.request.options & kDryRun) != 0)
    return respond(id, {r.id, 0, r.value0, 0});
  if (r.write()) e.version = r.value0;
  on_listening();
  respond(id, {r.id, 0, e.version, 0});
}

// ---- writing ----

void Server::respond(EngineId id, const Response& response) {
  const auto it = engines_.find(id);
  if (it == engines_.end()) return;  // it did not wait for the answer
  Engine& e = it->second;
  if (e.outstanding != 0) --e.outstanding;
  std::vector<uint8_t> bytes(kResponseBytes);
  encode(response, std::span<uint8_t, kResponseBytes>(bytes.data(), kResponseBytes));
  put_answer(e, std::move(bytes));
  update_watch(id, e);
}

bool Server::send_part(EngineId id, std::vector<uint8_t> bytes) {
  const auto it = engines_.find(id);
  if (it == engines_.end() || it->second.queued > 2 * options_.queue_bytes) return false;
  put_answer(it->second, std::move(bytes));
  return true;
}

// Ahead of the observations that wait, behind what is half sent and the answers before it.
void Server::put_answer(Engine& e, std::vector<uint8_t> bytes) {
  auto batch = std::make_shared<Batch>();
  batch->bytes = std::move(bytes);
  const bool started =
      !e.out.empty() && e.out.front().at != 0 && e.out.front().batch->messages != 0;
  const auto at = e.out.begin() + static_cast<long>((started ? 1u : 0u) + e.responses);
  e.queued += batch->bytes.size();
  e.out.insert(at, Waiting{std::move(batch), 0});
  ++e.responses;
}

void Server::broadcast(const std::shared_ptr<const Batch>& batch) {
  const uint64_t version = batch->each == kObservationBytes ? 1 : 2;
  std::vector<EngineId> gone;
  for (auto& [id, e] : engines_) {
    if (!e.admitted || !e.monitoring || e.version != version) continue;
    if (e.queued + batch->bytes.size() > options_.queue_bytes) {
      e.missed += batch->messages;
      e.sequence += batch->messages;
      if (!e.behind)
        log_line(kWho, "NetFlow: engine %s does not keep up and misses observations",
                 e.name.c_str());
      e.behind = true;
      continue;
    }
    e.queued += batch->bytes.size();
    if (version == 1) {
      e.sequence += batch->messages;
      e.out.push_back({batch});
    } else {
      e.out.push_back({numbered(*batch, e.sequence)});
    }
    // While it is known to take no more, epoll says when it does.
    if ((e.watched & EPOLLOUT) == 0 && !flush(e)) {
      gone.push_back(id);
      continue;
    }
    update_watch(id, e);
  }
  for (const EngineId id : gone) close(id, nullptr);
}

void Server::count_missed(uint64_t observations) {
  for (auto& [id, e] : engines_)
    if (e.admitted && e.monitoring) {
      e.missed += observations;
      e.sequence += observations;
    }
}

// ---- samples ----

std::optional<int64_t> Server::round_due_ms() const {
  std::optional<int64_t> due;
  for (const auto& [id, e] : engines_)
    if (e.admitted && e.sampling_ms != 0 && (!due || e.round_due_ms < *due)) due = e.round_due_ms;
  return due;
}

void Server::send_round(const SampledBatches& samples, const Round& round, int64_t now_ms) {
  std::vector<EngineId> gone;
  size_t bytes = kRoundBytes;
  uint64_t messages = 1;
  for (const Batch& b : samples) {
    bytes += b.bytes.size();
    messages += b.messages;
  }
  for (auto& [id, e] : engines_) {
    if (!e.admitted || e.sampling_ms == 0 || e.round_due_ms > now_ms + kRoundSlackMs) continue;
    e.round_due_ms += e.sampling_ms;
    if (e.round_due_ms <= now_ms) e.round_due_ms = now_ms + e.sampling_ms;
    // A round that does not fit is left out as a whole. One fits always, however large it is.
    if (e.queued != 0 && e.queued + bytes > options_.queue_bytes) {
      e.missed += messages;
      e.sequence += messages;
      if (!e.rounds_behind)
        log_line(kWho, "NetFlow: engine %s does not keep up and misses samples", e.name.c_str());
      e.rounds_behind = true;
      continue;
    }
    e.rounds_behind = false;
    queue_round(e, samples, round);
    if ((e.watched & EPOLLOUT) == 0 && !flush(e)) {
      gone.push_back(id);
      continue;
    }
    update_watch(id, e);
  }
  for (const EngineId id : gone) close(id, nullptr);
}

// A copy in which each message has an engine's next number; it stands behind signature and length.
std::shared_ptr<const Batch> Server::numbered(const Batch& batch, uint64_t& sequence) {
  constexpr size_t kSequenceAt = 6;
  auto own = std::make_shared<Batch>(batch);
  for (size_t at = kSequenceAt; at < own->bytes.size(); at += own->each) {
    const uint64_t number = __builtin_bswap64(++sequence);
    std::memcpy(own->bytes.data() + at, &number, sizeof number);
  }
  return own;
}

void Server::queue_round(Engine& e, const SampledBatches& samples, Round round) {
  for (const Batch& b : samples) {
    auto own = numbered(b, e.sequence);
    e.queued += own->bytes.size();
    e.out.push_back({std::move(own), 0, true});
  }
  round.sequence = ++e.sequence;
  round.missed = e.missed;
  auto last = std::make_shared<Batch>();
  last->bytes.resize(kRoundBytes);
  last->messages = 1;
  last->each = kRoundBytes;
  encode(round, std::span<uint8_t, kRoundBytes>(last->bytes.data(), kRoundBytes));
  e.queued += last->bytes.size();
  e.out.push_back({std::move(last), 0, true});
}

Result<size_t> Server::send(Engine& e) {
  if (e.tls != nullptr) {
    const Waiting& w = e.out.front();
    return e.tls->write(std::span(w.batch->bytes).subspan(w.at));
  }
  iovec pieces[kPieces];
  size_t count = 0;
  for (const Waiting& w : e.out) {
    if (count == kPieces) break;
    pieces[count++] = {const_cast<uint8_t*>(w.batch->bytes.data()) + w.at,
                       w.batch->bytes.size() - w.at};
  }
  msghdr m{};
  m.msg_iov = pieces;
  m.msg_iovlen = count;
  const ssize_t n = ::sendmsg(e.socket.get(), &m, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n >= 0) return static_cast<size_t>(n);
  if (errno == EAGAIN || errno == EINTR) return Error{Fault::would_block, errno, "sendmsg"};
  return Error{Fault::shutdown, errno, "sendmsg"};
}

// Sends what the engine takes. False: it is gone.
bool Server::flush(Engine& e) {
  if (!e.admitted && e.tls == nullptr) return true;
  while (!e.out.empty()) {
    auto sent = send(e);
    if (!sent) return sent.error().fault == Fault::would_block;
    size_t n = *sent;
    e.queued -= n;
    while (n != 0) {
      Waiting& w = e.out.front();
      const size_t part = std::min(n, w.batch->bytes.size() - w.at);
      w.at += part;
      n -= part;
      if (w.at < w.batch->bytes.size()) break;
      // Answers stand together at the front; the first of them, if it is partly sent, too.
      if (w.batch->messages == 0) --e.responses;
      e.out.pop_front();
    }
  }
  return true;
}

// Monitoring or sampling is off at once: what waits of it is not sent any more, but for the rest of
// a message.
void Server::forget(Engine& e, bool sampled) {
  for (size_t k = 0; k < e.out.size();) {
    Waiting& w = e.out[k];
    if (w.batch->messages == 0 || w.sampled != sampled) {
      ++k;
      continue;
    }
    const size_t rest = w.batch->bytes.size() - w.at;
    e.queued -= rest;
    const size_t each = w.batch->each;
    const size_t cut = w.at % each;
    if (cut != 0) {
      auto tail = std::make_shared<Batch>();
      const auto from = w.batch->bytes.begin() + static_cast<long>(w.at);
      // What waits may be such a rest already.
      tail->bytes.assign(from, from + static_cast<long>(std::min(rest, each - cut)));
      tail->messages = 1;
      tail->each = each;
      e.queued += tail->bytes.size();
      // Its first byte counts as sent, so that no answer is put before it.
      tail->bytes.insert(tail->bytes.begin(), 0);
      w = {std::move(tail), 1, sampled};
      ++k;
      continue;
    }
    e.out.erase(e.out.begin() + static_cast<long>(k));
  }
}

void Server::update_watch(EngineId id, Engine& e) {
  uint32_t events = 0;
  if (e.outstanding + e.responses < kMaxOutstanding) events |= EPOLLIN;
  if (!e.out.empty() || (e.tls != nullptr && e.tls->wants_write())) events |= EPOLLOUT;
  if (events == e.watched) return;
  e.watched = events;
  watch(e.socket.get(), events, id, EPOLL_CTL_MOD);
}

std::string Server::name_of(EngineId engine) const {
  const auto it = engines_.find(engine);
  if (it == engines_.end()) return "";
  return it->second.process.empty() ? it->second.name : it->second.process;
}

bool Server::anyone_wants(uint64_t version) const {
  return std::any_of(engines_.begin(), engines_.end(), [version](const auto& e) {
    return e.second.admitted && e.second.monitoring && e.second.version == version;
  });
}

bool Server::anyone_keeps_up() const {
  return std::any_of(engines_.begin(), engines_.end(), [this](const auto& e) {
    return e.second.admitted && e.second.monitoring &&
           (!e.second.behind || e.second.queued < options_.queue_bytes / 2);
  });
}

}  // namespace mw::netflow
