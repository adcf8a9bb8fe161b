// listener.cc - accepting ahead of the application.
//
// Each accepted connection becomes a slot and a placeholder pair, whose application end waits in
// the queue of the listener's own placeholder. How many wait there is bounded: `ahead` counts what
// was sent since SIOCOUTQ last told how much was taken, so the steady state does not ask. When the
// bound is reached we watch that placeholder for EPOLLOUT, which the kernel raises each time the
// application takes a record while at most a quarter of SO_SNDBUF is in use; SO_SNDBUF is set so
// that this means half of the bound or more.
//
// A client can tell how many connections a program lets in that does not accept: one more than its
// backlog. While the program takes what it is sent, the real listener has the whole backlog, so that
// no burst of clients meets a shorter queue than natively. Once the program is behind, what waits
// ahead is taken off the real listener's share, before more is accepted. One with a short backlog
// that has taken what it was sent is forgiven more for a moment: each connection passes through our
// hands too, and it shall not lose clients over that.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "ins/worker/worker.h"
#include "ring/atomics.h"
#include "transport/local/fd_message.h"

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

}  // namespace

uint32_t accepted_ahead(uint32_t backlog) {
  return std::clamp(backlog / kPartAhead, 1u, kMaxAhead);
}

void Worker::listener_started(SlotRef s, int backlog) {
  if (s->listener == nullptr) s->listener = std::make_unique<ListenerState>();
  ListenerState& l = *s->listener;
  s->backlog = backlog;
  l.backlog = l.share = backlog_of(s->fd, backlog);
  l.limit = accepted_ahead(l.backlog);
  l.bound_here = get_name(s->fd, l.local) && !is_wildcard(l.local);
  // The kernel doubles it: in use may be four times the half of the bound when EPOLLOUT is raised.
  const int room = static_cast<int>(std::max(l.limit, kShortAhead) * record_cost_);
  if (room > 0) ::setsockopt(s->ph, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  set_state(s, MW_ST_OPEN | MW_ST_LISTENING);
  share_out(*s, l.ahead);
  watch_real(s);
  announce_listener(s);
}

// Gives the real listener what `ahead` leaves of the backlog.
void Worker::share_out(Sock& s, uint32_t ahead) {
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

// Tells the driver, so that it can have the listener made again by a successor.
void Worker::announce_listener(SlotRef s) {
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
  ControlNote note(Kind::listener_up, s.index, s->gen);
  note.listener = std::move(l);
  note.placeholder = std::move(placeholder);
  ins_.to_control.post(std::move(note));
}

void Worker::on_listener_event(SlotRef s) {
  accept_some(s);
}

// Counts what the application has not taken.
void Worker::count_ahead(Sock& s) {
  ListenerState& l = *s.listener;
  int queued = 0;
  if (record_cost_ == 0 || ::ioctl(s.ph, TIOCOUTQ, &queued) < 0) queued = 0;
  // To the nearest: the kernel raises EPOLLOUT while the last byte of a record that was taken still
  // counts, and does not raise it again.
  const uint32_t ahead =
      record_cost_ == 0 ? 0 : (static_cast<uint32_t>(queued) + record_cost_ / 2) / record_cost_;
  if (ahead < l.ahead)
    l.taken = std::min(l.taken + l.ahead - ahead, 2 * kMaxExtra);
  else if (ahead != 0 && is_slow(l))
    l.taken = 0;
  if (l.limit < kShortAhead) l.extra = l.taken / 2;
  l.ahead = ahead;
  if (ahead == 0) l.prompt = true;
}

uint32_t Worker::most_ahead(const ListenerState& l) {
  return l.extra == 0 ? l.limit : std::min(l.limit + l.extra, kShortAhead);
}

// True if the application may have left a connection waiting for long.
bool Worker::is_slow(const ListenerState& l) {
  return coarse_monotonic_ms() - l.sent_ms > kForgivenMs;
}

void Worker::watch_takes(SlotRef s, bool on) {
  ListenerState& l = *s->listener;
  // Looks at once, so a record taken meanwhile is not missed.
  if (on != l.armed && watch(s->ph, kPlaceholderEvents | (on ? uint32_t{EPOLLOUT} : 0), s.index,
                             s->gen, true, EPOLL_CTL_MOD))
    l.armed = on;
}

// Makes ready for one more to be accepted. False: the application has enough for now.
bool Worker::room_ahead(SlotRef s) {
  ListenerState& l = *s->listener;
  if (l.ahead >= most_ahead(l) || (!l.prompt && l.ahead != 0) || (l.extra != 0 && is_slow(l)))
    count_ahead(*s);
  if (l.ahead >= most_ahead(l)) {
    // If nobody waits, the next client's coming is news enough.
    if (!l.is_cut() && !has_waiting(s->fd)) return false;
    l.prompt = false;
    share_out(*s, l.ahead);
    watch_takes(s, true);
    return false;
  }
  share_out(*s, l.prompt ? 0 : l.ahead + 1);
  return true;
}

// The real listener's queue is empty. What the application takes from here on is of interest only
// if that gives its share back.
void Worker::nobody_waits(SlotRef s) {
  ListenerState& l = *s->listener;
  if (l.is_cut()) {
    count_ahead(*s);
    share_out(*s, l.ahead);
  }
  watch_takes(s, l.is_cut());
}

void Worker::accept_some(SlotRef s) {
  if ((s->state & MW_ST_LISTENING) == 0 || s->listener->stalled) return;
  if (s->listener->backlog == 0) return tell_of_one(s);
  for (int k = 0; k < kAcceptsPerTurn; ++k) {
    if (!room_ahead(s)) return;
    if (!accept_one(s)) return;
  }
  requeue(s);
}

// The real listener's shortest queue has a place for one, so none is accepted ahead of a program
// that wants no queue. It is told that one waits, and asks for it.
void Worker::tell_of_one(SlotRef s) {
  ListenerState& l = *s->listener;
  if (l.told || !has_waiting(s->fd)) return;
  mw_accept_record record{};
  record.magic = MW_ACCEPT_MAGIC;
  record.slot = s.index;
  record.gen = s->gen;
  record.flags = MW_ACCEPT_BARE | MW_ACCEPT_ASK;
  if (!send_message(s->ph, bytes_of(record), {}, MSG_DONTWAIT)) return watch_takes(s, true);
  watch_takes(s, false);
  l.told = true;
  l.told_at = tick_;
  look_later(s.index, l);
}

void Worker::call_accept(SlotRef s, Answer& a) {
  a.ret = -1;
  a.err = EINVAL;
  if (s->listener == nullptr || (s->state & MW_ST_LISTENING) == 0) return;
  a.err = EAGAIN;
  s->listener->told = false;
  while (accept_one(s, &a) && a.out_len == 0) {
  }
  accept_some(s);
}

void Worker::stall(SlotRef s) {
  if (s->listener->stalled) return;
  close_dead();
  s->listener->stalled = true;
  stalled_.push_back(s.index);
}

void Worker::retry_stalled() {
  retry_now_ = false;
  const std::vector<uint32_t> again = std::exchange(stalled_, {});
  for (const uint32_t i : again) {
    const SlotRef s = ins_.slots.find(i);
    if (!s || s->listener == nullptr || !s->listener->stalled) continue;
    s->listener->stalled = false;
    accept_some(s);
  }
}

// A placeholder for the connection at `slot`. Errors: limit, sys.
Result<Worker::NewPlaceholder> Worker::make_placeholder(uint32_t slot, uint32_t gen,
                                                        bool nonblock) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0), 0, pair) <
      0)
    return Error{Fault::sys, errno, "placeholder"};
  NewPlaceholder out{0, UniqueFd{pair[1]}};
  auto number = ins_.placeholders.add(ch_.worker_of(slot), UniqueFd{pair[0]}, {slot, gen});
  if (!number) return number.error();
  out.number = *number;
  return out;
}

