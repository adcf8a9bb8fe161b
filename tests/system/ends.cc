// ends - the end of a connection, in every way that programs end one and find out. Prints one line a case, the same
// natively and under `mw run`.
//   ends worker           what a test runs natively or under `mw run`
//   ends drive COMMAND... starts COMMAND as the worker, which first reads and then sends
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#include <string>

#include "pair.h"

namespace {

using pair::require;

// How the reading side learns that all has come.
enum class Reader : uint8_t {
  blocking,
  waitall,
  short_read,  // RDHUP and a read shorter than asked (haproxy)
  fionread,    // RDHUP and FIONREAD says 0 (stunnel)
  eagain,      // RDHUP and a read says EAGAIN, or 0
  counted,     // reads what FIONREAD says; readable and 0 is the end
  poll,
  select,
  level,
  edge,
  oneshot,
  peek,
  splice,
  count
};
constexpr const char* kReaders[] = {"blocking", "waitall", "short-read", "fionread", "eagain",
                                    "counted",  "poll",    "select",     "level",    "edge",
                                    "oneshot",  "peek",    "splice"};
// How the sending side ends. The last ones are a process's, of the worker only.
enum class Ender : uint8_t { close, half_close, reset, exit, exec, kill, count };
constexpr const char* kEnders[] = {"close", "half-close", "reset", "exit", "exec", "kill"};
enum class Pace : uint8_t {
  fast,
  slow,
  late,
  count
};  // late: begins to read when the end has been told
constexpr const char* kPaces[] = {"fast", "slow", "late"};
enum class Sender : uint8_t { blocking, polled, sendfile, count };
constexpr const char* kSenders[] = {"blocking", "polled", "sendfile"};

constexpr int kHangMs = 20'000;
constexpr int kSmall = 8192;
constexpr size_t kRead = 65536;
constexpr uint64_t kFits = 60'000;  // what a receiver takes whole before it reads

struct Case {
  bool reads;  // the worker, else it sends
  Reader reader;
  Sender sender;
  Ender ender;
  Pace pace;
  bool small;
  uint64_t bytes;
};

struct Verdict {
  uint64_t bytes;
  int32_t wrong;  // bytes that differ
  int32_t end;    // 0, or an errno
  int32_t again;  // what one more recv() gives: its count, or -errno
  int32_t error;  // SO_ERROR
  int32_t mask;   // of poll()
};

const pair::Pattern g_pattern;

void nap() {
  ::poll(nullptr, 0, 1);  // this is the slow reader
}

// ---- reading

class Reading {
 public:
  Reading(int fd, Reader how, Pace pace) : fd_(fd), how_(how), pace_(pace), buffer_(kRead) {}

  Verdict run() {
    if (pace_ == Pace::late) ask(POLLRDHUP);
    if (how_ != Reader::blocking && how_ != Reader::waitall)
      ::fcntl(fd_, F_SETFL, O_RDWR | O_NONBLOCK);
    if (how_ == Reader::level || how_ == Reader::edge || how_ == Reader::oneshot) begin_epoll();
    if (how_ == Reader::splice) require(::pipe2(pipe_, O_CLOEXEC) == 0, "pipe2");
    while (!done_) turn();
    if (epoll_ >= 0) ::close(epoll_);
    if (how_ == Reader::splice) ::close(pipe_[0]), ::close(pipe_[1]);
    const ssize_t n = ::recv(fd_, buffer_.data(), kRead, MSG_DONTWAIT);
    verdict_.again = static_cast<int32_t>(n < 0 ? -errno : n);
    socklen_t size = sizeof verdict_.error;
    ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &verdict_.error, &size);
    pollfd p{fd_, POLLIN | POLLOUT | POLLRDHUP, 0};
    ::poll(&p, 1, 0);
    verdict_.mask = p.revents;
    return verdict_;
  }

 private:
  void end(int error) {
    verdict_.end = error;
    done_ = true;
  }

  // Waits for one of the bits; gives those that poll() tells.
  int ask(int16_t events) {
    pollfd p{fd_, events, 0};
    if (::poll(&p, 1, kHangMs) == 0) end(ETIME);
    return p.revents;
  }

