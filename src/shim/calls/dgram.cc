// dgram.cc - datagrams and everything else that travels as whole messages: records of the receive
// ring, sends as calls (so that errno is the kernel's), urgent data and error queues.
#include <errno.h>
#include <limits.h>

#include <algorithm>
#include <cstring>

#include "shim/calls/ancillary.h"
#include "shim/calls/loopback_order.h"
#include "shim/calls/socket_calls.h"
#include "shim/process/user_memory.h"
#include "shim/socket/call_cells.h"
#include "shim/socket/from_stack.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

struct Record {
  mw_dgram_head head;
  uint32_t at;     // ring index of the control bytes
  uint32_t bytes;  // of the whole record
};

// Under rx_lock: the oldest record. Returns 1, 0 if there is none, -ECONNRESET if the INS lied, or
// -ENOMEM.
int oldest(const Sock& s, Record& r) {
  const uint32_t capacity = s.stack.geometry().rx_ring;
  const uint32_t head = s.mine.rx_head;
  auto ready = ring_ready(capacity, head, s.slot.rx_tail);
  const char* lie = "datagram record";
  if (ready && *ready == 0) return 0;
  if (ready && *ready >= sizeof r.head) {
    const RingBytes ring = s.stack.rx(s.index);
    if (!ring.is_there()) return -ENOMEM;
    ring.copy_out(head, &r.head, sizeof r.head);
    const uint64_t bytes = mw_dgram_bytes(r.head.control_len, r.head.data_len);
    if (is_name_of(s, r.head.name, &r.head.name_len) && bytes <= *ready) {
      r.at = head + static_cast<uint32_t>(sizeof r.head);
      r.bytes = static_cast<uint32_t>(bytes);
      return 1;
    }
  } else if (!ready) {
    lie = ready.error().where;
  }
  return broken_window(s, lie);
}

size_t scatter(const RingBytes& ring, uint32_t at, uint32_t n, const iovec* iov, size_t count) {
  size_t done = 0;
  for (size_t i = 0; i < count && done < n; ++i) {
    const auto k = static_cast<uint32_t>(std::min<size_t>(iov[i].iov_len, n - done));
    ring.copy_out(at + static_cast<uint32_t>(done), iov[i].iov_base, k);
    done += k;
  }
  return done;
}

// Whether all that deliver() and the copy of the data write to is the program's to be written.
bool has_room(const msghdr& m, const mw_dgram_head& h, size_t control) {
  size_t left = h.data_len;
  for (size_t i = 0; i < m.msg_iovlen && left != 0; ++i) {
    const size_t n = std::min(m.msg_iov[i].iov_len, left);
    if (!is_room(m.msg_iov[i].iov_base, n)) return false;
    left -= n;
  }
  return (m.msg_name == nullptr ||
          is_room(m.msg_name, std::min<size_t>(m.msg_namelen, h.name_len))) &&
         is_room(m.msg_control, control);
}

// The control messages of one message, before they go to the program.
struct Control {
  static constexpr size_t kMost = 1024;
  size_t used = 0;
  int flags = 0;
  alignas(cmsghdr) char bytes[kMost];

  // Those that the program is to have, of the `len` bytes at `from`. False: the INS lied.
  bool choose(const Sock& s, const msghdr& m, const char* from, uint32_t len, uint32_t told) {
    used = m.msg_control != nullptr ? std::min(m.msg_controllen, kMost) : 0;
    flags = give_control(s, from, len, (told & MSG_CTRUNC) != 0, bytes, &used);
    return flags >= 0;
  }
};

// Delivers a message as recvmsg() does, but for its data.
ssize_t deliver(const mw_dgram_head& h, msghdr* m, int flags, size_t copied,
                const Control& control) {
  int out_flags = h.flags & (MSG_TRUNC | MSG_CTRUNC | MSG_ERRQUEUE | MSG_OOB | MSG_EOR);
  if (copied < h.data_len) out_flags |= MSG_TRUNC;
  if (m->msg_name != nullptr) {
    std::memcpy(m->msg_name, h.name, std::min<size_t>(m->msg_namelen, h.name_len));
    m->msg_namelen = h.name_len;
  }
  if (control.used != 0) std::memcpy(m->msg_control, control.bytes, control.used);
  m->msg_controllen = control.used;
  m->msg_flags =
      out_flags | control.flags | ((flags & MSG_CMSG_CLOEXEC) != 0 ? MSG_CMSG_CLOEXEC : 0);
  return static_cast<ssize_t>((flags & MSG_TRUNC) != 0 ? h.data_len : copied);
}

}  // namespace

