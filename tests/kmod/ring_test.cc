#include "kmod/core/ring.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace mw {
namespace {

// A ring whose memory never changes, with both ends.
struct Ring {
  explicit Ring(uint32_t size) : memory(size) {
    mw_producer_init(&producer, &tail, &head);
    mw_consumer_init(&consumer, &tail, &head);
    producer.mem = consumer.mem = {memory.data(), size};
  }
  void put(const std::string& text) {
    mw_producer_put(&producer, text.data(), static_cast<uint32_t>(text.size()));
  }
  std::string get() {
    EXPECT_EQ(mw_consumer_look(&consumer), MW_OK);
    std::string text(mw_consumer_ready(&consumer), '\0');
    mw_consumer_get(&consumer, text.data(), static_cast<uint32_t>(text.size()));
    return text;
  }
  uint32_t room() {
    EXPECT_EQ(mw_producer_look(&producer), MW_OK);
    return mw_producer_room(&producer);
  }

  std::vector<uint8_t> memory;
  uint32_t tail = MW_INDEX_START, head = MW_INDEX_START;
  mw_producer producer;
  mw_consumer consumer;
};

TEST(KmodRing, CarriesBytesOverTheWrapOfIndexes) {
  Ring r(16);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = std::to_string(i) + "-" + std::to_string(i * 7);
    ASSERT_LE(text.size(), r.room());
    r.put(text);
    ASSERT_EQ(r.get(), text);
  }
  EXPECT_LT(r.tail, MW_INDEX_START);
}

TEST(KmodRing, IsFullAtItsSize) {
  Ring r(16);
  r.put("0123456789abcdef");
  EXPECT_EQ(r.room(), 0u);
  EXPECT_EQ(r.get(), "0123456789abcdef");
  EXPECT_EQ(r.room(), 16u);
}

TEST(KmodRing, PiecesCoverARecordThatWraps) {
  Ring r(16);
  r.put("0123456789");
  r.get();
  mw_piece p[2];
  mw_producer_pieces(&r.producer, 10, p);
  EXPECT_EQ(p[0].at, r.memory.data() + 10);
  EXPECT_EQ(p[0].len, 6u);
  EXPECT_EQ(p[1].at, r.memory.data());
  EXPECT_EQ(p[1].len, 4u);
}

TEST(KmodRing, PeeksBehindTheHeadWithoutTaking) {
  Ring r(16);
  r.put("abcdef");
  ASSERT_EQ(mw_consumer_look(&r.consumer), MW_OK);
  char two[2];
  mw_consumer_peek(&r.consumer, 3, two, 2);
  EXPECT_EQ(std::memcmp(two, "de", 2), 0);
  EXPECT_EQ(r.get(), "abcdef");
}

TEST(KmodRing, RefusesATailOutOfTheWindow) {
  for (uint32_t off : {17u, 0x80000000u, 0xffffffffu}) {
    Ring r(16);
    r.tail = MW_INDEX_START + off;
    EXPECT_EQ(mw_consumer_look(&r.consumer), MW_PEER) << off;
    EXPECT_EQ(mw_consumer_ready(&r.consumer), 0u);
  }
}

TEST(KmodRing, RefusesATailThatMovesBack) {
  Ring r(16);
  r.put("abcdef");
  ASSERT_EQ(mw_consumer_look(&r.consumer), MW_OK);
  r.tail = MW_INDEX_START + 3;
  EXPECT_EQ(mw_consumer_look(&r.consumer), MW_PEER);
  EXPECT_EQ(mw_consumer_ready(&r.consumer), 6u);
}

TEST(KmodRing, RefusesAHeadOutOfTheWindow) {
  for (uint32_t off : {7u, 0x80000000u, 0xffffffffu}) {
    Ring r(16);
    r.put("abcdef");
    r.head = MW_INDEX_START + off;
    EXPECT_EQ(mw_producer_look(&r.producer), MW_PEER) << off;
    EXPECT_EQ(mw_producer_room(&r.producer), 10u);
  }
}

TEST(KmodRing, RefusesAHeadThatMovesBack) {
  Ring r(16);
  r.put("abcdef");
  r.get();
  ASSERT_EQ(r.room(), 16u);
  r.head = MW_INDEX_START;
  EXPECT_EQ(mw_producer_look(&r.producer), MW_PEER);
  EXPECT_EQ(mw_producer_room(&r.producer), 16u);
}

TEST(KmodRing, WithoutMemoryTakesNoIndex) {
  Ring r(16);
  r.consumer.mem = r.producer.mem = {nullptr, 0};
  EXPECT_EQ(mw_consumer_look(&r.consumer), MW_OK);
  EXPECT_EQ(r.room(), 0u);
  r.tail += 1;
  r.head += 1;
  EXPECT_EQ(mw_consumer_look(&r.consumer), MW_PEER);
  EXPECT_EQ(mw_producer_look(&r.producer), MW_PEER);
}

