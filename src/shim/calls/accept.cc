// accept.cc - taking connections from a listener's queue, and closing them (docs/protocol.md 3).
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>

#include <algorithm>

#include "base/received_fds.h"
#include "shim/calls/loopback_order.h"
#include "shim/calls/socket_calls.h"
#include "shim/socket/call_cells.h"
#include "shim/socket/from_stack.h"
#include "shim/socket/news.h"
#include "shim/socket/stock.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// Accepts that may go on before has_room_to_accept() looks again.
uint32_t accepts_in_stock = 0;

// True if a descriptor is free. A record that came without one would lose its connection, so we
// look before we take it: at every accept when the limit is near, else once in a while.
bool has_room_to_accept(const Sock& s) {
  if (accepts_in_stock != 0) {
    --accepts_in_stock;
    return true;
  }
  constexpr uint32_t kStock = 32;
  int lowest = libc.fcntl(s.fd, F_DUPFD_CLOEXEC, 0);
  if (lowest < 0 && errno == EMFILE && stock_size() != 0) {
    stock_clear();
    lowest = libc.fcntl(s.fd, F_DUPFD_CLOEXEC, 0);
  }
  if (lowest < 0) return false;
  libc.close(lowest);
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > 256 &&
      static_cast<rlim_t>(lowest) + 4 * kStock < limit.rlim_cur)
    accepts_in_stock = kStock;
  return true;
}

// One message of a listener's queue. Returns its bytes or -errno; `fd` is the descriptor that came
// along, or -1.
ssize_t take_record(const Sock& s, mw_accept_record& record, int flags, int* fd) {
  MessageRoom<4> room(&record, sizeof record);
  msghdr& m = room.message;
  *fd = -1;
  const ssize_t n = libc.recvmsg(s.fd, &m, flags);
  if (n < 0) return -errno;
  each_passed_fd(m, [fd](int got) {
    if (*fd < 0)
      *fd = got;
    else
      libc.close(got);
  });
  return n;
}

bool is_possible(const Stack& stack, const mw_accept_record& r) {
  const mw_geometry& g = stack.geometry();
  const uint32_t number_and_1 = r.flags >> MW_ACCEPT_PLACEHOLDER_SHIFT;
  return r.magic == MW_ACCEPT_MAGIC && r.slot < g.slots && number_and_1 <= g.slots &&
         (number_and_1 == 0) == ((r.flags & MW_ACCEPT_BARE) != 0);
}

// The same, of a record that this listener's program is to see.
bool is_possible(const Sock& listener, const mw_accept_record& r) {
  return is_possible(listener.stack, r) &&
         ((r.flags & MW_ACCEPT_ASK) != 0 ||
          are_addresses_of(listener.mine.domain, r.local, r.peer));
}

// 1 + the number of the placeholder that the connection was claimed with; 0 if there is none.
uint32_t claimed_with(const Sock& s) {
  const uint64_t claim = A::load_relaxed(s.slot.claim);
  const auto low = static_cast<uint32_t>(claim);
  return claim >> 32 == s.gen && low <= s.stack.geometry().slots ? low : 0;
}

// The number of the socket that the record is about: it has the INS's, and its listener's stack.
uint32_t number_of(const Sock& listener, const mw_accept_record& r) {
  return listener.stack.number_of(r.slot);
}

// Makes a connection that came from the queue ours, or drops it. False: another process was first,
// and it is gone.
bool claim(const Sock& listener, const mw_accept_record& r, uint32_t whose) {
  uint64_t nobody = mw_claim(r.gen, MW_CLAIM_NOBODY);
  return std::atomic_ref(listener.stack.slot(number_of(listener, r)).claim)
      .compare_exchange_strong(nobody, mw_claim(r.gen, whose));
}

// False: its listener, or its INS, is gone, and so is the connection.
bool is_waiting(const Sock& listener, const mw_accept_record& r) {
  return A::load_relaxed(listener.stack.slot(number_of(listener, r)).claim) ==
         mw_claim(r.gen, MW_CLAIM_NOBODY);
}

// A connection that came without a placeholder whose end would tell the INS.
void drop_bare(const Sock& listener, const mw_accept_record& r) {
  if (!is_possible(listener.stack, r) || (r.flags & MW_ACCEPT_ASK) != 0 ||
      !has_slot(number_of(listener, r)) || !claim(listener, r, MW_CLAIM_DROPPED))
    return;
  const Sock s = sock_of(-1, number_of(listener, r), r.gen);
  A::store_release(s.slot.closed, r.gen);
  announce(s);
}