uint32_t first_datagram_bytes(const Sock& s) {
  SharedLock lock(s.mine.rx_lock);
  Record r;
  return oldest(s, r) == 1 ? r.head.data_len : 0;
}

ssize_t dgram_recv(const Sock& s, msghdr* m, int flags) {
  if (m->msg_iovlen > IOV_MAX) return -EMSGSIZE;
  if (!is_buffer(m->msg_iov, m->msg_iovlen * sizeof *m->msg_iov)) return -EFAULT;
  const bool blocking = (flags & MSG_DONTWAIT) == 0 && !s.nonblocking();
  Timeout timeout(s.mine.rcvtimeo_us);
  if (!blocking) settle();
  for (;;) {
    if (is_dead(s) && blocking && timeout.deadline() != 0 && is_closed_under(s))
      return wait_out(timeout.deadline());
    if (const int error = take_error(s); error != 0) return -error;
    if (is_dead(s)) return -ECONNRESET;
    {
      SharedLock lock(s.mine.rx_lock);
      Record r;
      const int there = oldest(s, r);
      if (there < 0) return there;
      if (there == 1) {
        const RingBytes ring = s.stack.rx(s.index);
        // A datagram that the program has no memory for is lost, as in the kernel.
        ssize_t n = -EFAULT;
        Control control;
        const bool wanted = wants_control(s);
        char raw[Control::kMost];
        const uint32_t raw_len = wanted ? std::min<uint32_t>(r.head.control_len, sizeof raw) : 0;
        if (raw_len != 0) ring.copy_out(r.at, raw, raw_len);
        if (wanted && !control.choose(s, *m, raw, raw_len, r.head.flags))
          return broken_window(s, "control message");
        note_stamp(s, raw, raw_len);
        if (has_room(*m, r.head, control.used)) {
          const size_t copied =
              scatter(ring, r.at + r.head.control_len, r.head.data_len, m->msg_iov, m->msg_iovlen);
          n = deliver(r.head, m, flags, copied, control);
        }
        if ((flags & MSG_PEEK) == 0) {
          A::store_relaxed(s.mine.rx_head, s.mine.rx_head + r.bytes);
          A::store_release(s.slot.rx_head, s.mine.rx_head);
          offer_room(s);
        }
        return n;
      }
    }
    // Only a call that would wait is told of the end.
    if (!blocking) return -EAGAIN;
    if ((state_of(s) & MW_ST_RCV_SHUT) != 0 || (A::load_relaxed(s.mine.flags) & kSlotShutRd) != 0) {
      if (m->msg_name != nullptr) m->msg_namelen = 0;
      m->msg_controllen = 0;
      m->msg_flags = 0;
      return 0;
    }
    const int rc = wait_for(s, POLLIN, timeout.deadline(), [&] {
      return readable_bytes(s) != 0 || error_pending(s) || timeout.changed() ||
             (state_of(s) & MW_ST_RCV_SHUT) != 0 ||
             (A::load_relaxed(s.mine.flags) & kSlotShutRd) != 0;
    });
    if (rc < 0) return rc;
  }
}

