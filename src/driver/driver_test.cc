// The driver against a shim and an INS that this test plays itself, over the real sockets.
#include "driver/driver.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>
#include <utility>

#include "base/name_files.h"
#include "tests/support/driver_session.h"
#include "transport/local/mapping.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

constexpr mw_geometry kSmall{.slots = 1024,
                             .rx_ring = 4096,
                             .tx_ring = 4096,
                             .groups = 4,
                             .workers = 2,
                             .calls = 64,
                             .reserved = {0, 0}};

struct Pair {
  UniqueFd a, b;
};
Pair make_pair(int type) {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd{fds[0]}, UniqueFd{fds[1]}};
}
Pair make_pipe() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  return {UniqueFd{fds[0]}, UniqueFd{fds[1]}};
}

bool readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}
uint64_t take_bell(int fd) {
  uint64_t n = 0;
  return ::read(fd, &n, sizeof n) == sizeof n ? n : 0;
}

// A connection with whole messages on it: the shim's to the driver, or the INS's.
struct Peer {
  UniqueFd socket;

  template <class T>
  bool send(const T& message, std::span<const int> fds = {}) {
    return static_cast<bool>(send_message(socket.get(), bytes_of(message), fds, MSG_DONTWAIT));
  }
  // Nothing if the next message is not there, or is not a T.
  template <class T>
  std::optional<T> receive(std::vector<UniqueFd>* fds = nullptr) {
    T message{};
    auto m = receive_message(socket.get(), writable_bytes_of(message), MSG_DONTWAIT);
    if (!m || m->bytes != sizeof message) return std::nullopt;
    if (fds != nullptr) {
      fds->clear();
      for (size_t i = 0; i < m->fd_count; ++i) fds->push_back(std::move(m->fds[i]));
    }
    return message;
  }
  bool ended() {
    pollfd p{socket.get(), 0, 0};
    return ::poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0;
  }
};

// A child's whole life as an INS: it is greeted, and then does nothing, with or without its
// connection.
[[noreturn]] void play_ins(const UniqueFd& listener, bool leave, bool say_poisoned = false) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::listen(listener.get(), 4);
  pollfd p{listener.get(), POLLIN, 0};
  ::poll(&p, 1, -1);
  Peer ins{UniqueFd{::accept4(listener.get(), nullptr, nullptr, 0)}};
  ControlHello hello{};
  if (auto m = receive_message(ins.socket.get(), writable_bytes_of(hello), 0); !m) ::_exit(1);
  hello.type = ControlType::hello_ack;
  ins.send(hello);
  ControlSlot start{};
  if (auto m = receive_message(ins.socket.get(), writable_bytes_of(start), 0); !m) ::_exit(2);
  if (say_poisoned) ins.send(ControlSlot{ControlType::poisoned, 0, 0, 0});
  if (leave) ins.socket.reset();
  for (;;) ::pause();
}

class DriverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-driver-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    auto registry = LocalRegistry::create(folder_ + "/r");
    ASSERT_TRUE(registry);
    registry_ = std::make_unique<LocalRegistry>(std::move(*registry));
    static int sessions = 0;
    auto fds = make_session_fds("t" + std::to_string(::getpid()) + "-" + std::to_string(++sessions),
                                kSmall);
    ASSERT_TRUE(fds);
    fds_ = std::move(*fds);
    store_ = make_pair(SOCK_SEQPACKET);
    options_ = options_for(fds_);
    options_.registry = folder_ + "/r";
    options_.session = "test";
    options_.store_fds[0] = store_.a.get();
    options_.store_fds[1] = store_.b.get();
    options_.kill_lost_ins = false;
    auto memory = SessionMemory::open(fds_.channel.get(), fds_.session.get());
    ASSERT_TRUE(memory);
    memory_ = std::make_unique<SessionMemory>(std::move(*memory));
    start_driver();
  }
  void TearDown() override {
    driver_.reset();
    std::filesystem::remove_all(folder_);
  }

  void start_driver() {
    driver_.reset();
    Pair ready = make_pipe();
    ready_ = std::move(ready.a);
    options_.ready_fd = ready.b.release();
    auto d = Driver::make(options_);
    ASSERT_TRUE(d) << d.error().where;
    driver_ = std::move(*d);
  }

  // Lets the driver work until the condition holds.
  bool until(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      EXPECT_TRUE(driver_->run_once(5));
    }
    return true;
  }
  // Lets the driver handle all that waits for it now.
  void settle() {
    for (int i = 0; i < 8; ++i) EXPECT_TRUE(driver_->run_once(0));
  }

  // ---- the application's side ----
  Peer connect_shim() {
    Peer p{UniqueFd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)}};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::memcpy(a.sun_path + 1, fds_.attach_name.data(), fds_.attach_name.size());
    const auto size =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + fds_.attach_name.size());
    EXPECT_EQ(::connect(p.socket.get(), reinterpret_cast<sockaddr*>(&a), size), 0);
    return p;
  }
  AttachRequest request(AttachType type) {
    AttachRequest r{type, MW_PROTOCOL_VERSION, {}, 0, {}};
    std::memcpy(r.token, options_.token.data(), sizeof r.token);
    return r;
  }
  Peer attach() {
    Peer p = connect_shim();
    EXPECT_TRUE(p.send(request(AttachType::attach)));
    std::optional<AttachReply> reply;
    EXPECT_TRUE(until([&] { return (reply = p.receive<AttachReply>()).has_value(); }));
    EXPECT_EQ(reply ? reply->status : ~0u, 0u);
    return p;
  }
  struct Group {
    uint32_t status = 0, id = 0;
    UniqueFd bell, life;  // life: the end that the shim keeps
    UniqueFd memory;
  };
  Group open_group(Peer& shim) {
    Pair pipe = make_pipe();
    Group g{0, 0, UniqueFd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)}, std::move(pipe.a), {}};
    g.memory = std::move(*make_sealed_memfd("t", 4096));
    const int fds[] = {g.bell.get(), pipe.b.get(), g.memory.get()};
    EXPECT_TRUE(shim.send(request(AttachType::group_open), fds));
    pipe.b.reset();
    std::optional<AttachReply> reply;
    EXPECT_TRUE(until([&] { return (reply = shim.receive<AttachReply>()).has_value(); }));
    g.status = reply ? reply->status : ~0u;
    g.id = reply ? reply->group : ~0u;
    return g;
  }

  // ---- the INS's side ----
  // Credentials of a channel are those of whoever calls listen(): a child that plays the INS does
  // it.
  UniqueFd listen_as_ins(uint32_t id, bool by_a_child = false) {
    EXPECT_TRUE(registry_->write(ins_path(id, "ins_dom_id"), std::to_string(id)));
    auto folder = registry_->open_folder(ins_path(id, ""));
    EXPECT_TRUE(folder);
    UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    const std::string path = "/proc/self/fd/" + std::to_string(folder->get()) + "/channel";
    std::memcpy(a.sun_path, path.c_str(), path.size() + 1);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    EXPECT_EQ(by_a_child ? 0 : ::listen(fd.get(), 4), 0);
    return fd;
  }
  Peer accept_driver(const UniqueFd& listener) {
    Peer p;
    EXPECT_TRUE(until([&] {
      p.socket = UniqueFd{::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      return static_cast<bool>(p.socket);
    }));
    return p;
  }
  template <class T>
  std::optional<T> next(Peer& p, std::vector<UniqueFd>* fds = nullptr) {
    std::optional<T> message;
    EXPECT_TRUE(until([&] { return (message = p.receive<T>(fds)).has_value(); }));
    return message;
  }
  ControlHello ack_to(const ControlHello& hello) {
    ControlHello ack = hello;
    ack.type = ControlType::hello_ack;
    return ack;
  }
  // Greets the driver and returns the INS's end once start has come.
  Peer serve(const UniqueFd& listener, ControlHello* hello = nullptr) {
    Peer ins = accept_driver(listener);
    auto h = next<ControlHello>(ins);
    if (!h) return ins;
    if (hello != nullptr) *hello = *h;
    EXPECT_TRUE(ins.send(ack_to(*h)));
    for (;;) {
      auto s = next<ControlSlot>(ins);
      if (!s || s->type == ControlType::start) break;
      EXPECT_EQ(s->type, ControlType::group_open);
    }
    EXPECT_TRUE(until([&] { return memory_->state() == kSessionUp; }));
    return ins;
  }
  ControlListener listener_record(uint32_t slot, uint32_t gen) {
    ControlListener l{};
    l.type = ControlType::listener_up;
    l.slot = slot;
    l.gen = gen;
    l.domain = AF_INET6;
    l.socket_type = SOCK_STREAM;
    l.backlog = 511;
    const sa_family_t family = AF_INET6;
    std::memcpy(l.local.bytes, &family, sizeof family);
    l.local.len = 28;
    l.option_count = 1;
    l.options[0] = {SOL_SOCKET, SO_REUSEADDR, 4, {1}};
    return l;
  }

  SessionHeader& header() { return memory_->session().header(); }

  std::string folder_;
  std::unique_ptr<LocalRegistry> registry_;
  SessionFds fds_;
  Pair store_;
  DriverOptions options_;
  std::unique_ptr<SessionMemory> memory_;
  std::unique_ptr<Driver> driver_;
  UniqueFd ready_;
};