// A placeholder for a connection.
struct Place {
  int fd = -1;
  uint32_t number = 0;
};

int new_place(const Sock& listener, const mw_accept_record& r, int flags, Place& out) {
  int pair[2];
  CallRequest request;
  if (const int rc = open_placeholder(flags, pair, request); rc < 0) return rc;
  request.op = MW_OP_PLACEHOLDER;
  request.slot = number_of(listener, r);
  request.gen = r.gen;
  mw_new_socket made{};
  const CallAnswer a = call(request, &made, sizeof made);
  if (pair[1] >= 0) libc.close(pair[1]);
  if (a.ret >= 0 && a.len == sizeof made && made.slot < listener.stack.geometry().slots) {
    out = {pair[0], listener.stack.number_of(made.slot)};
    return 0;
  }
  libc.close(pair[0]);
  if (a.ret < 0) return -a.err;
  poison(listener.stack, "answer to placeholder");
  return -ECONNABORTED;
}

// flags: SOCK_CLOEXEC, SOCK_NONBLOCK.
int place_from_stock(const Stocked& kept, int flags, Place& out) {
  const bool nonblocking = (flags & SOCK_NONBLOCK) != 0;
  const int command = (flags & SOCK_CLOEXEC) != 0 ? F_DUPFD_CLOEXEC : F_DUPFD;
  const int fd = libc.fcntl(kept.fd, command, 0);
  if (fd < 0) {
    const int error = errno;
    stock_put(kept);
    return -error;
  }
  unhide_and_close(kept.fd);
  // Copied meanwhile: another process has it too, and nobody would see this one close it.
  if (!stock_is_usable(kept)) {
    libc.close(fd);
    return -EAGAIN;
  }
  if (kept.nonblocking != nonblocking) libc.fcntl(fd, F_SETFL, nonblocking ? O_NONBLOCK : 0);
  char tokens[64];
  if (kept.may_have_tokens)
    while (libc.recv(fd, tokens, sizeof tokens, MSG_DONTWAIT) > 0) {
    }
  out = {fd, kept.number};
  return 0;
}

// Finds a placeholder for a connection whose record came without one. 0 or -errno.
int place_bare(const Sock& listener, const mw_accept_record& r, int flags, Place& out) {
  Stocked kept;
  int rc = -EAGAIN;
  if (stock_take(number_of(listener, r), kept)) rc = place_from_stock(kept, flags, out);
  if (rc == -EAGAIN) rc = new_place(listener, r, flags, out);
  if (rc == 0 && !has_slot(out.number)) {
    libc.close(out.fd);
    rc = -ENOMEM;
  }
  if (rc < 0)
    drop_bare(listener, r);
  else
    A::store_release(listener.stack.slot(out.number).bound, r.slot + 1);
  return rc;
}

