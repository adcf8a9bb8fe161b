// The telemetry ring: does the driver ever sleep on records that nobody will ring for, and does it
// ever read a record that is not written yet? Writer and reader are the shipped templates; indexes
// start just below 2^32 and wrap on the way.
#include <optional>

#include "relacy_atomics.h"

namespace mw::model {
namespace {

struct Header {
  rl::atomic<uint32_t> epoch, muted, head, sleeping, tail;
  rl::atomic<uint64_t> dropped;
};

template <class Orders>
struct TelemetryModel : rl::test_suite<TelemetryModel<Orders>, 2> {
  using A = RelacyAtomics<Orders>;
  using Writer = BasicTelemetryWriter<A, Header, uint32_t>;
  using Reader = BasicTelemetryReader<A, Header, uint32_t>;
  static constexpr uint32_t kCapacity = 2;
  static constexpr uint32_t kStart = 0xffffffffu;
  static constexpr uint32_t kRecords = 4;

  Header header;
  std::optional<Reader> reader;
  uint32_t records[kCapacity];
  rl::atomic<uint32_t> doorbell;  // an eventfd: rings that nobody took yet
  uint32_t pushed, dropped, seen, last;
  bool asleep;

  void before() {
    for (auto* word : {&header.epoch, &header.muted, &header.sleeping})
      word->store(0, rl::mo_relaxed, $);
    reader.emplace(&header, records, kCapacity, kStart);
    header.dropped.store(0, rl::mo_relaxed, $);
    doorbell.store(0, rl::mo_relaxed, $);
    records[0] = records[1] = 0;
    pushed = dropped = seen = last = 0;
    asleep = false;
  }
  void write() {
    Writer writer(&header, records, kCapacity, kStart);
    for (uint32_t n = 1; n <= kRecords; ++n) {
      if (writer.push(n))
        ++pushed;
      else
        ++dropped;
      if (writer.need_ring()) doorbell.fetch_add(1, rl::mo_relaxed, $);
    }
  }
  void read() {
    for (int turn = 0; turn < 6; ++turn) {
      auto n = reader->drain(kCapacity, [this](uint32_t record) {
        RL_ASSERT(record > last);
        last = record;
        ++seen;
      });
      RL_ASSERT(static_cast<bool>(n));
      if (!reader->prepare_sleep()) continue;
      uint32_t rings = 0;
      for (int looks = 0; looks < 3 && rings == 0; ++looks) {
        rings = doorbell.exchange(0, rl::mo_relaxed, $);
        if (rings == 0) rl::yield(1, $);
      }
      if (rings == 0) {
        asleep = true;
        return;
      }
      reader->wake();
    }
  }
  void thread(unsigned id) {
    if (id == 0) {
      write();
    } else {
      read();
    }
  }
  void after() {
    RL_ASSERT(pushed + dropped == kRecords);
    RL_ASSERT(header.dropped.load(rl::mo_relaxed, $) == dropped);
    RL_ASSERT(seen <= pushed);
    // What was not seen has been rung for.
    RL_ASSERT(seen == pushed || !asleep || doorbell.load(rl::mo_relaxed, $) != 0);
  }
};

struct NoFence : ShippedOrders {
  static constexpr rl::memory_order kFence = rl::mo_acq_rel;
};

TEST(TelemetryModel, LosesNoRecordAndNoWakeUp) {
  EXPECT_TRUE((explore<TelemetryModel<ShippedOrders>>()));
}
TEST(TelemetryModel, NoticesFencesThatOrderNothing) {
  EXPECT_TRUE((explore<TelemetryModel<NoFence>>(rl::test_result_user_assert_failed)));
}

}  // namespace
}  // namespace mw::model
