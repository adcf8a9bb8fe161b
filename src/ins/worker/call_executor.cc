#include "ins/worker/call_executor.h"

#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "codec/socket_ioctl.h"
#include "codec/socket_options.h"
#include "ins/policy/options.h"
#include "ins/worker/sock_options.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

void result(Answer& a, int ret) {
  a.ret = ret;
  a.err = ret < 0 ? errno : 0;
}
void failure(Answer& a, int err) {
  a.ret = -1;
  a.err = err;
}

const sockaddr* address_of(const Request& r) {
  return reinterpret_cast<const sockaddr*>(r.payload);
}

// The call failed because another socket has the address.
bool is_taken(const Request& r, const Answer& a) {
  if (a.ret >= 0) return false;
  if (r.op == MW_OP_CONNECT && a.err == EADDRNOTAVAIL) return true;
  return a.err == EADDRINUSE &&
         (r.op == MW_OP_BIND || r.op == MW_OP_LISTEN || r.op == MW_OP_CONNECT);
}

// The lists of multicast sources: the kernel writes as many entries as their own count asks for,
// whatever length it is told.
struct SourceList {
  uint32_t count_at = 0;  // 0: it is none
  uint32_t head = 0;
  uint32_t entry = 0;
};

SourceList source_list(int level, int name) {
  if (level == IPPROTO_IP && name == IP_MSFILTER)
    return {offsetof(ip_msfilter, imsf_numsrc), IP_MSFILTER_SIZE(0), sizeof(in_addr)};
  if ((level == IPPROTO_IP || level == IPPROTO_IPV6) && name == MCAST_MSFILTER)
    return {offsetof(group_filter, gf_numsrc), GROUP_FILTER_SIZE(0), sizeof(sockaddr_storage)};
  return {};
}

// The time at which bytes came does not travel with them.
bool wants_stream_stamps(int name, const Request& r) {
  uint32_t value = 0;
  std::memcpy(&value, r.payload, std::min<size_t>(r.in_len, sizeof value));
  switch (name) {
    case SO_TIMESTAMP_OLD:
    case SO_TIMESTAMP_NEW:
    case SO_TIMESTAMPNS_OLD:
    case SO_TIMESTAMPNS_NEW:
      return r.in_len >= sizeof value && value != 0;
    case SO_TIMESTAMPING_OLD:
    case SO_TIMESTAMPING_NEW:
      return r.in_len >= sizeof value &&
             (value & (SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_RX_HARDWARE)) != 0;
    default:
      return false;
  }
}

uint32_t count_in(const uint8_t* payload, const SourceList& list) {
  uint32_t count = 0;
  std::memcpy(&count, payload + list.count_at, sizeof count);
  return count;
}

void call_getsockopt(Sock& s, const Request& r, Answer& a) {
  const int level = r.arg[0];
  const int name = r.arg[1];
  if (option_is_hidden(level, name)) return failure(a, ENOPROTOOPT);
  if (r.arg[2] < 0) return failure(a, EINVAL);
  socklen_t len = std::min<uint32_t>(static_cast<uint32_t>(r.arg[2]), MW_CALL_PAYLOAD);
  // Some options read what they then answer. What the PVM did not send is no memory of ours.
  std::memset(a.payload, 0, len);
  std::memcpy(a.payload, r.payload, std::min<uint32_t>(r.in_len, len));
  const SourceList list = source_list(level, name);
  const uint32_t wanted = list.count_at == 0 ? 0 : count_in(a.payload, list);
  uint32_t fits = 0;
  if (list.count_at != 0) {
    fits = std::min<uint32_t>(wanted, (MW_CALL_PAYLOAD - list.head) / list.entry);
    std::memcpy(a.payload + list.count_at, &fits, sizeof fits);
  }
  result(a, get_option(s, level, name, a.payload, &len));
  if (a.ret < 0) return;
  if (fits < wanted && count_in(a.payload, list) > fits) return failure(a, ENOPROTOOPT);
  a.out_len = std::min<uint32_t>(len, MW_CALL_PAYLOAD);
}

