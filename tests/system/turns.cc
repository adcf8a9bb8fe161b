// turns - whose turn it is when many connections are readable, and in which order news of several connections come.
// Prints one line a case, the same natively and under `mw run`.
//   turns worker           what a test runs natively or under `mw run`
//   turns drive COMMAND... starts COMMAND as the worker
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/timerfd.h>

#include <atomic>
#include <thread>

#include "pair.h"

namespace {

using pair::require;

// Greedy connections are always readable, because a server reads one byte of each event. A polite one has one byte
// now and then, and its turn has to come within a number of events that does not depend on its place.
enum class Loop : uint8_t { level, edge, oneshot, threads, poll, select, count };
constexpr const char* kLoops[] = {
    "level", "edge and MOD", "oneshot and MOD", "oneshot, three threads", "poll", "select"};
constexpr uint32_t kGreedy = 24;
constexpr size_t kPerGreedy = 32'768;
constexpr int kRounds = 20;
constexpr int kNever = 100'000;  // events without the polite one's
constexpr int kThreads = 3;
constexpr int kRoundsOfThreads = 7;
constexpr int kStarved =
    3'000'000;  // threads turn round quickly while a stack waits for a processor
constexpr int kHangMs = 20'000;

// What one thread does on two connections, the second of which it does at once after the first.
enum class Acts : uint8_t { send_send, send_shutdown, shutdown_send, count };
constexpr const char* kActs[] = {"send, send", "send, shutdown", "shutdown, send"};
enum class Role : uint8_t { server, client, both, count };
constexpr const char* kRoles[] = {"the server", "the client", "both"};
constexpr int kOrders = 300;

struct Case {
  bool order;
  Loop loop;
  int max_events;
  bool ordinary;  // a pipe, a timer and a listener are readable all the time as well
  bool foreign;   // the clients are the driver's
  bool first;     // the polite one connected first, else last
  Acts acts;
  Role role;
  bool newer_first;  // the thread acts on the newer connection first
};

struct Verdict {
  int32_t figure;  // the longest wait of the polite one, in events; orders turned round
};

void receive_byte(int fd) {
  char byte;
  require(::recv(fd, &byte, 1, 0) == 1, "recv");
}

void send_byte(int fd) {
  require(::send(fd, "x", 1, MSG_NOSIGNAL) == 1, "send");
}

void make_greedy(int fd) {
  const std::vector<char> bytes(kPerGreedy);
  require(
      ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()),
      "send");
}

