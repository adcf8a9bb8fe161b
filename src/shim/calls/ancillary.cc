#include "shim/calls/ancillary.h"

#include <errno.h>
#include <netinet/in.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/received_fds.h"
#include "shim/process/user_memory.h"
#include "shim/socket/call_cells.h"
#include "shim/socket/epoll_group.h"
#include "shim/socket/from_stack.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// The option that asks for a control message, and the message's type.
struct Asking {
  int level;
  int option;
  int type;
  bool always;  // the INS has it in every record
};
constexpr int kUdpGro = 104;
constexpr int kTimestampNew = 63;
constexpr int kTimestampNsNew = 64;
constexpr int kTimestampingNew = 65;
constexpr int kReceiveMark = 75;
constexpr int kReceivePriority = 82;
constexpr int kRetOpts = 7;
constexpr int kFlowInfo = 11;
// The place of each is its bit in SessionSlot::asked.
constexpr Asking kKinds[] = {
    {IPPROTO_IP, IP_PKTINFO, IP_PKTINFO, true},
    {IPPROTO_IP, IP_RECVTTL, IP_TTL, true},
    {IPPROTO_IP, IP_RECVTOS, IP_TOS, true},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, IP_ORIGDSTADDR, true},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, IPV6_PKTINFO, true},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, true},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, IPV6_TCLASS, true},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, IPV6_ORIGDSTADDR, true},
    {IPPROTO_IP, IP_RECVOPTS, IP_RECVOPTS, false},
    {IPPROTO_IP, kRetOpts, kRetOpts, false},
    {IPPROTO_IP, IP_CHECKSUM, IP_CHECKSUM, false},
    {IPPROTO_IP, IP_RECVFRAGSIZE, IP_RECVFRAGSIZE, false},
    {IPPROTO_IPV6, kFlowInfo, kFlowInfo, false},
    {IPPROTO_IPV6, IPV6_2292PKTINFO, IPV6_2292PKTINFO, false},
    {IPPROTO_IPV6, IPV6_2292HOPLIMIT, IPV6_2292HOPLIMIT, false},
    {IPPROTO_IPV6, IPV6_2292HOPOPTS, IPV6_2292HOPOPTS, false},
    {IPPROTO_IPV6, IPV6_2292RTHDR, IPV6_2292RTHDR, false},
    {IPPROTO_IPV6, IPV6_2292DSTOPTS, IPV6_2292DSTOPTS, false},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, IPV6_HOPOPTS, false},
    {IPPROTO_IPV6, IPV6_RECVRTHDR, IPV6_RTHDR, false},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, IPV6_DSTOPTS, false},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE, IPV6_RECVFRAGSIZE, false},
    {IPPROTO_UDP, kUdpGro, kUdpGro, false},
    {SOL_SOCKET, SO_RXQ_OVFL, SO_RXQ_OVFL, false},
    {SOL_SOCKET, SO_TIMESTAMPING, SO_TIMESTAMPING, false},
    {SOL_SOCKET, kTimestampingNew, kTimestampingNew, false},
    {SOL_SOCKET, kReceiveMark, SO_MARK, false},
    {SOL_SOCKET, kReceivePriority, SO_PRIORITY, false},
};
constexpr uint32_t kNoBit = 0;
// As the kernel keeps the four timestamp options: on, in nanoseconds, in the newer layout.
constexpr uint32_t kStamps = 1u << 28;
constexpr uint32_t kStampsNs = 1u << 29;
constexpr uint32_t kStampsNew = 1u << 30;
constexpr uint32_t kStampsKept = 1u << 31;  // records have the time of arrival
static_assert(std::size(kKinds) <= 28);

// SessionSlot::stamp_ns; anything else is a time.
constexpr int64_t kNoDatagramYet = 0;
constexpr int64_t kTimeUnknown = 1;

uint32_t bit_of_option(int level, int name) {
  for (size_t i = 0; i < std::size(kKinds); ++i)
    if (kKinds[i].level == level && kKinds[i].option == name) return 1u << i;
  return kNoBit;
}
uint32_t bit_of_type(int level, int type) {
  for (size_t i = 0; i < std::size(kKinds); ++i)
    if (kKinds[i].level == level && kKinds[i].type == type) return 1u << i;
  return kNoBit;
}