void call_name(Sock& s, bool peer, Answer& a) {
  sockaddr_storage ss{};
  socklen_t len = sizeof ss;
  auto* out = reinterpret_cast<sockaddr*>(&ss);
  result(a, peer ? ::getpeername(s.fd, out, &len) : ::getsockname(s.fd, out, &len));
  if (a.ret < 0) return;
  a.out_len = std::min<uint32_t>(len, sizeof ss);
  std::memcpy(a.payload, &ss, a.out_len);
}

// The list may be longer than an answer: the caller asks for it piece by piece.
void call_gifconf(Sock& s, const Request& r, Answer& a) {
  constexpr int kMostBytes = 1024 * static_cast<int>(sizeof(ifreq));
  const auto offset = static_cast<uint32_t>(r.arg[1]);
  std::vector<uint8_t> list(static_cast<size_t>(std::clamp(r.arg[2], 0, kMostBytes)));
  ifconf all{};
  all.ifc_len = static_cast<int>(list.size());
  all.ifc_buf = r.arg[3] != 0 ? reinterpret_cast<char*>(list.data()) : nullptr;
  // Without room the kernel would take the missing pointer for the question how much is needed.
  if (r.arg[3] != 0 && list.empty()) return;
  result(a, ::ioctl(s.fd, SIOCGIFCONF, &all));
  if (a.ret < 0) return;
  if (r.arg[3] == 0) {
    std::memcpy(a.payload, &all.ifc_len, sizeof all.ifc_len);
    a.out_len = sizeof all.ifc_len;
    return;
  }
  const auto bytes = static_cast<uint32_t>(std::max(all.ifc_len, 0));
  if (offset >= bytes) return;
  constexpr uint32_t kPiece = MW_CALL_PAYLOAD / sizeof(ifreq) * sizeof(ifreq);
  a.out_len = std::min(bytes - offset, kPiece);
  std::memcpy(a.payload, list.data() + offset, a.out_len);
}

void call_ethtool(Sock& s, const Request& r, Answer& a) {
  uint32_t command = 0;
  if (r.in_len < kIfNameBytes + sizeof command) return failure(a, EFAULT);
  std::memcpy(&command, r.payload + kIfNameBytes, sizeof command);
  ifreq device{};
  std::memcpy(device.ifr_name, r.payload, IFNAMSIZ - 1);
  const uint32_t bytes = ethtool_bytes(command);
  if (bytes == 0) {
    result(a, ::ioctl(s.fd, SIOCGIFINDEX, &device));
    return a.ret < 0 ? void() : failure(a, EOPNOTSUPP);
  }
  alignas(uint64_t) uint8_t answer[256] = {};
  std::memcpy(answer, &command, sizeof command);
  device.ifr_data = reinterpret_cast<char*>(answer);
  result(a, ::ioctl(s.fd, SIOCETHTOOL, &device));
  if (a.ret < 0) return;
  a.ret = 0;
  a.out_len = bytes;
  std::memcpy(a.payload, answer, bytes);
}

}  // namespace

void CallExecutor::on_call(uint32_t call) {
  Request& r = request_;
  auto begun = use_.ins.calls.begin(call, r);
  if (!begun) return use_.scope.fault(begun.error());
  if (!*begun) return;
  const Status sound = check_request(r, ch_.geometry(), use_.scope.index);
  if (!sound) return use_.scope.fault(sound.error());
  if (mw_is_lookup(r.op)) {
    ControlNote note(ControlNote::Kind::resolve);
    note.request = std::make_unique<Request>(r);
    note.call = call;
    return use_.ins.to_control.post(std::move(note));
  }
  serve(call, false);
}