// ---- names ----

TEST_F(DriverTest, GivesAnInsTheFilesAboutNamesAndWhatReplacesThem) {
  const auto text_of = [](const UniqueFd& fd) {
    char text[64] = {};
    return std::string(
        text, static_cast<size_t>(std::max<ssize_t>(::pread(fd.get(), text, sizeof text, 0), 0)));
  };
  const auto path = [](uint32_t file) {
    return std::string(kNamesFolder) + "/" + kNameFiles[file];
  };
  for (uint32_t k = 0; k < kNameFileCount; ++k)
    ASSERT_TRUE(registry_->write(path(k), "first " + std::to_string(k)));
  start_driver();
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = accept_driver(listener);
  auto hello = next<ControlHello>(ins);
  ASSERT_TRUE(hello);
  EXPECT_NE(hello->features & kFeatureNames, 0u);
  ASSERT_TRUE(ins.send(ack_to(*hello)));
  std::vector<UniqueFd> fds;
  for (uint32_t k = 0; k < kNameFileCount; ++k) {
    auto s = next<ControlSlot>(ins, &fds);
    ASSERT_TRUE(s && s->type == ControlType::names && fds.size() == 1);
    EXPECT_EQ(s->slot, k);
    EXPECT_EQ(text_of(fds[0]), "first " + std::to_string(k));
  }
  auto start = next<ControlSlot>(ins);
  ASSERT_TRUE(start && start->type == ControlType::start);
  ASSERT_TRUE(registry_->write(std::string(kNamesFolder) + "/other", "nobody's"));
  ASSERT_TRUE(registry_->write(path(1), "second"));
  auto s = next<ControlSlot>(ins, &fds);
  ASSERT_TRUE(s && s->type == ControlType::names && fds.size() == 1);
  EXPECT_EQ(s->slot, 1u);
  EXPECT_EQ(text_of(fds[0]), "second");
  settle();
  EXPECT_FALSE(ins.receive<ControlSlot>());
}

TEST_F(DriverTest, AnInsThatDoesNotKnowNamesIsToldNone) {
  ASSERT_TRUE(registry_->write(std::string(kNamesFolder) + "/hosts", "first"));
  start_driver();
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = accept_driver(listener);
  auto hello = next<ControlHello>(ins);
  ASSERT_TRUE(hello);
  ControlHello ack = ack_to(*hello);
  ack.features = kFeatureTelemetry;
  ASSERT_TRUE(ins.send(ack));
  auto start = next<ControlSlot>(ins);
  EXPECT_TRUE(start && start->type == ControlType::start);
}

// ---- attaching ----

TEST_F(DriverTest, GivesTheSessionToWhoeverKnowsTheToken) {
  Peer shim = connect_shim();
  ASSERT_TRUE(shim.send(request(AttachType::attach)));
  std::vector<UniqueFd> fds;
  auto reply = next<AttachReply>(shim, &fds);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->type, AttachType::attach);
  EXPECT_EQ(reply->status, 0u);
  EXPECT_EQ(reply->geometry.slots, kSmall.slots);
  ASSERT_EQ(fds.size(), 5u);
  EXPECT_TRUE(same_file(fds[0].get(), fds_.channel.get()));
  EXPECT_TRUE(same_file(fds[1].get(), fds_.session.get()));
  EXPECT_TRUE(same_file(fds[2].get(), fds_.drop_pvm.get()));
  ASSERT_EQ(::eventfd_write(fds[4].get(), 1), 0);
  EXPECT_EQ(take_bell(fds_.bells[1].get()), 1u);
  EXPECT_EQ(driver_->attached(), 1u);
}

TEST_F(DriverTest, GivesNothingToAStranger) {
  for (int wrong = 0; wrong < 3; ++wrong) {
    Peer shim = connect_shim();
    AttachRequest r = request(AttachType::attach);
    if (wrong == 0) r.token[15] ^= 1;
    if (wrong == 1) r.type = AttachType{77};
    if (wrong == 2) {
      ASSERT_TRUE(shim.send(uint8_t{1}));
    } else {
      ASSERT_TRUE(shim.send(r));
    }
    EXPECT_TRUE(until([&] { return shim.ended(); }));
    EXPECT_FALSE(shim.receive<AttachReply>());
  }
  EXPECT_EQ(driver_->attached(), 0u);
}

