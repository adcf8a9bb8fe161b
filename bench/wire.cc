// wire.cc - a network of a chosen length between two network namespaces, for measurements.
//
// purpose     wire NAME DELAY-US QUEUE NETNS ADDRESS NETNS ADDRESS
//             Makes a TUN device NAME with its IPv4 address, as 10.0.0.1/24, in each of the two
//             namespaces (paths) and carries packets between them, each DELAY-US after it was sent.
//             Prints "ready" when both are up. For each line of standard input it prints one line
//             of counters, as JSON. It ends with its standard input, and with its parent; the
//             devices end with it, in whatever way it ends.
// INVARIANTS  No packet is early, and none overtakes another of its direction. A packet that finds
//             QUEUE others under way in its direction is dropped and counted:
//             taken = delivered + refused + dropped, but for those under way.
// COST        A device tells the wire of a packet by waking it, at the sender's expense. While there
//             is traffic it is not woken: it looks every kSlice, as a network card that moderates
//             its interrupts, so that no sender pays for more than a card asks. What the kernel
//             does with a packet at its other end is done within our write(). That is the work of
//             the receiver, not of a wire: deliver_cpu_ns counts it for itself.
// THREADS     One for each direction, as two hosts receive at the same time, and one that answers.
//             All run before all others of the machine (SCHED_FIFO): a wire does not wait its turn.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kMtu = 1500;
constexpr std::uint64_t kSlice = 50'000;     // ns
constexpr std::uint64_t kQuiet = 2'000'000;  // ns without a packet, after which one may wake us
constexpr std::uint64_t kNever = UINT64_MAX;
constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr int kBatch = 256;  // packets that are taken before those that are due have their turn
constexpr int kDeviceQueue = 10'000;
constexpr std::uint64_t kLongestDelayUs = 10'000'000;
constexpr std::uint64_t kLongestQueue = 100'000;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "wire: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

std::uint64_t time_of(clockid_t clock) {
  timespec t{};
  ::clock_gettime(clock, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * kSecond + static_cast<std::uint64_t>(t.tv_nsec);
}

// ---- one end ----

struct End {
  int device;    // the TUN device's descriptor
  int counters;  // /proc/net/dev of its namespace
};

void enter(const char* netns) {
  const int fd = ::open(netns, O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(netns);
  if (::setns(fd, CLONE_NEWNET) < 0) fail(std::string("enter ") + netns);
  ::close(fd);
}

// "10.0.0.1/24" -> address and mask; false if it is none.
bool parse(std::string_view text, in_addr& address, in_addr& mask) {
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return false;
  const std::string_view length = text.substr(slash + 1);
  unsigned bits = 0;
  const auto [end, error] = std::from_chars(length.data(), length.data() + length.size(), bits);
  if (error != std::errc{} || end != length.data() + length.size() || bits < 1 || bits > 30) {
    return false;
  }
  mask.s_addr = htonl(~0u << (32 - bits));
  return ::inet_pton(AF_INET, std::string(text.substr(0, slash)).c_str(), &address) == 1;
}

void set_address(int socket, ifreq request, unsigned long what, in_addr value) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr = value;
  std::memcpy(&request.ifr_addr, &a, sizeof a);
  if (::ioctl(socket, what, &request) < 0) fail("give the device its address");
}

// The wire carries IPv4 alone: what IPv6 says by itself on a new device would be among the counts.
void silence_ipv6(const char* name) {
  const std::string path = std::string("/proc/sys/net/ipv6/conf/") + name + "/disable_ipv6";
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return;  // a kernel without IPv6
  if (fd < 0 || ::write(fd, "1", 1) != 1) fail(path);
  ::close(fd);
}

End make_end(const char* name, const char* netns, const char* address_text) {
  enter(netns);
  End end{};
  end.device = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (end.device < 0) fail("/dev/net/tun");
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
  ifreq made = request;
  made.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (::ioctl(end.device, TUNSETIFF, &made) < 0) fail(std::string("make the device ") + name);
  const int socket = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket < 0) fail("socket");
  ifreq queue = request;
  queue.ifr_qlen = kDeviceQueue;
  if (::ioctl(socket, SIOCSIFTXQLEN, &queue) < 0) fail("give the device its queue");
  in_addr address{}, mask{};
  parse(address_text, address, mask);
  set_address(socket, request, SIOCSIFADDR, address);
  set_address(socket, request, SIOCSIFNETMASK, mask);
  silence_ipv6(name);
  ifreq up = request;
  up.ifr_flags = IFF_UP | IFF_RUNNING;
  if (::ioctl(socket, SIOCSIFFLAGS, &up) < 0) fail("set the device up");
  ::close(socket);
  end.counters = ::open("/proc/thread-self/net/dev", O_RDONLY | O_CLOEXEC);
  if (end.counters < 0) fail("/proc/thread-self/net/dev");
  return end;
}