// Executes request_. `again`: it was set aside before.
void CallExecutor::serve(uint32_t call, bool again) {
  const Request& r = request_;
  Answer& a = answer_;
  a.ret = 0;
  a.err = 0;
  a.out_len = 0;
  // Named by an accept record already, while the worker that accepted it still hands it over.
  while (use_.scope.slots.is_being_made(r.slot, r.gen)) ::sched_yield();
  const SlotRef s = use_.scope.slots.find(r.slot);
  if (!s || s->gen != r.gen || s->fd < 0)
    failure(a, ECONNRESET);
  else if ((s->flags & kLingering) != 0)
    failure(a, r.op == MW_OP_CLOSED ? EINPROGRESS : ECONNRESET);
  else
    execute(s, r, a);
  if (use_.ins.poisoned.load(std::memory_order_relaxed) != nullptr) return;
  if (!again && is_taken(r, a)) return set_aside(call);
  use_.ins.calls.answer(call, r.seq, a);
}

// The socket that has the address may be closed already, by a close() or the end of a process: the
// kernel frees an address before these return, and here the news of it may still be on its way to
// one of the workers. So they all look, and then the call is tried once more.
void CallExecutor::set_aside(uint32_t call) {
  const uint32_t workers = ch_.geometry().workers;
  late_.push_back({call, workers - 1, std::make_unique<Request>(request_)});
  for (uint32_t w = 0; w < workers; ++w) {
    if (w == use_.scope.index) continue;
    WorkerNote note(WorkerNote::Kind::look, use_.scope.index);
    note.gen = call;
    use_.ins.to_worker[w]->post(std::move(note));
  }
}

void CallExecutor::looked(uint32_t call) {
  for (LateCall& late : late_)
    if (late.call == call && late.looks_due != 0) --late.looks_due;
}

void CallExecutor::retry_late() {
  for (size_t k = 0; k < late_.size();) {
    if (late_[k].looks_due != 0) {
      ++k;
      continue;
    }
    const LateCall late = std::move(late_[k]);
    late_.erase(late_.begin() + static_cast<std::ptrdiff_t>(k));
    request_ = *late.request;
    serve(late.call, true);
  }
}

void CallExecutor::execute(SlotRef s, const Request& r, Answer& a) {
  int value = 0;
  std::memcpy(&value, r.payload, sizeof value);
  const bool corks =
      r.op == MW_OP_SETSOCKOPT && r.arg[0] == IPPROTO_TCP && r.arg[1] == TCP_CORK && value != 0;
  // The bytes that the shim held back belong under the cork.
  if (corks) call_setsockopt(s, r, a);
  // Calls and bytes keep their order.
  if (s->kind == SockKind::stream && s->listener == nullptr && (s->flags & kTxBlocked) == 0) {
    const bool fin = r.op == MW_OP_SHUTDOWN && r.arg[0] != SHUT_RD;
    const uint32_t news = use_.streams.send(s, fin ? MSG_MORE : 0, fin || corks);
    if (news != 0) use_.news.announce(s, news);
  }
  // What the application has taken by now counts.
  if (s->listener != nullptr && s->listener->is_cut()) use_.acceptor.accept_some(s);
  switch (r.op) {
    case MW_OP_BIND:
      return call_bind(s, r, a);
    case MW_OP_LISTEN:
      return call_listen(s, r, a);
    case MW_OP_CONNECT:
      return call_connect(s, r, a);
    case MW_OP_SHUTDOWN:
      return call_shutdown(s, r, a);
    case MW_OP_GETSOCKOPT:
      return call_getsockopt(*s, r, a);
    case MW_OP_SETSOCKOPT:
      return call_setsockopt(s, r, a);
    case MW_OP_GETSOCKNAME:
      return call_name(*s, false, a);
    case MW_OP_GETPEERNAME:
      return call_name(*s, true, a);
    case MW_OP_IOCTL:
      return call_ioctl(s, r, a);
    case MW_OP_SENDMSG:
      return call_sendmsg(s, r, a);
    case MW_OP_RECVMSG:
      return call_recvmsg(s, r, a);
    case MW_OP_CLOSED:
      return call_closed(s, a);
    case MW_OP_ACCEPT:
      return use_.acceptor.call_accept(s, a);
    default:
      return failure(a, ENOSYS);
  }
}

