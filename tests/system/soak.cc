// soak - moves bytes through a worker in every way that programs have, and checks each of them.
//   soak worker                                        what a test runs natively or under `mw run`
//   soak spoiling-worker                               sends a wrong byte now and then, to try the checks
//   soak drive SECONDS SEED LARGEST THREADS COMMAND... starts COMMAND as the worker and moves bytes
// The driver prints a line for each combination of ways: WAIT CALL OPTION transfers bytes longest-pause-ms. A pause is
// the time that the driver spent in one blocking send() or recv(), without what the machine owed the driver itself.
// Exits with 1 at the first wrong byte, wrong end, or call that takes 20 s.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "pair.h"

namespace {

using pair::now_ms;
using pair::require;

enum class Wait : uint8_t { blocking, level, edge, poll, count };
enum class Call : uint8_t { send, writev, sendfile, splice, more, count };
enum class Receive : uint8_t { recv, readv, peek, splice, count };
enum class Option : uint8_t {
  none,
  nodelay_before,  // on the listener, or before connect()
  nodelay_after,
  cork,          // from the first byte to the last
  cork_in_turn,  // on and off every few calls
  keepalive_before,
  keepalive_after,
  count
};
constexpr const char* kWaits[] = {"blocking", "level", "edge", "poll"};
constexpr const char* kCalls[] = {"send", "writev", "sendfile", "splice", "more"};
constexpr const char* kReceives[] = {"recv", "readv", "peek", "splice"};
constexpr const char* kOptions[] = {"none",         "nodelay-before",   "nodelay-after",  "cork",
                                    "cork-in-turn", "keepalive-before", "keepalive-after"};
constexpr int kSmall = 8192;
constexpr int kHangSeconds = 20;

// One transfer, as the driver tells it to the worker at the beginning of the connection.
struct Order {
  uint32_t id;
  uint32_t seed;
  uint64_t up;    // driver to worker
  uint64_t down;  // worker to driver
  Wait wait;
  Call call;
  Receive receive;
  Option option;
  bool duplex;        // both directions at once
  bool worker_small;  // the worker's buffers
  bool driver_small;
  bool slow;    // the driver reads slowly
  bool thinks;  // the worker works between its sends, of a TLS record's size
};

// Have the worker connect.
struct Wish {
  uint16_t port;
  Option option;
};

struct Answer {
  uint32_t id;
  bool good;
  char says[120];
};

const pair::Pattern g_pattern;
bool g_spoils = false;

void set_before(int fd, Option option) {
  if (option == Option::nodelay_before) pair::set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (option == Option::keepalive_before) pair::set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

// The worker's side of one connection.
class Transfer {
 public:
  Transfer(int fd, const Order& order)
      : fd_(fd), order_(order), random_(order.seed), buffer_(pair::Pattern::kLongest) {
    if (order.worker_small) {
      pair::set(fd, SOL_SOCKET, SO_SNDBUF, kSmall);
      pair::set(fd, SOL_SOCKET, SO_RCVBUF, kSmall);
    }
    if (order.option == Option::nodelay_after) pair::set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (order.option == Option::keepalive_after) pair::set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    if (order.option == Option::cork) cork(true);
    require(::pipe2(out_pipe_, O_CLOEXEC) == 0 && ::pipe2(in_pipe_, O_CLOEXEC) == 0, "pipe2");
    if (order.wait == Wait::blocking) return;
    ::fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
    if (order.wait == Wait::poll) return;
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{};
    event.events = mask();
    require(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
  }
  ~Transfer() {
    for (const int fd : {out_pipe_[0], out_pipe_[1], in_pipe_[0], in_pipe_[1]}) ::close(fd);
    if (epoll_ >= 0) ::close(epoll_);
    ::close(fd_);
  }

  std::string run() {
    if (order_.wait != Wait::blocking) {
      run_waiting();
    } else if (order_.duplex) {
      std::thread reader([this] {
        while (!ended_) receive_some();
      });
      while (!all_sent()) send_some();
      reader.join();
    } else {
      while (!ended_) receive_some();
      while (!all_sent()) send_some();
    }
    return wrong_;
  }

 private:
  bool all_sent() const { return sent_ == order_.down || broken_; }
  bool may_send() const { return !all_sent() && (order_.duplex || ended_); }
  void fail(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (wrong_.empty())
      wrong_ =
          what + ", " + std::to_string(received_) + " received, " + std::to_string(sent_) + " sent";
    broken_ = true;
  }
  void cork(bool on) { pair::set(fd_, IPPROTO_TCP, TCP_CORK, on ? 1 : 0); }

  uint32_t mask() const {
    if (order_.wait == Wait::edge) return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    return (ended_ ? 0U : unsigned{EPOLLIN} | EPOLLRDHUP) | (may_send() ? unsigned{EPOLLOUT} : 0U);
  }

  void wait() {
    int n;
    if (order_.wait == Wait::poll) {
      pollfd p{fd_, static_cast<int16_t>(mask()), 0};
      n = ::poll(&p, 1, kHangSeconds * 1000);
    } else {
      epoll_event event{};
      if (order_.wait == Wait::level) {
        event.events = mask();
        require(::epoll_ctl(epoll_, EPOLL_CTL_MOD, fd_, &event) == 0, "epoll_ctl");
      }
      n = ::epoll_wait(epoll_, &event, 1, kHangSeconds * 1000);
    }
    if (n == 0) fail("the worker waits");
  }

  void run_waiting() {
    while (!broken_ && (!ended_ || !all_sent())) {
      wait();
      // Edges come once, so go on until both directions would block; a level comes again.
      bool progress = true;
      while (progress && !broken_) {
        progress = false;
        if (!ended_) progress |= receive_some();
        if (may_send()) progress |= send_some();
        if (order_.wait != Wait::edge && random_() % 4 == 0) break;
      }
    }
  }

  static void think() {
    constexpr double kThoughtMs = 0.015;
    for (const double end = now_ms() + kThoughtMs; now_ms() < end;) continue;
  }

  // False if it would have blocked.
  bool receive_some() {
    const size_t wish = 1 + random_in_() % (random_in_() % 4 == 0 ? 100 : buffer_.size());
    ssize_t n = 0;
    switch (order_.receive) {
      case Receive::peek:
        n = ::recv(fd_, buffer_.data(), wish, MSG_PEEK);
        if (n > 0 && !g_pattern.is(buffer_.data(), static_cast<size_t>(n), order_.seed, received_))
          fail("wrong bytes peeked");
        n = n < 0 ? n : ::recv(fd_, buffer_.data(), wish, 0);
        break;
      case Receive::readv: {
        const size_t half = wish / 2;
        const iovec parts[] = {{buffer_.data(), half}, {buffer_.data() + half, wish - half}};
        n = ::readv(fd_, parts, 2);
        break;
      }
      case Receive::splice:
        n = ::splice(fd_, nullptr, in_pipe_[1], nullptr, std::min<size_t>(wish, 65536),
                     order_.wait == Wait::blocking ? 0U : unsigned{SPLICE_F_NONBLOCK});
        if (n > 0) n = ::read(in_pipe_[0], buffer_.data(), static_cast<size_t>(n));
        break;
      default:
        n = ::recv(fd_, buffer_.data(), wish, 0);
    }
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) fail(std::string("receiving: ") + std::strerror(errno));
    if (n <= 0) {
      ended_ = true;
      if (n == 0 && received_ != order_.up) fail("the end came early");
      return true;
    }
    if (!g_pattern.is(buffer_.data(), static_cast<size_t>(n), order_.seed, received_))
      fail("wrong bytes");
    received_ += static_cast<uint64_t>(n);
    if (received_ > order_.up) fail("too many bytes");
    return true;
  }

  bool send_some() {
    if (order_.option == Option::cork_in_turn && random_() % 8 == 0) cork(corked_ = !corked_);
    if (order_.thinks) think();
    const uint64_t left = order_.down - sent_;
    const size_t longest = order_.call == Call::more ? 3000 : pair::Pattern::kLongest;
    const size_t n = std::min<uint64_t>(left, order_.thinks ? 16408 : 1 + random_() % longest);
    const char* const from = g_pattern.at(~order_.seed, sent_);
    ssize_t done = 0;
    switch (order_.call) {
      case Call::writev: {
        iovec parts[3];
        for (size_t i = 0; i < 3; ++i) {
          const size_t begin = n * i / 3;
          parts[i] = {const_cast<char*>(from) + begin, n * (i + 1) / 3 - begin};
        }
        done = ::writev(fd_, parts, 3);
        break;
      }
      case Call::sendfile: {
        auto offset = static_cast<off_t>(pair::Pattern::offset(~order_.seed, sent_));
        done = ::sendfile(fd_, g_pattern.file(), &offset, n);
        break;
      }
      case Call::splice:
        if (piped_ == 0) piped_ = ::write(out_pipe_[1], from, std::min<size_t>(n, 65536));
        done = ::splice(out_pipe_[0], nullptr, fd_, nullptr, static_cast<size_t>(piped_),
                        order_.wait == Wait::blocking ? 0U : unsigned{SPLICE_F_NONBLOCK});
        if (done > 0) piped_ -= done;
        break;
      case Call::more:
        done = ::send(fd_, from, n, MSG_NOSIGNAL | (n < left ? unsigned{MSG_MORE} : 0U));
        break;
      default: {
        const bool spoiled = g_spoils && n > 1000;
        done = ::send(fd_, spoiled ? from + 1 : from, n, MSG_NOSIGNAL);
      }
    }
    if (done < 0 && errno == EAGAIN) return false;
    if (done < 0) fail(std::string("sending: ") + std::strerror(errno));
    if (done > 0) sent_ += static_cast<uint64_t>(done);
    if (all_sent() && (corked_ || order_.option == Option::cork)) cork(corked_ = false);
    // The driver times what it waits for: our end must not wait for the other direction.
    if (all_sent() && order_.duplex) ::shutdown(fd_, SHUT_WR);
    return true;
  }

  const int fd_;
  const Order order_;
  std::minstd_rand random_;
  std::minstd_rand random_in_;  // the reading thread's own
  std::vector<char> buffer_;
  int out_pipe_[2];
  int in_pipe_[2];
  int epoll_ = -1;
  ssize_t piped_ = 0;
  bool corked_ = false;
  std::atomic<uint64_t> received_ = 0;
  std::atomic<uint64_t> sent_ = 0;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> broken_ = false;
  std::mutex mutex_;
  std::string wrong_;
};

void serve(int fd) {
  Order order{};
  if (!pair::get(fd, &order)) return;
  Answer answer{order.id, true, ""};
  std::string says;
  {
    Transfer transfer(fd, order);
    says = transfer.run();
  }
  answer.good = says.empty();
  says.copy(answer.says, sizeof answer.says - 1);
  pair::put(1, answer);
}

int work() {
  uint16_t ports[static_cast<size_t>(Option::count)];
  for (size_t i = 0; i < std::size(ports); ++i) {
    const int listener =
        pair::listen_anywhere(&ports[i], [i](int fd) { set_before(fd, static_cast<Option>(i)); });
    std::thread([listener] {
      for (;;) {
        const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        require(fd >= 0, "accept");
        std::thread(serve, fd).detach();
      }
    }).detach();
  }
  pair::put(1, ports);
  Wish wish{};
  while (pair::get(0, &wish)) {
    std::thread([wish] {
      serve(pair::connect_to(wish.port, [wish](int fd) { set_before(fd, wish.option); }));
    }).detach();
  }
  std::_Exit(0);
}

// ---- the driver

// Milliseconds by which a thread that only sleeps was woken too late: the machine's own pauses.
std::atomic<double> g_late = 0;

void watch_the_machine() {
  constexpr double kStep = 5;
  for (;;) {
    const double began = now_ms();
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(kStep));
    const double late = now_ms() - began - kStep;
    if (late > 2) g_late = g_late + late;
  }
}

struct Row {
  uint64_t transfers = 0;
  uint64_t bytes = 0;
  double longest = 0;
};

class Driver {
 public:
  explicit Driver(char** command) : worker_(command) {
    require(pair::get(worker_.from(), &ports_), "the worker's ports");
    std::thread([this] {
      Answer answer{};
      while (pair::get(worker_.from(), &answer)) {
        const std::lock_guard lock(mutex_);
        answers_[answer.id] = answer;
        answered_.notify_all();
      }
    }).detach();
  }