void await_bytes(int fd, int wanted) {
  for (int ready = 0; ready < wanted;) {
    require(::ioctl(fd, FIONREAD, &ready) == 0, "FIONREAD");
    if (ready < wanted) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

// ---- turns, the worker's side

class Server {
 public:
  Server(const Case& c, int listener) : case_(c) {
    for (uint32_t i = 0; i <= kGreedy; ++i) {
      if (!c.foreign) clients_.push_back(pair::connect_to(port_of(listener)));
      served_.push_back(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
      require(served_.back() >= 0, "accept");
    }
    polite_ = c.first ? 0 : kGreedy;
    for (uint32_t i = 0; i <= kGreedy; ++i) {
      if (i == polite_) continue;
      if (!c.foreign) make_greedy(clients_[i]);
      await_bytes(served_[i], 1);
    }
    if (c.ordinary) add_ordinary();
  }
  ~Server() {
    for (const int fd : served_) ::close(fd);
    for (const int fd : clients_) ::close(fd);
    for (const int fd : ordinary_) ::close(fd);
    for (const int fd : kept_) ::close(fd);
  }

  int run() {
    if (case_.loop == Loop::poll || case_.loop == Loop::select) return in_sets();
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i <= kGreedy; ++i) control(EPOLL_CTL_ADD, i);
    for (uint32_t i = 0; i < ordinary_.size(); ++i) {
      epoll_event e{};
      e.events = EPOLLIN;
      e.data.u32 = kGreedy + 1 + i;
      require(::epoll_ctl(epoll_, EPOLL_CTL_ADD, ordinary_[i], &e) == 0, "epoll_ctl");
    }
    const int figure = case_.loop == Loop::threads ? in_threads() : in_one();
    ::close(epoll_);
    return figure;
  }

 private:
  static uint16_t port_of(int listener) {
    sockaddr_in a{};
    socklen_t size = sizeof a;
    require(::getsockname(listener, reinterpret_cast<sockaddr*>(&a), &size) == 0, "getsockname");
    return ntohs(a.sin_port);
  }

  void add_ordinary() {
    int pipe[2];
    require(::pipe2(pipe, O_CLOEXEC) == 0 && ::write(pipe[1], "x", 1) == 1, "pipe2");
    const int timer = ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    const itimerspec at_once{{0, 0}, {0, 1}};
    require(::timerfd_settime(timer, 0, &at_once, nullptr) == 0, "timerfd");
    uint16_t port = 0;
    const int listener = pair::listen_anywhere(&port);
    ordinary_ = {pipe[0], timer, listener};
    kept_ = {pipe[1], pair::connect_to(port)};  // which nobody accepts
    pollfd ready[] = {{timer, POLLIN, 0}, {listener, POLLIN, 0}};
    for (auto& one : ready) require(::poll(&one, 1, kHangMs) == 1, "an ordinary descriptor");
  }

  void control(int what, uint32_t i) {
    epoll_event e{};
    e.events = EPOLLIN;
    if (case_.loop == Loop::edge) e.events |= EPOLLET;
    if (case_.loop == Loop::oneshot || case_.loop == Loop::threads) e.events |= EPOLLONESHOT;
    e.data.u32 = i;
    require(::epoll_ctl(epoll_, what, served_[i], &e) == 0, "epoll_ctl");
  }

  // The polite client sends its byte, which is there afterwards.
  void ask() {
    if (case_.foreign)
      pair::put(1, Verdict{-1});
    else
      send_byte(clients_[polite_]);
    await_bytes(served_[polite_], 1);
  }
  void answer() {
    receive_byte(served_[polite_]);
    send_byte(served_[polite_]);
    if (!case_.foreign) receive_byte(clients_[polite_]);
  }

  // One event of the instance; true if it was the polite one's.
  bool handle(uint32_t i) {
    if (i > kGreedy) return false;  // readable it stays
    if (i == polite_)
      answer();
    else if (case_.loop != Loop::threads)
      receive_byte(served_[i]);  // threads would come to the end of what there is
    if (case_.loop != Loop::level) control(EPOLL_CTL_MOD, i);
    return i == polite_;
  }

  int in_one() {
    std::vector<epoll_event> events(static_cast<size_t>(case_.max_events));
    std::vector<int> waits;
    for (int round = 0; round < kRounds; ++round) {
      ask();
      int waited = 0;
      for (bool served = false; !served;) {
        const int n = ::epoll_wait(epoll_, events.data(), case_.max_events, kHangMs);
        require(n > 0, "epoll_wait");
        for (int k = 0; k < n; ++k) {
          if (!served) ++waited;
          served |= handle(events[static_cast<size_t>(k)].data.u32);
        }
        if (waited > kNever) return waited;
      }
      waits.push_back(waited);
    }
    return median(waits);
  }

  // Half of the rounds are as good or better. In one round the thread that has the polite one's event,
  // or the stack that is about to tell it, may lose the processor while the loop goes on.
  static int median(std::vector<int> waits) {
    std::sort(waits.begin(), waits.end());
    return waits[waits.size() / 2];
  }

  int in_threads() {
    std::atomic<int> handled = 0;
    std::atomic<int> answered = 0;
    std::atomic<int> at_answer = 0;
    std::atomic<bool> over = false;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        epoll_event e{};
        while (!over) {
          require(::epoll_wait(epoll_, &e, 1, kHangMs) == 1, "epoll_wait");
          const int turn = ++handled;
          if (e.data.u32 == polite_) at_answer = turn;
          if (handle(e.data.u32)) ++answered;
        }
      });
    }
    const int polite_alone = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event news{.events = EPOLLIN, .data = {}};
    require(
        polite_alone >= 0 && ::epoll_ctl(polite_alone, EPOLL_CTL_ADD, served_[polite_], &news) == 0,
        "an instance for the polite one");
    std::vector<int> waits;
    for (int round = 0; round < kRoundsOfThreads; ++round) {
      send_byte(clients_[polite_]);
      // From when an instance is told of it; a thread may have taken the byte by then.
      epoll_event told{};
      while (answered == round && ::epoll_wait(polite_alone, &told, 1, 1) == 0) {
      }
      const int before = handled;
      while (answered == round && handled - before < kStarved)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (answered == round) {
        std::fprintf(stderr, "turns: no answer within %d events\n", kStarved);
        std::_Exit(1);
      }
      waits.push_back(at_answer - before);
    }
    over = true;
    for (auto& one : threads) one.join();
    ::close(polite_alone);
    return median(waits);
  }

  int in_sets() {
    std::vector<int> waits;
    for (int round = 0; round < kRounds; ++round) {
      ask();
      int waited = 0;
      bool served = false;
      while (!served) {
        if (waited > kNever) return waited;
        ++waited;
        std::vector<pollfd> polled;
        for (const int fd : served_) polled.push_back({fd, POLLIN, 0});
        for (const int fd : ordinary_) polled.push_back({fd, POLLIN, 0});
        if (case_.loop == Loop::poll)
          require(::poll(polled.data(), polled.size(), kHangMs) > 0, "poll");
        else
          select(&polled);
        for (uint32_t i = 0; i <= kGreedy; ++i) {
          if ((polled[i].revents & POLLIN) == 0) continue;
          served |= i == polite_;
          if (i == polite_)
            answer();
          else
            receive_byte(served_[i]);
        }
      }
      waits.push_back(waited);
    }
    return median(waits);
  }

  static void select(std::vector<pollfd>* polled) {
    fd_set set;
    FD_ZERO(&set);
    for (const pollfd& one : *polled) FD_SET(one.fd, &set);
    require(::select(FD_SETSIZE, &set, nullptr, nullptr, nullptr) > 0, "select");
    for (pollfd& one : *polled) one.revents = FD_ISSET(one.fd, &set) ? POLLIN : 0;
  }

  const Case case_;
  uint32_t polite_ = 0;
  int epoll_ = -1;
  std::vector<int> served_;
  std::vector<int> clients_;
  std::vector<int> ordinary_;
  std::vector<int> kept_;
};

