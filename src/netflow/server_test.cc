// The server with engines played by the test, over local sockets: no INS is needed.
#include "netflow/server.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/clock.h"

namespace mw::netflow {
namespace {

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-netflow-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    options_.unix_path = folder_ + "/s";
    options_.owner = ::getuid();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void start() {
    auto made = Server::make(options_);
    ASSERT_TRUE(made) << made.error().where;
    server_ = std::move(*made);
    server_->on_request = [this](Server::EngineId engine, const Asking& asking) {
      asked_.push_back({engine, asking.request.request});
      last_ = asking;
    };
    server_->on_listening = [] {};
    server_->on_gone = [this](Server::EngineId engine) { gone_.push_back(engine); };
  }
  // Until it holds; the deadline is for failures only.
  template <class Holds>
  bool eventually(Holds&& holds) {
    const int64_t deadline = monotonic_ms() + 20'000;
    while (!holds()) {
      if (monotonic_ms() > deadline) return false;
      pollfd p{server_->event_fd(), POLLIN, 0};
      ::poll(&p, 1, 10);
      server_->handle_events();
    }
    return true;
  }
  UniqueFd engine() {
    UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::strncpy(a.sun_path, options_.unix_path.c_str(), sizeof a.sun_path - 1);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    const size_t before = server_->engines();
    EXPECT_TRUE(eventually([&] { return server_->engines() == before + 1; }));
    return fd;
  }
  static void send(const UniqueFd& fd, const Request& r) {
    std::array<uint8_t, kRequestBytes> bytes;
    encode(r, bytes);
    ASSERT_EQ(::send(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  static Request request(uint32_t id, Feature name, uint16_t flags = 0) {
    Request r;
    r.id = id;
    r.flags = flags;
    r.name = static_cast<uint16_t>(name);
    return r;
  }
  static std::shared_ptr<Batch> batch(uint32_t count, uint64_t first) {
    auto b = std::make_shared<Batch>();
    b->bytes.resize(count * kObservationBytes);
    b->messages = count;
    for (uint32_t k = 0; k < count; ++k) {
      Observation o;
      o.bytes_in = first + k;
      encode(o, std::span<uint8_t, kObservationBytes>(b->bytes.data() + k * kObservationBytes,
                                                      kObservationBytes));
    }
    return b;
  }
  static std::span<const uint8_t, kResponseBytes> fixed_response(const std::vector<uint8_t>& m) {
    EXPECT_EQ(m.size(), kResponseBytes);
    static std::array<uint8_t, kResponseBytes> bytes;
    std::copy_n(m.begin(), std::min(m.size(), bytes.size()), bytes.begin());
    return bytes;
  }
  static bool readable(const UniqueFd& fd) {
    pollfd p{fd.get(), POLLIN, 0};
    return ::poll(&p, 1, 0) == 1;
  }
  // One whole message, while the server runs.
  std::vector<uint8_t> next(const UniqueFd& fd) {
    std::vector<uint8_t> m;
    size_t want = 2;
    while (m.size() < want) {
      if (!eventually([&] { return readable(fd); })) return {};
      uint8_t room[kSampleBytes];
      const ssize_t n = ::recv(fd.get(), room, want - m.size(), 0);
      if (n <= 0) return {};
      m.insert(m.end(), room, room + n);
      if (m.size() == 2) want = has_length(signature_of(m)) ? 6 : message_bytes(signature_of(m));
      if (m.size() == 6 && has_length(signature_of(m))) want = size_t{m[4]} << 8 | m[5];
    }
    return m;
  }
  static SampledBatches samples(uint32_t count) {
    SampledBatches all(1);
    all[0].each = kSampleBytes;
    all[0].messages = count;
    all[0].bytes.resize(count * kSampleBytes);
    for (uint32_t k = 0; k < count; ++k) {
      Sample s;
      s.bytes_in = k;
      encode(s, std::span<uint8_t, kSampleBytes>(all[0].bytes.data() + k * kSampleBytes,
                                                 kSampleBytes));
    }
    return all;
  }
  // Asks for a round each `ms`; true if the server agrees.
  bool sample(const UniqueFd& fd, uint64_t ms, uint32_t* before = nullptr) {
    Request r = request(77, Feature::sampling, kRequestWrite);
    r.value0 = ms;
    send(fd, r);
    for (uint32_t n = 0;; ++n) {
      const auto m = next(fd);
      if (m.empty()) return false;
      if (m.size() != kResponseBytes) continue;
      if (before != nullptr) *before = n;
      auto answer =
          decode_response(std::span<const uint8_t, kResponseBytes>(m.data(), kResponseBytes));
      return answer->status == 0 && answer->value0 == ms;
    }
  }
  // The rounds that wait for this engine, whole: how many samples each had, and its end. Numbers
  // that jump are added up in `jumps`.
  std::vector<std::pair<uint32_t, Round>> read_rounds(const UniqueFd& fd, uint64_t* sequence,
                                                      uint64_t* jumps) {
    std::vector<std::pair<uint32_t, Round>> rounds;
    const auto number = [&](uint64_t its) {
      EXPECT_GT(its, *sequence);
      *jumps += its - *sequence - 1;
      *sequence = its;
    };
    uint32_t count = 0;
    while (readable(fd)) {
      const auto m = next(fd);
      if (auto s = decode_sample(m)) {
        EXPECT_EQ(s->bytes_in, count++);
        number(s->sequence);
      } else if (auto r = decode_round(m)) {
        number(r->sequence);
        rounds.emplace_back(std::exchange(count, 0), *r);
      } else {
        ADD_FAILURE() << "neither sample nor round";
        break;
      }
    }
    EXPECT_EQ(count, 0u);
    return rounds;
  }
  Response next_response(const UniqueFd& fd, uint32_t* observations = nullptr) {
    for (;;) {
      const auto m = next(fd);
      if (m.size() == kResponseBytes)
        return *decode_response(std::span<const uint8_t, kResponseBytes>(m.data(), kResponseBytes));
      if (m.size() != kObservationBytes) {
        ADD_FAILURE() << "no whole message";
        return {};
      }
      if (observations != nullptr) ++*observations;
    }
  }

  struct Asked {
    Server::EngineId engine;
    Request request;
  };
  std::string folder_;
  ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::vector<Asked> asked_;
  Asking last_;
  std::vector<Server::EngineId> gone_;
};

TEST_F(ServerTest, AnEngineGetsTheVersionThatItAskedFor) {
  start();
  const UniqueFd plain = engine();
  const UniqueFd extended = engine();
  Request r = request(5, Feature::observations, kRequestWrite);
  r.value0 = 3;
  send(extended, r);
  auto answer = decode_response(fixed_response(next(extended)));
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->status, static_cast<uint32_t>(EINVAL));
  EXPECT_FALSE(server_->anyone_wants(2));
  r.value0 = 2;
  send(extended, r);
  answer = decode_response(fixed_response(next(extended)));
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->status, 0u);
  EXPECT_EQ(answer->value0, 2u);
  EXPECT_TRUE(server_->anyone_wants(1) && server_->anyone_wants(2));
  auto both = std::make_shared<Batch>();
  both->each = kExtendedObservationBytes;
  both->bytes.resize(2 * kExtendedObservationBytes);
  both->messages = 2;
  for (size_t at = 0; at < both->bytes.size(); at += both->each)
    encode(ExtendedObservation{}, std::span<uint8_t, kExtendedObservationBytes>(
                                      both->bytes.data() + at, kExtendedObservationBytes));
  server_->broadcast(both);
  server_->broadcast(batch(1, 9));
  EXPECT_EQ(next(plain).size(), kObservationBytes);
  for (uint64_t number = 1; number <= 2; ++number) {
    auto o = decode_extended_observation(next(extended));
    ASSERT_TRUE(o);
    EXPECT_EQ(o->sequence, number);
  }
  EXPECT_FALSE(readable(plain) || readable(extended));
}

TEST_F(ServerTest, EveryEngineGetsEveryObservation) {
  start();
  const UniqueFd a = engine();
  const UniqueFd b = engine();
  server_->broadcast(batch(3, 7));
  for (const UniqueFd* fd : {&a, &b}) {
    for (uint64_t k = 7; k < 10; ++k) {
      const auto m = next(*fd);
      ASSERT_EQ(m.size(), kObservationBytes);
      auto o = decode_observation(std::span<const uint8_t, kObservationBytes>(m.data(), 116));
      ASSERT_TRUE(o);
      EXPECT_EQ(o->bytes_in, k);
    }
  }
}

TEST_F(ServerTest, AnAnswerComesBeforeWhatTheEngineDidNotRead) {
  start();
  const UniqueFd fd = engine();
  for (uint32_t k = 0; k < 100; ++k)
    server_->broadcast(batch(512, k));  // 6 MB: more than the kernel
  send(fd, request(5, Feature::nodelay));
  send(fd, request(6, Feature::nodelay));
  ASSERT_TRUE(eventually([&] { return asked_.size() == 2; }));
  for (const Asked& a : asked_) server_->respond(a.engine, {a.request.id, 0, 1, 0});
  uint32_t before = 0;
  EXPECT_EQ(next_response(fd, &before).id, 5u);
  EXPECT_EQ(next_response(fd, &before).id, 6u);
  EXPECT_LT(before, 512u * 60);
  // And the rest is whole.
  for (uint32_t k = before; k < 512 * 100; ++k) ASSERT_EQ(next(fd).size(), kObservationBytes);
}

TEST_F(ServerTest, AnEngineThatDoesNotReadMissesAndTheOthersDoNot) {
  options_.queue_bytes = 256 * 1024;
  start();
  const UniqueFd stalled = engine();
  const UniqueFd reader = engine();
  uint32_t got = 0;
  for (uint32_t k = 0; k < 100; ++k) {
    server_->broadcast(batch(512, k));
    for (uint32_t n = 0; n < 512; ++n, ++got) ASSERT_EQ(next(reader).size(), kObservationBytes);
  }
  EXPECT_EQ(got, 51'200u);
  EXPECT_TRUE(server_->anyone_keeps_up());
  send(reader, request(1, Feature::monitor_off));
  EXPECT_EQ(next_response(reader).status, 0u);
  EXPECT_FALSE(server_->anyone_keeps_up());
  // Whoever reads again is served again.
  uint32_t late = 0;
  while (readable(stalled)) {
    ASSERT_EQ(next(stalled).size(), kObservationBytes);
    ++late;
  }
  EXPECT_LT(late, 51'200u);
  EXPECT_TRUE(server_->anyone_keeps_up());
}

TEST_F(ServerTest, MonitoringOffEndsAtAMessagesEnd) {
  start();
  const UniqueFd fd = engine();
  for (uint32_t k = 0; k < 100; ++k) server_->broadcast(batch(512, k));
  send(fd, request(9, Feature::monitor_off, kRequestWrite));
  uint32_t before = 0;
  EXPECT_EQ(next_response(fd, &before).id, 9u);
  EXPECT_LT(before, 512u * 60);  // what the kernel had already
  server_->broadcast(batch(1, 0));
  server_->handle_events();
  EXPECT_FALSE(readable(fd));
  send(fd, request(10, Feature::monitor_on));
  EXPECT_EQ(next_response(fd).id, 10u);
  server_->broadcast(batch(1, 77));
  EXPECT_EQ(next(fd).size(), kObservationBytes);
}

TEST_F(ServerTest, AnEngineHasRoundsAsOftenAsItWishes) {
  start();
  const UniqueFd often = engine();
  const UniqueFd seldom = engine();
  const UniqueFd never = engine();
  EXPECT_FALSE(server_->round_due_ms());
  for (const uint64_t wrong : {uint64_t{1}, uint64_t{49}, uint64_t{60'001}, UINT64_MAX})
    EXPECT_FALSE(sample(often, wrong)) << wrong;
  ASSERT_TRUE(sample(often, 100));
  ASSERT_TRUE(sample(seldom, 300));
  const int64_t begin = monotonic_ms() + 1000;
  EXPECT_LE(*server_->round_due_ms(), begin);
  for (int k = 0; k < 6; ++k) {
    server_->send_round(samples(3), {}, begin + 100 * k);
    EXPECT_EQ(*server_->round_due_ms(), begin + 100 * (k + 1));
  }
  uint64_t sequence = 0;
  uint64_t jumps = 0;
  const auto rounds = read_rounds(often, &sequence, &jumps);
  ASSERT_EQ(rounds.size(), 6u);
  for (const auto& [count, round] : rounds) EXPECT_EQ(count, 3u);
  EXPECT_EQ(sequence, 6u * 4);
  EXPECT_EQ(jumps, 0u);
  sequence = 0;
  EXPECT_EQ(read_rounds(seldom, &sequence, &jumps).size(), 2u);
  EXPECT_EQ(jumps, 0u);
  EXPECT_FALSE(readable(never));
  ASSERT_TRUE(sample(often, 0));
  server_->send_round(samples(3), {}, begin + 10'000);
  EXPECT_FALSE(readable(often));
}

TEST_F(ServerTest, WhatAnEngineMissesIsAJumpAndWholeRounds) {
  options_.queue_bytes = 64 * 1024;
  start();
  const UniqueFd stalled = engine();
  const UniqueFd reader = engine();
  ASSERT_TRUE(sample(stalled, 50));
  ASSERT_TRUE(sample(reader, 50));
  uint64_t read = 0;
  uint64_t none = 0;
  constexpr uint32_t kRounds = 200;
  const int64_t begin = monotonic_ms() + 1000;
  for (uint32_t k = 0; k < kRounds; ++k) {
    server_->send_round(samples(20), {}, begin + 100 * k);
    ASSERT_EQ(read_rounds(reader, &read, &none).size(), 1u) << k;
  }
  EXPECT_EQ(none, 0u);
  uint64_t sequence = 0;
  uint64_t jumps = 0;
  auto rounds = read_rounds(stalled, &sequence, &jumps);
  // What is missing shows with the next that comes: once there is room again.
  Round last;
  for (last.round = 1; rounds.back().second.round == 0; ++last.round) {
    server_->send_round(samples(20), last,
                        begin + 100 * static_cast<int64_t>(kRounds + last.round));
    server_->handle_events();
    const auto more = read_rounds(stalled, &sequence, &jumps);
    rounds.insert(rounds.end(), more.begin(), more.end());
    ASSERT_LT(last.round, 1000u);
  }
  EXPECT_LT(rounds.size(), kRounds);
  for (const auto& [count, round] : rounds) EXPECT_EQ(count, 20u);
  EXPECT_GT(jumps, 0u);
  EXPECT_EQ(rounds.back().second.missed, jumps);
  EXPECT_EQ(sequence % 21, 0u);
}

TEST_F(ServerTest, ARoundLargerThanTheQueueGoesToAnEngineThatReads) {
  options_.queue_bytes = 64 * 1024;
  start();
  const UniqueFd fd = engine();
  ASSERT_TRUE(sample(fd, 50));
  uint64_t sequence = 0;
  uint64_t jumps = 0;
  for (int k = 0; k < 2; ++k) {
    server_->send_round(samples(2000), {}, *server_->round_due_ms());  // 620 KB
    const auto rounds = read_rounds(fd, &sequence, &jumps);
    ASSERT_EQ(rounds.size(), 1u);
    EXPECT_EQ(rounds[0].first, 2000u);
  }
  EXPECT_EQ(jumps, 0u);
  // Turned off in the middle of one, nothing but the rest of a message follows.
  server_->send_round(samples(2000), {}, *server_->round_due_ms());
  uint32_t before = 0;
  ASSERT_TRUE(sample(fd, 0, &before));
  EXPECT_LT(before, 2000u);
  server_->handle_events();
  EXPECT_FALSE(readable(fd));
}

TEST_F(ServerTest, WhoeverMayOnlyLookChangesNothing) {
  options_.read_only = true;
  start();
  const UniqueFd fd = engine();
  send(fd, request(1, Feature::is_open, kRequestWrite | kRequestBySocket));
  EXPECT_EQ(next_response(fd).status, static_cast<uint32_t>(EPERM));
  EXPECT_TRUE(asked_.empty());
  send(fd, request(2, Feature::is_open, kRequestBySocket));
  ASSERT_TRUE(eventually([&] { return asked_.size() == 1; }));
}

TEST_F(ServerTest, AnUnknownFlagIsAnsweredAndAnUnknownSignatureIsTheEnd) {
  start();
  const UniqueFd fd = engine();
  send(fd, request(1, Feature::nodelay, 0x80));
  EXPECT_EQ(next_response(fd).status, static_cast<uint32_t>(EINVAL));
  const uint8_t wrong[] = {0xd3, 0x10};
  ASSERT_EQ(::send(fd.get(), wrong, sizeof wrong, 0), 2);
  EXPECT_TRUE(eventually([&] { return server_->engines() == 0; }));
}

ExtendedRequest extended(uint32_t id, const std::string& reason, uint32_t options = 0) {
  ExtendedRequest r;
  r.request.id = id;
  r.request.name = static_cast<uint16_t>(Feature::nodelay);
  r.ttl_s = 7;
  r.options = options;
  r.reason = reason;
  return r;
}

TEST_F(ServerTest, BothFormsOfRequestsInAnyPieces) {
  start();
  const UniqueFd fd = engine();
  std::vector<uint8_t> all = encoded(extended(1, "why", kDryRun));
  all.resize(all.size() + kRequestBytes);
  encode(request(2, Feature::nodelay),
         std::span<uint8_t, kRequestBytes>(all.data() + all.size() - kRequestBytes, kRequestBytes));
  const auto third = encoded(extended(3, ""));
  all.insert(all.end(), third.begin(), third.end());
  for (const uint8_t byte : all) {
    ASSERT_EQ(::send(fd.get(), &byte, 1, 0), 1);
    server_->handle_events();
    if (asked_.size() == 1) {
      EXPECT_TRUE(last_.extended);
      EXPECT_EQ(last_.request, extended(1, "why", kDryRun));
    }
    if (asked_.size() == 2) {
      EXPECT_FALSE(last_.extended);
    }
  }
  ASSERT_EQ(asked_.size(), 3u);
  EXPECT_EQ(last_.request, extended(3, ""));
}

TEST_F(ServerTest, AnExtendedRequestThatMeansNothingIsAnsweredAndOneThatCannotBeIsTheEnd) {
  start();
  const UniqueFd fd = engine();
  for (const auto& r : {extended(1, "why", 4), extended(2, "\x1b[2J"), extended(3, "\xff")}) {
    const auto bytes = encoded(r);
    ASSERT_EQ(::send(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    EXPECT_EQ(next_response(fd).status, static_cast<uint32_t>(EINVAL));
  }
  EXPECT_TRUE(asked_.empty());
  const uint8_t endless[] = {0xd3, 0x21, 0x7f, 0xff, 0xff, 0xff};
  ASSERT_EQ(::send(fd.get(), endless, sizeof endless, 0), 6);
  EXPECT_TRUE(eventually([&] { return server_->engines() == 0; }));
  const UniqueFd other = engine();
  auto bytes = encoded(extended(4, "why"));
  bytes[7] = 61 + 3;  // the fixed part is longer than the message
  ASSERT_EQ(::send(other.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(eventually([&] { return server_->engines() == 0; }));
}

TEST_F(ServerTest, RequestsWithoutEndWaitForTheirAnswers) {
  start();
  const UniqueFd fd = engine();
  // In one piece: the kernel's queue holds only so many.
  std::vector<uint8_t> all(2 * Server::kMaxOutstanding * kRequestBytes);
  for (uint32_t k = 0; k < 2 * Server::kMaxOutstanding; ++k)
    encode(request(k, Feature::nodelay),
           std::span<uint8_t, kRequestBytes>(all.data() + k * kRequestBytes, kRequestBytes));
  ASSERT_EQ(::send(fd.get(), all.data(), all.size(), 0), static_cast<ssize_t>(all.size()));
  ASSERT_TRUE(eventually([&] { return asked_.size() == Server::kMaxOutstanding; }));
  for (int k = 0; k < 10; ++k) server_->handle_events();
  EXPECT_EQ(asked_.size(), Server::kMaxOutstanding);
  for (uint32_t k = 0; k < 2 * Server::kMaxOutstanding; ++k) {
    ASSERT_TRUE(eventually([&] { return asked_.size() > k; }));
    server_->respond(asked_[k].engine, {asked_[k].request.id, 0, 0, 0});
    EXPECT_EQ(next_response(fd).id, k);
  }
}

TEST_F(ServerTest, TooManyEnginesAreRefused) {
  start();
  std::vector<UniqueFd> all;
  while (all.size() < Server::kMaxEngines) all.push_back(engine());
  UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::strncpy(a.sun_path, options_.unix_path.c_str(), sizeof a.sun_path - 1);
  ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
  EXPECT_TRUE(eventually([&] { return readable(fd); }));
  char byte = 0;
  EXPECT_EQ(::recv(fd.get(), &byte, 1, 0), 0);
  all.pop_back();
  EXPECT_TRUE(eventually([&] { return server_->engines() == Server::kMaxEngines - 1; }));
  all.push_back(engine());
}

TEST_F(ServerTest, RefusesToListenBeyondThisHostWithoutTokenAndTls) {
  for (const char* address : {"0.0.0.0:0", "[::]:0", "192.0.2.1:7", "10.0.0.1:0"}) {
    options_.address = address;
    auto made = Server::make(options_);
    ASSERT_FALSE(made) << address;
    EXPECT_EQ(made.error().fault, Fault::limit) << address;
  }
  options_.address = "0.0.0.0:0";
  options_.token_file = folder_ + "/token";
  EXPECT_FALSE(Server::make(options_));  // no such file
}

TEST_F(ServerTest, AnAddressThatIsNoneIsRefused) {
  for (const char* address : {"127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":80",
                              "::1:80", "localhost:80", "127.0.0.1:80 "}) {
    options_.address = address;
    EXPECT_FALSE(Server::make(options_)) << address;
  }
}

}  // namespace
}  // namespace mw::netflow