// ---- a crowd at the door ----

// Processes that connect, or come and go, while the driver works.
class CrowdTest : public DriverTest {
 protected:
  static constexpr int kEach = 500;

  void TearDown() override {
    end_crowd();
    DriverTest::TearDown();
  }
  void end_crowd() {
    for (const pid_t child : std::exchange(crowd_, {})) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
  }
  // A child that does `act`, says so, and stays.
  void begin(const std::function<void()>& act) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      done_.a.reset();
      act();
      (void)!::write(done_.b.get(), "", 1);
      for (;;) ::pause();
    }
    crowd_.push_back(child);
  }
  void be_silent() {
    for (int i = 0; i < kEach; ++i) (void)connect_shim().socket.release();
  }
  // How many have finished what they do.
  int done() {
    char text[64];
    pollfd p{done_.a.get(), POLLIN, 0};
    if (::poll(&p, 1, 0) == 1)
      finished_ += static_cast<int>(::read(done_.a.get(), text, sizeof text));
    return finished_;
  }
  // A process attaches, as the shim does it: with calls that wait. How long that took.
  std::chrono::milliseconds attach_elsewhere() {
    const auto start = std::chrono::steady_clock::now();
    const int before = done();
    begin([this] {
      Peer p = connect_shim();
      AttachReply reply{};
      if (!p.send(request(AttachType::attach)) ||
          !receive_message(p.socket.get(), writable_bytes_of(reply), 0) || reply.status != 0)
        ::_exit(1);
    });
    EXPECT_TRUE(until([&] { return done() > before; }));
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() -
                                                                 start);
  }
  static size_t open_descriptors() {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
      ++n;
    return n;
  }

  Pair done_ = make_pipe();
  int finished_ = 0;
  std::vector<pid_t> crowd_;
};

TEST_F(CrowdTest, FiveThousandSilentOnesKeepNobodyOutAndTakeFewDescriptors) {
  const size_t before = open_descriptors();
  for (int i = 0; i < 10; ++i) begin([this] { be_silent(); });
  ASSERT_TRUE(until([&] { return done() == 10; }));
  settle();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_LE(open_descriptors() - before, std::min<size_t>(Strangers::kMost, limit.rlim_cur / 4));
  EXPECT_LT(attach_elsewhere().count(), 1000);
  EXPECT_EQ(driver_->attached(), 1u);
}

TEST_F(CrowdTest, ThoseThatComeAndGoKeepNobodyOut) {
  for (int i = 0; i < 4; ++i)
    begin([this] {
      for (;;) (void)connect_shim();
    });
  for (int i = 0; i < 10; ++i) EXPECT_LT(attach_elsewhere().count(), 1000) << i;
}

TEST_F(CrowdTest, AProcessHasALimitOfItsOwn) {
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  if (old.rlim_max < 8192) GTEST_SKIP() << "the hard limit of descriptors is below 8192";
  const rlimit more{8192, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &more), 0);
  std::vector<Peer> all;
  for (size_t i = 0; i < Processes::kMaxPerProcess; ++i) {
    all.push_back(connect_shim());
    ASSERT_TRUE(all.back().send(request(AttachType::attach)));
    settle();
  }
  EXPECT_EQ(driver_->attached(), Processes::kMaxPerProcess);
  Peer one_more = connect_shim();
  ASSERT_TRUE(one_more.send(request(AttachType::attach)));
  const auto reply = next<AttachReply>(one_more);
  EXPECT_TRUE(reply && reply->status == EAGAIN);
  EXPECT_TRUE(until([&] { return one_more.ended(); }));
  EXPECT_LT(attach_elsewhere().count(), 1000) << "another process is not it";
  end_crowd();  // it has copies of all these connections
  all.clear();
  EXPECT_TRUE(until([&] { return driver_->attached() == 1; })) << "all are gone, and it lives";
  attach();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);
}

TEST_F(DriverTest, WhatSomebodySaidIsReadBeforeOthersTakeItsPlace) {
  // Accepted together with a crowd that comes behind it.
  Peer shim = connect_shim();
  settle();
  ASSERT_TRUE(shim.send(request(AttachType::attach)));
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const Strangers most(std::min<size_t>(Strangers::kMost, limit.rlim_cur / 4));
  std::vector<Peer> strangers;
  for (size_t i = 0; i < most.most_of_user() + 10; ++i) strangers.push_back(connect_shim());
  EXPECT_TRUE(next<AttachReply>(shim));
  EXPECT_TRUE(until([&] { return strangers.front().ended(); }));
  EXPECT_FALSE(strangers.back().ended());
}

TEST_F(DriverTest, RefusesButGoesOnWhenOutOfDescriptors) {
  Peer first = attach();
  Peer second = connect_shim();
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  UniqueFd lowest{::dup(0)};
  const rlimit none{static_cast<rlim_t>(lowest.get()), old.rlim_max};
  lowest.reset();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  settle();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_TRUE(second.ended());
  EXPECT_FALSE(first.ended());
  attach();
}

