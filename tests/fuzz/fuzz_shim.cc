// The shim against an INS that stores anything in the shared region, answers calls with anything,
// and sends anything over the placeholders. The input is what the INS does and which calls the
// application makes.
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "fuzz_input.h"
#include "shim/calls/epoll.h"
#include "shim/calls/poll.h"
#include "shim/calls/socket_calls.h"
#include "shim/process/attachment.h"
#include "shim/process/process.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"
#include "transport/local/mapping.h"
#include "transport/local/session_fds.h"

namespace mw::fuzz {
namespace {

using namespace mw::shim;  // the code under test

constexpr mw_geometry kGeometry{.slots = 8,
                                .rx_ring = 4096,
                                .tx_ring = 4096,
                                .groups = 1,
                                .workers = 1,
                                .calls = 8,
                                .reserved = {0, 0}};
constexpr uint32_t kStream = 1, kDatagram = 2, kListener = 3;
constexpr uint32_t kGen = 7;

// What a program may take for the kernel's word: all sockets here are of IPv4.
void require_address(const void* name, socklen_t len) {
  sa_family_t family = AF_UNSPEC;
  require(len == sizeof(sockaddr_in));
  std::memcpy(&family, name, sizeof family);
  require(family == AF_INET);
}

// Every message is whole, none brings descriptors or credentials, and each has the length that its kind
// has (of those whose length a program is likely to trust).
void require_control(msghdr& m) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
    const auto* begin = static_cast<const char*>(m.msg_control);
    const auto at = static_cast<size_t>(reinterpret_cast<const char*>(c) - begin);
    require(c->cmsg_len >= sizeof *c && c->cmsg_len <= m.msg_controllen - at);
    const size_t n = c->cmsg_len - CMSG_LEN(0);
    const bool cut = (m.msg_flags & MSG_CTRUNC) != 0;
    if (c->cmsg_level == SOL_SOCKET) {
      require(c->cmsg_type != SCM_RIGHTS && c->cmsg_type != SCM_CREDENTIALS);
      require(cut || n % 4 == 0);
    }
    require(c->cmsg_level != IPPROTO_IPV6);
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
      require(cut || n == sizeof(in_pktinfo));
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_ORIGDSTADDR && !cut)
      require_address(CMSG_DATA(c), static_cast<socklen_t>(n));
  }
}

// Answers every call, with what the input says.
class Answerer {
 public:
  explicit Answerer(const Channel& channel, int drop) : channel_(channel), drop_(drop) {
    std::thread([this] { run(); }).detach();
  }
  void set_answer(const mw_call& answer) {
    const std::lock_guard hold(lock_);
    answer_ = answer;
  }

