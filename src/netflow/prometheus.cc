#include "netflow/prometheus.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "netflow/socket_address.h"

namespace mw::netflow {
namespace {

constexpr int kEventsPerTurn = 32;

std::string reply(const char* status, const char* type, const std::string& body) {
  return std::string("HTTP/1.0 ") + status + "\r\nContent-Type: " + type +
         "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" +
         body;
}

}  // namespace

// ---- MetricsText ----

void MetricsText::head(const char* name, const char* help, const char* type) {
  text_ += std::string("# HELP mwcomms_") + name + " " + help + "\n# TYPE mwcomms_" + name + " " +
           type + "\n";
}

void MetricsText::counter(const char* name, const char* help, uint64_t value) {
  head(name, help, "counter");
  text_ += std::string("mwcomms_") + name + " " + std::to_string(value) + "\n";
}

void MetricsText::gauge(const char* name, const char* help, uint64_t value) {
  head(name, help, "gauge");
  text_ += std::string("mwcomms_") + name + " " + std::to_string(value) + "\n";
}

void MetricsText::counters(const char* name, const char* help, const char* label,
                           std::initializer_list<Sample> samples) {
  head(name, help, "counter");
  for (const Sample& s : samples) {
    text_ += std::string("mwcomms_") + name + "{" + label + "=\"" + s.value + "\"} " +
             std::to_string(s.count) + "\n";
  }
}

void MetricsText::Histogram::observe(uint64_t ms) {
  size_t i = 0;
  while (i < kBounds.size() && ms > uint64_t{kBounds[i]} * 1000) ++i;
  ++buckets[i];
  sum_ms += ms;
}

void MetricsText::histogram(const char* name, const char* help, const Histogram& h) {
  head(name, help, "histogram");
  const std::string full = std::string("mwcomms_") + name;
  uint64_t count = 0;
  for (size_t i = 0; i < h.buckets.size(); ++i) {
    count += h.buckets[i];
    const bool last = i == Histogram::kBounds.size();
    text_ += full + "_bucket{le=\"" + (last ? "+Inf" : std::to_string(Histogram::kBounds[i])) +
             "\"} " + std::to_string(count) + "\n";
  }
  char sum[32];
  std::snprintf(sum, sizeof sum, "%" PRIu64 ".%03" PRIu64, h.sum_ms / 1000, h.sum_ms % 1000);
  text_ += full + "_sum " + sum + "\n" + full + "_count " + std::to_string(count) + "\n";
}

// ---- PrometheusServer ----

Result<std::unique_ptr<PrometheusServer>> PrometheusServer::make(
    const PrometheusOptions& options, std::function<std::string()> metrics) {
  std::unique_ptr<PrometheusServer> server{new PrometheusServer(std::move(metrics))};
  if (const Status listening = server->listen(options.listen); !listening) return listening.error();
  return server;
}

PrometheusServer::~PrometheusServer() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Status PrometheusServer::listen(const std::string& where) {
  auto address = parse_socket_address(where);
  if (!address) return Error{Fault::limit, 0, "the Prometheus address is not ADDRESS:PORT"};
  const bool local = address->family() == AF_UNIX;
  if (!local && !address->is_loopback())
    return Error{Fault::limit, 0, "Prometheus is served on loopback and unix sockets only"};
  listener_ = UniqueFd{::socket(address->family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!listener_) return Error{Fault::sys, errno, "socket for Prometheus"};
  if (local) {
    const std::string path = where.substr(sizeof "unix:" - 1);
    struct stat st {};
    if (::lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) {
      // One that somebody still serves is not ours to remove.
      const UniqueFd probe{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
      if (::connect(probe.get(), address->get(), address->len) < 0 && errno == ECONNREFUSED)
        ::unlink(path.c_str());
    }
    path_ = path;
  } else {
    const int on = 1;
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  }
  // Before it has a name: it is born with its mode.
  if (local && ::fchmod(listener_.get(), 0660) < 0)
    return Error{Fault::sys, errno, "mode of the Prometheus socket"};
  if (::bind(listener_.get(), address->get(), address->len) < 0) {
    path_.clear();
    return Error{Fault::sys, errno, "bind of the Prometheus address"};
  }
  address->len = sizeof address->bytes;
  epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  if (::listen(listener_.get(), 16) < 0 ||
      ::getsockname(listener_.get(), address->get(), &address->len) < 0 || !epoll_ ||
      !watch(listener_.get(), EPOLLIN, EPOLL_CTL_ADD))
    return Error{Fault::sys, errno, "listening for Prometheus"};
  address_ = to_string(*address);
  return Ok{};
}

bool PrometheusServer::watch(int fd, uint32_t events, int operation) {
  epoll_event e{};
  e.events = events;
  e.data.fd = fd;
  return ::epoll_ctl(epoll_.get(), operation, fd, &e) == 0;
}

void PrometheusServer::accept_all(uint64_t monotonic_ns) {
  for (;;) {
    Client c;
    c.socket = UniqueFd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!c.socket) {
      // Without descriptors it would be ready for ever: drop_slow() listens again.
      paused_ = errno != EAGAIN && watch(listener_.get(), 0, EPOLL_CTL_MOD);
      return;
    }
    if (clients_.size() >= kMaxClients) continue;
    c.since_ns = monotonic_ns;
    if (!watch(c.socket.get(), EPOLLIN, EPOLL_CTL_ADD)) continue;
    clients_[c.socket.get()] = std::move(c);
  }
}

void PrometheusServer::handle_events(uint64_t monotonic_ns) {
  epoll_event events[kEventsPerTurn];
  const int n = ::epoll_wait(epoll_.get(), events, kEventsPerTurn, 0);
  for (int i = 0; i < n; ++i) {
    const int fd = events[i].data.fd;
    if (fd == listener_.get()) {
      accept_all(monotonic_ns);
      continue;
    }
    const auto found = clients_.find(fd);
    if (found == clients_.end()) continue;
    Client& c = found->second;
    const bool goes_on = c.answer.empty() ? read_request(c) : write_answer(c);
    if (!goes_on) clients_.erase(found);
  }
}

void PrometheusServer::drop_slow(uint64_t monotonic_ns) {
  std::erase_if(clients_, [monotonic_ns](const auto& each) {
    return monotonic_ns - each.second.since_ns > kPatienceNs;
  });
  if (paused_) paused_ = !watch(listener_.get(), EPOLLIN, EPOLL_CTL_MOD);
}

bool PrometheusServer::read_request(Client& c) {
  char part[1024];
  const ssize_t n = ::recv(c.socket.get(), part, sizeof part, 0);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  c.request.append(part, static_cast<size_t>(n));
  if (c.request.size() > kMaxRequest) {
    c.answer = reply("431 Request Header Fields Too Large", "text/plain", "too long\n");
  } else if (c.request.find("\r\n\r\n") == std::string::npos &&
             c.request.find("\n\n") == std::string::npos) {
    return true;
  } else {
    c.answer = answer_to(c.request);
  }
  return write_answer(c);
}

bool PrometheusServer::write_answer(Client& c) {
  const ssize_t n =
      ::send(c.socket.get(), c.answer.data() + c.sent, c.answer.size() - c.sent, MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
  if (n > 0) c.sent += static_cast<size_t>(n);
  if (c.sent == c.answer.size()) {
    ::shutdown(c.socket.get(), SHUT_WR);
    return false;
  }
  return watch(c.socket.get(), EPOLLOUT, EPOLL_CTL_MOD);
}

std::string PrometheusServer::answer_to(const std::string& request) const {
  const std::string line = request.substr(0, request.find_first_of("\r\n"));
  if (!line.starts_with("GET ")) {
    return reply("405 Method Not Allowed", "text/plain", "only GET\n");
  }
  const std::string target = line.substr(4, line.find(' ', 4) - 4);
  if (target != "/metrics") return reply("404 Not Found", "text/plain", "see /metrics\n");
  return reply("200 OK", "text/plain; version=0.0.4; charset=utf-8", metrics_());
}

}  // namespace mw::netflow