// Accepts one connection and hands it to the application, in `answer` if there is one. False: none
// is there, or not now.
bool Worker::accept_one(SlotRef s, Answer* answer) {
  ListenerState& l = *s->listener;
  auto slot = ins_.slots.allocate(spread_);
  if (!slot) {
    stall(s);
    return false;
  }
  const SlotRef c = *slot;
  const auto give_back = [&] {
    drop_limits(*c);
    ins_.slots.release(c.index);
    return false;
  };
  mw_accept_record record{};
  socklen_t len = sizeof record.peer.bytes;
  UniqueFd real{::accept4(s->fd, reinterpret_cast<sockaddr*>(record.peer.bytes), &len,
                          SOCK_NONBLOCK | SOCK_CLOEXEC)};
  if (!real) {
    const int err = errno;
    give_back();
    if (err == EMFILE || err == ENFILE || err == ENOMEM || err == ENOBUFS) stall(s);
    if (err == EAGAIN) nobody_waits(s);
    // Errors of one connection (it is gone already) do not end the turn.
    return err == ECONNABORTED || err == EINTR || err == EPROTO || err == EPERM || err == ENETDOWN;
  }
  record.peer.len = std::min<uint32_t>(len, sizeof record.peer.bytes);
  if (ins_.wishes.any()) {
    // It may have come in before its address was blocked, and waited to be accepted.
    if (!admit(c, record.peer)) {
      reset_at_close(real.get());
      ins_.slots.release(c.index);
      return true;
    }
    // It may have come before its listener was told.
    ins_.wishes.apply_to(real.get());
  }
  if (l.bound_here)
    record.local = l.local;
  else if (!get_name(real.get(), record.local))
    record.local.len = 0;
  const uint32_t wish = A::load_relaxed(ch_.slot(s.index).accept_flags);
  const bool bare = answer != nullptr || (wish & MW_ACCEPT_BARE) != 0;
  uint32_t number = 0;
  UniqueFd theirs;
  if (!bare) {
    auto made = make_placeholder(c.index, c->gen, (wish & MW_ACCEPT_NONBLOCK) != 0);
    if (!made) {
      // The accepted connection cannot be put back: it is reset, as when a server runs out of
      // memory.
      reset_at_close(real.get());
      give_back();
      stall(s);
      return false;
    }
    number = made->number;
    theirs = std::move(made->theirs);
  }
  c->fd = real.get();
  c->ph = -1;
  c->kind = SockKind::stream;
  c->domain = s->domain;
  c->protocol = s->protocol;
  c->linger = s->linger;
  c->rcvlowat = s->rcvlowat;
  c->rx_limit = s->rx_limit;
  c->state = MW_ST_OPEN | MW_ST_CONNECTED;
  c->flags |= kAccepted;
  c->conn = MW_CONN_INBOUND | MW_CONN_ESTABLISHED;
  c->handed.store(false, std::memory_order_relaxed);
  init_shared_slot(c);
  telemetry_.accepted(s, c, record.local, record.peer);
  // A client that speaks first has often spoken by now: its request is there when the connection
  // is, and nobody waits for it.
  if (ch_.worker_of(c.index) == index_) stream_rx(c);
  record.magic = MW_ACCEPT_MAGIC;
  record.slot = c.index;
  record.gen = c->gen;
  record.flags = bare ? MW_ACCEPT_BARE
                      : (wish & MW_ACCEPT_NONBLOCK) | (number + 1) << MW_ACCEPT_PLACEHOLDER_SHIFT;
  const int fds[] = {theirs.get()};
  Status sent = Ok{};
  if (answer == nullptr)
    sent = send_message(s->ph, bytes_of(record), {fds, bare ? size_t{0} : size_t{1}}, MSG_DONTWAIT);
  if (!sent) {
    if (!bare) ins_.placeholders.remove(number).reset();
    real.release();
    reset_and_free(c);
    // A full queue: look what was taken before the next one. Else the last descriptor is just being
    // closed.
    if (sent.error().fault == Fault::would_block) l.ahead = l.limit;
    return sent.error().fault == Fault::would_block;
  }
  if (answer != nullptr) {
    *answer = {0, 0, sizeof record, {}};
    std::memcpy(answer->payload, &record, sizeof record);
  } else {
    ++l.ahead;
  }
  ++l.sent;
  if (l.limit < kShortAhead) l.sent_ms = coarse_monotonic_ms();
  if (bare)
    note_bare(s.index, l, c.index, c->gen);
  else
    handed_by_ = s.index;
  spread_ = (spread_ + 1) % ch_.geometry().workers;
  real.release();
  hand_over_accepted(c, bare ? -1 : static_cast<int>(number));
  return true;
}