 private:
  void run() {
    for (;;) {
      mw_drop_record record{};
      (void)receive_message(drop_, writable_bytes_of(record), MSG_DONTWAIT);
      for (uint32_t i = 0; i < kGeometry.calls; ++i) {
        mw_call& call = channel_.call(i);
        const uint32_t seq = StdAtomics::load_acquire(call.seq);
        if (seq == StdAtomics::load_relaxed(call.done_seq)) continue;
        {
          const std::lock_guard hold(lock_);
          call.ret = answer_.ret;
          call.err = answer_.err;
          call.out_len = answer_.out_len;
          std::memcpy(call.payload, answer_.payload, sizeof call.payload);
        }
        StdAtomics::store_release(call.done_seq, seq);
        ::syscall(SYS_futex, &call.done_seq, FUTEX_WAKE, 1, nullptr, nullptr, 0);
      }
      const timespec brief{0, 20'000};
      ::nanosleep(&brief, nullptr);
    }
  }

  Channel channel_;
  int drop_;
  std::mutex lock_;
  mw_call answer_{};
};

// The session, made once; what an input did to it is undone before the next.
struct Session {
  Session() {
    auto made = make_session_fds("fuzz-shim" + std::to_string(::getpid()), kGeometry);
    require(static_cast<bool>(made));
    fds = std::move(*made);
    auto a = map_sealed(fds.channel.get());
    require(static_cast<bool>(a));
    auto whole = Channel::over(a->base(), a->bytes(), kGeometry);
    require(static_cast<bool>(whole));
    channel = *whole;
    a->release();
    require(static_cast<bool>(stacks.add(*check_sealed(fds.channel.get()), kGeometry)));
    require(static_cast<bool>(process.session.open(*check_sealed(fds.session.get()), kGeometry)));
    const int bells[] = {fds.bells[0].get()};
    stack_of(0).use(fds.drop_pvm.get(), bells);
    int pair[2];
    require(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    attachment = {pair[0], process.pid};
    driver = UniqueFd{pair[1]};
    AttachReply reply{AttachType::group_open, 0, 0, MW_PROTOCOL_VERSION, kGeometry};
    require(static_cast<bool>(send_message(driver.get(), bytes_of(reply), {}, 0)));
    process.attached = true;
    process.session.header().state = kSessionUp;
    process.session.header().first_gen = 1;
    answerer = std::make_unique<Answerer>(channel, fds.drop_ins.get());
    epfd = ::epoll_create1(EPOLL_CLOEXEC);
    set_entry(epfd, {Kind::epoll, 0, 0});
  }
  SessionFds fds;
  Channel channel;  // as the INS has it
  UniqueFd driver;
  std::unique_ptr<Answerer> answerer;
  int epfd = -1;
};

// One application with a stream socket, a datagram socket and a listener.
class World {
 public:
  explicit World(Session& session) : session_(session) {
    const mw_layout& l = session_.channel.layout();
    ++process.session.header().epoch;  // the stack was poisoned in an earlier one
    session_.answerer->set_answer(mw_call{});
    std::memset(session_.channel.base() + l.group_news, 0, l.group_news_stride);
    std::memset(session_.channel.base() + l.slots, 0, sizeof(mw_slot) * kGeometry.slots);
    make(kStream, SOCK_STREAM, 0, MW_ST_OPEN | MW_ST_CONNECTED);
    make(kDatagram, SOCK_DGRAM, 0, MW_ST_OPEN);
    make(kListener, SOCK_STREAM, kSlotListener, MW_ST_OPEN | MW_ST_LISTENING);
    for (uint32_t i : {kStream, kDatagram}) {
      epoll_event e{EPOLLIN | EPOLLOUT | EPOLLRDHUP, {.u64 = i}};
      require(shim_epoll_ctl(session_.epfd, EPOLL_CTL_ADD, app_[i].get(), &e) == 0);
    }
  }
  ~World() {
    for (uint32_t i : {kStream, kDatagram, kListener}) forget(app_[i].get());
  }

  void run(Input& in) {
    for (int steps = 0; steps < 48 && !in.empty(); ++steps) {
      if (in.below(3) == 0) {
        ins_acts(in);
      } else {
        application_acts(in);
      }
    }
  }