  void run(double end_ms, uint32_t seed, uint64_t largest, uint32_t threads) {
    std::vector<std::thread> all;
    for (uint32_t i = 0; i < threads; ++i) {
      all.emplace_back([=, this] {
        uint16_t port = 0;
        const int listener = pair::listen_anywhere(&port);
        // Each thread goes through the combinations from a place of its own, so that a short run has all of them.
        for (uint32_t k = i; now_ms() < end_ms; k += threads)
          transfer(order(k, seed, largest), listener, port);
        ::close(listener);
      });
    }
    for (auto& one : all) one.join();
    require(worker_.end(), "the worker's end");
    for (const auto& [key, row] : rows_)
      std::printf("%s %s %s %ju %ju %.1f\n", kWaits[std::get<0>(key)], kCalls[std::get<1>(key)],
                  kOptions[std::get<2>(key)], uintmax_t{row.transfers}, uintmax_t{row.bytes},
                  row.longest);
  }

 private:
  static Order order(uint32_t k, uint32_t seed, uint64_t largest) {
    std::mt19937 random(seed + k);
    Order o{};
    o.id = k;
    o.seed = static_cast<uint32_t>(random());
    constexpr auto waits = static_cast<uint32_t>(Wait::count);
    constexpr auto calls = static_cast<uint32_t>(Call::count);
    o.wait = static_cast<Wait>(k % waits);
    o.call = static_cast<Call>(k / waits % calls);
    o.option = static_cast<Option>(k / waits / calls % static_cast<uint32_t>(Option::count));
    o.receive = static_cast<Receive>(random() % static_cast<uint32_t>(Receive::count));
    o.duplex = random() % 2 == 0;
    o.worker_small = random() % 6 == 0;
    o.driver_small = random() % 6 == 0;
    o.slow = random() % 4 == 0;
    o.thinks = random() % 3 == 0;
    o.up = size(random, largest);
    o.down = size(random, largest);
    // Small buffers move small pieces: a kernel's windows, and not the channel, would be what is tried.
    if (o.worker_small || o.driver_small) {
      o.up = std::min<uint64_t>(o.up, 1 << 20);
      o.down = std::min<uint64_t>(o.down, 1 << 20);
    }
    return o;
  }