  void begin_epoll() {
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event e{};
    e.events = mask();
    require(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd_, &e) == 0, "epoll_ctl");
  }
  uint32_t mask() const {
    if (how_ == Reader::edge) return EPOLLIN | EPOLLRDHUP | EPOLLET;
    return how_ == Reader::oneshot ? unsigned{EPOLLIN} | EPOLLRDHUP | EPOLLONESHOT
                                   : unsigned{EPOLLIN};
  }
  void await_event() {
    epoll_event e{};
    if (::epoll_wait(epoll_, &e, 1, kHangMs) == 0) end(ETIME);
  }

  void turn() {
    switch (how_) {
      case Reader::short_read:
      case Reader::fionread:
      case Reader::eagain:
        return turn_hup();
      case Reader::counted: {
        ask(POLLIN);
        int ready = -1;
        ::ioctl(fd_, FIONREAD, &ready);
        if (ready > 0) return take(std::min<size_t>(static_cast<size_t>(ready), kRead)), void();
        return take(1), void();
      }
      case Reader::poll:
        ask(POLLIN);
        break;
      case Reader::select: {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd_, &set);
        timeval limit{kHangMs / 1000, 0};
        if (::select(fd_ + 1, &set, nullptr, nullptr, &limit) == 0) end(ETIME);
        break;
      }
      case Reader::level:
        await_event();
        break;
      case Reader::edge:
        await_event();
        while (!done_ && take(kRead) >= 0) continue;
        return;
      case Reader::oneshot: {
        await_event();
        take(1000);
        epoll_event e{};
        e.events = mask();
        ::epoll_ctl(epoll_, EPOLL_CTL_MOD, fd_, &e);
        return;
      }
      case Reader::peek:
        ask(POLLIN);
        peek();
        break;
      case Reader::splice:
        ask(POLLIN);
        return splice();
      default:
        break;
    }
    if (!done_) take(kRead);
  }

  // As long as it is not told that the peer has ended: read and ask again.
  void turn_hup() {
    const int told = ask(POLLIN | POLLRDHUP);
    if (done_) return;
    const ssize_t n = take(kRead);
    if (done_ || (told & POLLRDHUP) == 0) return;
    int left = -1;
    ::ioctl(fd_, FIONREAD, &left);
    if (how_ == Reader::fionread && left == 0) end(0);
    if (how_ == Reader::short_read && n > 0 && n < static_cast<ssize_t>(kRead)) end(0);
    if (how_ == Reader::eagain && n < 0) end(0);
  }

  void peek() {
    const ssize_t n = ::recv(fd_, buffer_.data(), kRead, MSG_PEEK);
    if (n > 0 && !g_pattern.is(buffer_.data(), static_cast<size_t>(n), 1, verdict_.bytes))
      ++verdict_.wrong;
  }

  void splice() {
    const ssize_t n = ::splice(fd_, nullptr, pipe_[1], nullptr, kRead, SPLICE_F_NONBLOCK);
    if (n > 0) require(::read(pipe_[0], buffer_.data(), static_cast<size_t>(n)) == n, "the pipe");
    judge(n);
  }

  ssize_t take(size_t most) {
    if (done_) return 0;
    const ssize_t n = ::recv(fd_, buffer_.data(), most, how_ == Reader::waitall ? MSG_WAITALL : 0);
    judge(n);
    return n;
  }

  void judge(ssize_t n) {
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return end(errno);
    if (n == 0) return end(0);
    if (!g_pattern.is(buffer_.data(), static_cast<size_t>(n), 1, verdict_.bytes)) ++verdict_.wrong;
    verdict_.bytes += static_cast<uint64_t>(n);
    constexpr int kNaps = 20;
    if (pace_ == Pace::slow && naps_++ < kNaps) nap();
  }

  const int fd_;
  const Reader how_;
  const Pace pace_;
  std::vector<char> buffer_;
  int epoll_ = -1;
  int pipe_[2] = {-1, -1};
  int naps_ = 0;
  bool done_ = false;
  Verdict verdict_{};
};

// ---- sending

void send_all(int fd, Sender how, uint64_t bytes) {
  if (how == Sender::polled) ::fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
  for (uint64_t sent = 0; sent < bytes;) {
    const size_t n = std::min<uint64_t>(bytes - sent, pair::Pattern::kLongest);
    ssize_t done;
    if (how == Sender::sendfile) {
      auto offset = static_cast<off_t>(pair::Pattern::offset(1, sent));
      done = ::sendfile(fd, g_pattern.file(), &offset, n);
    } else {
      done = ::send(fd, g_pattern.at(1, sent), n, MSG_NOSIGNAL);
    }
    if (done < 0 && errno == EAGAIN) {
      pollfd p{fd, POLLOUT, 0};
      require(::poll(&p, 1, kHangMs) == 1, "room to send");
      continue;
    }
    require(done > 0, "send");
    sent += static_cast<uint64_t>(done);
  }
}

// A reset takes back what has not left yet, so everything has to arrive first.
void await_delivery(int fd) {
  int left = 1;
  while (left > 0) require(::ioctl(fd, SIOCOUTQ, &left) == 0, "SIOCOUTQ");
}

