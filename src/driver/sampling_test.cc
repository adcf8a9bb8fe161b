// Rounds of samples from memory that the test writes as an INS does, honest or not.
#include "driver/sampling.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "base/clock.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

constexpr mw_geometry kGeometry{64, 4096, 4096, 4, 2, 4, {0, 0}};

class SamplingTest : public testing::Test {
 protected:
  void SetUp() override {
    auto fds = make_session_fds("sampling" + std::to_string(::getpid()), kGeometry);
    ASSERT_TRUE(fds);
    fds_ = std::move(*fds);
    auto memory = SessionMemory::open(fds_.channel.get(), fds_.session.get());
    ASSERT_TRUE(memory);
    memory_ = std::make_unique<SessionMemory>(std::move(*memory));
    std::vector<int> bells;
    for (const UniqueFd& bell : fds_.bells) bells.push_back(bell.get());
    auto ends = InsTelemetry::make(7, 0, kGeometry, bells, UniqueFd{});
    ASSERT_TRUE(ends);
    ins_ = std::move(ends->ours);
    auto theirs = map_sealed(ends->theirs.memory.get());
    ASSERT_TRUE(theirs);
    theirs_ = std::move(*theirs);
    for (uint32_t w = 0; w < kGeometry.workers; ++w)
      writers_.emplace_back(theirs_.base(), w, kGeometry.workers);
    sampling_ = std::make_unique<Sampling>(
        *memory_, [](uint32_t pid) { return pid == static_cast<uint32_t>(::getpid()); });
  }
  void write(uint32_t slot, mw_sample_row row) { writers_[slot % 2].write(slot, row); }
  void finish(uint32_t round) {
    for (SampleRowWriter& w : writers_) w.finish(round, kGeometry.slots);
  }
  static mw_sample_row row(uint32_t gen, uint32_t round) {
    mw_sample_row r{};
    r.gen = gen;
    r.round = round;
    r.flags = MW_ROW_INBOUND | MW_ROW_TCP;
    r.local = {AF_INET, 80, {192, 0, 2, 1}};
    r.remote = {AF_INET, 4711, {192, 0, 2, 9}};
    return r;
  }
  // Every sample of the round, decoded.
  std::vector<netflow::Sample> collect(uint32_t round) {
    std::vector<netflow::Sample> all;
    for (const netflow::Batch& b : sampling_->collect(ins_.get(), round, round)) {
      EXPECT_EQ(b.bytes.size(), b.each * b.messages);
      for (size_t at = 0; at < b.bytes.size(); at += b.each) {
        if (b.each != netflow::kSampleBytes) continue;
        auto s = netflow::decode_sample(std::span(b.bytes).subspan(at, b.each));
        EXPECT_TRUE(s);
        if (s) all.push_back(*s);
      }
    }
    return all;
  }
  SessionSlot& hold(uint32_t slot, uint32_t gen) {
    SessionSlot& mine = memory_->session().slot(slot);
    mine.gen = gen;
    mine.owner = static_cast<uint32_t>(::getpid());
    return mine;
  }

  SessionFds fds_;
  std::unique_ptr<SessionMemory> memory_;
  std::unique_ptr<InsTelemetry> ins_;
  Mapping theirs_;
  std::vector<SampleRowWriter> writers_;
  std::unique_ptr<Sampling> sampling_;
};

TEST_F(SamplingTest, WhoMadeASocketIsKnownAlsoWhenItsSlotServesAnother) {
  const auto me = static_cast<uint32_t>(::getpid());
  const auto owned = [&](uint32_t gen, uint32_t pid) {
    memory_->session().owner(gen).gen = gen;
    memory_->session().owner(gen).pid = pid;
  };
  const auto seen = [&](uint32_t number, netflow::ObservationKind kind) {
    Seen o;
    o.kind = kind;
    o.slot = 3;
    o.number = number;
    sampling_->add_holder(o);
    return o;
  };
  using Kind = netflow::ObservationKind;
  owned(5, me);
  owned(6, me);
  hold(3, 6);
  EXPECT_EQ(seen(5, Kind::close).pid, me);
  EXPECT_EQ(seen(5, Kind::close).uid, ::getuid());
  EXPECT_NE(seen(6, Kind::recv).command[0], 0);
  EXPECT_EQ(seen(7, Kind::recv).pid, 0u);
  owned(8, 1);  // none of this session
  EXPECT_EQ(seen(8, Kind::recv).pid, 0u);
  // A connection is its listener's until somebody takes it.
  Seen accept;
  accept.kind = Kind::accept;
  accept.socket = netflow::encode(netflow::SocketId{7, 5});
  accept.slot = 4;
  accept.number = 9;
  accept.listener_slot = 2;
  sampling_->add_holder(accept);
  EXPECT_EQ(accept.pid, me);
  EXPECT_EQ(accept.flags, netflow::kListenersHolder);
}