namespace {

// The kernel reads no more of a longer name.
uint32_t name_bytes(const msghdr& m) {
  constexpr uint32_t kMost = sizeof(sockaddr_storage);
  return m.msg_name != nullptr ? std::min<uint32_t>(m.msg_namelen, kMost) : 0;
}

// Sends one message by a call. `data`: they travel in the cell.
ssize_t send_by_call(const Sock& s, const msghdr* m, int flags, uint32_t data_len, const void* data,
                     uint32_t how = 0) {
  CallRequest r = about(s, MW_OP_SENDMSG);
  const uint32_t name_len = name_bytes(*m);
  const auto control_len = static_cast<uint32_t>(m->msg_control != nullptr ? m->msg_controllen : 0);
  r.arg[0] = flags | MSG_NOSIGNAL | MSG_DONTWAIT;
  r.arg[1] = static_cast<int32_t>(name_len);
  r.arg[2] = static_cast<int32_t>(control_len);
  r.arg[3] = static_cast<int32_t>(data_len);
  r.flags = how;
  r.in[0] = {m->msg_name, name_len};
  r.in[1] = {m->msg_control, control_len};
  if (data != nullptr) {
    r.in[2] = {data, data_len};
    r.flags = MW_SEND_INLINE;
  }
  const CallAnswer a = call(r, nullptr, 0);
  return a.ret < 0 ? -a.err : a.ret;
}

// A datagram that is longer than any: the kernel of an IPv6 socket leaves a word in its error queue,
// one of IPv4 does not.
int send_too_long(const Sock& s, const msghdr* m, int flags, size_t total) {
  if (s.mine.domain != AF_INET6) return -EMSGSIZE;
  constexpr size_t kMostOfACall = 0x7ffff000;  // as the kernel cuts it
  const auto length = static_cast<uint32_t>(std::min(total, kMostOfACall));
  const ssize_t n = send_by_call(s, m, flags, length, nullptr, MW_SEND_TOO_LONG);
  return n < 0 ? static_cast<int>(n) : -EMSGSIZE;
}

// Gathers and sends a datagram through the send ring. -EAGAIN: the stack's buffer is full.
ssize_t send_datagram(const Sock& s, const msghdr* m, int flags, uint32_t total) {
  SharedLock lock(s.mine.tx_lock);
  const RingBytes ring = s.stack.tx(s.index);
  if (!ring.is_there()) return -ENOBUFS;
  const uint32_t tail = s.mine.tx_tail;
  uint32_t done = 0;
  for (size_t i = 0; i < m->msg_iovlen; ++i) {
    ring.copy_in(tail + done, m->msg_iov[i].iov_base, static_cast<uint32_t>(m->msg_iov[i].iov_len));
    done += static_cast<uint32_t>(m->msg_iov[i].iov_len);
  }
  A::store_relaxed(s.mine.tx_tail, tail + total);
  A::store_release(s.slot.tx_tail, tail + total);
  return send_by_call(s, m, flags, total, nullptr);
}

// For a sender who waits while the stack's own send buffer is full; longer each time. 0 or -errno.
int wait_a_little(Timeout& timeout, int64_t& pause_ns) {
  constexpr int64_t kFirstNs = 200'000;
  constexpr int64_t kLongestNs = 20'000'000;
  pause_ns = std::clamp(2 * pause_ns, kFirstNs, kLongestNs);
  const int64_t deadline = timeout.deadline();
  const int64_t left = deadline != 0 ? deadline - monotonic_ns() : pause_ns;
  if (left <= 0) return -EAGAIN;
  const timespec pause{0, std::min(left, pause_ns)};
  return ::nanosleep(&pause, nullptr) < 0 ? -EINTR : 0;
}

// What a stream does not send by its ring: urgent data, or data with the connect.
ssize_t inline_send(const Sock& s, const msghdr* m, int flags, size_t total, bool blocking) {
  char data[512];
  const bool urgent = (flags & MSG_OOB) != 0;
  size_t before = 0;
  if (urgent && total > sizeof data) {
    // The last byte is the urgent one; what does not fit goes before it in the ordinary way.
    before = total - sizeof data;
    const ssize_t n = stream_send(s, m->msg_iov, m->msg_iovlen, flags & ~MSG_OOB, before);
    if (n < 0 || static_cast<size_t>(n) < before) return n;
  }
  // It has to follow every byte before it.
  if ((A::load_relaxed(s.slot.want) & MW_WANT_HOLD) != 0) announce_held(s);
  uint32_t n = 0;
  size_t skip = before;
  for (size_t i = 0; i < m->msg_iovlen && n < sizeof data; ++i) {
    const iovec& piece = m->msg_iov[i];
    const size_t skipped = std::min(skip, piece.iov_len);
    const size_t k = std::min(sizeof data - n, piece.iov_len - skipped);
    std::memcpy(data + n, static_cast<const char*>(piece.iov_base) + skipped, k);
    skip -= skipped;
    n += static_cast<uint32_t>(k);
  }
  uint32_t done = 0;
  Timeout timeout(s.mine.sndtimeo_us);
  int64_t pause_ns = 0;
  for (;;) {
    const auto sent = static_cast<ssize_t>(before + done);
    if (const int error = sent == 0 ? take_error(s) : 0; error != 0)
      return error == EPIPE ? raise_sigpipe(flags) : -error;
    const ssize_t rc = send_by_call(s, m, flags, n - done, data + done);
    if (rc >= 0) {
      done += static_cast<uint32_t>(rc);
      // Data with the connect that do not fit are an ordinary partial send.
      if (rc == 0 || !urgent || !blocking || done == n) return sent + rc;
      continue;
    }
    const bool wait = rc == -EAGAIN && urgent && blocking;
    const int error = wait ? wait_a_little(timeout, pause_ns) : static_cast<int>(rc);
    if (error == 0) continue;
    if (sent > 0) return sent;
    return error == -EPIPE ? raise_sigpipe(flags) : error;
  }
}

}  // namespace

size_t most_data(const Sock& s) {
  constexpr size_t kMostIpv4 = 65535 - 20 - 8;
  constexpr size_t kMostIpv6 = 65535 - 8;
  return s.mine.domain == AF_INET6 ? kMostIpv6 : kMostIpv4;
}

