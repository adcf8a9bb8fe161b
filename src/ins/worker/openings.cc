#include "ins/worker/openings.h"

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "base/received_fds.h"
#include "ins/policy/options.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr int kDropsPerTurn = 64;

bool is_stream_placeholder(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t len = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX) return false;
  len = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
}

}  // namespace

void Openings::on_drop() {
  for (int k = 0; k < kDropsPerTurn; ++k)
    if (!take_drop()) return;
}

// One new socket from the drop socket. False: there is none, or no more is to be taken now.
bool Openings::take_drop() {
  mw_drop_record record{};
  MessageRoom<4> room(&record, sizeof record);
  msghdr& m = room.message;
  const ssize_t n = ::recvmsg(drop_.get(), &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return errno == EINTR;
  if (n == 0) {  // nobody is left who could send one
    events_.remove(drop_.get());
    return false;
  }
  UniqueFd placeholder;
  uint32_t fds = 0;
  each_passed_fd(m, [&](int fd) {
    placeholder.reset(fd);
    ++fds;
  });
  // A descriptor that we have no room for arrives as a truncated message, like a lie.
  const bool no_room = fds == 0 && (m.msg_flags & MSG_CTRUNC) != 0;
  if (n != sizeof record || record.magic != MW_DROP_MAGIC ||
      record.call >= scope_.ch.geometry().calls || (fds != 1 && !no_room)) {
    scope_.fault({Fault::peer, 0, "a new socket's record that cannot be"});
    return false;
  }
  auto begun = calls_.begin(record.call, request_, record.seq);
  if (!begun) {
    scope_.fault(begun.error());
    return false;
  }
  // Else it was answered by now: the driver sends the record of a process that died once more.
  const bool bare = request_.op == MW_OP_PLACEHOLDER;
  if (!*begun || (request_.op != MW_OP_SOCKET && !bare)) return true;
  answer_.ret = -1;
  answer_.err = ENFILE;
  answer_.out_len = 0;
  if (!no_room && !is_stream_placeholder(placeholder.get())) {
    scope_.fault({Fault::peer, 0, "a placeholder that is none"});
    return false;
  }
  if (!no_room && bare && (request_.slot >= scope_.ch.geometry().slots || request_.gen == 0)) {
    scope_.fault({Fault::peer, 0, "a placeholder for a connection that cannot be"});
    return false;
  }
  if (!no_room && bare) placeholders_.make(request_, std::move(placeholder), answer_);
  if (!no_room && !bare) new_socket(request_, std::move(placeholder), answer_);
  calls_.answer(record.call, request_.seq, answer_);
  return true;
}

void Openings::init_shared(SlotRef s) const {
  s->rx_tail = MW_INDEX_START;
  s->tx_head = MW_INDEX_START;
  s->bytes_in = 0;
  s->bytes_out = 0;
  s->told = 0;
  s->made_ns = realtime_ns();
  s->sampled = {};
  s->sampled.made_ms = coarse_monotonic_ms();
  mw_slot& shared = scope_.ch.slot(s.index);
  A::store_relaxed(shared.tx_tail, MW_INDEX_START);
  A::store_relaxed(shared.rx_head, MW_INDEX_START);
  A::store_relaxed(shared.want, 0u);
  A::store_relaxed(shared.accept_flags, 0u);
  for (uint64_t& word : shared.watches) A::store_relaxed(word, uint64_t{0});
  A::store_relaxed(shared.closed, 0u);
  A::store_relaxed(shared.claim, mw_claim(s->gen, MW_CLAIM_NOBODY));
  A::store_relaxed(shared.rx_tail, MW_INDEX_START);
  A::store_relaxed(shared.tx_head, MW_INDEX_START);
  A::store_relaxed(shared.error, 0);
  A::store_relaxed(shared.error_seq, 0u);
  A::store_relaxed(shared.oob_mark, 0u);
  room_.publish_limit(s);
  A::store_relaxed(shared.state, s->state);
  A::store_release(shared.gen, s->gen);
}

namespace {

// What the kernel says about a socket that is not one of TCP or UDP, to a program without privilege: it
// judges the protocol before the privilege. 0: it is one.
int refusal(int domain, int type, int protocol) {
  constexpr int kProtocols = 263;  // IPPROTO_MAX
  constexpr int kTypes = 11;       // SOCK_MAX
  if (type < 0 || type >= kTypes) return EINVAL;
  if (type == SOCK_PACKET) return EPERM;
  if (protocol < 0 || protocol >= kProtocols) return EINVAL;
  const int ping = domain == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6};
  switch (type) {
    case SOCK_STREAM:
      return protocol == 0 || protocol == IPPROTO_TCP ? 0 : EPROTONOSUPPORT;
    case SOCK_DGRAM:
      if (protocol == 0 || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE) return 0;
      return protocol == ping ? EACCES : EPROTONOSUPPORT;
    case SOCK_RAW:
      return protocol == 0 ? EPROTONOSUPPORT : EPERM;
    default:
      return ESOCKTNOSUPPORT;
  }
}

}  // namespace

void Openings::new_socket(const Request& r, UniqueFd placeholder, Answer& a) {
  const auto failed = [&a](int err) {
    a.ret = -1;
    a.err = err;
  };
  const int domain = r.arg[0];
  const int type = r.arg[1] & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (domain != AF_INET && domain != AF_INET6) return failed(EAFNOSUPPORT);
  if (const int err = refusal(domain, type, r.arg[2]); err != 0) return failed(err);
  UniqueFd real{::socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, r.arg[2])};
  // Our limit of descriptors is not the application's.
  if (!real) return failed(errno == EMFILE ? ENFILE : errno);
  auto slot = allocate();
  if (!slot) return failed(ENFILE);
  const SlotRef s = *slot;
  advance();
  s->fd = real.release();
  s->ph = placeholder.release();
  s->kind = type == SOCK_STREAM ? SockKind::stream : SockKind::dgram;
  s->domain = static_cast<uint8_t>(domain);
  s->protocol = r.arg[2];
  s->state = MW_ST_OPEN;
  if (s->kind == SockKind::stream && wishes_.any()) wishes_.apply_to(s->fd);
  if (s->kind == SockKind::dgram) {
    want_control_messages(s->fd, domain);
    s->rx_limit = datagrams_ahead(s->fd);
  }
  init_shared(s);
  const mw_new_socket out{s.index, s->gen};
  std::memcpy(a.payload, &out, sizeof out);
  a.out_len = sizeof out;
  a.ret = 0;
  a.err = 0;
  telemetry_.event(MW_TEL_CREATE, s);
  // A datagram socket may receive as soon as it sends; a stream only after connect() or listen().
  hand_over(s, s->kind == SockKind::dgram);
}

void Openings::hand_over(SlotRef s, bool with_real) const {
  const uint32_t gen = s->gen;
  const int fd = s->fd;
  const int ph = s->ph;
  if (with_real) s->flags |= kRegistered;
  scope_.slots.publish(s.index);
  if ((ph < 0 || events_.watch_placeholder(s.index, gen, ph)) &&
      (!with_real || events_.watch_real(s.index, gen, fd)))
    return;
  log_line("mwins", "no memory to watch a new socket");
  scope_.give_up(s.index, gen);
}

}  // namespace mw
