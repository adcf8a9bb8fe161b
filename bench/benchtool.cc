// benchtool.cc - the small servers and clients of bench.py.
//
// purpose     benchtool echo PORT          answers every byte, one connection at a time
//             benchtool pingpong PORT COUNT
//                                          1-byte round trips; prints p50 and p99, microseconds
//             benchtool closer PORT        accepts and closes
//             benchtool churn PORT SECONDS N [ADDRESS]
//                                          N threads open and close; prints connections a second,
//                                          and p50 and p99 of one, microseconds
//             benchtool hold PORT          accepts and keeps, with one epoll set
//             benchtool open PORT COUNT    opens COUNT connections, says so, keeps them until the
//                                          end of its standard input
//             benchtool engine SOCKET      reads a NetFlow server's messages until the end of its
//                                          standard input, then prints how many bytes came
//             benchtool deaf SOCKET        connects to one and reads nothing until then
//             Servers listen on the loopback address; closer on every address.
// THREADS     churn has one thread for each of its N clients; all else is single-threaded.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBacklog = 4096;
constexpr int kWarmUp = 2000;
// One source address has about 60000 ports: connections to hold are spread over several.
constexpr int kConnectionsOfOneAddress = 20000;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

sockaddr_in address_of(int port, std::uint32_t host) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(host);
  return address;
}

void no_delay(int fd) {
  const int on = 1;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) fail("TCP_NODELAY");
}

int listen_on(int port, std::uint32_t host = INADDR_LOOPBACK) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  const sockaddr_in address = address_of(port, host);
  if (fd < 0) fail("socket");
  if (::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) fail("SO_REUSEADDR");
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) fail("bind");
  if (::listen(fd, kBacklog) < 0) fail("listen");
  return fd;
}

int connect_to(int port, std::uint32_t source, std::uint32_t host = INADDR_LOOPBACK) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  if (source != 0) {
    const int on = 1;
    const sockaddr_in own = address_of(0, source);
    if (::setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) < 0) fail("no port");
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own) < 0) fail("bind");
  }
  const sockaddr_in address = address_of(port, host);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    fail("connect");
  }
  return fd;
}

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Requires: there are some.
void print_percentiles(std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  std::printf("p50 %.2f p99 %.2f\n", times[times.size() / 2], times[times.size() * 99 / 100]);
}

void echo(int port) {
  const int listener = listen_on(port);
  for (;;) {
    const int fd = ::accept(listener, nullptr, nullptr);
    if (fd < 0) fail("accept");
    no_delay(fd);
    char buffer[4096];
    ssize_t n;
    while ((n = ::recv(fd, buffer, sizeof buffer, 0)) > 0) {
      if (::send(fd, buffer, static_cast<std::size_t>(n), MSG_NOSIGNAL) != n) break;
    }
    ::close(fd);
  }
}

void pingpong(int port, int count) {
  const int fd = connect_to(port, 0);
  no_delay(fd);
  std::vector<double> times;
  times.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count + kWarmUp; ++i) {
    char byte = 'x';
    const auto start = Clock::now();
    if (::send(fd, &byte, 1, MSG_NOSIGNAL) != 1) fail("send");
    if (::recv(fd, &byte, 1, 0) != 1) fail("recv");
    if (i < kWarmUp) continue;
    times.push_back(micros_since(start));
  }
  print_percentiles(times);
}

void closer(int port) {
  const int listener = listen_on(port, INADDR_ANY);
  for (;;) {
    const int fd = ::accept(listener, nullptr, nullptr);
    if (fd < 0) fail("accept");
    ::close(fd);
  }
}