// number: of its placeholder; -1 if its record was bare.
void Worker::hand_over_accepted(SlotRef c, int number) {
  const uint32_t gen = c->gen;
  const uint32_t worker = ch_.worker_of(c.index);
  hand_over(c, true);
  c->handed.store(true, std::memory_order_release);
  if (number >= 0) {
    const auto p = static_cast<uint32_t>(number);
    // Not before its worker can find the socket: the end of the placeholder is told once.
    if (!watch_placeholder(ins_.placeholders.end(p), p, gen)) {
      log_line("mwins", "no memory to watch a new connection");
      ins_.placeholders.remove(p).reset();
      give_up(c.index, gen);
    }
  }
  if (worker == index_) return;
  // It may have been closed by now, before its worker could find it, or would.
  A::fence();
  if (A::load_relaxed(ch_.slot(c.index).closed) != gen) return;
  const uint64_t one = 1;
  if (ch_.sock_news(worker).add(c.index))
    (void)!::write(ins_.bells[worker].get(), &one, sizeof one);
}

// ---- bare records ----
// A descriptor that waits in a queue or came with a message is closed by the kernel when its holder
// ends. A bare record is not: a listener that ends revokes those that nobody has claimed, and what
// is neither in the queue nor claimed was taken by a process that is dead, or about to claim it.

