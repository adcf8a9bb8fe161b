#include "ins/worker/acceptor.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr uint32_t kMaxAhead = 64;
constexpr uint32_t kPartAhead = 8;  // of the backlog
// What is forgiven: half of what the program has taken, at most so many connections, of which some
// may wait ahead; until it has left one waiting for so long.
constexpr uint32_t kMaxExtra = 32;
constexpr uint32_t kShortAhead = 16;
constexpr uint64_t kForgivenMs = 100;
constexpr int kAcceptsPerTurn = 64;

bool is_wildcard(const mw_addr& a) {
  sockaddr_storage ss{};
  std::memcpy(&ss, a.bytes, sizeof a.bytes);
  if (ss.ss_family == AF_INET)
    return reinterpret_cast<const sockaddr_in&>(ss).sin_addr.s_addr == htonl(INADDR_ANY);
  return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(ss).sin6_addr) != 0;
}

bool get_name(int fd, mw_addr& out) {
  socklen_t len = sizeof out.bytes;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(out.bytes), &len) < 0) return false;
  out.len = std::min<uint32_t>(len, sizeof out.bytes);
  return true;
}

// The backlog that is in force: listen() takes no more than the system's limit.
uint32_t backlog_of(int fd, int asked) {
  tcp_info info{};
  socklen_t len = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
      len >= offsetof(tcp_info, tcpi_sacked) + sizeof info.tcpi_sacked)
    return info.tcpi_sacked;
  return static_cast<uint32_t>(asked < 0 ? SOMAXCONN : std::min(asked, SOMAXCONN));
}

bool has_waiting(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) > 0 && (p.revents & POLLIN) != 0;
}

uint32_t most_ahead(const ListenerState& l) {
  return l.extra == 0 ? l.limit : std::min(l.limit + l.extra, kShortAhead);
}

// True if the application may have left a connection waiting for long.
bool is_slow(const ListenerState& l) {
  return coarse_monotonic_ms() - l.sent_ms > kForgivenMs;
}

}  // namespace

uint32_t accepted_ahead(uint32_t backlog) {
  return std::clamp(backlog / kPartAhead, 1u, kMaxAhead);
}

void Acceptor::start(SlotRef s, int backlog) {
  if (s->listener == nullptr) s->listener = std::make_unique<ListenerState>();
  ListenerState& l = *s->listener;
  s->backlog = backlog;
  l.backlog = l.share = backlog_of(s->fd, backlog);
  l.limit = accepted_ahead(l.backlog);
  l.bound_here = get_name(s->fd, l.local) && !is_wildcard(l.local);
  use_.sink.room(s, std::max(l.limit, kShortAhead));
  use_.news.set_state(s, MW_ST_OPEN | MW_ST_LISTENING);
  share_out(*s, l.ahead);
  use_.events.watch_real(s);
  announce(s);
}

// Gives the real listener what `ahead` leaves of the backlog.
void Acceptor::share_out(Sock& s, uint32_t ahead) {
  ListenerState& l = *s.listener;
  const uint32_t whole = l.backlog + l.extra;
  const uint32_t share = whole > ahead ? whole - ahead : 0;
  if (share != l.share && ::listen(s.fd, static_cast<int>(share)) == 0) l.share = share;
}

namespace {

int family_of(const mw_addr& a) {
  sa_family_t family = AF_UNSPEC;
  std::memcpy(&family, a.bytes, sizeof family);
  return family;
}

}  // namespace

void Acceptor::announce(SlotRef s) {
  auto l = std::make_unique<ControlListener>();
  l->type = ControlType::listener_up;
  l->slot = s.index;
  l->gen = s->gen;
  // IPV6_ADDRFORM may have made it one of IPv4.
  l->domain = family_of(s->listener->local);
  l->socket_type = SOCK_STREAM;
  l->protocol = s->protocol;
  l->backlog = s->backlog;
  l->local = s->listener->local;
  if (s->options != nullptr) {
    l->option_count = s->options->count;
    std::copy_n(s->options->options, s->options->count, l->options);
  }
  UniqueFd placeholder{::fcntl(s->ph, F_DUPFD_CLOEXEC, 0)};
  if (!placeholder) {
    log_line("mwins", "listener %u: no descriptor left to have it survive a restart", s.index);
    return;
  }
  ControlNote note(ControlNote::Kind::listener_up, s.index, s->gen);
  note.listener = std::move(l);
  note.placeholder = std::move(placeholder);
  use_.to_control.post(std::move(note));
}