void churn(int port, int seconds, int clients, std::uint32_t host) {
  std::vector<std::vector<double>> times(static_cast<std::size_t>(clients));
  const auto end = Clock::now() + std::chrono::seconds(seconds);
  std::vector<std::thread> threads;
  for (std::vector<double>& mine : times) {
    threads.emplace_back([&mine, port, host, end] {
      std::vector<double> taken;  // not in `mine`, which lies beside those of other threads
      for (auto start = Clock::now(); start < end; start = Clock::now()) {
        const int fd = connect_to(port, 0, host);
        char byte;
        if (::recv(fd, &byte, 1, 0) != 0) fail("the server's end of file");
        ::close(fd);
        taken.push_back(micros_since(start));
      }
      mine = std::move(taken);
    });
  }
  for (std::thread& one : threads) one.join();
  std::vector<double> all;
  for (const std::vector<double>& mine : times) all.insert(all.end(), mine.begin(), mine.end());
  std::printf("rate %.1f ", static_cast<double>(all.size()) / seconds);
  print_percentiles(all);
}

void hold(int port) {
  const int listener = listen_on(port);
  const int set = ::epoll_create1(EPOLL_CLOEXEC);
  if (set < 0) fail("epoll_create1");
  const auto add = [set](int fd) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    event.data.fd = fd;
    if (::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
  };
  add(listener);
  for (;;) {
    epoll_event events[64];
    const int count = ::epoll_wait(set, events, 64, -1);
    if (count < 0) fail("epoll_wait");
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd != listener) {
        ::close(events[i].data.fd);
        continue;
      }
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) fail("accept4");
      add(fd);
    }
  }
}

void open_many(int port, int count) {
  for (int i = 0; i < count; ++i) {
    connect_to(port,
               INADDR_LOOPBACK + 1 + static_cast<std::uint32_t>(i / kConnectionsOfOneAddress));
  }
  std::printf("open\n");
  std::fflush(stdout);
  char byte;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
  }
}

int connect_to_server(const char* path) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0) fail("connect");
  std::printf("connected\n");
  std::fflush(stdout);
  return fd;
}

void be_engine(const char* path, bool deaf) {
  const int fd = connect_to_server(path);
  std::vector<char> room(1 << 20);
  std::uint64_t bytes = 0;
  pollfd watched[] = {{STDIN_FILENO, POLLIN, 0}, {deaf ? -1 : fd, POLLIN, 0}};
  while (watched[0].revents == 0) {
    if (::poll(watched, 2, -1) < 0) fail("poll");
    if (watched[1].revents == 0) continue;
    const ssize_t n = ::read(fd, room.data(), room.size());
    if (n <= 0) fail("the server ended");
    bytes += static_cast<std::uint64_t>(n);
  }
  std::printf("%llu\n", static_cast<unsigned long long>(bytes));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 2 ? argv[1] : "";
  const int port = argc > 2 ? std::atoi(argv[2]) : 0;
  if (what == "echo" && argc == 3) {
    echo(port);
  } else if (what == "pingpong" && argc == 4) {
    pingpong(port, std::atoi(argv[3]));
  } else if (what == "closer" && argc == 3) {
    closer(port);
  } else if (what == "churn" && (argc == 5 || argc == 6)) {
    in_addr host{htonl(INADDR_LOOPBACK)};
    if (argc == 6 && ::inet_pton(AF_INET, argv[5], &host) != 1) fail("the address");
    churn(port, std::atoi(argv[3]), std::atoi(argv[4]), ntohl(host.s_addr));
  } else if (what == "hold" && argc == 3) {
    hold(port);
  } else if (what == "open" && argc == 4) {
    open_many(port, std::atoi(argv[3]));
  } else if ((what == "engine" || what == "deaf") && argc == 3) {
    be_engine(argv[2], what == "deaf");
  } else {
    std::fprintf(stderr,
                 "usage: benchtool echo|closer|hold PORT\n"
                 "       benchtool pingpong PORT COUNT\n"
                 "       benchtool churn PORT SECONDS CLIENTS [ADDRESS]\n"
                 "       benchtool open PORT COUNT\n"
                 "       benchtool engine|deaf SOCKET\n");
    return 2;
  }
  return 0;
}