void CallExecutor::call_bind(SlotRef s, const Request& r, Answer& a) {
  result(a, ::bind(s->fd, address_of(r), r.in_len));
  if (a.ret == 0) use_.telemetry.event(MW_TEL_BIND, s);
}

void CallExecutor::call_listen(SlotRef s, const Request& r, Answer& a) {
  result(a, ::listen(s->fd, r.arg[0]));
  if (a.ret != 0) return;
  if (reuse_address(s->fd)) s->flags |= kHidesReuse;
  use_.placeholders.keep(s);
  use_.acceptor.start(s, r.arg[0]);
}

void CallExecutor::call_connect(SlotRef s, const Request& r, Answer& a) {
  const bool unspec = r.in_len >= sizeof(sa_family_t) && address_of(r)->sa_family == AF_UNSPEC;
  do {
    result(a, ::connect(s->fd, address_of(r), r.in_len));
  } while (a.ret < 0 && a.err == EINTR);
  if (s->kind == SockKind::stream) {
    s->loopback = loopback_target(address_of(r), r.in_len);
    if (a.ret < 0 && a.err == ECONNREFUSED) use_.ins.loopback_hint.refused(false, s->loopback);
  }
  if (a.ret == 0 || a.err == EINPROGRESS) {
    note_connect(s, a.ret == 0 && !unspec, unspec);
    use_.telemetry.connecting(MW_TEL_CONNECT, s, address_of(r), r.in_len);
  } else if (a.err == ECONNREFUSED && s->kind == SockKind::stream) {
    // By a peer that is so near that its answer was there before the call returned.
    s->conn = MW_CONN_PEER_RST;
    use_.telemetry.connecting(MW_TEL_TOTALS, s, address_of(r), r.in_len);
  }
  if (s->kind == SockKind::dgram) {
    if (a.ret == 0)
      use_.news.set_state(s, unspec ? s->state & ~MW_ST_CONNECTED : s->state | MW_ST_CONNECTED);
    return;
  }
  if (s->listener != nullptr) {
    // Dissolved by AF_UNSPEC, or shut down before and now on its way to be a client.
    if (!(a.ret == 0 && unspec) && (s->state & MW_ST_LISTENING) != 0) return;
    if ((s->state & MW_ST_LISTENING) != 0) use_.scope.tell(ControlNote::Kind::listener_down, s);
    use_.accepts.on_listener_end(*s->listener);
    s->listener.reset();
  }
  if (a.ret == 0 && unspec) return dissolved(s);
  const bool started = a.ret < 0 && a.err == EINPROGRESS;
  if (!started && a.ret != 0) {
    const bool closed = (s->state & MW_ST_CLOSED) != 0 && a.err != EISCONN && a.err != EALREADY;
    // The kernel's connect() made a new socket of the failed one.
    if (closed && (StreamPump::end_bits(*s) & MW_ST_RCV_SHUT) == 0)
      use_.news.set_state(s, MW_ST_OPEN);
    return;
  }
  if ((s->state & (MW_ST_CONNECTED | MW_ST_CONNECTING)) == 0) {
    s->flags &= ~(kReadDone | kToEnd | kTxBlocked | kBlockingConnect | kErrorTaken);
    s->untold = 0;
    if (started && r.arg[0] != 0) s->flags |= kBlockingConnect;
    use_.news.set_state(s, MW_ST_OPEN | (started ? MW_ST_CONNECTING : MW_ST_CONNECTED));
  }
  // After the attempt: a socket that never tried polls as hung up.
  if (!use_.events.watch_real(s)) failure(a, ENOMEM);
}