ssize_t message_send(const Sock& s, const msghdr* m, int flags) {
  if (m->msg_iovlen > IOV_MAX) return -EMSGSIZE;
  if (!is_buffer(m->msg_iov, m->msg_iovlen * sizeof *m->msg_iov)) return -EFAULT;
  size_t total = 0;
  for (size_t i = 0; i < m->msg_iovlen; ++i) {
    if (m->msg_iov[i].iov_len > SSIZE_MAX - total) return -EINVAL;
    total += m->msg_iov[i].iov_len;
  }
  constexpr size_t kLongest = 65535;
  const bool too_long = s.datagram() && total > kLongest;
  for (size_t i = 0; i < m->msg_iovlen && !too_long; ++i)
    if (!is_buffer(m->msg_iov[i].iov_base, m->msg_iov[i].iov_len)) return -EFAULT;
  if (m->msg_controllen > 1024) return -ENOBUFS;
  if (m->msg_control != nullptr && !is_buffer(m->msg_control, m->msg_controllen)) return -EFAULT;
  const bool blocking = (flags & MSG_DONTWAIT) == 0 && !s.nonblocking();
  if (!s.datagram()) return inline_send(s, m, flags, total, blocking);
  if (too_long) return send_too_long(s, m, flags, total);
  Timeout timeout(s.mine.sndtimeo_us);
  int64_t pause_ns = 0;
  // The kernel looks at the length before it looks for a pending error.
  const bool fits = total <= most_data(s);
  for (;;) {
    if (const int error = fits ? take_error(s) : 0; error != 0) return -error;
    const ssize_t n = send_datagram(s, m, flags, static_cast<uint32_t>(total));
    if (n >= 0 && (A::load_relaxed(s.mine.flags) & kSlotHasPort) == 0)
      A::fetch_or(s.mine.flags, kSlotHasPort);
    if (n != -EAGAIN || !blocking) return n;
    if (const int rc = wait_a_little(timeout, pause_ns); rc < 0) return rc;
  }
}

ssize_t special_recv(const Sock& s, msghdr* m, int flags) {
  if (m->msg_iovlen > IOV_MAX) return -EMSGSIZE;
  if (!is_buffer(m->msg_iov, m->msg_iovlen * sizeof *m->msg_iov)) return -EFAULT;
  size_t total = 0;
  for (size_t i = 0; i < m->msg_iovlen; ++i) total += m->msg_iov[i].iov_len;
  constexpr uint32_t kControlRoom = 512;
  constexpr uint32_t kDataRoom = 1344;
  CallRequest r = about(s, MW_OP_RECVMSG);
  r.arg[0] = flags | MSG_DONTWAIT;
  r.arg[1] = 32;
  r.arg[2] = kControlRoom;
  r.arg[3] = static_cast<int32_t>(std::min<size_t>(kDataRoom, total));
  alignas(8) char answer[MW_CALL_PAYLOAD];
  const CallAnswer a = call(r, answer, sizeof answer);
  if (a.ret < 0) return -a.err;
  mw_recv_head head{};
  if (a.len < sizeof head) return -ECONNRESET;
  std::memcpy(&head, answer, sizeof head);
  const uint64_t bytes =
      sizeof head + uint64_t{head.name_len} + head.control_len + uint64_t{head.data_len};
  if (head.name_len > sizeof mw_dgram_head{}.name || bytes > a.len) {
    poison(s.stack, "answer to recvmsg");
    return -ECONNRESET;
  }
  mw_dgram_head as_record{};
  as_record.data_len = head.data_len;
  as_record.control_len = head.control_len;
  as_record.flags = head.flags;
  as_record.name_len = head.name_len;
  const char* at = answer + sizeof head;
  std::memcpy(as_record.name, at, head.name_len);
  const char* control = at + head.name_len;
  const char* data = control + head.control_len;
  Control chosen;
  if ((as_record.name_len != 0 && !is_name_of(s, as_record.name, &as_record.name_len)) ||
      !chosen.choose(s, *m, control, head.control_len, head.flags)) {
    poison(s.stack, "answer to recvmsg");
    return -ECONNRESET;
  }
  if ((flags & MSG_ERRQUEUE) != 0 && s.datagram()) note_stamp(s, control, head.control_len);
  if (!has_room(*m, as_record, chosen.used)) return -EFAULT;
  size_t copied = 0;
  for (size_t i = 0; i < m->msg_iovlen && copied < head.data_len; ++i) {
    const size_t k = std::min<size_t>(m->msg_iov[i].iov_len, head.data_len - copied);
    std::memcpy(m->msg_iov[i].iov_base, data + copied, k);
    copied += k;
  }
  return deliver(as_record, m, flags, copied, chosen);
}

}  // namespace mw::shim