// ---- options that take a privilege ----
class PrivilegedOptionTest : public DriverTest {
 protected:
  void SetUp() override {
    DriverTest::SetUp();
    if (::geteuid() != 0) GTEST_SKIP() << "we have no right to set what is asked for";
    listener_ = listen_as_ins(1);
    ins_ = serve(listener_);
  }
  static UniqueFd proof(int mark, int domain = AF_INET, int type = SOCK_DGRAM) {
    UniqueFd fd{::socket(domain, type | SOCK_CLOEXEC, 0)};
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    return fd;
  }
  // What the request says is not what counts.
  Peer ask(int level, int name, int proof) {
    Peer shim = connect_shim();
    AttachRequest r = request(AttachType::option);
    r.option = {3, 7, {level, name, sizeof(int), {99}}};
    const int fds[] = {proof};
    EXPECT_TRUE(shim.send(r, fds));
    return shim;
  }
  Peer ask_for_mark() { return ask(SOL_SOCKET, SO_MARK, proof(5).get()); }
  uint32_t answer(Peer& shim) {
    const auto reply = next<AttachReply>(shim);
    return reply ? reply->status : ~0u;
  }
  ControlOption lent(uint32_t status = 0) const {
    return {ControlType::lent, 3, 7, SOL_SOCKET, SO_MARK, status};
  }
  void lend(int domain) {
    const auto wanted = next_option();
    EXPECT_EQ(wanted.type, ControlType::lend);
    EXPECT_EQ(wanted.slot, 3u);
    EXPECT_EQ(wanted.gen, 7u);
    socket_ = UniqueFd{::socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const int fds[] = {socket_.get()};
    EXPECT_TRUE(ins_.send(lent(), fds));
  }
  ControlOption next_option() {
    const auto o = next<ControlOption>(ins_);
    return o ? *o : ControlOption{};
  }
  int mark() const {
    int value = -1;
    socklen_t len = sizeof value;
    ::getsockopt(socket_.get(), SOL_SOCKET, SO_MARK, &value, &len);
    return value;
  }
  UniqueFd listener_;
  Peer ins_;
  UniqueFd socket_;
};

TEST_F(PrivilegedOptionTest, IsSetOnTheSocketThatTheInsLends) {
  Peer shim = ask_for_mark();
  lend(AF_INET);
  EXPECT_EQ(answer(shim), 0u);
  EXPECT_EQ(mark(), 5);
  EXPECT_EQ(next_option().type, ControlType::option_set);
}
TEST_F(PrivilegedOptionTest, IsSetOnSocketsOfTheInternetOnly) {
  Peer shim = ask_for_mark();
  lend(AF_UNIX);
  EXPECT_EQ(answer(shim), static_cast<uint32_t>(EPERM));
  EXPECT_EQ(mark(), 0);
}
TEST_F(PrivilegedOptionTest, IsOneOfAFew) {
  for (const int level : {int{SOL_SOCKET}, int{IPPROTO_IP}}) {
    Peer shim = ask(level, SO_DEBUG, proof(5).get());
    EXPECT_EQ(answer(shim), static_cast<uint32_t>(EPERM));
  }
}
TEST_F(PrivilegedOptionTest, IsNoMoreThanTheProofShows) {
  Peer marks = ask(SOL_SOCKET, SO_MARK, proof(0).get());
  lend(AF_INET);
  EXPECT_EQ(answer(marks), 0u);
  EXPECT_EQ(mark(), 0);
  EXPECT_EQ(next_option().type, ControlType::option_set);
  Peer binds = ask(SOL_SOCKET, SO_BINDTODEVICE, proof(5).get());  // which takes a raw socket
  EXPECT_EQ(answer(binds), static_cast<uint32_t>(EPERM));
}
TEST_F(PrivilegedOptionTest, TakesNoProofOfAnotherKind) {
  const UniqueFd none{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  const UniqueFd local{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  UniqueFd abroad;
  std::thread([&] {
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    abroad = proof(5);
  }).join();
  for (const int fd : {none.get(), local.get(), abroad.get()}) {
    Peer shim = ask(SOL_SOCKET, SO_MARK, fd);
    EXPECT_EQ(answer(shim), static_cast<uint32_t>(EPERM));
  }
}
TEST_F(PrivilegedOptionTest, IsRefusedIfTheInsHasNoSuchSocketOrDies) {
  Peer one = ask_for_mark();
  next_option();
  EXPECT_TRUE(ins_.send(lent(ECONNRESET)));
  EXPECT_EQ(answer(one), static_cast<uint32_t>(ECONNRESET));
  Peer two = ask_for_mark();
  next_option();
  ins_.socket.reset();
  EXPECT_EQ(answer(two), static_cast<uint32_t>(ENETDOWN));
}
TEST_F(PrivilegedOptionTest, EndsAnInsThatLendsUnasked) {
  socket_ = UniqueFd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const int fds[] = {socket_.get()};
  EXPECT_TRUE(ins_.send(lent(), fds));
  EXPECT_TRUE(until([&] { return memory_->state() != kSessionUp; }));
}

TEST_F(DriverTest, FreesTheCallsOfAProcessThatDied) {
  Pair go = make_pipe();
  const pid_t child = ::fork();
  if (child == 0) {
    go.b.reset();
    Peer shim = connect_shim();
    shim.send(request(AttachType::attach));
    char c;
    (void)!::read(go.a.get(), &c, 1);
    ::_exit(0);
  }
  ASSERT_TRUE(until([&] { return driver_->attached() == 1; }));
  const auto pid = static_cast<uint32_t>(child);
  memory_->session().call(3) = {pid, 7};  // answered
  memory_->channel().call(3).seq = memory_->channel().call(3).done_seq = 7;
  memory_->session().call(4) = {pid, 9};  // not yet
  memory_->channel().call(4).seq = 9;
  memory_->channel().call(4).op = MW_OP_BIND;
  memory_->channel().call(4).slot = 13;
  memory_->session().call(5) = {static_cast<uint32_t>(::getpid()), 0};
  memory_->session().call(6) = {pid, 21};  // died before it wrote the request
  memory_->session().call(7) = {pid, 5};   // a new socket, never announced
  memory_->channel().call(7).seq = 5;
  memory_->channel().call(7).op = MW_OP_SOCKET;
  ASSERT_TRUE(memory_->channel().call_news(1).prepare_sleep());
  go.b.reset();
  EXPECT_TRUE(until([&] { return driver_->attached() == 0; }));
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(memory_->session().call(3).pid, 0u);
  EXPECT_EQ(memory_->session().call(4).pid, pid);
  EXPECT_EQ(memory_->session().call(6).pid, 0u);
  EXPECT_EQ(memory_->session().call(6).seq, memory_->channel().call(6).done_seq);
  EXPECT_FALSE(memory_->channel().call_news(1).empty());  // announced, in case it was not
  EXPECT_EQ(take_bell(fds_.bells[1].get()), 1u);
  EXPECT_EQ(memory_->session().call(5).pid, static_cast<uint32_t>(::getpid()));

  // The INS gets what the process could not send any more, with a placeholder that nobody has.
  mw_drop_record record{};
  auto drop = receive_message(fds_.drop_ins.get(), writable_bytes_of(record), MSG_DONTWAIT);
  ASSERT_TRUE(drop);
  EXPECT_EQ(record.magic, MW_DROP_MAGIC);
  EXPECT_EQ(record.call, 7u);
  EXPECT_EQ(record.seq, 5u);
  ASSERT_EQ(drop->fd_count, 1u);
  pollfd placeholder{drop->fds[0].get(), 0, 0};
  EXPECT_EQ(::poll(&placeholder, 1, 0), 1);
  EXPECT_NE(placeholder.revents & POLLHUP, 0);
  EXPECT_EQ(memory_->session().call(7).pid, pid);
  memory_->channel().call(7).done_seq = 5;
  EXPECT_TRUE(until([&] { return memory_->session().call(7).pid == 0; }));
}

TEST_F(DriverTest, FreesTheCallsOfAChildThatNeverAttachedButNotAtOnce) {
  Peer shim = attach();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  memory_->session().call(3) = {static_cast<uint32_t>(child), 0};
  Peer other = attach();
  other.socket.reset();
  settle();
  // It may be alive under this number in a namespace of its own.
  EXPECT_EQ(memory_->session().call(3).pid, static_cast<uint32_t>(child));
  EXPECT_TRUE(until([&] { return memory_->session().call(3).pid == 0; }));
}

// ---- an INS ----

TEST_F(DriverTest, StartsAnInsAndSaysReady) {
  EXPECT_FALSE(readable(ready_.get()));
  const UniqueFd listener = listen_as_ins(7);
  Peer ins = accept_driver(listener);
  std::vector<UniqueFd> fds;
  auto hello = next<ControlHello>(ins, &fds);
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->type, ControlType::hello);
  EXPECT_EQ(hello->version, MW_PROTOCOL_VERSION);
  EXPECT_EQ(hello->first_gen, 1u);
  ASSERT_EQ(fds.size(), 4u);
  EXPECT_TRUE(same_file(fds[0].get(), fds_.channel.get()));
  EXPECT_TRUE(same_file(fds[1].get(), fds_.drop_ins.get()));
  ASSERT_TRUE(ins.send(ack_to(*hello)));
  auto start = next<ControlSlot>(ins);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->type, ControlType::start);
  EXPECT_TRUE(until([&] { return readable(ready_.get()); }));
  EXPECT_EQ(header().state, kSessionUp);
  EXPECT_EQ(header().epoch, 1u);
  EXPECT_EQ(header().first_gen, 1u);
  EXPECT_EQ(*registry_->read("mw/pvm/state"), "up");
  EXPECT_EQ(*registry_->read("mw/pvm/id"), "test");
}

// Else the application could have a connection from it before it trusts it.
TEST_F(DriverTest, AnInsCountsBeforeItIsToldToStart) {
  const UniqueFd first = listen_as_ins(1);
  Peer leaves = accept_driver(first);
  auto hello = next<ControlHello>(leaves);
  ASSERT_TRUE(hello);
  ASSERT_TRUE(leaves.send(ack_to(*hello)));
  leaves.socket.reset();  // so that it cannot be told
  const UniqueFd second = listen_as_ins(2);
  const Peer stays = serve(second);
  EXPECT_EQ(header().epoch, 2u);
}

TEST_F(DriverTest, PassesOverAnInsThatDoesNotAgree) {
  const UniqueFd old = listen_as_ins(1);
  Peer first = accept_driver(old);
  auto hello = next<ControlHello>(first);
  ASSERT_TRUE(hello);
  const UniqueFd good = listen_as_ins(2);
  ControlHello no = ack_to(*hello);
  no.status = EPROTONOSUPPORT;
  ASSERT_TRUE(first.send(no));
  EXPECT_TRUE(until([&] { return first.ended(); }));
  Peer second = serve(good);
  EXPECT_FALSE(second.ended());
}

TEST_F(DriverTest, EndsAnInsThatBreaksTheProtocol) {
  const auto bad_messages = std::vector<std::function<void(Peer&)>>{
      [](Peer& p) { p.send(uint32_t{3}); },
      [](Peer& p) {
        p.send(ControlSlot{ControlType{99}, 0, 0, 0});
      },
      [](Peer& p) {
        p.send(ControlSlot{ControlType::listener_down, kSmall.slots, 0, 0});
      },
      [](Peer& p) {
        p.send(ControlSlot{ControlType::replayed, 5, 0, 0});
      },
      [](Peer& p) {
        p.send(ControlSlot{ControlType::start, 0, 0, 0});
      },
      [&](Peer& p) { p.send(listener_record(1, 1)); },  // without its descriptor
      [&](Peer& p) {
        const int fds[] = {ready_.get()};  // not a placeholder
        p.send(listener_record(1, 1), fds);
      },
      [&](Peer& p) {
        Pair pair = make_pair(SOCK_STREAM);
        const int fds[] = {pair.a.get()};
        ControlListener l = listener_record(1, 1);
        l.option_count = kMaxReplayOptions + 1;
        p.send(l, fds);
      },
      [](Peer& p) { p.send(ControlHello{}); },
  };
  uint32_t id = 1;
  for (const auto& send_bad : bad_messages) {
    const UniqueFd listener = listen_as_ins(id);
    Peer ins = serve(listener);
    send_bad(ins);
    EXPECT_TRUE(until([&] { return ins.ended(); })) << "message " << id;
    EXPECT_EQ(header().state, kSessionDown);
    ASSERT_TRUE(registry_->remove(ins_path(id, "")));
    ++id;
  }
}

TEST_F(DriverTest, KillsAnInsThatLeavesItsConnectionBeforeItsSuccessorComes) {
  options_.kill_lost_ins = true;
  start_driver();
  const UniqueFd listener = listen_as_ins(1, true);
  const pid_t child = ::fork();
  if (child == 0) {
    play_ins(listener, true);
  }
  ASSERT_TRUE(until([&] { return header().state == kSessionDown; }));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
}

// ---- groups ----

TEST_F(DriverTest, EndsAnInsThatAProcessSaysBrokeTheProtocol) {
  options_.kill_lost_ins = true;
  start_driver();
  const UniqueFd listener = listen_as_ins(1, true);
  const pid_t child = ::fork();
  if (child == 0) play_ins(listener, false);
  ASSERT_TRUE(until([&] { return memory_->state() == kSessionUp; }));
  Peer shim = attach();
  AttachRequest report = request(AttachType::violation);
  report.epoch = header().epoch - 1;
  ASSERT_TRUE(shim.send(report));
  settle();
  EXPECT_EQ(memory_->state(), kSessionUp) << "it was about an INS that is gone already";
  report.epoch = header().epoch;
  report.token[0] ^= 1;
  Peer stranger = connect_shim();
  ASSERT_TRUE(stranger.send(report));
  EXPECT_TRUE(until([&] { return stranger.ended(); }));
  EXPECT_EQ(memory_->state(), kSessionUp) << "a stranger's word counts for nothing";
  report.token[0] ^= 1;
  ASSERT_TRUE(shim.send(report));
  EXPECT_TRUE(until([&] { return memory_->state() == kSessionDown; }));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  const UniqueFd second = listen_as_ins(2);
  const Peer ins = serve(second);
  EXPECT_FALSE(shim.ended()) << "who reports goes on with the next one";
}

TEST_F(DriverTest, AnInsThatSaysThatItEndsHasAMomentForIt) {
  options_.kill_lost_ins = true;
  start_driver();
  const UniqueFd listener = listen_as_ins(1, true);
  const pid_t child = ::fork();
  if (child == 0) play_ins(listener, true, true);
  ASSERT_TRUE(until([&] { return memory_->state() == kSessionUp; }));
  const auto began = std::chrono::steady_clock::now();
  EXPECT_TRUE(until([&] { return memory_->state() == kSessionDown; })) << "but no more than that";
  EXPECT_GT(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(500));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(DriverTest, SaysWhenNoInsWillComeAnyMore) {
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = serve(listener);
  driver_->end_session();
  EXPECT_EQ(memory_->state(), kSessionUp) << "as long as it has one";
  ins.socket.reset();
  EXPECT_TRUE(until([&] { return memory_->state() == kSessionOver; }));
  start_driver();
  EXPECT_EQ(memory_->state(), kSessionOver);
}

TEST_F(DriverTest, TellsTheInsAboutGroups) {
  Peer shim = attach();
  Group early = open_group(shim);
  ASSERT_EQ(early.status, 0u);
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = accept_driver(listener);
  auto hello = next<ControlHello>(ins);
  ASSERT_TRUE(hello);
  ASSERT_TRUE(ins.send(ack_to(*hello)));
  std::vector<UniqueFd> fds;
  auto m = next<ControlSlot>(ins, &fds);
  ASSERT_TRUE(m);
  EXPECT_EQ(m->type, ControlType::group_open);
  EXPECT_EQ(m->slot, early.id);
  ASSERT_EQ(fds.size(), 1u);
  ASSERT_EQ(::eventfd_write(fds[0].get(), 5), 0);
  EXPECT_EQ(take_bell(early.bell.get()), 5u);
  EXPECT_EQ(next<ControlSlot>(ins)->type, ControlType::start);

  Group late = open_group(shim);
  EXPECT_NE(late.id, early.id);
  m = next<ControlSlot>(ins, &fds);
  EXPECT_EQ(m->type, ControlType::group_open);
  EXPECT_EQ(m->slot, late.id);
  EXPECT_EQ(memory_->session().group(late.id).in_use, 1u);
  late.life.reset();
  m = next<ControlSlot>(ins);
  EXPECT_EQ(m->type, ControlType::group_close);
  EXPECT_EQ(m->slot, late.id);
  EXPECT_EQ(memory_->session().group(late.id).in_use, 0u);
}

TEST_F(DriverTest, RefusesGroupsThatItCannotServe) {
  Peer shim = attach();
  std::vector<Group> groups;
  for (uint32_t i = 0; i < kSmall.groups; ++i) {
    groups.push_back(open_group(shim));
    EXPECT_EQ(groups.back().status, 0u);
  }
  EXPECT_EQ(open_group(shim).status, uint32_t{ENOSPC});
  const uint32_t freed = groups[2].id;
  groups[2].life.reset();
  EXPECT_TRUE(until([&] { return memory_->session().group(freed).in_use == 0; }));
  EXPECT_EQ(open_group(shim).id, freed);

  const Pair pipe = make_pipe();
  const UniqueFd bell{::eventfd(0, EFD_CLOEXEC)};
  const UniqueFd loose{::memfd_create("t", MFD_CLOEXEC)};
  groups[1].life.reset();
  EXPECT_TRUE(until([&] { return memory_->session().group(groups[1].id).in_use == 0; }));
  for (const auto& wrong : {std::array{ready_.get(), pipe.b.get(), groups[0].memory.get()},
                            std::array{bell.get(), pipe.a.get(), groups[0].memory.get()},
                            std::array{bell.get(), pipe.b.get(), loose.get()}}) {
    ASSERT_TRUE(shim.send(request(AttachType::group_open), wrong));
    EXPECT_EQ(next<AttachReply>(shim)->status, uint32_t{EINVAL});
  }
}

TEST_F(DriverTest, LeavesNothingOfADeadGroup) {
  Peer shim = attach();
  Group g = open_group(shim);
  Group other = open_group(shim);
  memory_->session().slot(900).watch_end = MW_MAX_WATCHES;
  const SessionWatches s = memory_->session().watches(900);
  constexpr uint32_t kLast = MW_MAX_WATCHES - 1;
  s[0] = {1 + other.id, 5, 0, 0};
  s[1] = {1 + g.id, 6, 0, 0};
  s[kLast] = {1 + g.id, 7, 0, 0};
  uint64_t(&watches)[4] = memory_->channel().slot(900).watches;
  watches[0] = uint64_t{1 + other.id} | uint64_t{1 + g.id} << 16;
  watches[3] = uint64_t{1 + g.id} << 48;
  memory_->channel().group_news(g.id).add(900);
  EXPECT_TRUE(memory_->channel().group_news(g.id).prepare_sleep() == false);
  memory_->channel().group_news(g.id).add(901);
  g.life.reset();
  EXPECT_TRUE(until([&] { return memory_->session().group(g.id).in_use == 0; }));
  EXPECT_EQ(s[0].group, 1 + other.id);
  EXPECT_EQ(s[1].group, 0u);
  EXPECT_EQ(s[kLast].group, 0u);
  EXPECT_EQ(watches[0], uint64_t{1 + other.id});
  EXPECT_EQ(watches[3], 0u);
  EXPECT_TRUE(memory_->channel().group_news(g.id).empty());
}

// An epoll instance of the application whose group is `g`, as the shim registers it.
UniqueFd instance_of(SessionMemory& memory, uint32_t group, const UniqueFd& bell) {
  UniqueFd instance{::epoll_create1(EPOLL_CLOEXEC)};
  epoll_event e{EPOLLIN | EPOLLET, {.u64 = bell_data(group, memory.session().group(group).serial)}};
  EXPECT_EQ(::epoll_ctl(instance.get(), EPOLL_CTL_ADD, bell.get(), &e), 0);
  return instance;
}

TEST_F(DriverTest, FindsTheGroupOfAnEpollInstance) {
  Peer shim = attach();
  Group other = open_group(shim);
  Group g = open_group(shim);
  memory_->session().group(g.id).serial = 0xabc;
  const UniqueFd instance = instance_of(*memory_, g.id, g.bell);
  Peer later = attach();
  const int shown[] = {instance.get()};
  std::vector<UniqueFd> fds;
  ASSERT_TRUE(later.send(request(AttachType::group_find), shown));
  auto reply = next<AttachReply>(later, &fds);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->type, AttachType::group_find);
  EXPECT_EQ(reply->status, 0u);
  EXPECT_EQ(reply->group, g.id);
  ASSERT_EQ(fds.size(), 3u);
  ASSERT_EQ(::eventfd_write(fds[0].get(), 5), 0);
  EXPECT_EQ(take_bell(g.bell.get()), 5u);
  EXPECT_TRUE(same_file(fds[2].get(), g.memory.get()));

  // Whoever found it keeps it alive as whoever made it does.
  g.life.reset();
  settle();
  EXPECT_EQ(memory_->session().group(g.id).in_use, 1u);
  fds.clear();
  EXPECT_TRUE(until([&] { return memory_->session().group(g.id).in_use == 0; }));
  ASSERT_TRUE(later.send(request(AttachType::group_find), shown));
  EXPECT_EQ(next<AttachReply>(later)->status, uint32_t{ENOENT});

  // Of an earlier group of the same number.
  const UniqueFd stale = instance_of(*memory_, other.id, other.bell);
  ++memory_->session().group(other.id).serial;
  const int shown_too[] = {stale.get()};
  ASSERT_TRUE(later.send(request(AttachType::group_find), shown_too));
  EXPECT_EQ(next<AttachReply>(later)->status, uint32_t{ENOENT});
}

TEST_F(DriverTest, KeepsAGroupWhoseInstanceTravels) {
  Peer shim = attach();
  Group g = open_group(shim);
  UniqueFd instance = instance_of(*memory_, g.id, g.bell);
  const int shown[] = {instance.get()};
  for (int twice = 0; twice < 2; ++twice) {
    ASSERT_TRUE(shim.send(request(AttachType::group_keep), shown));
    EXPECT_EQ(next<AttachReply>(shim)->status, 0u);
  }
  g.life.reset();
  settle();
  EXPECT_EQ(memory_->session().group(g.id).in_use, 1u);

  // A driver that is started anew goes on.
  start_driver();
  settle();
  EXPECT_EQ(memory_->session().group(g.id).in_use, 1u);
  Peer later = attach();
  std::vector<UniqueFd> fds;
  ASSERT_TRUE(later.send(request(AttachType::group_find), shown));
  auto reply = next<AttachReply>(later, &fds);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->group, g.id);
  fds.clear();
  settle();
  EXPECT_EQ(memory_->session().group(g.id).in_use, 1u);