 private:
  void make(uint32_t i, int type, uint32_t flags, uint32_t state) {
    int pair[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    app_[i] = UniqueFd{pair[0]};
    ins_[i] = UniqueFd{pair[1]};
    mw_slot& s = session_.channel.slot(i);
    s.rx_tail = s.tx_head = MW_INDEX_START;
    s.state = state;
    s.gen = kGen;
    require(adopt_socket(pair[0], i, kGen, AF_INET, type, 0, flags | kSlotNonblock,
                         descriptor_copies()) == 0);
  }
  // Mostly one that can be.
  template <class Length>
  static void set_address(uint8_t* bytes, Length* len, Input& in) {
    const sa_family_t families[] = {AF_INET, AF_INET, AF_INET, AF_INET6, AF_UNIX, 0};
    const sa_family_t family = families[in.below(6)];
    std::memcpy(bytes, &family, sizeof family);
    *len = static_cast<Length>(in.below(4) != 0 ? sizeof(sockaddr_in) : in.below(40));
  }
  Sock sock(uint32_t i) { return sock_of(app_[i].get(), {Kind::socket, i, kGen}); }
  uint32_t some_socket(Input& in) { return 1 + in.below(3); }

  void ins_acts(Input& in) {
    const uint32_t i = some_socket(in);
    mw_slot& s = session_.channel.slot(i);
    switch (in.below(7)) {
      case 0:  // its line of the slot, as it should be or not
        in.take({reinterpret_cast<std::byte*>(&s.rx_tail), 28});
        return;
      case 1: {  // bytes, with an index that fits
        std::byte data[512];
        const uint32_t n = in.below(sizeof data);
        in.take({data, n});
        session_.channel.rx(i).copy_in(s.rx_tail, data, n);
        StdAtomics::store_release(s.rx_tail, s.rx_tail + n);
        return;
      }
      case 2: {  // a datagram whose head may lie
        mw_dgram_head head{};
        in.take(writable_bytes_of(head));
        head.data_len = in.below(3) == 0 ? head.data_len : head.data_len % 64;
        head.control_len = in.below(3) == 0 ? head.control_len : head.control_len % 64;
        if (in.below(4) != 0) set_address(head.name, &head.name_len, in);
        mw_slot& d = session_.channel.slot(kDatagram);
        session_.channel.rx(kDatagram).copy_in(d.rx_tail, &head, sizeof head);
        StdAtomics::store_release(d.rx_tail, d.rx_tail + 48 + in.below(256) * 8);
        return;
      }
      case 3: {  // something on a placeholder, perhaps an accept record
        mw_accept_record record{};
        record.magic = MW_ACCEPT_MAGIC;
        record.slot = in.below(9);
        record.gen = kGen + in.below(2);
        record.flags = in.below(4) | in.below(11) << MW_ACCEPT_PLACEHOLDER_SHIFT;
        if (in.below(4) != 0)
          session_.channel.slot(record.slot % kGeometry.slots).claim = uint64_t{record.gen} << 32;
        set_address(record.local.bytes, &record.local.len, in);
        set_address(record.peer.bytes, &record.peer.len, in);
        if (in.below(3) == 0) in.take(writable_bytes_of(record));
        int pair[2] = {-1, -1};
        const int type = in.below(8) == 0 ? SOCK_DGRAM : SOCK_STREAM;
        if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) < 0) return;
        const UniqueFd a{pair[0]}, b{pair[1]};
        const int fds[] = {in.below(4) == 0 ? session_.fds.bells[0].get() : b.get(), a.get()};
        (void)send_message(ins_[i].get(), bytes_of(record), {fds, in.below(3)}, MSG_DONTWAIT);
        return;
      }
      case 4:  // the group's set
        in.take({session_.channel.base() + session_.channel.layout().group_news, 160});
        return;
      case 5: {  // the answer to all calls from now on
        mw_call answer{};
        answer.ret = in.number<int8_t>();
        answer.err = in.below(4) == 0 ? in.number<int32_t>() : in.number<uint8_t>();
        answer.out_len = in.below(4) == 0 ? in.number<uint32_t>() : in.below(MW_CALL_PAYLOAD + 1);
        in.take({reinterpret_cast<std::byte*>(answer.payload), 128});
        session_.answerer->set_answer(answer);
        return;
      }
      default:
        ::shutdown(ins_[i].get(), SHUT_WR);
    }
  }