TEST_F(SamplingTest, ARoundIsOverWhenEveryWorkerSaysSo) {
  ins_->want_round(1);
  EXPECT_EQ(writers_[0].due(), 1u);
  EXPECT_EQ(writers_[1].due(), 1u);
  write(2, row(100, 1));
  writers_[0].finish(1, 3);
  EXPECT_EQ(writers_[0].due(), 0u);
  EXPECT_FALSE(ins_->round_done(1, 5));
  EXPECT_EQ(ins_->alive_ms(), 0);
  write(3, row(101, 1));
  write(5, row(99, 0));  // of an earlier round: closed since
  writers_[1].finish(1, 6);
  EXPECT_TRUE(ins_->round_done(1, 5));
  EXPECT_EQ(ins_->alive_ms(), 5);
  const auto all = collect(1);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].socket, netflow::encode(netflow::SocketId{7, 100}));
  EXPECT_EQ(all[1].remote.port, 4711);
  EXPECT_EQ(all[0].pid, 0u);  // nobody has taken it
}

TEST_F(SamplingTest, WhoWaitsIsCountedWhileItWaitsAndWhileItLives) {
  SessionSlot& mine = hold(2, 100);
  const int64_t begin = monotonic_ns() - 3'000'000'000;
  const auto me = static_cast<uint32_t>(::getpid());
  begin_wait(mine, me, begin);
  begin_wait(mine, me, begin + 1'000'000'000);
  write(2, row(100, 1));
  finish(1);
  auto s = collect(1).at(0);
  EXPECT_EQ(s.pid, me);
  EXPECT_EQ(s.waiting_threads, 2u);
  EXPECT_NEAR(s.waiting, 3000, 900);
  EXPECT_NEAR(static_cast<double>(s.worker_us), 5e6, 1.8e6);
  end_wait(mine, begin + 1'500'000'000);
  end_wait(mine, begin + 2'000'000'000);
  write(2, row(100, 2));
  s = collect(2).at(0);
  EXPECT_EQ(s.waiting_threads, 0u);
  EXPECT_EQ(s.waiting, 0u);
  const uint64_t total = s.worker_us;
  // One who dies while it waits: 1 is no process of ours, and beyond the largest pid there is none.
  begin_wait(mine, 0x7fff'fff0, monotonic_ns());
  write(2, row(100, 3));
  s = collect(3).at(0);
  EXPECT_EQ(s.waiting_threads, 0u);
  EXPECT_EQ(s.worker_us, total);
  // Another socket in the slot begins from nothing.
  mine = {};
  hold(2, 101);
  write(2, row(101, 4));
  s = collect(4).at(0);
  EXPECT_EQ(s.worker_us, 0u);
}

TEST_F(SamplingTest, ARateFollowsTheBytes) {
  auto r = row(100, 1);
  r.age = 10'000;
  r.bytes_in = 50'000;
  write(2, r);
  finish(1);
  EXPECT_EQ(collect(1).at(0).rate_in, 5000u);  // the mean of its life
  r.round = 2;
  r.bytes_in += 1'000'000;
  write(2, r);
  const auto s = collect(2).at(0);
  EXPECT_GT(s.rate_in, 5000u);
  EXPECT_EQ(s.rate_out, 0u);
  // A total that shrinks is a lie, and no rate.
  r.round = 3;
  r.bytes_in = 0;
  write(2, r);
  EXPECT_LE(collect(3).at(0).rate_in, s.rate_in);
}

TEST_F(SamplingTest, WhateverStandsInTheRowsIsSamplesOrNothing) {
  std::mt19937_64 random(20231);
  for (uint32_t round = 1; round < 200; ++round) {
    for (uint32_t slot = 0; slot < kGeometry.slots; ++slot) {
      auto* words = reinterpret_cast<uint64_t*>(
          theirs_.base() + MW_TELEMETRY_STRIDE * kGeometry.workers + sizeof(mw_sample_row) * slot);
      for (size_t k = 0; k < sizeof(mw_sample_row) / 8; ++k) words[k] = random();
      auto* r = reinterpret_cast<mw_sample_row*>(words);
      r->round = random() % 2 == 0 ? round : r->round;
      r->local.family = random() % 2 == 0 ? AF_INET : r->local.family;
      SessionSlot& mine = memory_->session().slot(slot);
      for (size_t k = 0; k < sizeof mine / 8; ++k) reinterpret_cast<uint64_t*>(&mine)[k] = random();
      if (random() % 2 == 0) mine.gen = r->gen;
    }
    for (uint32_t w = 0; w < kGeometry.workers; ++w) {
      auto* h = reinterpret_cast<mw_telemetry_header*>(theirs_.base() + MW_TELEMETRY_STRIDE * w);
      h->round_done = static_cast<uint32_t>(random());
      h->rows_end = static_cast<uint32_t>(random());
    }
    (void)ins_->round_done(round, 1);
    EXPECT_LE(collect(round).size(), kGeometry.slots);
  }
}

}  // namespace
}  // namespace mw