// A connect() did something: what is known of the connection is what is known of a new one.
void CallExecutor::note_connect(SlotRef s, bool established, bool dissolved) {
  if (s->kind != SockKind::stream) return;
  if (dissolved) {
    note_end(*s, MW_CONN_OUR_RST);
    use_.telemetry.changed(s);
  }
  // One that collects the outcome of an earlier one finds it known.
  if (established && (s->conn & MW_CONN_ESTABLISHED) != 0) return;
  s->conn = established ? MW_CONN_ESTABLISHED : 0;
}

// connect() with AF_UNSPEC, or shutdown() while it was connecting, made a new socket of it.
void CallExecutor::dissolved(SlotRef s) {
  s->flags &= ~(kReadDone | kToEnd | kTxBlocked | kFinPending | kOobHeld | kMarkAhead |
                kBlockingConnect | kErrorTaken);
  s->untold = 0;
  s->sampled.named = 0;
  use_.limits.stop(*s);
  // What was not sent goes to nobody.
  auto unsent = ring_ready(ch_.tx(s.index).capacity(), s->tx_head, ch_.slot(s.index).tx_tail);
  if (!unsent) return use_.scope.fault(unsent.error());
  s->tx_head += *unsent;
  A::store_release(ch_.slot(s.index).tx_head, s->tx_head);
  int pending = 0;
  socklen_t len = sizeof pending;
  if (::getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &pending, &len) == 0 && pending != 0)
    use_.news.publish_failure(s, pending, MW_ST_OPEN);
  else
    use_.news.set_state(s, MW_ST_OPEN);
  use_.news.announce(s, kNewsAll);
}

void CallExecutor::call_shutdown(SlotRef s, const Request& r, Answer& a) {
  const int how = r.arg[0];
  const bool writing = how == SHUT_WR || how == SHUT_RDWR;
  const bool connection =
      s->kind == SockKind::stream && s->listener == nullptr && (s->state & MW_ST_CONNECTED) != 0;
  if (writing && connection && use_.streams.has_unsent(s)) {
    s->flags |= kFinPending;
    // Another thread's bytes, perhaps, of which nobody may tell any more.
    if ((s->flags & kTxBlocked) == 0) use_.work.add(s);
    if (how == SHUT_RDWR) result(a, ::shutdown(s->fd, SHUT_RD));
  } else {
    result(a, ::shutdown(s->fd, how));
    if (a.ret == 0 && writing && connection) {
      note_end(*s, MW_CONN_OUR_FIN);
      use_.telemetry.changed(s);
    }
  }
  // The kernel shuts what is not connected all the same.
  const bool refused = a.ret < 0;
  if (refused && (s->kind != SockKind::dgram || a.err != ENOTCONN)) return;
  if ((s->state & MW_ST_CONNECTING) != 0 &&
      (StreamPump::end_bits(*s) & (MW_ST_CLOSED | MW_ST_RCV_SHUT)) == MW_ST_CLOSED) {
    // The kernel gave the attempt up. We say so, as the caller cannot know it from the state.
    a.payload[0] = 1;
    a.out_len = 1;
    return dissolved(s);
  }
  uint32_t state = s->state;
  if (writing) state |= MW_ST_SND_SHUT;
  if (how != SHUT_WR) state |= MW_ST_RCV_SHUT | MW_ST_EOF;
  // The kernel will say so too. Told now, it is one edge for the application, as natively.
  constexpr uint32_t kBoth = MW_ST_RCV_SHUT | MW_ST_SND_SHUT;
  if ((connection || s->kind == SockKind::dgram) && (state & kBoth) == kBoth &&
      (s->flags & kFinPending) == 0)
    state |= MW_ST_CLOSED;
  if (connection && how != SHUT_WR) {
    // What came before can still be read.
    s->untold |= state & (MW_ST_RCV_SHUT | MW_ST_EOF | MW_ST_CLOSED) & ~s->state;
    s->flags |= kToEnd;
    use_.streams.receive(s);
    state = s->state | (state & MW_ST_SND_SHUT) | ((s->flags & kToEnd) != 0 ? MW_ST_BEHIND : 0);
  }
  if (s->listener != nullptr && how != SHUT_WR) {
    state = MW_ST_OPEN;
    use_.scope.tell(ControlNote::Kind::listener_down, s);
  }
  use_.news.set_state(s, state);
  use_.news.announce(s, kNewsAll);
}