// ---- order

void act(const Case& c, int older, int newer) {
  const int first = c.newer_first ? newer : older;
  const int second = c.newer_first ? older : newer;
  if (c.acts == Acts::shutdown_send)
    ::shutdown(first, SHUT_WR);
  else
    send_byte(first);
  if (c.acts == Acts::send_shutdown)
    ::shutdown(second, SHUT_WR);
  else
    send_byte(second);
}

class Order {
 public:
  // The serving side of two connections; the instance knows them before anything is sent.
  Order(int older, int newer) : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    for (const int fd : {older, newer}) {
      epoll_event e{};
      e.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
      e.data.u32 = fd == newer ? 1 : 0;
      require(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
    }
  }
  ~Order() { ::close(epoll_); }
  // True if the first event is not of the connection on which the client acted first.
  bool turned_round(const Case& c) const {
    epoll_event events[2] = {};
    require(::epoll_wait(epoll_, events, 2, kHangMs) > 0, "epoll_wait");
    return (events[0].data.u32 == 1) != c.newer_first;
  }

 private:
  int epoll_;
};

int accept_one(int listener) {
  const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  require(fd >= 0, "accept");
  return fd;
}

// Told over pipes: a socket whose kernel still sends a "go" takes the answer's bytes late.
constexpr Verdict kGo{-1};

void await_go() {
  Case go{};
  require(pair::get(0, &go), "the driver's go");
}

int run_order(const Case& c, int listener, uint16_t own_port, uint16_t drivers_port) {
  int wrong = 0;
  for (int round = 0; round < kOrders; ++round) {
    int clients[2] = {-1, -1};
    int served[2] = {-1, -1};
    for (int i = 0; i < 2; ++i) {
      if (c.role != Role::server)
        clients[i] = pair::connect_to(c.role == Role::both ? own_port : drivers_port);
      if (c.role != Role::client) served[i] = accept_one(listener);
    }
    if (c.role == Role::client) {
      await_go();  // the driver's instance has both
      act(c, clients[0], clients[1]);
      await_go();
    } else {
      const Order order(served[0], served[1]);
      if (c.role == Role::both)
        act(c, clients[0], clients[1]);
      else
        pair::put(1, kGo);
      wrong += order.turned_round(c) ? 1 : 0;
      if (c.role == Role::server) pair::put(1, kGo);
    }
    for (const int fd : {clients[0], clients[1], served[0], served[1]})
      if (fd >= 0) ::close(fd);
  }
  return wrong;
}

int work() {
  uint16_t port = 0;
  const int listener = pair::listen_anywhere(&port);
  pair::put(1, port);
  uint16_t drivers_port = 0;
  require(pair::get(0, &drivers_port), "the driver's port");
  Case c{};
  while (pair::get(0, &c))
    pair::put(1, Verdict{c.order ? run_order(c, listener, port, drivers_port)
                                 : Server(c, listener).run()});
  return 0;
}

// ---- the driver

