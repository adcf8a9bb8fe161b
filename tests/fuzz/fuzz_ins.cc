// A worker of the INS against an application side that writes anything anywhere in the region, and
// whose descriptors do anything; with real sockets, in a network namespace that has nothing but its
// loopback. The input is a list of steps.
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "fuzz_input.h"
#include "ins/worker/context.h"
#include "ins/worker/worker.h"
#include "ring/atomics.h"
#include "transport/local/fd_message.h"
#include "transport/local/session_fds.h"

namespace mw::fuzz {
namespace {

using A = StdAtomics;

constexpr mw_geometry kGeometry{.slots = 10,
                                .rx_ring = 4096,
                                .tx_ring = 4096,
                                .groups = 3,
                                .workers = 1,
                                .calls = 5,
                                .reserved = {0, 0}};

void require(bool holds) {
  if (!holds) std::abort();
}

// Packets to made-up addresses must not leave this process.
void leave_the_network() {
  require(::unshare(CLONE_NEWNET) == 0 || ::unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0);
  const UniqueFd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  ifreq lo{};
  std::memcpy(lo.ifr_name, "lo", 3);
  lo.ifr_flags = IFF_UP;
  require(::ioctl(fd.get(), SIOCSIFFLAGS, &lo) == 0);
}

class World {
 public:
  World() {
    static bool alone = (leave_the_network(), true);
    (void)alone;
    static unsigned worlds = 0;
    auto fds = make_session_fds(
        "fuzz-ins" + std::to_string(::getpid()) + "-" + std::to_string(++worlds), kGeometry);
    require(static_cast<bool>(fds));
    fds_ = std::move(*fds);
    auto mapping = map_sealed(fds_.channel.get());
    require(static_cast<bool>(mapping));
    ins_.mapping = std::move(*mapping);
    ins_.channel = *Channel::over(ins_.mapping.base(), ins_.mapping.bytes(), kGeometry);
    ins_.channel_fd = UniqueFd{::fcntl(fds_.channel.get(), F_DUPFD_CLOEXEC, 3)};
    ins_.drop = std::move(fds_.drop_ins);
    ins_.bells.push_back(std::move(fds_.bells[0]));
    ins_.epolls.emplace_back(::epoll_create1(EPOLL_CLOEXEC));
    ins_.to_worker.push_back(std::make_unique<NoteQueue<WorkerNote>>());
    ins_.stats.push_back(std::make_unique<Stats>());
    require(static_cast<bool>(ins_.slots.init(kGeometry, 0xfffffff0)));
    require(static_cast<bool>(ins_.placeholders.init(kGeometry)));
    ins_.calls.init(ins_.channel, ins_.call_done);
    worker_ = std::make_unique<Worker>(ins_, 0);
    require(worker_->begin());
    // Something to start from: a listener, a connection and a datagram socket, all in good order.
    new_socket(SOCK_STREAM);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    honest_call(MW_OP_BIND, 0, {}, &any, sizeof any);
    honest_call(MW_OP_LISTEN, 0, {4}, nullptr, 0);
    dial();
    turn();
    new_socket(SOCK_DGRAM);
  }

  void run(Input& in) {
    for (int steps = 0; steps < 128 && !in.empty() && ins_.poisoned.load() == nullptr; ++steps) {
      step(in);
      turn();
    }
    ends_.clear();
    turn();
    turn();
    require(ins_.poisoned.load() != nullptr || ins_.slots.open_count() <= kGeometry.slots);
  }

