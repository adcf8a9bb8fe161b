// calls - threads make every call that waits for an answer, and every call that does not, at random and on each
// other's sockets, while some of them look up names that nobody answers. Usage: calls THREADS SECONDS
// Prints CALL number longest-ms for each; lookups have a time of their own, whatever else takes long is a fault.
// Exits with 1 if a call's result is wrong, or if a thread has not come back 20 s after the end.
#include <netdb.h>

#include <array>
#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "pair.h"

namespace {

using pair::now_ms;
using pair::require;

enum What : size_t {
  kSocket,
  kPosted,
  kReadBack,
  kLinger,
  kOthersLinger,
  kName,
  kShutdown,
  kConnect,
  kBytes,
  kClose,
  kLookup,
  kCount
};
constexpr const char* kNames[] = {
    "socket",   "setsockopt", "read-back", "getsockopt", "others-getsockopt", "getsockname",
    "shutdown", "connect",    "bytes",     "close",      "getaddrinfo"};

std::atomic<double> g_late =
    0;  // milliseconds by which a thread that only sleeps was woken too late

void watch_the_machine() {
  constexpr double kStep = 5;
  for (;;) {
    const double began = now_ms();
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(kStep));
    const double late = now_ms() - began - kStep;
    if (late > 2) g_late = g_late + late;
  }
}

struct Figures {
  std::array<uint64_t, kCount> number{};
  std::array<double, kCount> longest{};
};

struct Shared {
  double end = 0;
  uint16_t port = 0;
  std::vector<int> kept;  // a socket of each thread, open all the time
};

class Caller {
 public:
  Caller(const Shared& shared, size_t index)
      : shared_(shared), index_(index), random_(static_cast<uint32_t>(index + 1)) {}

  Figures run() {
    const bool looks_up = index_ % 10 == 9;
    while (now_ms() < shared_.end) {
      post(shared_.kept[index_]);
      if (looks_up)
        look_up();
      else if (random_() % 4 == 0)
        connection();
      else
        sockets();
    }
    return figures_;
  }

 private:
  template <typename Function>
  void call(What what, Function function) {
    const double late = g_late;
    const double began = now_ms();
    require(function(), kNames[what]);
    const double took = now_ms() - began - (g_late - late);
    ++figures_.number[what];
    figures_.longest[what] = std::max(figures_.longest[what], took);
  }

  void post(int fd) {
    static constexpr int kOptions[][2] = {
        {IPPROTO_TCP, TCP_NODELAY}, {SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_REUSEADDR}};
    const auto& option = kOptions[random_() % 3];
    const int value = static_cast<int>(random_() % 2);
    call(kPosted,
         [&] { return ::setsockopt(fd, option[0], option[1], &value, sizeof value) == 0; });
    if (random_() % 3 != 0) return;
    int got = -1;
    socklen_t size = sizeof got;
    call(kReadBack, [&] {
      return ::getsockopt(fd, option[0], option[1], &got, &size) == 0 && (got != 0) == (value != 0);
    });
  }

  void ask(int fd, What what) {
    linger l{};
    socklen_t size = sizeof l;
    call(what,
         [&] { return ::getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &size) == 0 && l.l_onoff == 0; });
  }

  void name(int fd) {
    sockaddr_in a{};
    socklen_t size = sizeof a;
    call(kName, [&] {
      return ::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size) == 0 &&
             a.sin_family == AF_INET;
    });
  }

  void sockets() {
    std::array<int, 8> made{};
    for (int& fd : made) {
      call(kSocket, [&] { return (fd = ::socket(AF_INET, SOCK_STREAM, 0)) >= 0; });
      post(fd);
    }
    for (const int fd : made) {
      ask(fd, kLinger);
      ask(shared_.kept[random_() % shared_.kept.size()], kOthersLinger);
      if (random_() % 2 == 0) name(fd);
      call(kClose, [&] { return ::close(fd) == 0; });
    }
  }

  // A server gives back what it gets until our end.
  void connection() {
    int fd = -1;
    call(kConnect, [&] { return (fd = pair::connect_to(shared_.port)) >= 0; });
    post(fd);
    char byte = 'a';
    call(kBytes, [&] {
      return ::send(fd, &byte, 1, 0) == 1 && ::recv(fd, &byte, 1, 0) == 1 && byte == 'a';
    });
    call(kShutdown, [&] { return ::shutdown(fd, SHUT_WR) == 0; });
    ask(fd, kLinger);
    call(kBytes, [&] { return ::recv(fd, &byte, 1, 0) == 0; });
    call(kClose, [&] { return ::close(fd) == 0; });
  }

  void look_up() {
    addrinfo* found = nullptr;
    call(kLookup,
         [&] { return ::getaddrinfo("nobody.answers.test", "80", nullptr, &found) == EAI_AGAIN; });
  }

  const Shared& shared_;
  const size_t index_;
  std::minstd_rand random_;
  Figures figures_;
};

void serve(int listener) {
  for (;;) {
    const int fd = ::accept(listener, nullptr, nullptr);
    require(fd >= 0, "accept");
    std::thread([fd] {
      char byte;
      while (::recv(fd, &byte, 1, 0) == 1)
        require(::send(fd, &byte, 1, MSG_NOSIGNAL) == 1, "the server");
      ::close(fd);
    }).detach();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto threads = static_cast<size_t>(std::atoi(argv[1]));
  Shared shared;
  const int listener = pair::listen_anywhere(&shared.port);
  std::thread(serve, listener).detach();
  std::thread(watch_the_machine).detach();
  for (size_t i = 0; i < threads; ++i) {
    shared.kept.push_back(::socket(AF_INET, SOCK_STREAM, 0));
    require(shared.kept.back() >= 0, "socket");
  }
  shared.end = now_ms() + 1000 * std::atof(argv[2]);
  std::mutex mutex;
  Figures all;
  std::atomic<size_t> back = 0;
  for (size_t i = 0; i < threads; ++i) {
    std::thread([&, i] {
      const Figures mine = Caller(shared, i).run();
      const std::lock_guard lock(mutex);
      for (size_t k = 0; k < kCount; ++k) {
        all.number[k] += mine.number[k];
        all.longest[k] = std::max(all.longest[k], mine.longest[k]);
      }
      ++back;
    }).detach();
  }
  constexpr double kPatienceMs = 20'000;
  while (back < threads && now_ms() < shared.end + kPatienceMs)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  if (back < threads)
    std::fprintf(stderr, "calls: %zu threads have not come back\n", threads - back);
  const std::lock_guard lock(mutex);
  for (size_t k = 0; k < kCount; ++k)
    std::printf("%s %ju %.1f\n", kNames[k], uintmax_t{all.number[k]}, all.longest[k]);
  std::fflush(stdout);
  std::_Exit(back < threads ? 1 : 0);
}