class Driver {
 public:
  explicit Driver(char** command) : worker_(command), listener_(pair::listen_anywhere(&own_port_)) {
    require(pair::get(worker_.from(), &port_), "the worker's port");
    pair::put(worker_.to(), own_port_);
  }

  void run() {
    for (uint8_t loop = 0; loop < static_cast<uint8_t>(Loop::count); ++loop)
      for (const int max_events : {1, 4, 64})
        for (int k = 0; k < 8; ++k) {
          const auto l = static_cast<Loop>(loop);
          if (max_events != 1 && l > Loop::oneshot) continue;
          // Threads may serve the polite one before its worker knows that it has asked.
          if ((k & 2) != 0 && l == Loop::threads) continue;
          turns({false, l, max_events, (k & 1) != 0, (k & 2) != 0, (k & 4) != 0, {}, {}, {}});
        }
    for (uint8_t acts = 0; acts < static_cast<uint8_t>(Acts::count); ++acts)
      for (uint8_t role = 0; role < static_cast<uint8_t>(Role::count); ++role)
        for (const bool newer_first : {true, false})
          orders({true,
                  {},
                  {},
                  {},
                  {},
                  {},
                  static_cast<Acts>(acts),
                  static_cast<Role>(role),
                  newer_first});
    require(worker_.end(), "the worker's end");
  }

 private:
  void turns(const Case& c) {
    pair::put(worker_.to(), c);
    std::vector<int> clients;
    const uint32_t polite = c.first ? 0 : kGreedy;
    if (c.foreign) {
      for (uint32_t i = 0; i <= kGreedy; ++i) clients.push_back(pair::connect_to(port_));
      for (uint32_t i = 0; i <= kGreedy; ++i)
        if (i != polite) make_greedy(clients[i]);
    }
    Verdict v{};
    for (bool asked = false;; asked = true) {
      require(pair::get(worker_.from(), &v), "the worker's verdict");
      if (v.figure > kNever) break;
      if (asked && c.foreign) receive_byte(clients[polite]);
      if (v.figure != -1) break;
      send_byte(clients[polite]);
    }
    for (const int fd : clients) ::close(fd);
    // With ordinary descriptors there, one of them comes between any two sockets; and for a turn, or
    // nearly so, the threads go on while the stack tells of the polite one.
    constexpr int kBound = 3 * (kGreedy + 4);
    std::printf("%s, %d events at most, %s, the polite one %s, clients of %s: ",
                kLoops[static_cast<int>(c.loop)], c.max_events,
                c.ordinary ? "with ordinary descriptors" : "sockets only",
                c.first ? "first" : "last", c.foreign ? "elsewhere" : "the same process");
    if (v.figure <= kBound)
      std::printf("within %d events\n", kBound);
    else
      std::printf("%d events\n", v.figure);
  }

  void orders(const Case& c) {
    pair::put(worker_.to(), c);
    int wrong = 0;
    for (int round = 0; round < kOrders && c.role != Role::both; ++round) {
      int fds[2];
      for (int& fd : fds)
        fd = c.role == Role::server ? pair::connect_to(port_) : accept_one(listener_);
      Verdict go{};
      if (c.role == Role::server) {
        require(pair::get(worker_.from(), &go), "the worker's go");
        act(c, fds[0], fds[1]);
        require(pair::get(worker_.from(), &go), "the worker's go");
      } else {
        const Order order(fds[0], fds[1]);
        pair::put(worker_.to(), c);
        wrong += order.turned_round(c) ? 1 : 0;
        pair::put(worker_.to(), c);
      }
      for (const int fd : fds) ::close(fd);
    }
    Verdict v{};
    require(pair::get(worker_.from(), &v), "the worker's verdict");
    const int turned = c.role == Role::client ? wrong : v.figure;
    // A kernel whose receiver holds the socket's lock takes a segment late: seldom, and not ours.
    constexpr int kSeldom = kOrders / 50;
    std::printf("order of %s, the %s first, %s there: ", kActs[static_cast<int>(c.acts)],
                c.newer_first ? "newer" : "older", kRoles[static_cast<int>(c.role)]);
    if (turned <= kSeldom)
      std::printf("kept\n");
    else
      std::printf("%d of %d turned round\n", turned, kOrders);
  }

  pair::Worker worker_;
  uint16_t own_port_ = 0;
  int listener_;
  uint16_t port_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc == 2 && std::strcmp(argv[1], "worker") == 0) return work();
  if (argc < 3 || std::strcmp(argv[1], "drive") != 0) return 2;
  Driver(argv + 2).run();
  return 0;
}