 private:
  void turn() {
    if (ins_.poisoned.load() != nullptr) return;
    worker_->turn(false);
    for (ControlNote& note : ins_.to_control.take()) {
      if (note.kind != ControlNote::Kind::resolve) continue;
      Answer a{};
      a.ret = -1;
      ins_.calls.answer(note.call, note.request->seq, a);
    }
  }
  mw_call& cell(uint32_t call, uint32_t op) {
    mw_call& c = ins_.channel.call(call);
    c.op = op;
    c.seq = ++seq_;
    c.flags2 = 0;
    c.in_len = 0;
    std::fill(std::begin(c.arg), std::end(c.arg), 0);
    return c;
  }
  void honest_call(uint32_t op, uint32_t slot, std::initializer_list<int32_t> args, const void* in,
                   uint32_t n) {
    mw_call& c = cell(0, op);
    c.slot = slot;
    c.gen = ins_.channel.slot(slot).gen;
    std::copy(args.begin(), args.end(), c.arg);
    c.in_len = n;
    if (n != 0) std::memcpy(c.payload, in, n);
    ins_.channel.call_news(0).add(0);
    turn();
  }
  void new_socket(int type) {
    int pair[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    ends_.emplace_back(pair[0]);
    const UniqueFd theirs{pair[1]};
    mw_call& c = cell(1, MW_OP_SOCKET);
    c.arg[0] = AF_INET;
    c.arg[1] = type;
    drop(1, seq_, theirs.get());
    turn();
  }
  void drop(uint32_t call, uint32_t seq, int fd) {
    const mw_drop_record record{MW_DROP_MAGIC, call, seq};
    (void)static_cast<bool>(send_message(fds_.drop_pvm.get(), bytes_of(record),
                                         {&fd, fd >= 0 ? size_t{1} : 0}, MSG_DONTWAIT));
  }
  void dial() {
    sockaddr_in to{};
    socklen_t len = sizeof to;
    const Sock& l = *ins_.slots.at(0);
    if (l.fd < 0 || ::getsockname(l.fd, reinterpret_cast<sockaddr*>(&to), &len) < 0) return;
    peer_ = UniqueFd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    (void)::connect(peer_.get(), reinterpret_cast<const sockaddr*>(&to), len);
    turn();
    // The application takes the connection.
    mw_accept_record record{};
    if (ends_.empty() || !ends_[0]) return;
    auto m = receive_message(ends_[0].get(), writable_bytes_of(record), MSG_DONTWAIT);
    if (m && m->fd_count == 1) ends_.push_back(std::move(m->fds[0]));
  }
  void announce(uint32_t slot) { ins_.channel.sock_news(0).add(slot); }

  void step(Input& in) {
    const uint32_t slot = in.below(kGeometry.slots);
    mw_slot& s = ins_.channel.slot(slot);
    switch (in.below(16)) {
      case 0: {  // any value for any word of the application's line
        uint32_t* const words[] = {&s.tx_tail,      &s.rx_head, &s.want,
                                   &s.accept_flags, &s.closed,  &s.bound};
        *words[in.below(6)] = in.number<uint32_t>();
        return announce(slot);
      }
      case 1:  // bytes, as they should be
        s.tx_tail = ins_.slots.at(slot)->tx_head + in.below(kGeometry.tx_ring + 1);
        return announce(slot);
      case 2:  // reading, as it should be
        s.rx_head = ins_.slots.at(slot)->rx_tail - in.below(32);
        s.want &= ~MW_WANT_RX_ROOM;
        return announce(slot);
      case 3:
      case 4: {  // a call, about a socket that exists or not, with a payload of any kind
        const uint32_t call = in.below(kGeometry.calls);
        mw_call& c = cell(call, in.below(MW_OP_ACCEPT + 1));
        c.slot = slot;
        c.gen = in.below(8) == 0 ? in.number<uint32_t>() : s.gen;
        for (int32_t& arg : c.arg)
          arg = in.below(2) == 0 ? in.number<int16_t>() : in.number<int32_t>();
        c.in_len = in.below(16) == 0 ? in.number<uint32_t>() : in.below(200);
        c.flags2 = in.below(2);
        in.take(std::as_writable_bytes(std::span(c.payload, 64)));
        c.waiting = in.below(2);
        ins_.channel.call_news(0).add(call);
        return;
      }
      case 5:
        return new_socket(in.below(2) == 0 ? SOCK_STREAM : SOCK_DGRAM);
      case 6: {  // a record of any kind, with a descriptor of any kind
        mw_call& c = cell(1, in.below(3) == 0 ? uint32_t{MW_OP_PLACEHOLDER} : in.below(3));
        c.slot = slot;
        c.gen = s.gen;
        const int other = ends_.empty() ? -1 : ends_.back().get();
        const int fds[] = {-1, peer_.get(), ins_.channel_fd.get(), other};
        return drop(in.below(kGeometry.calls + 1), in.below(4) == 0 ? in.number<uint32_t>() : seq_,
                    fds[in.below(4)]);
      }
      case 7:
        return dial();
      case 8: {  // what comes from the network
        char bytes[3000] = {};
        const int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (in.below(4) == 0 ? MSG_OOB : 0);
        if (peer_) (void)!::send(peer_.get(), bytes, in.below(sizeof bytes), flags);
        return;
      }
      case 9:  // the other end goes
        if (in.below(2) == 0 && peer_) {
          const linger now{1, 0};
          ::setsockopt(peer_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
        }
        return peer_.reset();
      case 10: {  // what a program does with its descriptor
        if (ends_.empty()) return;
        UniqueFd& end = ends_[in.below(static_cast<uint32_t>(ends_.size()))];
        if (!end) return;
        switch (in.below(3)) {
          case 0:
            return end.reset();
          case 1:
            ::shutdown(end.get(), static_cast<int>(in.below(3)));
            return;
          default:
            (void)!::send(end.get(), "raw", 3, MSG_DONTWAIT | MSG_NOSIGNAL);
            return;
        }
      }
      case 11: {  // any byte anywhere before the rings
        auto* bytes = reinterpret_cast<uint8_t*>(ins_.channel.base());
        bytes[in.number<uint32_t>() % ins_.channel.layout().rings] = in.number<uint8_t>();
        return;
      }
      case 13: {  // a message whose lengths agree
        const auto n = static_cast<int32_t>(in.below(60));
        const auto flags = static_cast<int32_t>(in.below(0x1000));
        if (in.below(2) == 0) {
          mw_call& c = cell(0, MW_OP_SENDMSG);
          c.slot = slot;
          c.gen = s.gen;
          c.arg[0] = flags;
          c.arg[3] = n;
          c.in_len = static_cast<uint32_t>(n);
          c.flags2 = MW_SEND_INLINE;
          ins_.channel.call_news(0).add(0);
          return;
        }
        s.tx_tail = ins_.slots.at(slot)->tx_head + static_cast<uint32_t>(n);
        return honest_call(MW_OP_SENDMSG, slot, {flags, 0, 0, n}, nullptr, 0);
      }
      case 14: {  // an option or an ioctl that exists
        static constexpr int32_t kOptions[][2] = {
            {SOL_SOCKET, SO_LINGER},      {SOL_SOCKET, SO_RCVLOWAT}, {SOL_SOCKET, SO_OOBINLINE},
            {SOL_SOCKET, SO_RCVBUF},      {SOL_SOCKET, SO_SNDBUF},   {SOL_SOCKET, SO_TIMESTAMP},
            {IPPROTO_IP, IP_PKTINFO},     {IPPROTO_IP, IP_RECVERR},  {IPPROTO_TCP, 18},
            {SOL_SOCKET, SO_TIMESTAMPING}};
        const auto& o = kOptions[in.below(std::size(kOptions))];
        const int value[2] = {in.number<int16_t>(), in.number<int16_t>()};
        if (in.below(4) == 0)
          return honest_call(MW_OP_IOCTL, slot, {static_cast<int32_t>(0x8905 + in.below(8))}, value,
                             4);
        return honest_call(MW_OP_SETSOCKOPT, slot, {o[0], o[1]}, value, in.below(3) == 0 ? 4 : 8);
      }
      case 12: {
        const auto watches = in.number<uint64_t>();
        s.watches[watches >> 62] = watches;
        s.want = in.number<uint8_t>();
        return;
      }
      default:
        if (in.below(2) == 0) return move_placeholder(in, slot);
        ins_.tick.fetch_add(1 + in.below(3));
    }
  }
  // A connection is closed or gets another placeholder, as it may be or not.
  void move_placeholder(Input& in, uint32_t slot) {
    mw_slot& s = ins_.channel.slot(slot);
    const uint32_t number_and_1 = in.below(kGeometry.slots + 2);
    s.claim = uint64_t{s.gen} << 32 | number_and_1;
    if (number_and_1 >= 1 && number_and_1 <= kGeometry.slots)
      ins_.channel.slot(number_and_1 - 1).bound = in.below(4) == 0 ? in.below(20) : slot + 1;
    if (in.below(2) == 0) s.closed = s.gen;
    ins_.channel.slot(0).accept_flags = in.below(4);
    announce(slot);
  }

  SessionFds fds_;
  InsContext ins_;
  std::unique_ptr<Worker> worker_;
  std::vector<UniqueFd> ends_;  // the application's descriptors; the first is the listener's
  UniqueFd peer_;               // an ordinary socket at the other end of the connection made last
  uint32_t seq_ = 0;
};

}  // namespace
}  // namespace mw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  mw::fuzz::World().run(in);
  return 0;
}
