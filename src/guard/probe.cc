#include "guard/probe.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/clock.h"

namespace mw::guard {
namespace {

constexpr int64_t kMs = 1'000'000;
// The thread was not run for so long: what it measured then is its own delay.
constexpr int64_t kOwnDelay = 80 * kMs;
constexpr size_t kMaxRunning = 64;
constexpr size_t kStatusBytes = 12;  // "HTTP/1.1 200"

std::string request_for(const ProbeTarget& t) {
  if (!t.http) return "";
  return "GET " + t.path + " HTTP/1.1\r\nHost: " + t.host +
         "\r\nUser-Agent: mw-guard\r\nConnection: close\r\n\r\n";
}

// An answer is good if it is HTTP and no server error: that something is forbidden says that
// somebody is there.
bool good_status(const std::string& answer) {
  return answer.starts_with("HTTP/1.") && answer[9] >= '1' && answer[9] <= '4';
}

}  // namespace

Result<std::unique_ptr<Prober>> Prober::start(const ProbeTarget& target, const ProbeRules& rules) {
  UniqueFd news{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  UniqueFd end{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!news || !end) return Error{Fault::sys, errno, "eventfd"};
  return std::unique_ptr<Prober>(new Prober(target, rules, std::move(news), std::move(end)));
}

Prober::Prober(const ProbeTarget& target, const ProbeRules& rules, UniqueFd news, UniqueFd end)
    : target_(target),
      rules_(rules),
      request_(request_for(target)),
      news_(std::move(news)),
      end_(std::move(end)),
      thread_([this] { run(); }) {}

Prober::~Prober() {
  ::eventfd_write(end_.get(), 1);
}

std::vector<ProbeResult> Prober::take() {
  eventfd_t count = 0;
  ::eventfd_read(news_.get(), &count);
  const std::lock_guard lock(mutex_);
  return std::exchange(results_, {});
}

void Prober::run() {
  int64_t next_begin = monotonic_ns();
  std::vector<pollfd> polled;
  for (;;) {
    polled.assign(1, {end_.get(), POLLIN, 0});
    for (const Probe& p : running_)
      polled.push_back({p.socket.get(), static_cast<short>(p.connected ? POLLIN : POLLOUT), 0});
    const int64_t before = monotonic_ns();
    const int64_t due = std::max(next_due(next_begin), before);
    const timespec wait{(due - before) / 1'000'000'000, (due - before) % 1'000'000'000};
    if (::ppoll(polled.data(), polled.size(), &wait, nullptr) < 0 && errno != EINTR) std::abort();
    if (polled[0].revents != 0) return;
    const int64_t now = monotonic_ns();
    if (now > due + kOwnDelay) {
      running_.clear();
      next_begin = now;
      continue;
    }
    size_t at = 1;
    std::erase_if(running_, [&](Probe& p) {
      const short events = polled[at++].revents;
      return (events != 0 && advance(p, events, now)) || overdue(p, now);
    });
    const uint32_t pause = hurry_ ? rules_.pressed_interval_ms : rules_.interval_ms;
    next_begin = std::min(next_begin, now + int64_t{pause} * kMs);
    if (now < next_begin) continue;
    if (running_.size() < kMaxRunning) begin(now);
    next_begin = now + int64_t{pause} * kMs;
  }
}

int64_t Prober::next_due(int64_t next_begin_ns) const {
  int64_t due = next_begin_ns;
  for (const Probe& p : running_)
    due = std::min(due, p.begun_ns + int64_t{p.late ? rules_.timeout_ms : rules_.slow_ms} * kMs);
  return due;
}

void Prober::begin(int64_t now_ns) {
  Probe p;
  p.begun_ns = now_ns;
  p.socket.reset(::socket(target_.address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!p.socket) return;  // no descriptor is left, which is not the service's fault
  if (::connect(p.socket.get(), target_.address.get(), target_.address.len) < 0 &&
      errno != EINPROGRESS)
    tell(p, Fate::refused, now_ns);
  else
    running_.push_back(std::move(p));
}

bool Prober::advance(Probe& p, short events, int64_t now_ns) {
  if (!p.connected) {
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(p.socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0 || (events & POLLERR) != 0) return finish(p, false, now_ns);
    p.connected = true;
    if (!target_.http) return finish(p, true, now_ns);
    const ssize_t n = ::send(p.socket.get(), request_.data(), request_.size(), MSG_NOSIGNAL);
    return n != static_cast<ssize_t>(request_.size()) && finish(p, false, now_ns);
  }
  char part[kStatusBytes];
  const ssize_t n = ::recv(p.socket.get(), part, kStatusBytes - p.answer.size(), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n <= 0) return finish(p, false, now_ns);
  p.answer.append(part, static_cast<size_t>(n));
  return p.answer.size() == kStatusBytes && finish(p, good_status(p.answer), now_ns);
}

bool Prober::finish(const Probe& p, bool good, int64_t now_ns) {
  tell(p, !good ? Fate::refused : p.late ? Fate::slow : Fate::served, now_ns);
  return true;
}

bool Prober::overdue(Probe& p, int64_t now_ns) {
  const int64_t age = now_ns - p.begun_ns;
  if (!p.late && age >= int64_t{rules_.slow_ms} * kMs) {
    p.late = true;
    tell(p, Fate::late, now_ns);
  }
  if (age < int64_t{rules_.timeout_ms} * kMs) return false;
  tell(p, Fate::timeout, now_ns);
  return true;
}

void Prober::tell(const Probe& p, Fate fate, int64_t now_ns) {
  {
    const std::lock_guard lock(mutex_);
    results_.push_back({p.begun_ns, now_ns, fate, static_cast<double>(now_ns - p.begun_ns) / 1e6});
  }
  ::eventfd_write(news_.get(), 1);
}

}  // namespace mw::guard