// One message of the queue; blocks until there is one, or until the deadline (0: none). Bytes or
// -errno. Blocking, waking one of several processes, EAGAIN for the losers and signals are the
// kernel's: the queue of accepted connections is this descriptor's own.
ssize_t await_record(const Sock& s, mw_accept_record& record, int flags, int64_t deadline,
                     int* fd) {
  ssize_t n = take_record(s, record, flags | MSG_DONTWAIT, fd);
  if (n != -EAGAIN || s.nonblocking()) return n;
  release_held();
  Waiting waiting(s);
  waiting.count();
  if (deadline == 0) return take_record(s, record, flags, fd);
  do {
    const int64_t left = std::max<int64_t>(0, deadline - monotonic_ns());
    pollfd p{s.fd, POLLIN, 0};
    if (libc.poll(&p, 1, static_cast<int>((left + 999'999) / 1'000'000)) < 0) return -errno;
    if (!is_still_there(s)) return wait_out(deadline);
    n = take_record(s, record, flags | MSG_DONTWAIT, fd);  // another process may have been faster
  } while (n == -EAGAIN && monotonic_ns() < deadline);
  return n;
}

// The next accepted connection's record; *fd is its placeholder, or -1. 0 or -errno.
int next_accepted(const Sock& s, mw_accept_record& record, int flags, int* fd) {
  const int64_t deadline = s.nonblocking() ? 0 : deadline_after_us(s.mine.rcvtimeo_us);
  constexpr int kMostTokens = 1000;
  for (int tokens = 0; tokens < kMostTokens; ++tokens) {
    const ssize_t n = await_record(s, record, flags, deadline, fd);
    if (n < 0) return static_cast<int>(n);
    if (n == 0) return -EINVAL;  // the session is over
    if (n == sizeof record && record.gen != 0) {
      const bool bare = (record.flags & MW_ACCEPT_BARE) != 0;
      if (is_possible(s, record) && bare == (*fd < 0)) {
        if (has_slot(number_of(s, record))) return 0;
        if (*fd >= 0) libc.close(*fd);  // the INS resets it, as it does a bare one
        return -ENOMEM;
      }
      if (is_possible(s, record) && !bare) return -EMFILE;
    }
    if (*fd >= 0) libc.close(*fd);
    if (n != sizeof record || *fd >= 0 || record.gen != 0) break;
    if ((A::load_relaxed(s.mine.flags) & kSlotListener) == 0) {
      pass_on_end(s);
      return -EINVAL;
    }
    // A token from before it became a listener again.
  }
  if (!is_still_there(s)) return -EBADF;
  poison(s.stack, "accept record");
  return -ECONNABORTED;
}

// Fetches the connection that waits with the INS. 0, -EAGAIN (it has gone) or -errno.
int fetch_asked(const Sock& s, mw_accept_record& record) {
  const CallRequest r = about(s, MW_OP_ACCEPT);
  const CallAnswer a = call(r, &record, sizeof record);
  if (a.ret < 0) return a.err == EINVAL ? -EINVAL : -EAGAIN;
  constexpr uint32_t kKind = MW_ACCEPT_BARE | MW_ACCEPT_ASK;
  if (a.len == sizeof record && is_possible(s, record) && record.gen != 0 &&
      (record.flags & kKind) == MW_ACCEPT_BARE)
    return has_slot(number_of(s, record)) ? 0 : -ENOMEM;  // the INS revokes what nobody claims
  poison(s.stack, "accept record");
  return -ECONNABORTED;
}

// Takes connections from the queue until one is ours. 0 or -errno.
int accept_claimed(const Sock& s, mw_accept_record& record, int flags, Place& out) {
  constexpr int kMostLost = 1000;
  for (int lost = 0; lost < kMostLost; ++lost) {
    int rc = next_accepted(s, record, (flags & SOCK_CLOEXEC) != 0 ? MSG_CMSG_CLOEXEC : 0, &out.fd);
    if (rc < 0) return rc;
    if (out.fd < 0) {
      if ((record.flags & MW_ACCEPT_ASK) != 0) {
        rc = fetch_asked(s, record);
        if (rc == -EAGAIN && is_still_there(s)) continue;
        if (rc < 0) return rc == -EAGAIN ? -EBADF : rc;
      }
      if (!is_waiting(s, record)) {
        if (!is_still_there(s)) return -EBADF;
        continue;
      }
      rc = place_bare(s, record, flags, out);
      if (rc < 0) return rc;
    } else {
      out.number = s.stack.number_of((record.flags >> MW_ACCEPT_PLACEHOLDER_SHIFT) - 1);
      const uint32_t wish = (flags & SOCK_NONBLOCK) != 0 ? MW_ACCEPT_NONBLOCK : 0;
      if ((record.flags & MW_ACCEPT_NONBLOCK) != wish)
        libc.fcntl(out.fd, F_SETFL, wish != 0 ? O_NONBLOCK : 0);
    }
    if (claim(s, record, s.stack.place_of(out.number) + 1)) return 0;
    libc.close(out.fd);
    if (!is_still_there(s)) return -EBADF;
  }
  poison(s.stack, "accept record");
  return -ECONNABORTED;
}

}  // namespace

void pass_on_end(const Sock& s) {
  arm(s, POLLIN);
  announce(s);
}

void empty_queue(const Sock& s) {
  A::fetch_and(s.slot.want, ~MW_WANT_TOKEN_IN);
  mw_accept_record record{};
  int fd = -1;
  for (;;) {
    const ssize_t n = take_record(s, record, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, &fd);
    if (n <= 0) return;
    if (fd >= 0)
      libc.close(fd);
    else if (n == sizeof record && record.gen != 0)
      drop_bare(s, record);
  }
}

int sock_accept(const Sock& s, sockaddr* a, socklen_t* len, int flags) {
  if ((flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) != 0) return -EINVAL;
  if (s.datagram()) return -EOPNOTSUPP;
  if ((A::load_relaxed(s.mine.flags) & kSlotListener) == 0) return -EINVAL;
  if (!has_room_to_accept(s)) return -EMFILE;
  settle();
  uint32_t wish = (flags & SOCK_NONBLOCK) != 0 ? MW_ACCEPT_NONBLOCK : 0;
  if (stock_size() != 0 && !process.confined) wish |= MW_ACCEPT_BARE;
  if (A::load_relaxed(s.slot.accept_flags) != wish) A::store_relaxed(s.slot.accept_flags, wish);

  const uint32_t then = descriptor_copies();
  mw_accept_record record{};
  Place place;
  if (const int rc = accept_claimed(s, record, flags, place); rc < 0) return rc;
  const uint32_t number = number_of(s, record);
  if (const int rc =
          adopt_socket(place.fd, number, record.gen, s.mine.domain, s.mine.type, s.mine.protocol,
                       ((flags & SOCK_NONBLOCK) != 0 ? kSlotNonblock : 0) |
                           (A::load_relaxed(s.mine.flags) & (kSlotResets | kSlotInq)),
                       then);
      rc < 0) {
    libc.close(place.fd);
    return rc;
  }
  SessionSlot& mine = process.session.slot(number);
  mine.local = record.local;
  mine.rcvlowat = s.mine.rcvlowat;
  mine.linger_s = s.mine.linger_s;
  mine.rcvtimeo_us = s.mine.rcvtimeo_us;  // inherited, as in the kernel
  mine.sndtimeo_us = s.mine.sndtimeo_us;
  mine.sndbuf = s.mine.sndbuf;
  if (a == nullptr) return place.fd;
  // The kernel takes the connection first, and drops it if its name cannot be told.
  if (const int rc = give_name(record.peer.bytes, record.peer.len, a, len); rc < 0) {
    sock_close(place.fd, {Kind::socket, number, record.gen});
    return rc;
  }
  return place.fd;
}

namespace {

// True if this descriptor is the only one of the connection, anywhere, and its placeholder is as
// good as new.
bool can_be_kept(const Sock& s) {
  return !is_dead(s) && references(s.index, s.gen) == 1 && is_nobody_elses(s.index) &&
         (A::load_relaxed(s.mine.flags) & (kSlotOdd | kSlotListener)) == 0 && !process.confined;
}

}  // namespace

int sock_close(int fd, const Entry& e) {
  const Sock s = sock_of(fd, e);
  Stocked kept;
  // Before anything that would let another connection have the slot.
  kept.then = descriptor_copies();
  kept.first_gen = s.stack.first_gen();
  const uint32_t claimed = claimed_with(s);
  const uint32_t flags = A::load_relaxed(s.mine.flags);
  const AwaitedClose awaited = prepare_close(s);
  if (held_slot == s.index + 1) {
    // The last close sends what is held back; another descriptor's owner may not know of it.
    if (references(s.index, s.gen) == 1 && is_nobody_elses(s.index))
      held_slot = 0;
    else
      announce_held(s);
  }
  if (claimed != 0 && can_be_kept(s)) {
    kept.number = s.stack.number_of(claimed - 1);
    kept.nonblocking = (flags & kSlotNonblock) != 0;
    kept.may_have_tokens = (flags & kSlotArmed) != 0;
    const int saved = errno;
    epoll_last_close(fd, e);
    // Of two threads that close it one is first. A copy that began after we looked has left a
    // witness instead of taking the registrations away. Who sleeps on the placeholder would take
    // the next connection's tokens; who is about to sees that the entry is gone (Waiting::begin_turn()).
    if (take_entry(fd, e) && is_nobody_elses(s.index) && taker_of(A::load_seq(s.mine.taker)) == 0)
      kept.fd = hidden_copy(fd);
    errno = saved;
  } else {
    forget(fd);
  }
  const int rc = libc.close(fd);
  if (kept.fd >= 0) {
    A::store_release(s.slot.closed, s.gen);
    if (!awaited.is_due) announce(s);
  }
  if (awaited.is_due && rc == 0) await_close(s, awaited);
  if (kept.fd >= 0) stock_put(kept);
  return rc;
}

}  // namespace mw::shim