  instance.reset();
  EXPECT_TRUE(until([&] { return memory_->session().group(g.id).in_use == 0; }));
}

// ---- the death of an INS ----

TEST_F(DriverTest, ResetsTheSessionWhenTheInsDies) {
  Peer shim = attach();
  Group g = open_group(shim);
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = serve(listener);
  const Channel& c = memory_->channel();

  memory_->session().call(0) = {static_cast<uint32_t>(::getpid()), 41};
  c.call(0).seq = 41;
  c.call(0).done_seq = 40;
  c.call(0).waiting = 1;
  c.call(1).seq = c.call(1).done_seq = 12;
  c.call(1).ret = 3;
  c.sock_news(1).add(17);
  c.call_news(0).add(0);
  const auto register_in = [&](uint32_t slot, uint32_t watch, uint32_t group) {
    memory_->session().slot(slot).watch_end = static_cast<uint16_t>(watch + 1);
    memory_->session().watches(slot)[watch] = {group, 9, 0, 0};
  };
  register_in(17, 9, 1 + g.id);
  register_in(1023, 0, 1 + g.id);
  register_in(18, 0, 4000000);                       // no such group
  memory_->session().slot(1022).watch_end = 0xffff;  // nor as many
  c.slot(17).gen = 1 + (3u << 24);                   // it made very many sockets

  ins.socket.reset();
  EXPECT_TRUE(until([&] { return header().state == kSessionDown; }));
  EXPECT_EQ(c.call(0).done_seq, 41u);
  EXPECT_EQ(c.call(0).ret, -1);
  EXPECT_EQ(c.call(0).err, ECONNRESET);
  EXPECT_EQ(c.call(1).ret, 3);
  EXPECT_TRUE(c.sock_news(1).empty());
  EXPECT_TRUE(c.call_news(0).empty());
  std::vector<uint32_t> news;
  EXPECT_TRUE(c.group_news(g.id).drain([&](uint32_t slot) {
    news.push_back(slot);
    return true;
  }));
  EXPECT_EQ(news, (std::vector<uint32_t>{17, 1023}));
  EXPECT_GE(take_bell(g.bell.get()), 1u);
  EXPECT_EQ(header().first_gen, 2 + (3u << 24));
  EXPECT_FALSE(shim.ended());

  ASSERT_TRUE(registry_->remove(ins_path(1, "")));
  const UniqueFd next_listener = listen_as_ins(2);
  ControlHello hello{};
  Peer successor = serve(next_listener, &hello);
  EXPECT_EQ(hello.first_gen, 2 + (3u << 24));
  EXPECT_EQ(header().epoch, 2u);
}