// What the device did not keep for the wire to take, as its queue was full.
unsigned long long dropped_by_device(const End& end, const char* name) {
  std::string text;
  std::array<char, 4096> part;
  ssize_t n;
  while ((n = ::pread(end.counters, part.data(), part.size(), static_cast<off_t>(text.size()))) > 0)
    text.append(part.data(), static_cast<std::size_t>(n));
  if (n < 0) fail("read the device's counters");
  // "  name: 1 2 ...": a long name has no blank before it.
  const std::string title = std::string(name) + ":";
  std::size_t at = text.find(title);
  while (at != std::string::npos && text[at - 1] != ' ' && text[at - 1] != '\n')
    at = text.find(title, at + 1);
  unsigned long long dropped = 0;
  if (at == std::string::npos ||
      std::sscanf(text.c_str() + at + title.size(),
                  "%*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %llu", &dropped) != 1) {
    errno = ENODEV;
    fail("find the device's counters");
  }
  return dropped;
}

// ---- one direction ----

// Room for packets. What was given back last is taken first: few are in use at a time, and those
// stay in the processor's cache.
class Buffers {
 public:
  explicit Buffers(std::size_t count)
      : room_(std::make_unique_for_overwrite<char[]>(count * kMtu)) {
    for (std::size_t i = count; i > 0; --i) free_.push_back(room_.get() + (i - 1) * kMtu);
  }
  char* take() {
    char* const one = free_.back();
    free_.pop_back();
    return one;
  }
  void give_back(char* one) { free_.push_back(one); }

 private:
  std::unique_ptr<char[]> room_;
  std::vector<char*> free_;
};

