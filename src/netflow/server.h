// server.h - the engines: who they are, what they are sent, what they ask for. Spec:
// docs/netflow.md.
//
// TRUST       An engine's bytes mean nothing until framing.h made requests of them. Only the
//             session's user and root get in without a token; from another machine nobody without
//             one, and only through TLS.
// INVARIANTS  Nothing here blocks, and an engine costs the others nothing but its share of the
//             processor: what it does not read waits in a bounded queue of its own, behind which
//             observations are counted as missed. Batches are encoded once and shared.
// THREADS     One.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/line_limit.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/framing.h"
#include "netflow/tls.h"

namespace mw::netflow {

// Encoded messages of one kind.
struct Batch {
  std::vector<uint8_t> bytes;
  uint32_t messages = 0;
  size_t each = kObservationBytes;
};
// The samples of a round.
using SampledBatches = std::vector<Batch>;

struct ServerOptions {
  std::string address;     // "127.0.0.1:0": any free port of loopback; "" listens on none
  std::string unix_path;   // "" makes none
  uint32_t owner = 0;      // who may come in besides root
  bool read_only = false;  // nobody may change anything
  // What a listener beyond this host needs. With a token a listener on loopback wants it, too.
  std::string token_file;       // whoever shows it may act
  std::string read_token_file;  // whoever shows it may look
  std::string certificate_file;
  std::string key_file;
  size_t queue_bytes = 8u << 20;  // of each engine
};

class Server {
 public:
  static constexpr size_t kMaxEngines = 256;
  // That have not shown a token yet: all, and those of them that have begun a TLS handshake.
  static constexpr size_t kMaxStrangers = 2048;
  static constexpr size_t kMaxHandshakes = 512;
  static constexpr uint32_t kMaxOutstanding = 256;

  using EngineId = uint64_t;
  // A request that is well-formed and not about the connection itself. It is to be answered once.
  std::function<void(EngineId, const Asking&)> on_request;

  // Engines came, or turned their monitoring on or off: called before they are told.
  std::function<void()> on_listening;

  // An engine left, or was made to; none of its requests is answered any more.
  std::function<void(EngineId)> on_gone;

  // Errors: limit (the options do not fit together, or would listen beyond this host without token
  // and TLS), sys.
  static Result<std::unique_ptr<Server>> make(const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "ip:port" of the TCP listener, "" if there is none.
  const std::string& address() const { return address_; }
  // Readable when handle_events() has something to do.
  int event_fd() const { return epoll_.get(); }
  void handle_events();

  void respond(EngineId engine, const Response& response);
  // Something that belongs before an answer. False: the engine has not read enough of what it asked
  // for before.
  bool send_part(EngineId engine, std::vector<uint8_t> bytes);
  // Observations, all of one version: to those that want it.
  void broadcast(const std::shared_ptr<const Batch>& batch);
  // When the next engine is due for a round of samples (monotonic_ms()); nothing: none wants any.
  std::optional<int64_t> round_due_ms() const;
  // Sends a round to the engines that are due; each gets numbers of its own.
  void send_round(const SampledBatches& samples, const Round& round, int64_t now_ms);
  // Observations that were lost before they came here.
  void count_missed(uint64_t observations);

  // How an engine that is connected is called in lists; "" if it is gone.
  std::string name_of(EngineId engine) const;
  size_t engines() const { return engines_.size(); }
  // Whether an engine's monitoring is on, and in this version.
  bool anyone_wants(uint64_t version) const;
  // False while every one of those is so far behind that it would get nothing.
  bool anyone_keeps_up() const;

 private:
  // What waits to be sent. Answers have no messages.
  struct Waiting {
    std::shared_ptr<const Batch> batch;
    size_t at = 0;
    bool sampled = false;
  };
  struct Engine {
    UniqueFd socket;
    std::unique_ptr<TlsConnection> tls;
    std::string name;
    std::string process;         // of a local socket: its command and number
    std::string source;          // over TLS: the network that it comes from
    std::vector<uint8_t> shown;  // of a token
    RequestStream requests;
    std::deque<Waiting> out;
    size_t queued = 0;     // bytes of `out` that are not sent
    size_t responses = 0;  // entries of `out` that are answers
    uint64_t missed = 0;
    uint64_t sequence = 0;    // of the messages that it was or should have been sent
    int64_t sampling_ms = 0;  // between two rounds of samples; 0: none are wanted
    int64_t round_due_ms = 0;
    bool rounds_behind = false;  // the last one found no room
    uint32_t outstanding = 0;    // requests that are not answered
    uint32_t watched = 0;        // epoll events
    int64_t since_ms = 0;
    bool over_tls = false;
    bool local = false;  // most of them are commands, whose coming and going fills no log
    bool admitted = false;
    bool may_act = false;
    bool monitoring = true;
    uint64_t version = 1;  // of the observations that it gets
    bool behind = false;   // its queue was full at the last batch
  };

  explicit Server(ServerOptions options) : options_(std::move(options)) {}
  Status start();
  Status listen_tcp();
  Status listen_unix();
  bool watch(int fd, uint32_t events, uint64_t tag, int op);
  void accept_from(int listener, bool over_tls);
  void admit(Engine& e, bool may_act);
  void drop_late_strangers();
  bool is_stranger(const Engine& e, bool in_handshake) const;
  void keep_strangers_below(size_t most, bool in_handshake);
  bool begin_handshake(EngineId id, Engine& e);
  void close(EngineId id, const char* why);
  void on_events(EngineId id, uint32_t events);
  static Result<size_t> receive(Engine& e, std::span<uint8_t> room);
  bool read_requests(EngineId id, Engine& e, const char** why);
  bool read_token_line(Engine& e, std::span<const uint8_t>& bytes);
  void take(EngineId id, Engine& e, const Asking& asking);
  static Result<size_t> send(Engine& e);
  static bool flush(Engine& e);
  static void forget(Engine& e, bool sampled);
  void set_sampling(EngineId id, Engine& e, const Asking& asking);
  void set_version(EngineId id, Engine& e, const Asking& asking);
  static std::shared_ptr<const Batch> numbered(const Batch& batch, uint64_t& sequence);
  static void queue_round(Engine& e, const SampledBatches& samples, Round round);
  static void put_answer(Engine& e, std::vector<uint8_t> bytes);
  void update_watch(EngineId id, Engine& e);

  ServerOptions options_;
  UniqueFd epoll_;
  UniqueFd tcp_;
  UniqueFd unix_;
  UniqueFd spare_{::open("/dev/null", O_RDONLY | O_CLOEXEC)};  // to refuse with when all are gone
  bool tcp_over_tls_ = false;
  std::optional<Token> token_;
  std::optional<Token> read_token_;
  std::unique_ptr<TlsServer> tls_;
  std::string address_;
  std::map<EngineId, Engine> engines_;
  EngineId next_id_ = 16;  // smaller ones are the tags of listeners
  size_t strangers_ = 0;
  std::minstd_rand random_{std::random_device{}()};
  int64_t looked_for_late_ms_ = 0;
  LineLimit full_{"mwcommsd"};
  LineLimit refusals_{"mwcommsd"};
  LineLimit arrivals_{"mwcommsd"};
  LineLimit departures_{"mwcommsd"};
  LineLimit faults_{"mwcommsd"};
};

}  // namespace mw::netflow