TEST(KmodRing, TellsOfRoomWhenHalfIsFreeAndSomebodyAsked) {
  Ring r(16);
  r.put("0123456789abcdef");
  ASSERT_EQ(mw_consumer_look(&r.consumer), MW_OK);
  uint32_t want = MW_WANT_HOLD;
  mw_consumer_advance(&r.consumer, 16 - 9);
  EXPECT_FALSE(mw_consumer_owes_news(&r.consumer, &want, 16));
  want |= MW_WANT_RX_ROOM;
  EXPECT_FALSE(mw_consumer_owes_news(&r.consumer, &want, 16)) << "9 of 16 are taken";
  EXPECT_TRUE(mw_consumer_owes_news(&r.consumer, &want, 18));
  EXPECT_EQ(want, MW_WANT_HOLD);
  EXPECT_FALSE(mw_consumer_owes_news(&r.consumer, &want, 18)) << "told once";
}

TEST(KmodRing, AskingLooksOnceMore) {
  Ring r(16);
  r.put("0123456789abcdef");
  r.get();
  uint32_t want = 0;
  EXPECT_EQ(mw_producer_ask(&r.producer, &want), MW_OK);
  EXPECT_EQ(want, MW_WANT_OUT_EVENT);
  EXPECT_EQ(mw_producer_room(&r.producer), 16u);
}

struct DgramRing : Ring {
  DgramRing() : Ring(1u << 17) {}
  // What the INS writes for a datagram.
  void write(mw_dgram_head h, const std::string& control, const std::string& data) {
    std::string record(reinterpret_cast<const char*>(&h), sizeof h);
    record += control + data;
    record.resize(mw_dgram_bytes(h.control_len, h.data_len));
    put(record);
  }
  mw_status look(mw_dgram* d) {
    EXPECT_EQ(mw_consumer_look(&consumer), MW_OK);
    return mw_dgram_look(&consumer, d);
  }
  static mw_dgram_head head_of(uint32_t control, uint32_t data) {
    mw_dgram_head h{};
    h.control_len = control;
    h.data_len = data;
    h.name_len = 16;
    h.name[0] = 2;
    return h;
  }
};

TEST(KmodDgram, ReadsRecordsOneByOne) {
  DgramRing r;
  mw_dgram d;
  EXPECT_EQ(r.look(&d), MW_NONE);
  r.write(DgramRing::head_of(4, 5), "ctrl", "first");
  r.write(DgramRing::head_of(0, 0), "", "");
  ASSERT_EQ(r.look(&d), MW_OK);
  char got[9];
  mw_consumer_peek(&r.consumer, sizeof d.head, got, 9);
  EXPECT_EQ(std::memcmp(got, "ctrlfirst", 9), 0);
  mw_dgram_done(&r.consumer, &d);
  ASSERT_EQ(r.look(&d), MW_OK);
  EXPECT_EQ(d.head.data_len, 0u);
  mw_dgram_done(&r.consumer, &d);
  EXPECT_EQ(r.look(&d), MW_NONE);
}

TEST(KmodDgram, RefusesLengthsBeyondTheRecord) {
  for (const auto& [control, data] : {std::pair{0u, 60000u},
                                      {60000u, 0u},
                                      {0xffffffffu, 0xffffffffu},
                                      {0u, 0xfffffff0u},
                                      {0xfffffff0u, 0x20u}}) {
    DgramRing r;
    mw_dgram d;
    r.write(DgramRing::head_of(0, 100), "", std::string(100, 'x'));
    mw_dgram_head lie = DgramRing::head_of(control, data);
    std::memcpy(r.memory.data() + (MW_INDEX_START & 0x1ffff), &lie, sizeof lie);
    EXPECT_EQ(r.look(&d), MW_PEER) << control << " " << data;
  }
}

TEST(KmodDgram, RefusesAPieceOfARecord) {
  DgramRing r;
  mw_dgram d;
  r.put(std::string(47, '\0'));
  EXPECT_EQ(r.look(&d), MW_PEER);
}

TEST(KmodDgram, RefusesANameThatIsNoAddress) {
  for (uint32_t len : {1u, 15u, 28u, 32u, 33u, 0xffffffffu}) {
    DgramRing r;
    mw_dgram d;
    mw_dgram_head h = DgramRing::head_of(0, 1);
    h.name_len = len;
    r.write(h, "", "x");
    EXPECT_EQ(r.look(&d), MW_PEER) << len;
  }
}

TEST(KmodDgram, MasksFlagsThatTheKernelNeverReports) {
  DgramRing r;
  mw_dgram d;
  mw_dgram_head h = DgramRing::head_of(0, 1);
  h.flags = -1;
  h.name_len = 0;
  r.write(h, "", "x");
  ASSERT_EQ(r.look(&d), MW_OK);
  EXPECT_EQ(d.head.flags, 0x28);
}

}  // namespace
}  // namespace mw