TEST_F(DriverTest, ReplaysListenersToTheSuccessor) {
  const UniqueFd first_listener = listen_as_ins(1);
  Peer first = serve(first_listener);
  Pair open = make_pair(SOCK_STREAM), closed = make_pair(SOCK_STREAM),
       down = make_pair(SOCK_STREAM);
  for (auto& [slot, pair] :
       std::vector<std::pair<uint32_t, Pair*>>{{5, &open}, {6, &closed}, {7, &down}}) {
    const int fds[] = {pair->b.get()};
    ASSERT_TRUE(first.send(listener_record(slot, 100 + slot), fds));
    pair->b.reset();
  }
  ASSERT_TRUE(first.send(ControlSlot{ControlType::listener_down, 7, 107, 0}));
  EXPECT_TRUE(until([&] {
    pollfd p{down.a.get(), 0, 0};
    return ::poll(&p, 1, 0) == 1;  // the last copy of its other end is closed
  }));
  first.socket.reset();
  EXPECT_TRUE(until([&] { return header().state == kSessionDown; }));
  pollfd silent{open.a.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&silent, 1, 0), 0);  // open and silent
  closed.a.reset();                     // the application closes one meanwhile

  const UniqueFd second_listener = listen_as_ins(2);
  Peer second = accept_driver(second_listener);
  auto hello = next<ControlHello>(second);
  ASSERT_TRUE(hello);
  ASSERT_TRUE(second.send(ack_to(*hello)));
  std::vector<UniqueFd> fds;
  auto replay = next<ControlListener>(second, &fds);
  ASSERT_TRUE(replay);
  EXPECT_EQ(replay->type, ControlType::replay);
  EXPECT_EQ(replay->slot, 5u);
  EXPECT_EQ(replay->gen, 105u);
  EXPECT_EQ(replay->backlog, 511);
  EXPECT_EQ(replay->options[0].name, SO_REUSEADDR);
  ASSERT_EQ(fds.size(), 1u);
  ASSERT_EQ(::write(fds[0].get(), "x", 1), 1);
  EXPECT_TRUE(readable(open.a.get()));
  settle();
  EXPECT_EQ(header().state, kSessionDown);  // not before the replay is complete
  ASSERT_TRUE(second.send(ControlSlot{ControlType::replayed, 5, 105, 0}));
  EXPECT_EQ(next<ControlSlot>(second)->type, ControlType::start);
  EXPECT_TRUE(until([&] { return header().state == kSessionUp; }));
}