void Worker::note_bare(uint32_t listener, ListenerState& l, uint32_t slot, uint32_t gen) {
  constexpr size_t kLookAgain = 128;
  if (l.bare.size() >= kLookAgain)
    std::erase_if(l.bare, [this](const BareRecord& b) { return !is_waiting(b.slot, b.gen); });
  l.bare.push_back({slot, gen, l.sent, 0});
  look_later(listener, l);
}

void Worker::look_later(uint32_t listener, ListenerState& l) {
  if (l.handing) return;
  l.handing = true;
  handing_.push_back(listener);
}

bool Worker::is_waiting(uint32_t slot, uint32_t gen) const {
  return A::load_relaxed(ch_.slot(slot).claim) == mw_claim(gen, MW_CLAIM_NOBODY);
}

// Takes a connection away from whoever might still claim it. False: it is claimed.
bool Worker::revoke(uint32_t slot, uint32_t gen) {
  const uint64_t revoked = mw_claim(gen, MW_CLAIM_REVOKED);
  uint64_t claim = mw_claim(gen, MW_CLAIM_NOBODY);
  return std::atomic_ref(ch_.slot(slot).claim).compare_exchange_strong(claim, revoked) ||
         claim == revoked;
}

void Worker::revoke_all(ListenerState& l) {
  for (const BareRecord& b : l.bare)
    if (is_waiting(b.slot, b.gen) && revoke(b.slot, b.gen)) give_up(b.slot, b.gen);
  l.bare.clear();
}

void Worker::look_for_missing() {
  std::erase_if(handing_, [this](uint32_t i) {
    const SlotRef s = ins_.slots.find(i);
    return !s || s->listener == nullptr || !look_for_missing(s);
  });
}

// Revokes what has been missing since the last look. False: no bare record is left, nor one that
// tells of a connection.
bool Worker::look_for_missing(SlotRef s) {
  ListenerState& l = *s->listener;
  int bytes = 0;
  if (record_cost_ == 0 || ::ioctl(s->ph, TIOCOUTQ, &bytes) < 0) return true;
  const uint32_t queued = (static_cast<uint32_t>(bytes) + record_cost_ - 1) / record_cost_;
  std::erase_if(l.bare, [&](BareRecord& b) {
    if (!is_waiting(b.slot, b.gen)) return true;
    if (l.sent - b.number < queued) return false;
    if (b.missing_since == 0) b.missing_since = tick_;
    if (tick_ == b.missing_since || !revoke(b.slot, b.gen)) return false;
    give_up(b.slot, b.gen);
    return true;
  });
  if (l.told && queued == 0 && tick_ - l.told_at > 1) {
    // Whoever took it has not asked, and is dead.
    l.told = false;
    accept_some(s);
  }
  l.handing = !l.bare.empty() || l.told;
  return l.handing;
}

}  // namespace mw
