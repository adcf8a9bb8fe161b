// client.h - an engine's end of the NetFlow interface, for C++: one connection, blocking.
// clients/cpp/example.cc closes connections that stay too quiet.
//
// THREADS     One at a time.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/wire.h"

namespace mw::netflow {

// Everything that one round of samples said.
struct SampledRound {
  Round round;
  std::vector<Sample> samples;
  std::vector<ProcessSample> processes;
};

class Client {
 public:
  // The path of a session's local socket. An answer is waited for `timeout_ms`, -1: for ever.
  // Errors: limit (the path is too long), sys.
  static Result<Client> connect(const std::string& path, int timeout_ms);

  // The next observation; of version 2 once Feature::observations was asked for. Errors: would_block
  // (none came in time), shutdown (the server is gone), peer (it does not speak this protocol), sys.
  Result<ExtendedObservation> next(int timeout_ms);
  // Sends the request with an id of its own and waits for its answer; what is observed meanwhile is
  // kept for next(). Errors: as next().
  Result<Response> ask(Request request);
  Result<Response> ask(ExtendedRequest request);
  // The next round of samples, whole; Feature::sampling makes them come. A round of which messages
  // are missing has fewer samples than its Round says. Observations that came before it are kept
  // for next(): whoever wants none turns the monitoring off. Errors: as next().
  Result<SampledRound> next_round(int timeout_ms);
  // Readable when the server sent something; what was kept already does not show there.
  int fd() const { return socket_.get(); }
  // The flow messages that came since the last time: they precede the answer to Feature::list.
  std::vector<Flow> take_flows() { return std::exchange(flows_, {}); }
  // Those that came and were not taken by next(). What came before an answer is among them.
  std::deque<ExtendedObservation> take_observations() { return std::exchange(observations_, {}); }
  // The rules in force, and those that ended last. Errors: as next(), sys (the server refused).
  Result<std::vector<Rule>> rules();

 private:
  Client(UniqueFd socket, int timeout_ms) : socket_(std::move(socket)), timeout_ms_(timeout_ms) {}
  Status read(int timeout_ms);
  Status decode();
  Status take(uint16_t sig, std::span<const uint8_t> message);
  Result<Response> exchange(uint32_t id, std::span<const uint8_t> request);

  UniqueFd socket_;
  int timeout_ms_;
  std::vector<uint8_t> pending_;
  std::deque<ExtendedObservation> observations_;
  std::deque<Response> responses_;
  std::vector<Flow> flows_;
  SampledRound sampling_;  // as far as it came
  std::deque<SampledRound> rounds_;
  std::vector<Rule> rules_;
  uint32_t next_id_ = 1;
};

}  // namespace mw::netflow
