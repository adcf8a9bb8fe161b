// ipfix.h - flow records as IPFIX (RFC 7011), both directions in one record (RFC 5103). What the
// fields hold: docs/exports.md.
//
// INVARIANTS  Sequence numbers count data records, start at 0 with a transport session, and go on
//             over what was lost on the way: a collector sees how much it missed.
// THREADS     One. Nothing here waits: what a socket does not take at once is dropped and counted
//             (UDP), or kept up to a bound, behind which records are dropped and counted (TCP).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/exports.h"
#include "netflow/flow_cache.h"
#include "netflow/socket_address.h"

namespace mw::netflow {

struct IpfixMessage {
  std::vector<uint8_t> bytes;
  uint32_t records = 0;
};

// Records to bytes, without input or output.
class IpfixEncoder {
 public:
  IpfixEncoder(uint32_t domain, size_t max_bytes) : domain_(domain), max_bytes_(max_bytes) {}

  // False: it does not fit into the message any more; take() that first.
  bool add(const FlowRecord& r);
  bool empty() const { return records_ == 0; }
  IpfixMessage take(uint32_t now_s);
  IpfixMessage templates(uint32_t now_s) const;

 private:
  uint32_t domain_;
  size_t max_bytes_;
  uint32_t sequence_ = 0;
  uint32_t records_ = 0;
  std::vector<uint8_t> v4_;
  std::vector<uint8_t> v6_;
};

class IpfixExport {
 public:
  struct Counts {
    uint64_t records = 0;
    uint64_t messages = 0;
    uint64_t dropped = 0;  // records
  };

  // Errors: limit (the collector's address is none), sys. That a collector is not there is none.
  static Result<std::unique_ptr<IpfixExport>> make(const IpfixOptions& options);

  void put(const FlowRecord& r, const Instant& now);
  // At least once a second: what waits for a full message goes out; templates, new connections.
  void flush(const Instant& now);

  // What to poll for; -1 if nothing. (Errors of UDP are met when sending.)
  int fd() const { return options_.tcp && socket_ ? socket_.get() : -1; }
  short events() const;
  void handle_events(const Instant& now);
  const Counts& counts() const { return counts_; }

 private:
  static constexpr size_t kMaxBacklog = 1u << 20;  // bytes that wait for a TCP collector
  enum class State { closed, connecting, open };

  IpfixExport(const IpfixOptions& options, const SocketAddress& collector);
  void open(const Instant& now);
  void opened(const Instant& now);
  void close(const Instant& now);
  void send(IpfixMessage message);
  void drain(const Instant& now);

  const IpfixOptions options_;
  const SocketAddress collector_;
  State state_ = State::closed;
  UniqueFd socket_;
  IpfixEncoder encoder_;
  uint64_t templates_due_ns_ = 0;
  uint64_t retry_ns_ = 0;
  uint64_t patience_ns_;
  std::deque<IpfixMessage> backlog_;  // TCP
  size_t backlog_bytes_ = 0;
  size_t sent_ = 0;  // of the first one
  Counts counts_;
};

}  // namespace mw::netflow