  static uint64_t size(std::mt19937& random, uint64_t largest) {
    const double exponent = std::uniform_real_distribution<double>(0, 1)(random);
    return static_cast<uint64_t>(std::pow(static_cast<double>(largest), exponent));
  }

  // What the worker saw comes first, if it says something.
  [[noreturn]] void fail(const Order& o, std::string what) {
    std::unique_lock lock(mutex_);
    answered_.wait_for(lock, std::chrono::seconds(1), [&] { return answers_.contains(o.id); });
    if (answers_.contains(o.id) && !answers_[o.id].good)
      what = std::string("the worker: ") + answers_[o.id].says + "; the driver: " + what;
    std::fprintf(
        stderr,
        "soak: transfer %u (%s %s %s, receives by %s, %ju bytes up, %ju down%s%s%s%s%s): %s\n",
        o.id, kWaits[static_cast<int>(o.wait)], kCalls[static_cast<int>(o.call)],
        kOptions[static_cast<int>(o.option)], kReceives[static_cast<int>(o.receive)],
        uintmax_t{o.up}, uintmax_t{o.down}, o.duplex ? ", at once" : "",
        o.worker_small ? ", small buffers of the worker" : "",
        o.driver_small ? ", small buffers of the driver" : "", o.slow ? ", slow" : "",
        o.thinks ? ", works" : "", what.c_str());
    std::_Exit(1);
  }