// A number that one thread counts and others read.
class Count {
 public:
  void add(std::uint64_t n) { value_.store(value() + n, std::memory_order_relaxed); }
  void raise_to(std::uint64_t n) {
    value_.store(std::max<std::uint64_t>(value(), n), std::memory_order_relaxed);
  }
  unsigned long long value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class Direction {
 public:
  Direction(const End& from, const End& to, std::uint64_t delay_ns, std::size_t limit)
      : from_(from),
        to_(to),
        delay_ns_(delay_ns),
        buffers_(limit + 1),
        spare_(buffers_.take()),
        line_(limit) {}

  // Carries packets for ever.
  void run() {
    for (;;) {
      deliver(time_of(CLOCK_MONOTONIC));
      take();
      sleep();
    }
  }

  // Callable from any thread.
  void print(const char* key, const char* name) const {
    std::printf(
        "\"%s\": {\"taken\": %llu, \"delivered\": %llu, \"refused\": %llu, \"dropped\": %llu, "
        "\"device_dropped\": %llu, \"late_ns\": %llu, \"latest_ns\": %llu, "
        "\"deliver_cpu_ns\": %llu}",
        key, taken_.value(), delivered_.value(), refused_.value(), dropped_.value(),
        dropped_by_device(from_, name), late_ns_.value(), latest_ns_.value(),
        deliver_cpu_ns_.value());
  }

 private:
  struct Packet {
    std::uint64_t due;
    char* bytes;
    std::size_t size;
  };

  // Takes what was sent, a batch at most.
  void take() {
    for (int i = 0; i < kBatch; ++i) {
      const ssize_t size = ::read(from_.device, spare_, kMtu);
      if (size < 0 && errno == EAGAIN) return;
      if (size < 0) fail("read a packet");
      taken_.add(1);
      // The time after the packet was read, as it may have been sent only just before.
      last_taken_ = time_of(CLOCK_MONOTONIC);
      if (count_ == line_.size()) {
        dropped_.add(1);
        continue;
      }
      line_[(first_ + count_++) % line_.size()] = {last_taken_ + delay_ns_, spare_,
                                                   static_cast<std::size_t>(size)};
      spare_ = buffers_.take();
    }
  }

  // Hands out what has been under way for long enough by `now`.
  void deliver(std::uint64_t now) {
    if (next_due() > now) return;
    const std::uint64_t before = time_of(CLOCK_THREAD_CPUTIME_ID);
    while (next_due() <= now) {
      const Packet packet = line_[first_];
      first_ = (first_ + 1) % line_.size();
      --count_;
      const bool took =
          ::write(to_.device, packet.bytes, packet.size) == static_cast<ssize_t>(packet.size);
      (took ? delivered_ : refused_).add(1);
      late_ns_.add(now - packet.due);
      latest_ns_.raise_to(now - packet.due);
      buffers_.give_back(packet.bytes);
    }
    deliver_cpu_ns_.add(time_of(CLOCK_THREAD_CPUTIME_ID) - before);
  }

  // When the next packet is to be delivered; kNever: none is under way.
  std::uint64_t next_due() const { return count_ == 0 ? kNever : line_[first_].due; }

  // For a slice while there is traffic, else until a packet is due or one has been sent.
  void sleep() {
    const std::uint64_t now = time_of(CLOCK_MONOTONIC);
    const bool traffic = last_taken_ != 0 && now - last_taken_ < kQuiet;
    const std::uint64_t until = traffic ? now + kSlice : next_due();
    const std::uint64_t left = until > now ? until - now : 0;
    const timespec timeout{static_cast<time_t>(left / kSecond), static_cast<long>(left % kSecond)};
    pollfd watched{from_.device, POLLIN, 0};
    const bool timed = until != kNever;
    const int ready = ::ppoll(&watched, traffic ? 0 : 1, timed ? &timeout : nullptr, nullptr);
    if (ready < 0 && errno != EINTR) fail("ppoll");  // EINTR: it was stopped and goes on
  }

  const End from_, to_;
  const std::uint64_t delay_ns_;
  Buffers buffers_;
  char* spare_;  // where the next packet goes
  std::vector<Packet> line_;
  std::size_t first_ = 0, count_ = 0;
  std::uint64_t last_taken_ = 0;
  Count taken_, delivered_, refused_, dropped_, late_ns_, latest_ns_, deliver_cpu_ns_;
};

// ---- the wire ----

// Answers each line of standard input, until its end.
void answer(const char* name, const Direction& to_second, const Direction& to_first) {
  std::array<char, 64> input;
  ssize_t n;
  while ((n = ::read(STDIN_FILENO, input.data(), input.size())) > 0) {
    for (auto lines = std::count(input.data(), input.data() + n, '\n'); lines > 0; --lines) {
      std::printf("{\"cpu_ns\": %llu, ",
                  static_cast<unsigned long long>(time_of(CLOCK_PROCESS_CPUTIME_ID)));
      to_second.print("to_second", name);
      std::printf(", ");
      to_first.print("to_first", name);
      std::printf("}\n");
      std::fflush(stdout);
    }
  }
  if (n < 0) fail("read standard input");
}

// The number that `text` is, from `least` to `most`; -1 if it is none.
long long number(std::string_view text, std::uint64_t least, std::uint64_t most) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  return whole && value >= least && value <= most ? static_cast<long long>(value) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  in_addr address{}, mask{};
  const long long delay_us = argc == 8 ? number(argv[2], 0, kLongestDelayUs) : -1;
  const long long limit = argc == 8 ? number(argv[3], 1, kLongestQueue) : -1;
  if (delay_us < 0 || limit < 0 || std::strlen(argv[1]) >= IFNAMSIZ ||
      !parse(argv[5], address, mask) || !parse(argv[7], address, mask)) {
    std::fprintf(stderr, "usage: wire NAME DELAY-US QUEUE NETNS ADDRESS/BITS NETNS ADDRESS/BITS\n");
    return 2;
  }
  // A parent that ended before this line is told by the end of standard input.
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) fail("PR_SET_PDEATHSIG");
  const sched_param before_all_others{.sched_priority = 1};
  if (::sched_setscheduler(0, SCHED_FIFO, &before_all_others) < 0) {
    fail("SCHED_FIFO, without which packets would wait for a processor");
  }
  const End first = make_end(argv[1], argv[4], argv[5]);
  const End second = make_end(argv[1], argv[6], argv[7]);
  const auto delay_ns = static_cast<std::uint64_t>(delay_us) * 1000;
  Direction to_second(first, second, delay_ns, static_cast<std::size_t>(limit));
  Direction to_first(second, first, delay_ns, static_cast<std::size_t>(limit));
  std::thread([&] { to_second.run(); }).detach();
  std::thread([&] { to_first.run(); }).detach();
  std::printf("ready\n");
  std::fflush(stdout);
  answer(argv[1], to_second, to_first);
  ::_exit(0);  // the threads still run
}
