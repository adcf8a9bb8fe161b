// listener.cc - accepting ahead of the application.
//
// Each accepted connection becomes a slot and a placeholder pair, whose application end waits in
// the queue of the listener's own placeholder. How many wait there is bounded: `ahead` counts what
// was sent since SIOCOUTQ last told how much was taken, so the steady state does not ask. When the
// bound is reached we watch that placeholder for EPOLLOUT, which the kernel raises each time the
// application takes a record while at most a quarter of SO_SNDBUF is in use; SO_SNDBUF is set so
// that this means half of the bound.
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "ins/worker.h"
#include "ring/atomics.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr int kMaxAhead = 64;
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

}  // namespace

// Together with the kernel's share it must come to what the program asked for: a client can tell
// how many connections a program that does not accept lets in. Half of a short queue, as the kernel
// judges its queue of half-open connections by its own share.
int accepted_ahead(int backlog) {
  if (backlog < 0) return kMaxAhead;  // the kernel takes it for the largest
  return std::clamp((backlog + 1) / 2, 1, kMaxAhead);
}

int kernel_backlog(int backlog) {
  return backlog < 0 ? backlog : std::max(0, backlog - accepted_ahead(backlog));
}

void Worker::listener_started(uint32_t i, Sock& s, int backlog) {
  if (s.listener == nullptr) s.listener = std::make_unique<ListenerState>();
  ListenerState& l = *s.listener;
  s.backlog = backlog;
  l.limit = static_cast<uint32_t>(accepted_ahead(backlog));
  l.bound_here = get_name(s.fd, l.local) && !is_wildcard(l.local);
  // The kernel doubles it: in use may be four times the half of the bound when EPOLLOUT is raised.
  const int room = static_cast<int>(l.limit * record_cost_);
  if (room > 0) ::setsockopt(s.ph, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  set_state(i, s, MW_ST_OPEN | MW_ST_LISTENING);
  watch_real(i, s);
  announce_listener(i, s);
}

// Tells the driver, so that it can have the listener made again by a successor.
void Worker::announce_listener(uint32_t i, Sock& s) {
  auto l = std::make_unique<ControlListener>();
  l->type = ControlType::listener_up;
  l->slot = i;
  l->gen = s.gen;
  l->domain = s.domain;
  l->socket_type = SOCK_STREAM;
  l->protocol = s.protocol;
  l->backlog = s.backlog;
  l->local = s.listener->local;
  if (s.options != nullptr) {
    l->option_count = s.options->count;
    std::copy_n(s.options->options, s.options->count, l->options);
  }
  UniqueFd placeholder{::fcntl(s.ph, F_DUPFD_CLOEXEC, 0)};
  if (!placeholder) {
    log_line("mwins", "listener %u: no descriptor left to have it survive a restart", i);
    return;
  }
  ControlNote note(Kind::listener_up, i, s.gen);
  note.listener = std::move(l);
  note.placeholder = std::move(placeholder);
  ins_.to_control.post(std::move(note));
}

void Worker::on_listener_event(uint32_t i, Sock& s) {
  accept_some(i, s);
}

bool Worker::room_ahead(uint32_t i, Sock& s) {
  ListenerState& l = *s.listener;
  if (l.ahead < l.limit) return true;
  int queued = 0;
  if (record_cost_ == 0 || ::ioctl(s.ph, TIOCOUTQ, &queued) < 0) queued = 0;
  // To the nearest: the kernel raises EPOLLOUT while the last byte of a record that was taken still
  // counts, and does not raise it again.
  l.ahead =
      record_cost_ == 0 ? 0 : (static_cast<uint32_t>(queued) + record_cost_ / 2) / record_cost_;
  if (l.ahead < l.limit) return true;
  if (!l.armed) {
    // Looks at once, so a record taken meanwhile is not missed.
    l.armed = watch(s.ph, kPlaceholderEvents | EPOLLOUT, i, s.gen, true, EPOLL_CTL_MOD);
  }
  return false;
}

void Worker::accept_some(uint32_t i, Sock& s) {
  if ((s.state & MW_ST_LISTENING) == 0 || s.listener->stalled) return;
  for (int k = 0; k < kAcceptsPerTurn; ++k) {
    if (!room_ahead(i, s)) return;
    if (!accept_one(i, s)) return;
  }
  requeue(i, s);
}

void Worker::stall(uint32_t i, Sock& s) {
  if (s.listener->stalled) return;
  close_dead();
  s.listener->stalled = true;
  stalled_.push_back(i);
}

void Worker::retry_stalled() {
  retry_now_ = false;
  const std::vector<uint32_t> again = std::exchange(stalled_, {});
  for (const uint32_t i : again) {
    Sock* s = ins_.slots.find(i);
    if (s == nullptr || s->listener == nullptr || !s->listener->stalled) continue;
    s->listener->stalled = false;
    accept_some(i, *s);
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

// Accepts one connection and hands it to the application. False: none is there, or not now.
bool Worker::accept_one(uint32_t i, Sock& s) {
  ListenerState& l = *s.listener;
  auto slot = ins_.slots.allocate(spread_);
  if (!slot) {
    stall(i, s);
    return false;
  }
  const uint32_t n = *slot;
  Sock& c = ins_.slots.at(n);
  const auto give_back = [&] {
    drop_limits(c);
    ins_.slots.release(n);
    return false;
  };
  mw_accept_record record{};
  socklen_t len = sizeof record.peer.bytes;
  UniqueFd real{::accept4(s.fd, reinterpret_cast<sockaddr*>(record.peer.bytes), &len,
                          SOCK_NONBLOCK | SOCK_CLOEXEC)};
  if (!real) {
    const int err = errno;
    give_back();
    if (err == EMFILE || err == ENFILE || err == ENOMEM || err == ENOBUFS) stall(i, s);
    // The queue is empty: what the application takes from here on is of no interest.
    if (err == EAGAIN && l.armed)
      l.armed = !watch(s.ph, kPlaceholderEvents, i, s.gen, true, EPOLL_CTL_MOD);
    // Errors of one connection (it is gone already) do not end the turn.
    return err == ECONNABORTED || err == EINTR || err == EPROTO || err == EPERM || err == ENETDOWN;
  }
  record.peer.len = std::min<uint32_t>(len, sizeof record.peer.bytes);
  if (ins_.wishes.any()) {
    // It may have come in before its address was blocked, and waited to be accepted.
    if (!admit(n, c, record.peer)) {
      reset_at_close(real.get());
      ins_.slots.release(n);
      return true;
    }
    // It may have come before its listener was told.
    ins_.wishes.apply_to(real.get());
  }
  if (l.bound_here)
    record.local = l.local;
  else if (!get_name(real.get(), record.local))
    record.local.len = 0;
  const uint32_t wish = A::load_relaxed(ch_.slot(i).accept_flags);
  const bool bare = (wish & MW_ACCEPT_BARE) != 0;
  uint32_t number = 0;
  UniqueFd theirs;
  if (!bare) {
    auto made = make_placeholder(n, c.gen, (wish & MW_ACCEPT_NONBLOCK) != 0);
    if (!made) {
      // The accepted connection cannot be put back: it is reset, as when a server runs out of
      // memory.
      reset_at_close(real.get());
      give_back();
      stall(i, s);
      return false;
    }
    number = made->number;
    theirs = std::move(made->theirs);
  }
  c.fd = real.get();
  c.ph = -1;
  c.kind = SockKind::stream;
  c.domain = s.domain;
  c.protocol = s.protocol;
  c.linger = s.linger;
  c.rcvlowat = s.rcvlowat;
  c.rx_limit = s.rx_limit;
  c.state = MW_ST_OPEN | MW_ST_CONNECTED;
  c.flags |= kAccepted;
  c.conn = MW_CONN_INBOUND | MW_CONN_ESTABLISHED;
  c.handed.store(false, std::memory_order_relaxed);
  init_shared_slot(n, c);
  telemetry_.accepted(i, s, n, c, record.local, record.peer);
  // A client that speaks first has often spoken by now: its request is there when the connection
  // is, and nobody waits for it.
  if (ch_.worker_of(n) == index_) stream_rx(n, c);
  record.magic = MW_ACCEPT_MAGIC;
  record.slot = n;
  record.gen = c.gen;
  record.flags = bare ? MW_ACCEPT_BARE
                      : (wish & MW_ACCEPT_NONBLOCK) | (number + 1) << MW_ACCEPT_PLACEHOLDER_SHIFT;
  const int fds[] = {theirs.get()};
  Status sent =
      send_message(s.ph, bytes_of(record), {fds, bare ? size_t{0} : size_t{1}}, MSG_DONTWAIT);
  if (!sent) {
    if (!bare) ins_.placeholders.remove(number).reset();
    real.release();
    reset_and_free(n, c);
    // A full queue: look what was taken before the next one. Else the last descriptor is just being
    // closed.
    if (sent.error().fault == Fault::would_block) l.ahead = l.limit;
    return sent.error().fault == Fault::would_block;
  }
  ++l.ahead;
  ++l.sent;
  if (bare)
    note_bare(i, l, n, c.gen);
  else
    handed_by_ = i;
  spread_ = (spread_ + 1) % ch_.geometry().workers;
  real.release();
  hand_over_accepted(n, c, bare ? -1 : static_cast<int>(number));
  return true;
}

// number: of its placeholder; -1 if its record was bare.
void Worker::hand_over_accepted(uint32_t n, Sock& c, int number) {
  const uint32_t gen = c.gen;
  const uint32_t worker = ch_.worker_of(n);
  hand_over(n, c, true);
  c.handed.store(true, std::memory_order_release);
  if (number >= 0) {
    const auto p = static_cast<uint32_t>(number);
    // Not before its worker can find the socket: the end of the placeholder is told once.
    if (!watch_placeholder(ins_.placeholders.end(p), p, gen)) {
      log_line("mwins", "no memory to watch a new connection");
      ins_.placeholders.remove(p).reset();
      give_up(n, gen);
    }
  }
  if (worker == index_) return;
  // It may have been closed by now, before its worker could find it, or would.
  A::fence();
  if (A::load_relaxed(ch_.slot(n).closed) != gen) return;
  const uint64_t one = 1;
  if (ch_.sock_news(worker).add(n)) (void)!::write(ins_.bells[worker].get(), &one, sizeof one);
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
    Sock* s = ins_.slots.find(i);
    return s == nullptr || s->listener == nullptr || !look_for_missing(*s);
  });
}

// Revokes what has been missing since the last look. False: no bare record is left.
bool Worker::look_for_missing(Sock& s) {
  ListenerState& l = *s.listener;
  int bytes = 0;
  if (record_cost_ == 0 || ::ioctl(s.ph, TIOCOUTQ, &bytes) < 0) return true;
  const uint32_t queued = (static_cast<uint32_t>(bytes) + record_cost_ - 1) / record_cost_;
  std::erase_if(l.bare, [&](BareRecord& b) {
    if (!is_waiting(b.slot, b.gen)) return true;
    if (l.sent - b.number < queued) return false;
    if (b.missing_since == 0) b.missing_since = tick_;
    if (tick_ == b.missing_since || !revoke(b.slot, b.gen)) return false;
    give_up(b.slot, b.gen);
    return true;
  });
  l.handing = !l.bare.empty();
  return l.handing;
}

}  // namespace mw