  int open(const Order& o, int listener, uint16_t port) {
    const auto prepare = [&o](int fd) {
      if (!o.driver_small) return;
      pair::set(fd, SOL_SOCKET, SO_RCVBUF, kSmall);
      pair::set(fd, SOL_SOCKET, SO_SNDBUF, kSmall);
    };
    if (o.id / 4 % 3 != 0) return pair::connect_to(ports_[static_cast<size_t>(o.option)], prepare);
    {
      const std::lock_guard lock(mutex_);
      pair::put(worker_.to(), Wish{port, o.option});
    }
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    require(fd >= 0, "accept");
    prepare(fd);
    return fd;
  }

  // Runs one blocking call; its time without the machine's own pauses counts.
  template <typename Function>
  static ssize_t timed(double* longest, Function function) {
    const double late = g_late;
    const double began = now_ms();
    const ssize_t n = function();
    *longest = std::max(*longest, now_ms() - began - (g_late - late));
    return n;
  }

  void send_up(int fd, const Order& o, double* longest) {
    for (uint64_t sent = 0; sent < o.up;) {
      const size_t n = std::min<uint64_t>(o.up - sent, 50000);
      const ssize_t done =
          timed(longest, [&] { return ::send(fd, g_pattern.at(o.seed, sent), n, MSG_NOSIGNAL); });
      if (done < 0)
        fail(o,
             "the driver after " + std::to_string(sent) + " bytes: send: " + std::strerror(errno));
      sent += static_cast<uint64_t>(done);
    }
    ::shutdown(fd, SHUT_WR);
  }

