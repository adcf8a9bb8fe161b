#include "kmod/core/calls.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

namespace mw {
namespace {

struct Calls {
  explicit Calls(uint32_t count = 4) : shared(count), cells(count) {
    mw_calls_init(&calls, cells.data(), shared.data(), count);
  }
  uint32_t post(mw_request r, void* waiter = nullptr) {
    const uint32_t i = mw_calls_take(&calls, r.op);
    EXPECT_NE(i, MW_NOTHING);
    EXPECT_EQ(mw_calls_post(&calls, i, &r, waiter), MW_OK);
    return i;
  }
  void answer(uint32_t i, int32_t ret, int32_t err, uint32_t out_len = 0) {
    shared[i].ret = ret;
    shared[i].err = err;
    shared[i].out_len = out_len;
    shared[i].done_seq = shared[i].seq;
  }
  mw_status collect(uint32_t i) { return mw_calls_collect(&calls, i, &a, out); }

  std::vector<mw_call> shared;
  std::vector<mw_cell> cells;
  mw_calls calls;
  mw_answer a{};
  uint8_t out[MW_CALL_PAYLOAD]{};
};

mw_request request(uint32_t op, uint32_t most_out = 0, int32_t most_ret = 0) {
  mw_request r{};
  r.op = op;
  r.slot = 3;
  r.gen = 8;
  r.most_out = most_out;
  r.most_ret = most_ret;
  return r;
}

TEST(KmodCalls, PostsWhatWasAskedAndReturnsTheAnswer) {
  Calls c;
  mw_request r = request(MW_OP_SENDMSG, 32, 100);
  r.arg[0] = 1;
  r.arg[3] = -4;
  r.flags2 = MW_SEND_INLINE;
  r.in = "hello";
  r.in_len = 5;
  const uint32_t i = c.post(r, &c);
  const mw_call& s = c.shared[i];
  EXPECT_EQ(s.op, MW_OP_SENDMSG);
  EXPECT_EQ(s.slot, 3u);
  EXPECT_EQ(s.gen, 8u);
  EXPECT_EQ(s.arg[3], -4);
  EXPECT_EQ(s.flags2, MW_SEND_INLINE);
  EXPECT_EQ(s.in_len, 5u);
  EXPECT_EQ(std::memcmp(s.payload, "hello", 5), 0);
  EXPECT_NE(s.seq, 0u);
  EXPECT_EQ(c.collect(i), MW_BUSY);
  std::memcpy(c.shared[i].payload, "answer", 6);
  c.answer(i, 77, 0, 6);
  mw_status status;
  EXPECT_EQ(mw_calls_on_news(&c.calls, i, &status), &c);
  ASSERT_EQ(c.collect(i), MW_OK);
  EXPECT_EQ(c.a.ret, 77);
  EXPECT_EQ(c.a.err, 0);
  EXPECT_EQ(std::memcmp(c.out, "answer", 6), 0);
  EXPECT_EQ(c.calls.busy, 0u);
  EXPECT_EQ(c.collect(i), MW_BUG);
}

TEST(KmodCalls, SequenceWrapsWithoutZero) {
  Calls c(1);
  c.cells[0].seq = c.cells[0].done = c.shared[0].done_seq = 0xfffffffe;
  std::set<uint32_t> seen;
  for (int k = 0; k < 4; ++k) {
    const uint32_t i = c.post(request(MW_OP_BIND));
    EXPECT_NE(c.shared[i].seq, 0u);
    EXPECT_TRUE(seen.insert(c.shared[i].seq).second);
    EXPECT_EQ(c.collect(i), MW_BUSY);
    c.answer(i, 0, 0);
    EXPECT_EQ(c.collect(i), MW_OK);
  }
}

TEST(KmodCalls, RefusesANumberThatIsNeitherThisNorTheOneBefore) {
  for (uint32_t off : {1u, 2u, 0x7fffffffu, 0x80000000u, 0xfffffffeu}) {
    Calls c;
    c.cells[0].seq = c.cells[0].done = c.shared[0].done_seq = 40;
    const uint32_t i = c.post(request(MW_OP_BIND), &c);
    ASSERT_EQ(i, 0u);
    c.shared[i].done_seq = c.shared[i].seq + off;
    mw_status status;
    EXPECT_EQ(mw_calls_on_news(&c.calls, i, &status), nullptr);
    EXPECT_EQ(status, MW_PEER) << off;
    EXPECT_EQ(c.collect(i), MW_PEER) << off;
  }
}

TEST(KmodCalls, RefusesAnAnswerThatNoCallHas) {
  struct Lie {
    int32_t ret, err;
    uint32_t out_len;
  };
  for (const Lie& l :
       {Lie{101, 0, 0}, Lie{-1, 0, 0}, Lie{0, 1, 0}, Lie{-1, 4096, 0}, Lie{-1, -1, 0},
        Lie{-2, 1, 0}, Lie{0, 0, 33}, Lie{0, 0, 1921}, Lie{0, 0, 0xffffffff}, Lie{-1, 1, 33},
        Lie{INT32_MIN, 0, 0}, Lie{-1, INT32_MIN, 0}}) {
    Calls c;
    const uint32_t i = c.post(request(MW_OP_SENDMSG, 32, 100));
    c.answer(i, l.ret, l.err, l.out_len);
    EXPECT_EQ(c.collect(i), MW_PEER) << l.ret << " " << l.err << " " << l.out_len;
  }
}

TEST(KmodCalls, TakesTheErrorsOfALookup) {
  for (int32_t err : {-2, -11, 5}) {
    Calls c;
    const uint32_t i = c.post(request(MW_OP_RESOLVE, 1920, 16));
    c.answer(i, -1, err);
    EXPECT_EQ(c.collect(i), MW_OK);
    EXPECT_EQ(c.a.err, err);
  }
  Calls c;
  const uint32_t i = c.post(request(MW_OP_RESOLVE, 1920, 16));
  c.answer(i, -1, INT32_MIN);
  EXPECT_EQ(c.collect(i), MW_PEER);
}

TEST(KmodCalls, LookupsLeaveHalfOfTheCells) {
  Calls c;
  EXPECT_NE(mw_calls_take(&c.calls, MW_OP_QUERY), MW_NOTHING);
  const uint32_t second = mw_calls_take(&c.calls, MW_OP_RESOLVE);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_RESOLVE_ADDR), MW_NOTHING);
  EXPECT_NE(mw_calls_take(&c.calls, MW_OP_BIND), MW_NOTHING);
  EXPECT_NE(mw_calls_take(&c.calls, MW_OP_BIND), MW_NOTHING);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_BIND), MW_NOTHING);
  mw_calls_give_back(&c.calls, second);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_QUERY), second);
}

