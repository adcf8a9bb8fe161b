// pair.h - a driver, always native, and a worker, which a test starts natively or under `mw run`: what the
// programs of the system tests share.
//
// The driver starts the worker with a command line of the test's, talks to it over its standard input and output, and
// connects to it (or is connected to). Bytes on a connection follow a pattern, so that either side checks them cheaply.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace pair {

inline void require(bool ok, const char* what) {
  if (ok) return;
  std::perror(what);
  std::_Exit(1);
}

inline double now_ms() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since).count();
}

inline sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons(port);
  return a;
}

inline void set(int fd, int level, int name, int value) {
  require(::setsockopt(fd, level, name, &value, sizeof value) == 0, "setsockopt");
}

// Listens on a port that the kernel chooses; `prepare` sets options before.
template <typename Prepare>
int listen_anywhere(uint16_t* port, Prepare prepare) {
  sockaddr_in a = loopback(0);
  socklen_t size = sizeof a;
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  require(fd >= 0, "socket");
  prepare(fd);
  require(::bind(fd, reinterpret_cast<sockaddr*>(&a), size) == 0, "bind");
  require(::listen(fd, 256) == 0, "listen");
  require(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size) == 0, "getsockname");
  *port = ntohs(a.sin_port);
  return fd;
}

inline int listen_anywhere(uint16_t* port) {
  return listen_anywhere(port, [](int) {});
}

template <typename Prepare>
int connect_to(uint16_t port, Prepare prepare) {
  const sockaddr_in a = loopback(port);
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  require(fd >= 0, "socket");
  prepare(fd);
  require(::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0, "connect");
  return fd;
}

inline int connect_to(uint16_t port) {
  return connect_to(port, [](int) {});
}

// Of pipes and control connections: all of it or the end of the program.
template <typename T>
void put(int fd, const T& value) {
  require(::write(fd, &value, sizeof value) == static_cast<ssize_t>(sizeof value), "write");
}

// False at the end.
template <typename T>
bool get(int fd, T* value) {
  size_t done = 0;
  while (done < sizeof *value) {
    const ssize_t n = ::read(fd, reinterpret_cast<char*>(value) + done, sizeof *value - done);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

// Byte number `at` of a connection with this seed; its period is a prime, so no buffer's size divides it.
class Pattern {
 public:
  static constexpr size_t kPeriod = 65521;
  static constexpr size_t kLongest = size_t{1} << 18;  // what one call of at() may give

  Pattern() : file_(::memfd_create("pattern", MFD_CLOEXEC)), bytes_(kPeriod + kLongest) {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const uint64_t k = i % kPeriod;
      bytes_[i] = static_cast<char>((k * k * 2654435761U) >> 13);
    }
    require(file_ >= 0 &&
                ::write(file_, bytes_.data(), bytes_.size()) == static_cast<ssize_t>(bytes_.size()),
            "memfd");
  }
  static size_t offset(uint32_t seed, uint64_t at) { return (seed % kPeriod + at) % kPeriod; }
  const char* at(uint32_t seed, uint64_t from) const { return bytes_.data() + offset(seed, from); }
  bool is(const char* data, size_t n, uint32_t seed, uint64_t from) const {
    return n <= kLongest && std::memcmp(data, at(seed, from), n) == 0;
  }
  int file() const { return file_; }

 private:
  int file_;
  std::vector<char> bytes_;
};

// The process under test.
class Worker {
 public:
  explicit Worker(char** command) {
    int in[2];
    int out[2];
    require(::pipe2(in, O_CLOEXEC) == 0 && ::pipe2(out, O_CLOEXEC) == 0, "pipe2");
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      ::execvp(command[0], command);
      require(false, command[0]);
    }
    ::close(in[0]);
    ::close(out[1]);
    to_ = in[1];
    from_ = out[0];
  }
  int to() const { return to_; }
  int from() const { return from_; }
  // Ends it; true if it ended well.
  bool end() {
    ::close(to_);
    int status = -1;
    ::waitpid(pid_, &status, 0);
    return status == 0;
  }

 private:
  pid_t pid_ = -1;
  int to_ = -1;
  int from_ = -1;
};

}  // namespace pair