  void read_down(int fd, const Order& o, double* longest) {
    std::vector<char> buffer(65536);
    uint64_t received = 0;
    uint32_t naps = 50;
    for (;;) {
      if (o.slow && naps > 0) {
        --naps;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // this is the slow reader
      }
      const ssize_t n = timed(longest, [&] {
        return ::recv(fd, buffer.data(), o.slow && naps > 0 ? 9000 : buffer.size(), 0);
      });
      if (n < 0)
        fail(o, "the driver after " + std::to_string(received) +
                    " bytes: recv: " + std::strerror(errno));
      if (n == 0) break;
      if (!g_pattern.is(buffer.data(), static_cast<size_t>(n), ~o.seed, received))
        fail(o, "wrong bytes after " + std::to_string(received));
      received += static_cast<uint64_t>(n);
    }
    if (received != o.down) fail(o, "ended after " + std::to_string(received) + " bytes");
  }

  void transfer(const Order& o, int listener, uint16_t port) {
    const int fd = open(o, listener, port);
    const timeval limit{kHangSeconds + 5, 0};  // the worker says first what it waits for
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    pair::put(fd, o);
    double longest_up = 0;
    double longest_down = 0;
    if (o.duplex) {
      std::thread sender([&] { send_up(fd, o, &longest_up); });
      read_down(fd, o, &longest_down);
      sender.join();
    } else {
      send_up(fd, o, &longest_up);
      read_down(fd, o, &longest_down);
    }
    ::close(fd);
    std::unique_lock lock(mutex_);
    if (!answered_.wait_for(lock, std::chrono::seconds(kHangSeconds),
                            [&] { return answers_.contains(o.id); }))
      require(false, "the worker does not end a transfer");
    const bool good = answers_[o.id].good;
    if (!good) lock.unlock();
    if (!good) fail(o, "all is well");
    answers_.erase(o.id);
    Row& row =
        rows_[{static_cast<int>(o.wait), static_cast<int>(o.call), static_cast<int>(o.option)}];
    ++row.transfers;
    row.bytes += o.up + o.down;
    row.longest = std::max({row.longest, longest_up, longest_down});
  }

  pair::Worker worker_;
  uint16_t ports_[static_cast<size_t>(Option::count)] = {};
  std::mutex mutex_;
  std::condition_variable answered_;
  std::map<uint32_t, Answer> answers_;
  std::map<std::tuple<int, int, int>, Row> rows_;
};

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  g_spoils = argc == 2 && std::strcmp(argv[1], "spoiling-worker") == 0;
  if (g_spoils || (argc == 2 && std::strcmp(argv[1], "worker") == 0)) return work();
  if (argc < 7 || std::strcmp(argv[1], "drive") != 0) return 2;
  std::thread(watch_the_machine).detach();
  Driver driver(argv + 6);
  driver.run(now_ms() + 1000 * std::atof(argv[2]),
             static_cast<uint32_t>(std::strtoul(argv[3], nullptr, 10)),
             std::strtoull(argv[4], nullptr, 10),
             static_cast<uint32_t>(std::strtoul(argv[5], nullptr, 10)));
  std::fflush(stdout);
  std::_Exit(0);
}
