// fake_pvm.h - for tests: a session's other side, played by the test, around an INS in this process
// (no sandbox). What the shim would write into the region the test writes itself, lies included.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "ins/control/local_control.h"
#include "ring/atomics.h"
#include "transport/local/session_fds.h"

namespace mw {

constexpr mw_geometry kTestGeometry{.slots = 64,
                                    .rx_ring = 131072,
                                    .tx_ring = 131072,
                                    .groups = 4,
                                    .workers = 1,
                                    .calls = 16,
                                    .reserved = {0, 0}};

// As little of everything as will do.
constexpr mw_geometry small_geometry(uint32_t slots, uint32_t workers) {
  return {.slots = slots,
          .rx_ring = 4096,
          .tx_ring = 4096,
          .groups = 1,
          .workers = workers,
          .calls = 4,
          .reserved = {0, 0}};
}

// Looks until it holds. The deadline is for failures only.
inline bool eventually(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

inline sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

// A protected socket as the fake PVM holds it.
struct FakeSock {
  uint32_t slot = 0;
  uint32_t gen = 0;
  UniqueFd fd;          // the application's end of the placeholder
  uint32_t number = 0;  // an accepted one's placeholder
  uint32_t tx_tail = MW_INDEX_START;
  uint32_t rx_head = MW_INDEX_START;
  uint32_t errors = 0;
};

class FakePvm {
 public:
  using A = StdAtomics;

  // `program`: the INS is that program, with its sandbox; else it runs in this process.
  explicit FakePvm(const mw_geometry& geometry = kTestGeometry, const char* program = nullptr)
      : geometry_(geometry), workers_(geometry.workers) {
    static std::atomic<int> number{0};
    const std::string name =
        "ins-test-" + std::to_string(::getpid()) + "-" + std::to_string(number++);
    root_ = std::filesystem::temp_directory_path() / name;
    auto fds = make_session_fds(name, geometry);
    if (!fds) std::abort();
    fds_ = std::move(*fds);
    if (program == nullptr)
      start(1);
    else
      spawn(program);
  }
  ~FakePvm() {
    stop();
    if (child > 0) wait_child(SIGTERM);
    std::filesystem::remove_all(root_);
  }

  void spawn(const char* program) {
    map();
    int ready[2];
    if (::pipe(ready) < 0) std::abort();
    const std::string workers = std::to_string(workers_);
    const std::string ready_fd = std::to_string(ready[1]);
    child = ::fork();
    if (child == 0) {
      ::execl(program, program, "--registry", root_.c_str(), "--id", "1", "--workers",
              workers.c_str(), "--ready-fd", ready_fd.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ready[1]);
    char newline = 0;
    ASSERT_EQ(::read(ready[0], &newline, 1), 1);
    ::close(ready[0]);
    connect_driver(1);
  }
  // How it ended, as waitpid() says.
  int wait_child(int signal = 0) {
    if (signal != 0) ::kill(child, signal);
    int status = 0;
    ::waitpid(child, &status, 0);
    child = -1;
    return status;
  }
  void map() {
    auto mapping = map_sealed(fds_.channel.get());
    if (!mapping) std::abort();
    map_ = std::move(*mapping);
    ch = *Channel::over(map_.base(), map_.bytes(), geometry_);
  }

  // The INS and its connection to the driver, who is played here too.
  void start(uint32_t first_gen) {
    map();
    ins = std::make_unique<InsContext>();
    threads_ = std::make_unique<WorkerThreads>(workers_);
    auto publisher = Publisher::open(root_, 1);
    if (!publisher) std::abort();
    publisher_ = std::make_unique<Publisher>(std::move(*publisher));
    resolver_ = std::make_unique<Resolver>();
    if (!resolver_->init({}, "/etc")) std::abort();
    auto listener = publisher_->listen_channel();
    if (!listener) std::abort();
    stop_ = UniqueFd{::eventfd(0, EFD_CLOEXEC)};
    control_ = std::make_unique<LocalControl>(*ins, *threads_, *publisher_, *resolver_,
                                              std::move(*listener), UniqueFd{::dup(stop_.get())},
                                              UniqueFd{}, ::getuid());
    if (!control_->prepare()) std::abort();
    serving_ = std::thread([this] { exit_code = control_->serve(); });
    connect_driver(first_gen);
  }
  void connect_driver(uint32_t first_gen) {
    driver = UniqueFd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::strcpy(a.sun_path, (root_ / "mw/1/channel").c_str());
    if (::connect(driver.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) < 0) std::abort();
    ControlHello hello{};
    hello.type = ControlType::hello;
    hello.version = hello.version_min = MW_PROTOCOL_VERSION;
    hello.geometry = geometry_;
    hello.first_gen = first_gen;
    std::vector<int> fds{fds_.channel.get(), fds_.drop_ins.get()};
    for (const UniqueFd& bell : fds_.bells) fds.push_back(bell.get());
    if (!send_message(driver.get(), bytes_of(hello), fds, 0)) std::abort();
    auto ack = expect<ControlHello>(ControlType::hello_ack);
    ASSERT_TRUE(ack);
    EXPECT_EQ(ack->status, 0u);
  }
  void tell(ControlType type, uint32_t slot = 0, uint32_t gen = 0, int fd = -1) {
    const ControlSlot c{type, slot, gen, 0};
    EXPECT_TRUE(send_message(driver.get(), bytes_of(c), {&fd, fd >= 0 ? size_t{1} : 0}, 0));
  }
  void begin() { tell(ControlType::start); }

  // The next message to the driver, which has to be of this kind.
  template <class T>
  std::optional<T> expect(ControlType type, UniqueFd* fd = nullptr) {
    alignas(8) std::byte room[sizeof(ControlListener)] = {};
    pollfd p{driver.get(), POLLIN, 0};
    if (::poll(&p, 1, 20'000) <= 0) return std::nullopt;
    auto m = receive_message(driver.get(), room, 0);
    if (!m || m->bytes != sizeof(T)) return std::nullopt;
    T out;
    std::memcpy(&out, room, sizeof out);
    if (out.type != type) return std::nullopt;
    if (fd != nullptr) *fd = std::move(m->fds[0]);
    return out;
  }

  void stop() {
    if (!serving_.joinable()) return;
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    serving_.join();
    threads_.reset();
    control_.reset();
    resolver_.reset();
    publisher_.reset();
    driver.reset();
    ins.reset();
  }

  void ring(ReadySet set, uint32_t member, uint32_t worker = 0) {
    if (!set.add(member)) return;
    const uint64_t one = 1;
    (void)!::write(fds_.bells[worker].get(), &one, sizeof one);
  }
  void news(const FakeSock& s) {
    ring(ch.sock_news(ch.worker_of(s.slot)), s.slot, ch.worker_of(s.slot));
  }

  // ---- calls ----
  struct Reply {
    int ret = -1;
    int err = 0;
    std::string out;
    bool answered = false;
  };
  mw_call& fill(uint32_t op, uint32_t slot, uint32_t gen, std::initializer_list<int32_t> args,
                std::string_view in, uint32_t flags2 = 0) {
    mw_call& c = ch.call(0);
    c.op = op;
    c.slot = slot;
    c.gen = gen;
    std::fill(std::begin(c.arg), std::end(c.arg), 0);
    std::copy(args.begin(), args.end(), c.arg);
    c.in_len = static_cast<uint32_t>(in.size());
    c.flags2 = flags2;
    if (!in.empty()) std::memcpy(c.payload, in.data(), in.size());
    A::store_release(c.seq, ++seq_);
    return c;
  }
  Reply finish(mw_call& c) {
    Reply r;
    r.answered = eventually([&] { return A::load_acquire(c.done_seq) == seq_ || ended(); });
    r.answered = A::load_acquire(c.done_seq) == seq_;
    if (!r.answered) return r;
    r.ret = c.ret;
    r.err = c.err;
    r.out.assign(reinterpret_cast<const char*>(c.payload), c.out_len);
    return r;
  }
  Reply call(uint32_t op, const FakeSock& s, std::initializer_list<int32_t> args = {},
             std::string_view in = {}, uint32_t flags2 = 0) {
    mw_call& c = fill(op, s.slot, s.gen, args, in, flags2);
    ring(ch.call_news(ch.worker_of(s.slot)), 0, ch.worker_of(s.slot));
    return finish(c);
  }
  bool ended() const { return exit_code.load() >= 0; }

  // Sends a call with one end of a new pair; the other one goes to `mine`.
  Reply send_pair(mw_call& c, UniqueFd& mine) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) std::abort();
    mine = UniqueFd{pair[0]};
    const UniqueFd theirs{pair[1]};
    const mw_drop_record record{MW_DROP_MAGIC, 0, seq_};
    const int fds[] = {theirs.get()};
    EXPECT_TRUE(send_message(fds_.drop_pvm.get(), bytes_of(record), fds, 0));
    return finish(c);
  }
  FakeSock socket(int type = SOCK_STREAM, int* err = nullptr, int domain = AF_INET,
                  int protocol = 0) {
    FakeSock s;
    const Reply r = send_pair(fill(MW_OP_SOCKET, 0, 0, {domain, type, protocol}, {}), s.fd);
    if (err != nullptr) *err = r.ret < 0 ? r.err : 0;
    mw_new_socket made{};
    if (r.ret >= 0 && r.out.size() == sizeof made) std::memcpy(&made, r.out.data(), sizeof made);
    s.slot = made.slot;
    s.gen = made.gen;
    return s;
  }
  static std::string_view raw(const sockaddr_in& a) {
    return {reinterpret_cast<const char*>(&a), sizeof a};
  }
  uint16_t port_of(const FakeSock& s) {
    const Reply r = call(MW_OP_GETSOCKNAME, s);
    sockaddr_in a{};
    if (r.out.size() == sizeof a) std::memcpy(&a, r.out.data(), sizeof a);
    return ntohs(a.sin_port);
  }
  FakeSock listener(int backlog = 8) {
    FakeSock s = socket();
    EXPECT_EQ(call(MW_OP_BIND, s, {}, raw(loopback(0))).ret, 0);
    EXPECT_EQ(call(MW_OP_LISTEN, s, {backlog}).ret, 0);
    return s;
  }
  // The next accept record, or nothing if none comes (`wait_ms`).
  std::optional<FakeSock> accept(const FakeSock& l, int wait_ms = 20'000,
                                 mw_accept_record* out = nullptr) {
    pollfd p{l.fd.get(), POLLIN, 0};
    if (::poll(&p, 1, wait_ms) <= 0) return std::nullopt;
    mw_accept_record record{};
    auto m = receive_message(l.fd.get(), writable_bytes_of(record), 0);
    if (!m || m->bytes != sizeof record || record.magic != MW_ACCEPT_MAGIC) return std::nullopt;
    const bool bare = (record.flags & MW_ACCEPT_BARE) != 0;
    if (m->fd_count != (bare ? 0u : 1u)) return std::nullopt;
    FakeSock s;
    s.slot = record.slot;
    s.gen = record.gen;
    s.fd = std::move(m->fds[0]);
    if (!bare) claim(s, (record.flags >> MW_ACCEPT_PLACEHOLDER_SHIFT) - 1);
    if (out != nullptr) *out = record;
    return s;
  }
  // Says which placeholder the connection has. False: it was revoked.
  bool claim(FakeSock& s, uint32_t number) {
    s.number = number;
    A::store_release(ch.slot(number).bound, s.slot + 1);
    uint64_t nobody = mw_claim(s.gen, MW_CLAIM_NOBODY);
    return std::atomic_ref(ch.slot(s.slot).claim)
        .compare_exchange_strong(nobody, mw_claim(s.gen, number + 1));
  }
  void wish_bare(const FakeSock& l) {
    A::store_relaxed(ch.slot(l.slot).accept_flags, MW_ACCEPT_BARE);
  }
  // Closes a connection and keeps its placeholder.
  UniqueFd close_only(FakeSock& s) {
    A::store_release(ch.slot(s.slot).closed, s.gen);
    news(s);
    return std::move(s.fd);
  }
  // A new placeholder for a bare connection: the number that the INS gave it.
  std::optional<uint32_t> new_placeholder(FakeSock& s) {
    mw_call& c = fill(MW_OP_PLACEHOLDER, s.slot, s.gen, {}, {});
    const Reply r = send_pair(c, s.fd);
    mw_new_socket made{};
    if (r.ret < 0 || r.out.size() != sizeof made) return std::nullopt;
    std::memcpy(&made, r.out.data(), sizeof made);
    return made.slot;
  }

  // ---- bytes ----
  size_t put(FakeSock& s, std::string_view data) {
    const size_t n = put_quietly(s, data);
    if (n != 0) news(s);
    return n;
  }
  // Without telling the INS, which finds them at the next call about the socket.
  size_t put_quietly(FakeSock& s, std::string_view data) {
    const uint32_t room = *ring_room(geometry_.tx_ring, s.tx_tail, ch.slot(s.slot).tx_head);
    const auto n = static_cast<uint32_t>(std::min<size_t>(room, data.size()));
    ch.tx(s.slot).copy_in(s.tx_tail, data.data(), n);
    s.tx_tail += n;
    A::store_release(ch.slot(s.slot).tx_tail, s.tx_tail);
    return n;
  }
  void put_all(FakeSock& s, std::string_view data) {
    EXPECT_TRUE(eventually([&] {
      data.remove_prefix(put(s, data));
      return data.empty();
    }));
  }
  uint32_t ready(const FakeSock& s) {
    return *ring_ready(geometry_.rx_ring, s.rx_head, ch.slot(s.slot).rx_tail);
  }
  std::string take(FakeSock& s, size_t most = SIZE_MAX) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(ready(s), most));
    std::string out(n, '\0');
    ch.rx(s.slot).copy_out(s.rx_head, out.data(), n);
    s.rx_head += n;
    mw_slot& shared = ch.slot(s.slot);
    A::store_release(shared.rx_head, s.rx_head);
    A::fence();
    const uint32_t room = *ring_room(geometry_.rx_ring, A::load_acquire(shared.rx_tail), s.rx_head);
    if ((A::load_relaxed(shared.want) & MW_WANT_RX_ROOM) != 0 &&
        room >= geometry_.rx_ring - A::load_relaxed(shared.rx_limit) / 2) {
      A::fetch_and(shared.want, ~MW_WANT_RX_ROOM);
      news(s);
    }
    return out;
  }
  std::string take_exactly(FakeSock& s, size_t n) {
    std::string out;
    EXPECT_TRUE(eventually([&] {
      out += take(s, n - out.size());
      return out.size() == n;
    }));
    return out;
  }
  uint32_t state(const FakeSock& s) { return A::load_acquire(ch.slot(s.slot).state); }
  bool wait_state(const FakeSock& s, uint32_t bits) {
    return eventually([&] { return (state(s) & bits) == bits; });
  }
  // The next undelivered asynchronous error.
  int wait_error(FakeSock& s) {
    mw_slot& shared = ch.slot(s.slot);
    if (!eventually([&] { return A::load_acquire(shared.error_seq) != s.errors; })) return -1;
    s.errors = A::load_acquire(shared.error_seq);
    return shared.error;
  }

  // A protected connection and its other end, an ordinary socket.
  std::pair<FakeSock, UniqueFd> connection() {
    FakeSock l = listener();
    UniqueFd peer = dial(port_of(l));
    auto s = accept(l);
    if (!s) std::abort();
    kept_.push_back(std::move(l));
    return {std::move(*s), std::move(peer)};
  }
  static UniqueFd dial(uint16_t port) {
    UniqueFd fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const sockaddr_in a = loopback(port);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
    return fd;
  }
  void let_time_pass(uint32_t ticks) {
    // One at a time, each seen by the workers: time is a counter to them.
    for (uint32_t k = 0; k < ticks; ++k) {
      ins->tick.fetch_add(1);
      const FakeSock s = socket(SOCK_DGRAM);
    }
  }
  const SessionFds& fds() const { return fds_; }
  const std::filesystem::path& root() const { return root_; }

  Channel ch;
  std::unique_ptr<InsContext> ins;
  UniqueFd driver;
  std::atomic<int> exit_code{-1};
  pid_t child = -1;

 private:
  const mw_geometry geometry_;
  const uint32_t workers_;
  std::filesystem::path root_;
  SessionFds fds_;
  Mapping map_;
  std::unique_ptr<WorkerThreads> threads_;
  std::unique_ptr<Publisher> publisher_;
  std::unique_ptr<Resolver> resolver_;
  std::unique_ptr<LocalControl> control_;
  std::thread serving_;
  UniqueFd stop_;
  uint32_t seq_ = 0;
  std::vector<FakeSock> kept_;
};

}  // namespace mw
