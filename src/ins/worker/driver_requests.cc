#include "ins/worker/driver_requests.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "codec/socket_options.h"
#include "ins/policy/options.h"
#include "ins/worker/sock_options.h"

namespace mw {
namespace {

// The driver asks for no others.
bool may_be_asked(const InsRequest& r) {
  return r.len <= sizeof r.value &&
         (r.write != 0 ? option_is_settable(r.level, r.name) : !option_is_hidden(r.level, r.name));
}

InsReply failed(const InsRequest& r, int err) {
  InsReply reply{};
  reply.id = r.id;
  reply.status = static_cast<uint32_t>(err);
  return reply;
}

// Returns 0 or errno.
int set_value(Sock& s, const InsRequest& r) {
  return set_option(s, r.level, r.name, r.value, r.len) < 0 ? errno : 0;
}

int read_value(const Sock& s, const InsRequest& r, InsReply& reply) {
  socklen_t len = sizeof reply.value;
  if (get_option(s, r.level, r.name, reply.value, &len) < 0) return errno;
  reply.len = std::min<uint32_t>(len, sizeof reply.value);
  return 0;
}

}  // namespace

InsReply DriverRequests::execute(const InsRequest& r) {
  InsReply reply{};
  reply.id = r.id;
  switch (r.op) {
    case InsOp::option:
    case InsOp::close:
    case InsOp::look_again:
    case InsOp::min_rate:
    case InsOp::pause:
      of_one(r, reply);
      break;
    case InsOp::cut_peer:
      cut_peer(r, reply);
      break;
    case InsOp::all_option:
      option_of_all(r, reply);
      break;
    case InsOp::peer_cap:
      limits_.peer_cap(r);
      break;
    case InsOp::count_peers:
      limits_.count_peers();
      break;
    case InsOp::forget:
      limits_.forget();
      break;
    case InsOp::allow:
      limits_.allow(r);
      break;
    default:
      reply = failed(r, EINVAL);
  }
  return reply;
}

// Of one socket; a minimum rate also of all (no generation).
void DriverRequests::of_one(const InsRequest& r, InsReply& reply) {
  const SlotRef s = scope_.slots.find(r.slot);
  const bool of_all = r.op == InsOp::min_rate && r.gen == 0;
  if (!of_all && (!s || s->gen != r.gen || s->fd < 0))
    reply = failed(r, EBADF);
  else if (r.op == InsOp::min_rate)
    limits_.min_rate(of_all ? SlotRef{} : s, r, reply);
  else if (r.op == InsOp::pause)
    limits_.pause(s, r, reply);
  else if (r.op == InsOp::option)
    answer_option(s, r, reply);
  else if (r.op == InsOp::look_again)
    news_.announce(s, kNewsAll);
  else if (s->listener != nullptr)
    reply = failed(r, EOPNOTSUPP);
  else
    ending_.cut_off(s);
}

// Sets the option if the request says so, and reads it back. Returns 0 or errno.
int DriverRequests::set_and_read(SlotRef s, const InsRequest& r, InsReply& reply) {
  if (r.write != 0) {
    if (const int err = set_value(*s, r); err != 0) return err;
    options_.option_set(s, r.level, r.name);
  }
  return read_value(*s, r, reply);
}

void DriverRequests::answer_option(SlotRef s, const InsRequest& r, InsReply& reply) {
  if (!may_be_asked(r)) {
    reply = failed(r, EINVAL);
    return;
  }
  if (const int err = set_and_read(s, r, reply); err != 0) {
    reply = failed(r, err);
    return;
  }
  if (r.write != 0 && r.level == SOL_SOCKET && r.name == SO_MAX_PACING_RATE) {
    uint64_t rate = UINT64_MAX;
    std::memcpy(&rate, reply.value, std::min<size_t>(reply.len, sizeof rate));
    s->flags = rate == UINT64_MAX ? s->flags & ~kPaced : s->flags | kPaced;
  }
  // What the application may have been waiting for can be true now.
  if (r.write != 0) news_.announce(s, kNewsAll);
}

void DriverRequests::option_of_all(const InsRequest& r, InsReply& reply) {
  if (!may_be_asked(r)) {
    reply = failed(r, EINVAL);
    return;
  }
  int err = 0;
  bool any = false;
  scope_.each_socket([&](SlotRef s) {
    if (s->kind != SockKind::stream || err != 0) return;
    err = set_and_read(s, r, reply);
    any = true;
  });
  if (!any) {
    // Nothing is there to ask: one that is made for it is as good as those to come.
    const UniqueFd fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (!fd) err = errno;
    if (fd && r.write == 0) wishes_.apply_to(fd.get());
    Sock made;
    made.kind = SockKind::stream;
    made.fd = fd.get();
    if (fd && r.write != 0) err = set_value(made, r);
    if (fd && err == 0) err = read_value(made, r, reply);
  }
  if (err != 0)
    reply = failed(r, err);
  else if (r.write != 0)
    wishes_.set_option(r);
}

void DriverRequests::cut_peer(const InsRequest& r, InsReply& reply) {
  const PeerAddress peer = peer_named(r);
  wishes_.block(peer, r.write != 0);
  if (r.write == 0) return;
  uint32_t cut = 0;
  scope_.each_socket([&](SlotRef s) {
    sockaddr_storage ss{};
    socklen_t len = sizeof ss;
    auto* const name = reinterpret_cast<sockaddr*>(&ss);
    if (s->kind != SockKind::stream || s->listener != nullptr ||
        ::getpeername(s->fd, name, &len) < 0 || peer_address_of(name, len) != peer)
      return;
    ++cut;
    ending_.cut_off(s);
  });
  reply.len = sizeof cut;
  std::memcpy(reply.value, &cut, sizeof cut);
}

}  // namespace mw
