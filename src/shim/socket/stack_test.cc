#include "shim/process/stack.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "shim/process/descriptors.h"
#include "shim/process/shared_lock.h"
#include "shim/socket/socket.h"
#include "transport/local/session_fds.h"

namespace mw::shim {
namespace {

constexpr uint32_t kSlots = 64;
constexpr uint32_t kGen = 1000;  // later than any that this process saw in these slots
constexpr mw_geometry geometry_of(uint32_t slots) {
  return {.slots = slots,
          .rx_ring = 4096,
          .tx_ring = 4096,
          .groups = 4,
          .workers = 2,
          .calls = 8,
          .reserved = {0, 0}};
}
constexpr mw_geometry kGeometry = geometry_of(kSlots);

// A session with two stacks.
class StackTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string name = "stack-" + std::to_string(::getpid());
    auto session = make_session_fds(name, geometry_of(2 * kSlots));
    ASSERT_TRUE(session);
    session_ = std::move(*session);
    ASSERT_TRUE(
        process.session.open(*check_sealed(session_.session.get()), geometry_of(2 * kSlots)));
    for (int k = 0; k < 2; ++k) {
      auto made = make_session_fds(name + "-" + std::to_string(k), kGeometry);
      ASSERT_TRUE(made);
      fds_[k] = std::move(*made);
      ASSERT_TRUE(stacks.add(*check_sealed(fds_[k].channel.get()), kGeometry));
      auto whole = map_sealed(fds_[k].channel.get());
      ASSERT_TRUE(whole);
      whole_[k] = std::move(*whole);
      auto ins = Channel::over(whole_[k].base(), whole_[k].bytes(), kGeometry);
      ASSERT_TRUE(ins);
      ins_[k] = *ins;
    }
  }
  void TearDown() override {
    stacks.close();
    process.session.close();
  }
  static Stack& second() { return stacks.begin()[1]; }

  SessionFds session_, fds_[2];
  Mapping whole_[2];
  Channel ins_[2];
};

TEST_F(StackTest, NumbersCountThroughTheStacks) {
  EXPECT_EQ(stacks.slots(), 2 * kSlots);
  EXPECT_EQ(&stack_of(0), stacks.begin());
  EXPECT_EQ(&stack_of(kSlots - 1), stacks.begin());
  EXPECT_EQ(&stack_of(kSlots), &second());
  EXPECT_EQ(&stack_of(2 * kSlots - 1), &second());
}

TEST_F(StackTest, PlaceAndNumberAreEachOthersInverse) {
  EXPECT_EQ(second().place_of(kSlots + 6), 6u);
  EXPECT_EQ(second().number_of(6), kSlots + 6);
  EXPECT_EQ(stack_of(6).place_of(6), 6u);
}

TEST_F(StackTest, SocketHasItsOwnInssSlot) {
  ASSERT_TRUE(has_slot(kSlots + 6));
  ins_[0].slot(6).state = 1;
  ins_[1].slot(6).state = 2;
  process.session.slot(kSlots + 6).gen = 9;
  const Sock s = sock_of(kSlots + 6);
  EXPECT_EQ(&s.stack, &second());
  EXPECT_EQ(s.slot.state, 2u);
  EXPECT_EQ(s.gen, 9u);
}

TEST_F(StackTest, RingsAreThoseOfItsOwnIns) {
  char text[6] = {};
  ins_[1].rx(6).copy_in(0, "inward", 6);
  second().rx(kSlots + 6).copy_out(0, text, 6);
  EXPECT_EQ(std::string_view(text, 6), "inward");
}

TEST_F(StackTest, NewsGoToTheWorkerOfItsOwnIns) {
  const int bells[] = {::eventfd(0, EFD_NONBLOCK), ::eventfd(0, EFD_NONBLOCK)};
  second().use(-1, bells);
  ASSERT_TRUE(has_slot(kSlots + 7));
  ins_[1].sock_news(1).prepare_sleep();  // so that news ring for it
  announce(sock_of(kSlots + 7));
  uint32_t seen = 0;
  ins_[1].sock_news(1).drain([&](uint32_t i) { return (seen = i, true); });
  EXPECT_EQ(seen, 7u);
  EXPECT_TRUE(ins_[0].sock_news(1).empty());
  uint64_t rings = 0;
  EXPECT_LT(::read(bells[0], &rings, sizeof rings), 0);
  EXPECT_EQ(::read(bells[1], &rings, sizeof rings), static_cast<ssize_t>(sizeof rings));
  for (const int bell : bells) ::close(bell);
}

// A window that asked for the slot of the same place in the other stack would unmap these, or keep
// those.
TEST_F(StackTest, RingsStayForSocketsOfTheirOwnStack) {
  constexpr int kFd = 7100;
  for (const uint32_t number : {5u, kSlots + 5}) {
    SharedLock lock(process.session.slot(number).rx_lock);
    ASSERT_TRUE(has_slot(number));
    ASSERT_TRUE(stack_of(number).rx(number).is_there());
  }
  set_entry(kFd, {Kind::socket, kSlots + 5, kGen});
  EXPECT_FALSE(second().rings().drop_unused());
  EXPECT_TRUE(stack_of(0).rings().drop_unused());
  set_entry(kFd, Entry{});
  EXPECT_TRUE(second().rings().drop_unused());
}

TEST_F(StackTest, PoisonLastsUntilTheNextEpoch) {
  process.session.header().epoch = 5;
  EXPECT_FALSE(second().is_poisoned());
  EXPECT_TRUE(second().poison());
  EXPECT_TRUE(second().is_poisoned());
  process.session.header().epoch = 6;
  EXPECT_FALSE(second().is_poisoned());
}

TEST_F(StackTest, PoisonIsSaidOnceAnEpoch) {
  process.session.header().epoch = 5;
  EXPECT_TRUE(second().poison());
  EXPECT_FALSE(second().poison());
  EXPECT_EQ(second().poisoned_epoch(), 5u);
  process.session.header().epoch = 6;
  EXPECT_TRUE(second().poison());
}

TEST_F(StackTest, PoisonIsOneStacks) {
  process.session.header().epoch = 5;
  ASSERT_TRUE(second().poison());
  EXPECT_FALSE(stack_of(0).is_poisoned());
}

TEST_F(StackTest, MoreThanMostIsRefused) {
  for (uint32_t k = 2; k < kMostStacks; ++k)
    ASSERT_TRUE(stacks.add(*check_sealed(fds_[0].channel.get()), kGeometry));
  const Status added = stacks.add(*check_sealed(fds_[0].channel.get()), kGeometry);
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().fault, Fault::limit);
}

}  // namespace
}  // namespace mw::shim