// Counts what the application has not taken.
void Acceptor::count_ahead(SlotRef s) {
  ListenerState& l = *s->listener;
  const uint32_t ahead = use_.sink.waiting(s);
  if (ahead < l.ahead)
    l.taken = std::min(l.taken + l.ahead - ahead, 2 * kMaxExtra);
  else if (ahead != 0 && is_slow(l))
    l.taken = 0;
  if (l.limit < kShortAhead) l.extra = l.taken / 2;
  l.ahead = ahead;
  if (ahead == 0) l.prompt = true;
}

// Makes ready for one more to be accepted. False: the application has enough for now.
bool Acceptor::room_ahead(SlotRef s) {
  ListenerState& l = *s->listener;
  if (l.ahead >= most_ahead(l) || (!l.prompt && l.ahead != 0) || (l.extra != 0 && is_slow(l)))
    count_ahead(s);
  if (l.ahead >= most_ahead(l)) {
    // If nobody waits, the next client's coming is news enough.
    if (!l.is_cut() && !has_waiting(s->fd)) return false;
    l.prompt = false;
    share_out(*s, l.ahead);
    use_.sink.watch_taking(s, true);
    return false;
  }
  share_out(*s, l.prompt ? 0 : l.ahead + 1);
  return true;
}

// The real listener's queue is empty. What the application takes from here on is of interest only
// if that gives its share back.
void Acceptor::nobody_waits(SlotRef s) {
  ListenerState& l = *s->listener;
  if (l.is_cut()) {
    count_ahead(s);
    share_out(*s, l.ahead);
  }
  use_.sink.watch_taking(s, l.is_cut());
}

void Acceptor::accept_some(SlotRef s) {
  if ((s->state & MW_ST_LISTENING) == 0 || s->listener->stalled) return;
  if (s->listener->backlog == 0) return tell_of_one(s);
  for (int k = 0; k < kAcceptsPerTurn; ++k) {
    if (!room_ahead(s)) return;
    if (!accept_one(s)) return;
  }
  use_.work.add(s);
}

// The real listener's shortest queue has a place for one, so none is accepted ahead of a program
// that wants no queue. It is told that one waits, and asks for it.
void Acceptor::tell_of_one(SlotRef s) {
  if (s->listener->told || !has_waiting(s->fd)) return;
  const Status told = use_.sink.tell_of_one(s);
  use_.sink.watch_taking(s, !told);
}

void Acceptor::call_accept(SlotRef s, Answer& a) {
  a.ret = -1;
  a.err = EINVAL;
  if (s->listener == nullptr || (s->state & MW_ST_LISTENING) == 0) return;
  a.err = EAGAIN;
  s->listener->told = false;
  while (accept_one(s, &a) && a.out_len == 0) {
  }
  accept_some(s);
}

void Acceptor::stall(SlotRef s) {
  if (s->listener->stalled) return;
  use_.placeholders.close_buried();
  use_.stalled.add(s);
}

void Acceptor::retry_stalled() {
  for (const uint32_t i : use_.stalled.take()) {
    const SlotRef s = use_.scope.slots.find(i);
    if (!s || s->listener == nullptr || !s->listener->stalled) continue;
    s->listener->stalled = false;
    accept_some(s);
  }
}

void Acceptor::turn() {
  use_.sink.turn(unasked_);
  for (const uint32_t i : unasked_)
    if (const SlotRef s = use_.scope.slots.find(i); s && s->listener != nullptr) accept_some(s);
  unasked_.clear();
}

// ---- one connection ----

struct Acceptor::Accepted {
  UniqueFd real;
  mw_accept_record record{};
};

// Accepts one connection and hands it to the application, in `answer` if there is one. False: none
// is there, or not now.
bool Acceptor::accept_one(SlotRef s, Answer* answer) {
  auto slot = use_.openings.allocate();
  if (!slot) {
    stall(s);
    return false;
  }
  const SlotRef c = *slot;
  Accepted accepted;
  bool again = false;
  if (!take_from_kernel(s, accepted, again) || !is_wanted(c, accepted, again)) {
    use_.scope.slots.release(c.index);
    return again;
  }
  auto offer = use_.sink.prepare(s, c, answer != nullptr);
  if (!offer) {
    // The accepted connection cannot be put back: it is reset, as when a server runs out of memory.
    reset_at_close(accepted.real.get());
    use_.limits.drop(*c);
    use_.scope.slots.release(c.index);
    stall(s);
    return false;
  }
  begin_connection(s, c, accepted);
  use_.sink.fill(*offer, accepted.record);
  if (!give(s, c, accepted.record, *offer, answer, again)) return again;
  use_.sink.sent(s, c, *offer);
  if (s->listener->limit < kShortAhead) s->listener->sent_ms = coarse_monotonic_ms();
  use_.openings.advance();
  hand_over(c, *offer);
  return true;
}