// ---- the driver's own restart ----

TEST_F(DriverTest, FindsItsSessionAgain) {
  Peer shim = attach();
  Group kept = open_group(shim);
  Group closed = open_group(shim);
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = serve(listener);
  Pair placeholder = make_pair(SOCK_STREAM);
  const int end[] = {placeholder.b.get()};
  ASSERT_TRUE(ins.send(listener_record(5, 105), end));
  settle();

  closed.life.reset();  // nobody sees it but the next driver
  driver_.reset();
  EXPECT_TRUE(ins.ended());
  EXPECT_EQ(header().state, kSessionUp);  // nothing changes for the application
  start_driver();
  Peer again = accept_driver(listener);
  auto hello = next<ControlHello>(again);
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->first_gen, 1u);
  ASSERT_TRUE(again.send(ack_to(*hello)));
  std::vector<uint32_t> groups;
  for (;;) {
    auto m = next<ControlSlot>(again);
    ASSERT_TRUE(m);
    if (m->type == ControlType::start) break;
    if (m->type == ControlType::group_open) groups.push_back(m->slot);
  }
  EXPECT_EQ(header().epoch, 1u);
  EXPECT_EQ(header().state, kSessionUp);
  EXPECT_TRUE(until([&] { return memory_->session().group(closed.id).in_use == 0; }));
  EXPECT_EQ(std::count(groups.begin(), groups.end(), kept.id), 1);
  EXPECT_TRUE(until([&] { return readable(ready_.get()); }));

  // It still owns what it found: the group is freed, the listener is replayed.
  kept.life.reset();
  EXPECT_TRUE(until([&] { return memory_->session().group(kept.id).in_use == 0; }));
  again.socket.reset();
  EXPECT_TRUE(until([&] { return header().state == kSessionDown; }));
  const UniqueFd successor_listener = listen_as_ins(2);
  Peer successor = accept_driver(successor_listener);
  hello = next<ControlHello>(successor);
  ASSERT_TRUE(hello);
  ASSERT_TRUE(successor.send(ack_to(*hello)));
  EXPECT_EQ(next<ControlListener>(successor)->slot, 5u);
}