void CallExecutor::call_setsockopt(SlotRef s, const Request& r, Answer& a) {
  const int level = r.arg[0];
  const int name = r.arg[1];
  if (!option_is_settable(level, name))
    return failure(a, errno_of_unsettable(s->kind == SockKind::stream, s->domain == AF_INET6, level,
                                          name, r.in_len));
  if (s->kind == SockKind::stream && level == SOL_SOCKET && wants_stream_stamps(name, r))
    return failure(a, ENOPROTOOPT);
  result(a, set_option(*s, level, name, r.payload, r.in_len));
  if (a.ret < 0) return;
  if (level == SOL_SOCKET && name == SO_LINGER) {
    s->linger = linger_mode_of(r.payload);
  }
  if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT) s->flags |= kUserTimeout;
  use_.options.option_set(s, level, name);
  if (s->kind != SockKind::stream || (s->state & MW_ST_CONNECTED) != 0) return;
  if (r.in_len > sizeof(ReplayOption::value)) return;
  if (s->options == nullptr) s->options = std::make_unique<OptionLog>();
  OptionLog& log = *s->options;
  uint32_t at = log.count;
  for (uint32_t k = 0; k < log.count; ++k)
    if (log.options[k].level == level && log.options[k].name == name) at = k;
  if (at == kMaxReplayOptions) return;
  log.options[at] = {level, name, r.in_len, {}};
  std::memcpy(log.options[at].value, r.payload, r.in_len);
  log.count = std::max(log.count, at + 1);
  if (s->listener != nullptr) use_.acceptor.announce(s);
}

void CallExecutor::call_closed(SlotRef s, Answer& a) {
  const bool marked =
      (s->flags & kAccepted) != 0 && A::load_acquire(ch_.slot(s.index).closed) == s->gen;
  if (marked && !s->handed.load(std::memory_order_acquire)) return;
  pollfd p{use_.placeholders.end_of(s), 0, 0};
  if (!marked && (::poll(&p, 1, 0) <= 0 || (p.revents & POLLHUP) == 0)) return;
  use_.ending.last_close(s);
  if ((s->flags & kLingering) != 0) failure(a, EINPROGRESS);  // else the slot is free
}

void CallExecutor::call_ioctl(SlotRef s, const Request& r, Answer& a) {
  const auto request = static_cast<uint32_t>(r.arg[0]);
  if (request == SIOCATMARK && s->kind == SockKind::stream) {
    const int at = (s->state & MW_ST_AT_MARK) != 0 &&
                   A::load_relaxed(ch_.slot(s.index).rx_head) == s->oob_mark;
    std::memcpy(a.payload, &at, sizeof at);
    a.out_len = sizeof at;
    return;
  }
  if (request == SIOCGIFCONF) return call_gifconf(*s, r, a);
  if (request == SIOCETHTOOL) return call_ethtool(*s, r, a);
  const SocketIoctl* row = socket_ioctl(request);
  if (row == nullptr) {
    ifreq device{};
    std::memcpy(device.ifr_name, r.payload, std::min<size_t>(r.in_len, IFNAMSIZ - 1));
    const bool exists = ::ioctl(s->fd, SIOCGIFINDEX, &device) == 0;
    return failure(a, errno_of_ioctl(request, s->domain == AF_INET6, r.in_len != 0, exists));
  }
  if (r.in_len < row->in_bytes) return failure(a, EFAULT);
  uint8_t argument[kMostIoctlBytes] = {};
  std::memcpy(argument + row->in_at, r.payload, row->in_bytes);
  result(a, ::ioctl(s->fd, request, argument));
  if (a.ret < 0) return;
  a.ret = 0;
  a.out_len = row->out_bytes;
  std::memcpy(a.payload, argument + row->out_at, row->out_bytes);
}