// False: nothing came. `again`: another one may be there all the same.
bool Acceptor::take_from_kernel(SlotRef s, Accepted& accepted, bool& again) {
  mw_accept_record& record = accepted.record;
  socklen_t len = sizeof record.peer.bytes;
  accepted.real.reset(::accept4(s->fd, reinterpret_cast<sockaddr*>(record.peer.bytes), &len,
                                SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!accepted.real) {
    const int err = errno;
    if (err == EMFILE || err == ENFILE || err == ENOMEM || err == ENOBUFS) stall(s);
    if (err == EAGAIN) nobody_waits(s);
    // Errors of one connection (it is gone already) do not end the turn.
    again = err == ECONNABORTED || err == EINTR || err == EPROTO || err == EPERM || err == ENETDOWN;
    return false;
  }
  record.peer.len = std::min<uint32_t>(len, sizeof record.peer.bytes);
  return true;
}

// False: the driver does not want connections of this peer, and it is reset.
bool Acceptor::is_wanted(SlotRef c, const Accepted& accepted, bool& again) {
  if (!use_.wishes.any()) return true;
  // It may have come in before its address was blocked, and waited to be accepted.
  if (!use_.limits.admit(c, accepted.record.peer)) {
    reset_at_close(accepted.real.get());
    again = true;
    return false;
  }
  // It may have come before its listener was told.
  use_.wishes.apply_to(accepted.real.get());
  return true;
}

// The slot becomes the connection's; it owns the real socket from here on.
void Acceptor::begin_connection(SlotRef s, SlotRef c, Accepted& accepted) {
  mw_accept_record& record = accepted.record;
  const ListenerState& l = *s->listener;
  if (l.bound_here)
    record.local = l.local;
  else if (!get_name(accepted.real.get(), record.local))
    record.local.len = 0;
  c->fd = accepted.real.release();
  c->ph = -1;
  c->kind = SockKind::stream;
  c->domain = s->domain;
  c->protocol = s->protocol;
  c->linger = s->linger;
  c->rcvlowat = s->rcvlowat;
  c->rx_limit = s->rx_limit;
  c->state = MW_ST_OPEN | MW_ST_CONNECTED;
  c->flags |= kAccepted | (s->flags & kHidesReuse);
  c->conn = MW_CONN_INBOUND | MW_CONN_ESTABLISHED;
  c->handed.store(false, std::memory_order_relaxed);
  use_.openings.init_shared(c);
  use_.telemetry.accepted(s, c, record.local, record.peer);
  // A client that speaks first has often spoken by now: its request is there when the connection
  // is, and nobody waits for it.
  if (use_.scope.is_ours(c.index)) use_.streams.receive(c);
  record.magic = MW_ACCEPT_MAGIC;
  record.slot = c.index;
  record.gen = c->gen;
}

// Gives the record to the application. False: it could not, and the connection is gone.
bool Acceptor::give(SlotRef s, SlotRef c, const mw_accept_record& record, AcceptSink::Offer& offer,
                    Answer* answer, bool& again) {
  ListenerState& l = *s->listener;
  if (answer != nullptr) {
    *answer = {0, 0, sizeof record, {}};
    std::memcpy(answer->payload, &record, sizeof record);
    return true;
  }
  const Status sent = use_.sink.send(s, record, offer);
  if (sent) {
    ++l.ahead;
    return true;
  }
  use_.sink.give_back(offer);
  use_.ending.reset_and_free(c);
  // A full queue: look what was taken before the next one. Else the last descriptor is just being
  // closed.
  again = sent.error().fault == Fault::would_block;
  if (again) l.ahead = l.limit;
  return false;
}

void Acceptor::hand_over(SlotRef c, const AcceptSink::Offer& offer) {
  const uint32_t gen = c->gen;
  const uint32_t worker = ch_.worker_of(c.index);
  use_.openings.hand_over(c, true);
  c->handed.store(true, std::memory_order_release);
  if (!use_.sink.handed(gen, offer)) use_.scope.give_up(c.index, gen);
  if (use_.scope.is_ours(c.index)) return;
  // It may have been closed by now, before its worker could find it, or would.
  A::fence();
  if (A::load_relaxed(ch_.slot(c.index).closed) != gen) return;
  if (ch_.sock_news(worker).add(c.index)) use_.bells.ring_worker(worker);
}

}  // namespace mw