  void application_acts(Input& in) {
    const uint32_t i = some_socket(in);
    const Sock s = sock(i);
    switch (in.below(12)) {
      case 0:
        return receive(s, in);
      case 1:
        return receive_message_with_all(s, in);
      case 2:
        return send_bytes(s, in);
      case 3:
        return accept();
      case 4:
        return look_with_epoll();
      case 5:
        return look_with_poll();
      case 6:
        return get_option(s, in);
      case 7:
        return set_option(s, in);
      case 8:
        return names(s, in);
      case 9:
        return ask_ioctl(s, in);
      case 10:
        return call_plain(s, in);
      default: {
        const int error = take_error(s);
        require(error >= 0 && error < 4096);
      }
    }
  }
  void receive(const Sock& s, Input& in) {
    std::vector<char> a(in.below(300)), b(in.below(3000));
    const iovec iov[2] = {{a.data(), a.size()}, {b.data(), b.size()}};
    const int flags =
        MSG_DONTWAIT | (in.below(2) ? MSG_PEEK : 0) | (in.below(4) == 0 ? MSG_TRUNC : 0);
    const ssize_t n = s.datagram() ? 0 : stream_recv(s, iov, 2, flags);
    require(n <= static_cast<ssize_t>(a.size() + b.size()) && n > -4096);
  }
  void receive_message_with_all(const Sock& s, Input& in) {
    std::vector<char> data(in.below(2000)), control(in.below(200)), name(in.below(64));
    iovec iov{data.data(), data.size()};
    msghdr m{};
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    m.msg_name = name.data();
    m.msg_namelen = static_cast<socklen_t>(name.size());
    m.msg_control = control.data();
    m.msg_controllen = control.size();
    const int special[] = {0, 0, 0, MSG_OOB, MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC};
    const ssize_t n = sock_recvmsg(s, &m, MSG_DONTWAIT | special[in.below(7)]);
    require(n > -4096);
    require(m.msg_controllen <= control.size());
    if (n < 0) return;
    if (m.msg_controllen != 0) require_control(m);
    if (s.datagram() && m.msg_namelen != 0 && name.size() >= sizeof(sockaddr_in))
      require_address(name.data(), m.msg_namelen);
  }
  void send_bytes(const Sock& s, Input& in) {
    std::vector<char> data(in.below(2000));
    iovec iov{data.data(), data.size()};
    msghdr m{};
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    const ssize_t n =
        sock_sendmsg(s, &m, MSG_DONTWAIT | MSG_NOSIGNAL | (in.below(8) == 0 ? MSG_OOB : 0));
    require(n <= static_cast<ssize_t>(data.size()) && n > -4096);
  }
  void accept() {
    sockaddr_storage address{};
    socklen_t len = sizeof address;
    const int fd =
        sock_accept(sock(kListener), reinterpret_cast<sockaddr*>(&address), &len, SOCK_CLOEXEC);
    require(fd > -4096);
    if (fd < 0) return;
    require_address(&address, len);
    const Entry e = peek(fd);
    require(e.kind == Kind::socket && e.slot < kGeometry.slots);
    require(sock_close(fd, e) == 0);
    // It may have named a slot that one of ours has: that one is dead to us now.
  }
  void look_with_epoll() {
    epoll_event events[4];
    const int n = shim_epoll_wait(session_.epfd, events, 4, 0, nullptr);
    require(n >= -4096 && n <= 4);
    for (int k = 0; k < n; ++k)
      require(events[k].data.u64 == kStream || events[k].data.u64 == kDatagram);
  }
  void look_with_poll() {
    for (uint32_t i : {kStream, kDatagram}) poll_mask(sock(i));
  }
  void get_option(const Sock& s, Input& in) {
    const std::pair<int, int> names[] = {{SOL_SOCKET, SO_ERROR},
                                         {SOL_SOCKET, SO_RCVBUF},
                                         {6, 11},
                                         {SOL_SOCKET, SO_LINGER},
                                         {SOL_SOCKET, SO_RCVTIMEO}};
    const auto [level, name] = names[in.below(5)];
    std::vector<char> value(in.below(300));
    auto len = static_cast<socklen_t>(value.size());
    const int rc = sock_getsockopt(s, level, name, value.data(), &len);
    require(rc > -4096 && (rc < 0 || len <= value.size()));
  }
  void set_option(const Sock& s, Input& in) {
    std::vector<char> value(in.below(40));
    in.take(std::as_writable_bytes(std::span(value)));
    const int names[] = {SO_RCVBUF, SO_REUSEADDR, SO_RCVLOWAT, SO_LINGER};
    require(sock_setsockopt(s, SOL_SOCKET, names[in.below(4)], value.data(),
                            static_cast<socklen_t>(value.size())) > -4096);
  }
  void names(const Sock& s, Input& in) {
    std::vector<char> room(in.below(130));
    auto len = static_cast<socklen_t>(room.size());
    const int rc = sock_name(s, in.below(2) == 0, reinterpret_cast<sockaddr*>(room.data()), &len);
    require(rc > -4096);
    if (rc == 0 && room.size() >= sizeof(sockaddr_in)) require_address(room.data(), len);
  }
  void ask_ioctl(const Sock& s, Input& in) {
    int value[16] = {};
    const unsigned long requests[] = {FIONREAD, TIOCOUTQ, 0x8905 /* SIOCATMARK */};
    require(sock_ioctl(s, requests[in.below(3)], value) > -4096);
  }
  void call_plain(const Sock& s, Input& in) {
    char address[16] = {AF_INET};
    switch (in.below(3)) {
      case 0:
        sock_bind(s, reinterpret_cast<sockaddr*>(address), sizeof address);
        return;
      case 1:
        sock_connect(s, reinterpret_cast<sockaddr*>(address), sizeof address);
        return;
      default:
        sock_shutdown(s, static_cast<int>(in.below(4)));
    }
  }

  Session& session_;
  UniqueFd app_[4], ins_[4];
};

}  // namespace
}  // namespace mw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Never destroyed: its answering thread goes on until the process is gone.
  static mw::fuzz::Session& session = *new mw::fuzz::Session;
  mw::fuzz::Input in(data, size);
  mw::fuzz::World world(session);
  world.run(in);
  return 0;
}