void CallExecutor::call_sendmsg(SlotRef s, const Request& r, Answer& a) {
  if (s->kind == SockKind::dgram) return use_.datagrams.send(s, r, a);
  if ((r.flags2 & MW_SEND_TOO_LONG) != 0) return failure(a, EMSGSIZE);
  // Streams send by the ring; here comes urgent data, which has to follow every byte before it.
  if ((r.flags2 & MW_SEND_INLINE) == 0) return failure(a, EOPNOTSUPP);
  if ((s->flags & kFinPending) != 0 || (s->state & MW_ST_SND_SHUT) != 0) return failure(a, EPIPE);
  if (use_.streams.has_unsent(s)) return failure(a, EAGAIN);
  use_.datagrams.send(s, r, a);
}

void CallExecutor::call_recvmsg(SlotRef s, const Request& r, Answer& a) {
  const int flags = r.arg[0];
  const auto name_room = static_cast<uint32_t>(r.arg[1]);
  const auto control_room = static_cast<uint32_t>(r.arg[2]);
  const auto data_room = static_cast<uint32_t>(r.arg[3]);
  if ((flags & (MSG_OOB | MSG_ERRQUEUE)) == 0) return failure(a, EINVAL);
  mw_recv_head head{};
  if ((flags & MSG_OOB) != 0 && (s->flags & kOobHeld) != 0) {
    head.data_len = data_room != 0 ? 1 : 0;
    head.flags = MSG_OOB | (data_room == 0 ? MSG_TRUNC : 0);
    a.ret = static_cast<int32_t>(head.data_len);
    std::memcpy(a.payload, &head, sizeof head);
    a.payload[sizeof head] = s->oob;
    a.out_len = static_cast<uint32_t>(sizeof head) + head.data_len;
    if ((flags & MSG_PEEK) == 0) {
      s->flags &= ~kOobHeld;
      s->untold &= ~MW_ST_PRI;
      use_.news.set_state(s, s->state & ~MW_ST_PRI);
    }
    return;
  }
  uint8_t* const name = a.payload + sizeof head;
  alignas(cmsghdr) uint8_t control[MW_CALL_PAYLOAD];
  uint8_t data[MW_CALL_PAYLOAD];
  iovec iov{data, data_room};
  msghdr m{};
  m.msg_name = name_room != 0 ? name : nullptr;
  m.msg_namelen = name_room;
  m.msg_control = control_room != 0 ? control : nullptr;
  m.msg_controllen = control_room;
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  result(a, static_cast<int>(::recvmsg(s->fd, &m, flags | MSG_DONTWAIT)));
  if (a.ret < 0) {
    if ((flags & MSG_ERRQUEUE) != 0 && a.err == EAGAIN)
      use_.news.set_state(s, s->state & ~MW_ST_ERRQ);
    return;
  }
  if ((flags & MSG_ERRQUEUE) != 0) use_.datagrams.error_entry_taken(s, m);
  head.name_len = std::min<uint32_t>(m.msg_namelen, name_room);
  head.control_len = static_cast<uint32_t>(std::min<size_t>(m.msg_controllen, control_room));
  head.data_len = std::min(static_cast<uint32_t>(a.ret), data_room);
  head.flags = m.msg_flags;
  std::memcpy(a.payload, &head, sizeof head);
  std::memcpy(name + head.name_len, control, head.control_len);
  std::memcpy(name + head.name_len + head.control_len, data, head.data_len);
  a.out_len = static_cast<uint32_t>(sizeof head) + head.name_len + head.control_len + head.data_len;
}

}  // namespace mw