TEST(KmodCalls, AnAbandonedCellIsFreeOnlyWhenItIsAnswered) {
  Calls c(1);
  const uint32_t i = c.post(request(MW_OP_CONNECT), &c);
  mw_calls_abandon(&c.calls, i);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_BIND), MW_NOTHING);
  mw_status status;
  EXPECT_EQ(mw_calls_on_news(&c.calls, i, &status), nullptr);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_BIND), MW_NOTHING) << "news without an answer";
  c.answer(i, -1, 111);
  EXPECT_EQ(mw_calls_on_news(&c.calls, i, &status), nullptr);
  EXPECT_EQ(status, MW_OK);
  EXPECT_EQ(mw_calls_take(&c.calls, MW_OP_BIND), i);
}

TEST(KmodCalls, NewsThatIsNobodysIsIgnored) {
  Calls c;
  mw_status status = MW_BUG;
  for (uint32_t i : {0u, 3u, 4u, 0xffffffffu}) {
    EXPECT_EQ(mw_calls_on_news(&c.calls, i, &status), nullptr);
    EXPECT_EQ(status, MW_OK);
  }
  c.shared[0].done_seq = 99;  // nothing is asked of this cell
  EXPECT_EQ(mw_calls_on_news(&c.calls, 0, &status), nullptr);
  EXPECT_EQ(status, MW_OK);
}

TEST(KmodCalls, RefusesRequestsThatDoNotFit) {
  Calls c;
  const uint32_t i = mw_calls_take(&c.calls, MW_OP_BIND);
  mw_request r = request(MW_OP_BIND);
  r.in_len = MW_CALL_PAYLOAD + 1;
  EXPECT_EQ(mw_calls_post(&c.calls, i, &r, nullptr), MW_BUG);
  r = request(MW_OP_BIND, MW_CALL_PAYLOAD + 1);
  EXPECT_EQ(mw_calls_post(&c.calls, i, &r, nullptr), MW_BUG);
  r = request(MW_OP_LISTEN);
  EXPECT_EQ(mw_calls_post(&c.calls, i, &r, nullptr), MW_BUG) << "taken for another operation";
  r = request(MW_OP_BIND);
  EXPECT_EQ(mw_calls_post(&c.calls, (i + 1) % 4, &r, nullptr), MW_BUG) << "not taken";
  EXPECT_EQ(mw_calls_post(&c.calls, 4, &r, nullptr), MW_BUG);
  EXPECT_EQ(mw_calls_post(&c.calls, i, &r, nullptr), MW_OK);
  EXPECT_EQ(mw_calls_post(&c.calls, i, &r, nullptr), MW_BUG) << "posted already";
}

}  // namespace
}  // namespace mw