// Ends a connection in which everything is sent; `peer_is_done` waits until the other side has said so.
template <typename Wait>
void end_connection(int fd, Ender how, Wait peer_is_done) {
  if (how == Ender::half_close) {
    ::shutdown(fd, SHUT_WR);
    peer_is_done();
  }
  if (how == Ender::reset) {
    await_delivery(fd);
    const linger now{1, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  ::close(fd);
}

void send_from_a_child(int fd, const Case& c) {
  const pid_t child = ::fork();
  require(child >= 0, "fork");
  if (child == 0) {
    send_all(fd, c.sender, c.bytes);
    if (c.ender == Ender::exec) ::execl("/bin/true", "true", nullptr);
    if (c.ender == Ender::kill) ::raise(SIGKILL);
    ::_exit(0);
  }
  ::close(fd);
  ::waitpid(child, nullptr, 0);
}

// ---- the two sides

int work() {
  uint16_t ports[2];
  const int listeners[] = {pair::listen_anywhere(&ports[0]),
                           pair::listen_anywhere(&ports[1], [](int fd) {
                             pair::set(fd, SOL_SOCKET, SO_RCVBUF, kSmall);
                             pair::set(fd, SOL_SOCKET, SO_SNDBUF, kSmall);
                           })};
  pair::put(1, ports);
  Case c{};
  while (pair::get(0, &c)) {
    const int fd = ::accept4(listeners[c.small ? 1 : 0], nullptr, nullptr, SOCK_CLOEXEC);
    require(fd >= 0, "accept");
    if (c.reads) {
      const Verdict v = Reading(fd, c.reader, c.pace).run();
      ::close(fd);
      pair::put(1, v);
    } else if (c.ender >= Ender::exit) {
      send_from_a_child(fd, c);
    } else {
      send_all(fd, c.sender, c.bytes);
      end_connection(fd, c.ender, [fd] {
        char byte;
        ::fcntl(fd, F_SETFL, O_RDWR);
        require(::recv(fd, &byte, 1, 0) == 0, "the peer's end");
      });
    }
  }
  return 0;
}

class Driver {
 public:
  explicit Driver(char** command) : worker_(command) {
    require(pair::get(worker_.from(), &ports_), "the worker's ports");
  }

  void run() {
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{1000}, kFits, uint64_t{524'288},
                                 uint64_t{524'289}, uint64_t{8} << 20}) {
      for (const bool small : {false, true})
        for (uint8_t pace = 0; pace < static_cast<uint8_t>(Pace::count); ++pace)
          all_of({true, {}, {}, {}, static_cast<Pace>(pace), small, bytes});
    }
    require(worker_.end(), "the worker's end");
  }

 private:
  void all_of(Case c) {
    // Small buffers make large transfers slow, and hold less than a late reader waits for.
    if (c.small && (c.bytes > kFits || (c.pace == Pace::late && c.bytes > 1000))) return;
    if (c.pace == Pace::late && c.bytes > kFits) return;
    for (uint8_t ender = 0; ender < static_cast<uint8_t>(Ender::count); ++ender) {
      c.ender = static_cast<Ender>(ender);
      if (c.ender == Ender::reset && (c.bytes > kFits || (c.small && c.bytes > 1000))) continue;
      for (uint8_t k = 0; c.ender < Ender::exit && k < static_cast<uint8_t>(Reader::count); ++k) {
        c.reads = true;
        c.reader = static_cast<Reader>(k);
        // Whether a reset is told with the last bytes or after them is chance, natively too.
        const bool by_hup = c.reader >= Reader::short_read && c.reader <= Reader::eagain;
        if (by_hup && c.ender == Ender::reset && c.pace != Pace::late) continue;
        feed(c);
      }
      for (uint8_t k = 0; k < static_cast<uint8_t>(Sender::count); ++k) {
        c.reads = false;
        c.sender = static_cast<Sender>(k);
        drink(c);
      }
    }
  }

  int begin(const Case& c) {
    pair::put(worker_.to(), c);
    return pair::connect_to(ports_[c.small ? 1 : 0], [&c](int fd) {
      if (c.small && !c.reads) pair::set(fd, SOL_SOCKET, SO_RCVBUF, kSmall);
    });
  }

  void feed(const Case& c) {
    const int fd = begin(c);
    send_all(fd, Sender::blocking, c.bytes);
    Verdict v{};
    bool has = false;
    end_connection(fd, c.ender, [&] { has = pair::get(worker_.from(), &v); });
    if (!has) has = pair::get(worker_.from(), &v);
    require(has, "the worker's verdict");
    say("read", kReaders[static_cast<int>(c.reader)], c, v);
  }

  void drink(const Case& c) {
    const int fd = begin(c);
    const Verdict v = Reading(fd, Reader::blocking, c.pace).run();
    ::close(fd);
    say("sent", kSenders[static_cast<int>(c.sender)], c, v);
  }

  static void say(const char* what, const char* how, const Case& c, const Verdict& v) {
    std::printf("%s %s %ju %s %s%s: %ju bytes, %d wrong, end %d, then %d, SO_ERROR %d, bits %#x\n",
                what, how, uintmax_t{c.bytes}, kEnders[static_cast<int>(c.ender)],
                kPaces[static_cast<int>(c.pace)], c.small ? " small" : "", uintmax_t{v.bytes},
                v.wrong, v.end, v.again, v.error, static_cast<unsigned>(v.mask));
  }

  pair::Worker worker_;
  uint16_t ports_[2] = {};
};

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  ::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what was said last tells where it hangs
  if (argc == 2 && std::strcmp(argv[1], "worker") == 0) return work();
  if (argc < 3 || std::strcmp(argv[1], "drive") != 0) return 2;
  Driver(argv + 2).run();
  return 0;
}