TEST_F(DriverTest, NoticesThatItsInsDiedMeanwhile) {
  const UniqueFd listener = listen_as_ins(1, true);
  const pid_t child = ::fork();
  if (child == 0) {
    play_ins(listener, false);
  }
  ASSERT_TRUE(until([&] { return header().state == kSessionUp; }));
  memory_->channel().call(0).seq = 3;
  driver_.reset();
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  start_driver();
  EXPECT_EQ(header().state, kSessionDown);
  EXPECT_EQ(memory_->channel().call(0).done_seq, 3u);
  EXPECT_EQ(header().first_gen, 1u + (1u << 24));
}

TEST_F(DriverTest, WorksWithoutAStore) {
  options_.store_fds[0] = options_.store_fds[1] = -1;
  start_driver();
  Peer shim = attach();
  Group g = open_group(shim);
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = serve(listener);
  start_driver();
  Peer again = serve(listener);
  EXPECT_EQ(header().epoch, 1u);
  Peer shim_again = attach();
  EXPECT_NE(open_group(shim_again).id, g.id);  // its owner may still use it
}

// ---- memory of idle rings ----

class PageReleaseTest : public DriverTest {
 protected:
  void use_ring(uint32_t i, uint32_t bytes) {
    SessionSlot& mine = memory_->session().slot(i);
    mine.gen = 1;
    const std::string data(bytes, 'x');
    memory_->channel().tx(i).copy_in(mine.tx_tail, data.data(), bytes);
    mine.tx_tail += bytes;
    memory_->channel().slot(i).tx_tail = mine.tx_tail;
  }
  void read_all(uint32_t i) {
    memory_->channel().slot(i).tx_head = memory_->session().slot(i).tx_tail;
  }
  bool has_pages(uint32_t i) {
    const mw_layout& l = memory_->channel().layout();
    const auto from = static_cast<off_t>(l.rings + l.ring_stride * i + kSmall.rx_ring);
    const off_t data = ::lseek(fds_.channel.get(), from, SEEK_DATA);
    return data >= 0 && data < from + static_cast<off_t>(kSmall.tx_ring);
  }
};

TEST_F(PageReleaseTest, ReleasesOnlyWhatIsEmptyAndIdle) {
  use_ring(1, 3000);  // idle and empty
  read_all(1);
  use_ring(2, 3000);  // not read yet
  use_ring(3, 3000);  // locked
  read_all(3);
  memory_->session().slot(3).tx_lock = 12345;
  use_ring(4, 3000);  // used again between the turns
  read_all(4);
  PageRelease release(*memory_);
  PageRelease::Turn t = release.turn();
  EXPECT_TRUE(t.moved);
  EXPECT_EQ(t.released, 0u);
  use_ring(4, 10);
  read_all(4);
  t = release.turn();
  EXPECT_EQ(t.released, 1u);
  EXPECT_TRUE(t.moved);
  EXPECT_FALSE(has_pages(1));
  EXPECT_TRUE(has_pages(2));
  EXPECT_TRUE(has_pages(3));
  EXPECT_TRUE(has_pages(4));
  EXPECT_EQ(memory_->session().slot(1).tx_lock, 0u);

  read_all(2);
  memory_->session().slot(3).tx_lock = 0;
  EXPECT_EQ(release.turn().released, 3u);
  t = release.turn();
  EXPECT_EQ(t.released, 0u);
  EXPECT_FALSE(t.moved);
  use_ring(1, 1);
  EXPECT_TRUE(release.turn().moved);
}

// ---- a bystander ----

TEST_F(DriverTest, SleepsWhenNothingHappens) {
  Peer shim = attach();
  Group g = open_group(shim);
  const UniqueFd listener = listen_as_ins(1);
  Peer ins = serve(listener);
  settle();
  ASSERT_TRUE(
      registry_->write(ins_path(1, "heartbeat"), "2"));  // not ours to watch while it serves
  // Two seconds after the last event one look at the rings, and then ever fewer.
  size_t wakeups = 0;
  size_t beats = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2600);
  while (std::chrono::steady_clock::now() < end && wakeups == 0) {
    auto events = driver_->poller().wait(200);
    ASSERT_TRUE(events);
    for (const Event& e : *events) {
      if (e.source == Source::beat_timer) {
        ++beats;
        ASSERT_TRUE(driver_->run_once(0));
        continue;
      }
      EXPECT_EQ(e.source, Source::release_timer);
      ++wakeups;
    }
  }
  EXPECT_LE(wakeups, 1u);
  EXPECT_LE(beats, 3u) << "one in a second";
}

}  // namespace
}  // namespace mw