bool is_stamp_option(int level, int name) {
  return level == SOL_SOCKET && (name == SO_TIMESTAMP || name == SO_TIMESTAMPNS ||
                                 name == kTimestampNew || name == kTimestampNsNew);
}
uint32_t stamp_bits(int name) {
  uint32_t bits = kStamps;
  if (name == SO_TIMESTAMPNS || name == kTimestampNsNew) bits |= kStampsNs;
  if (name == kTimestampNew || name == kTimestampNsNew) bits |= kStampsNew;
  return bits;
}
// What the program's timestamps are called.
int stamp_type(uint32_t asked) {
  if ((asked & kStampsNew) != 0) return (asked & kStampsNs) != 0 ? kTimestampNsNew : kTimestampNew;
  return (asked & kStampsNs) != 0 ? SO_TIMESTAMPNS : SO_TIMESTAMP;
}

int64_t realtime_now() {
  timespec t{};
  ::clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

void change(const Sock& s, uint32_t clear, uint32_t set) {
  A::fetch_and(s.mine.asked, ~clear);
  A::fetch_or(s.mine.asked, set);
}

// SO_TIMESTAMPING_NEW has the kernel use the newer name for it.
bool is_arrival(const cmsghdr& h) {
  return h.cmsg_level == SOL_SOCKET &&
         (h.cmsg_type == SO_TIMESTAMPNS || h.cmsg_type == kTimestampNsNew);
}

// The time of arrival among the messages of a record; 0: it is not there.
int64_t arrival_in(const char* from, uint32_t len) {
  int64_t ns = 0;
  each_control_message(from, len, [&](const cmsghdr& h, const char* data) {
    timespec t{};
    if (!is_arrival(h) || h.cmsg_len != CMSG_LEN(sizeof t)) return;
    std::memcpy(&t, data, sizeof t);
    // A liar's time is a time all the same.
    const auto seconds = static_cast<uint64_t>(t.tv_sec) % (1ull << 33);
    ns = static_cast<int64_t>(seconds * 1'000'000'000 +
                              static_cast<uint64_t>(t.tv_nsec) % 1'000'000'000);
  });
  return ns;
}

// put_cmsg().
struct Writer {
  char* to;
  size_t room;
  size_t used = 0;
  int flags = 0;

  void put(int level, int type, const void* data, size_t n) {
    if (to == nullptr || room - used < sizeof(cmsghdr)) {
      flags |= MSG_CTRUNC;
      return;
    }
    cmsghdr h{};
    h.cmsg_level = level;
    h.cmsg_type = type;
    h.cmsg_len = CMSG_LEN(n);
    if (h.cmsg_len > room - used) {
      flags |= MSG_CTRUNC;
      h.cmsg_len = room - used;
    }
    std::memcpy(to + used, &h, sizeof h);
    std::memcpy(to + used + sizeof h, data, h.cmsg_len - sizeof h);
    used += std::min(CMSG_SPACE(n), room - used);
  }
};

}  // namespace

void note_asked(const Sock& s, int level, int name, const void* value, socklen_t len) {
  int v = 0;
  if (len >= sizeof v)
    std::memcpy(&v, value, sizeof v);
  else if (len != 0)
    v = *static_cast<const unsigned char*>(value);
  if (is_stamp_option(level, name)) {
    const uint32_t before = kStamps | kStampsNs | (v != 0 ? kStampsNew : 0);
    return change(s, before, kStampsKept | (v != 0 ? stamp_bits(name) : 0));
  }
  const uint32_t bit = bit_of_option(level, name);
  if (bit != kNoBit) change(s, bit, v != 0 ? bit : 0);
}

bool own_answer(const Sock& s, int level, int name, int& value) {
  if (!is_stamp_option(level, name)) return false;
  // SO_TIMESTAMP_NEW reads as set while its sibling in nanoseconds is.
  const uint32_t all = kStamps | kStampsNew | (name != kTimestampNew ? kStampsNs : 0);
  value = (A::load_relaxed(s.mine.asked) & all) == stamp_bits(name) ? 1 : 0;
  return true;
}

bool is_asked(const Sock& s, int level, int name) {
  const uint32_t bit = bit_of_option(level, name);
  return bit == kNoBit || !kKinds[__builtin_ctz(bit)].always ||
         (A::load_relaxed(s.mine.asked) & bit) != 0;
}

bool wants_control(const Sock& s) {
  return !s.datagram() || A::load_relaxed(s.mine.asked) != 0;
}

int give_control(const Sock& s, const char* from, uint32_t len, bool cut, char* to, size_t* room) {
  Writer out{to, *room};
  const bool filtered = s.datagram();
  const uint32_t asked = A::load_relaxed(s.mine.asked);
  if (filtered && (asked & kStamps) != 0) {
    // A datagram that came before anybody asked for its time has that of now, as in the kernel.
    int64_t ns = arrival_in(from, len);
    if (ns == 0) ns = realtime_now();
    const int64_t unit = (asked & kStampsNs) != 0 ? 1 : 1000;
    const int64_t parts[] = {ns / 1'000'000'000, ns % 1'000'000'000 / unit};
    out.put(SOL_SOCKET, stamp_type(asked), parts, sizeof parts);
  }
  bool lied = false;
  each_control_message(from, len, [&](const cmsghdr& h, const char* data) {
    const Verdict verdict = judge_control_message(s.mine.domain, h, data, cut);
    if (verdict == Verdict::lie) lied = true;
    if (verdict != Verdict::give) return;
    if (filtered) {
      if (is_arrival(h)) return;
      const uint32_t bit = bit_of_type(h.cmsg_level, h.cmsg_type);
      if (bit != kNoBit && (asked & bit) == 0) return;
    }
    out.put(h.cmsg_level, h.cmsg_type, data, h.cmsg_len - sizeof h);
  });
  *room = lied ? 0 : out.used;
  return lied ? -ECONNRESET : out.flags;
}

void note_stamp(const Sock& s, const char* from, uint32_t len) {
  const uint32_t asked = A::load_relaxed(s.mine.asked);
  // While timestamps are told as messages the kernel does not keep them.
  if ((asked & kStamps) != 0) return;
  int64_t ns = kTimeUnknown;
  if ((asked & kStampsKept) != 0)
    ns = std::max(kTimeUnknown, arrival_in(from, len));
  else if (A::load_relaxed(s.mine.stamp_ns) != kNoDatagramYet)
    return;
  A::store_relaxed(s.mine.stamp_ns, ns);
}

int64_t last_stamp(const Sock& s) {
  if (s.datagram() && (A::load_relaxed(s.mine.asked) & kStampsKept) == 0) {
    // From now on the times are kept.
    const int on = 1;
    const CallRequest r = about_option(s, SOL_SOCKET, SO_TIMESTAMPNS, {&on, sizeof on});
    if (const CallAnswer a = call(r, nullptr, 0); a.ret < 0) return -a.err;
    A::fetch_or(s.mine.asked, kStampsKept);
  }
  const int64_t ns = A::load_relaxed(s.mine.stamp_ns);
  if (ns == kNoDatagramYet) return -ENOENT;
  if (ns != kTimeUnknown) return ns;
  const int64_t now = realtime_now();
  A::store_relaxed(s.mine.stamp_ns, now);
  return now;
}

void note_passed(const msghdr* m) {
  if (!is_buffer(m, sizeof *m) || m->msg_control == nullptr || m->msg_controllen == 0 ||
      !is_buffer(m->msg_control, m->msg_controllen))
    return;
  each_passed_fd(*m, [](int fd) {
    const Entry e = look_up(fd);
    if (e.kind == Kind::socket) note_origin(e.slot, 0);
    if (e.kind == Kind::epoll) epoll_leaves(fd, e);
  });
}

}  // namespace mw::shim
