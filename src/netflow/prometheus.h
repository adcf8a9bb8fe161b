// prometheus.h - numbers about a session in Prometheus' text format, served to whoever asks from
// this host. Which: docs/exports.md.
//
// TRUST       Whoever connects is a stranger: at most kMaxClients at a time, each with a bounded
//             request and a bounded time. No peer's address or port is in what they get.
// THREADS     One. Nothing here waits.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/exports.h"

namespace mw::netflow {

// A text under construction; the names get their prefix here.
class MetricsText {
 public:
  void counter(const char* name, const char* help, uint64_t value);
  void gauge(const char* name, const char* help, uint64_t value);
  // One metric with a sample for each value of one label.
  struct Sample {
    const char* value;
    uint64_t count;
  };
  void counters(const char* name, const char* help, const char* label,
                std::initializer_list<Sample> samples);
  const std::string& text() const { return text_; }

  // Seconds, cumulative as Prometheus wants them.
  struct Histogram {
    static constexpr std::array<uint32_t, 8> kBounds{1, 5, 15, 60, 300, 1800, 7200, 86400};
    std::array<uint64_t, kBounds.size() + 1> buckets{};
    uint64_t sum_ms = 0;
    void observe(uint64_t ms);
  };
  void histogram(const char* name, const char* help, const Histogram& h);

 private:
  void head(const char* name, const char* help, const char* type);
  std::string text_;
};

class PrometheusServer {
 public:
  static constexpr size_t kMaxClients = 16;
  static constexpr size_t kMaxRequest = 4096;
  static constexpr uint64_t kPatienceNs = 5'000'000'000;

  // Errors: limit (the address is none, or beyond this host), sys.
  static Result<std::unique_ptr<PrometheusServer>> make(const PrometheusOptions& options,
                                                        std::function<std::string()> metrics);
  ~PrometheusServer();

  const std::string& address() const { return address_; }
  int event_fd() const { return epoll_.get(); }
  void handle_events(uint64_t monotonic_ns);
  // Every second: who took too long goes.
  void drop_slow(uint64_t monotonic_ns);

 private:
  struct Client {
    UniqueFd socket;
    std::string request;
    std::string answer;
    size_t sent = 0;
    uint64_t since_ns = 0;
  };
  explicit PrometheusServer(std::function<std::string()> metrics) : metrics_(std::move(metrics)) {}
  Status listen(const std::string& where);
  bool watch(int fd, uint32_t events, int operation);
  void accept_all(uint64_t monotonic_ns);
  // False: this client is done.
  bool read_request(Client& c);
  bool write_answer(Client& c);
  std::string answer_to(const std::string& request) const;

  const std::function<std::string()> metrics_;
  UniqueFd epoll_;
  UniqueFd listener_;
  std::string address_;
  std::string path_;  // to remove at the end
  std::map<int, Client> clients_;
  bool paused_ = false;  // no descriptors left to accept with
};

}  // namespace mw::netflow
