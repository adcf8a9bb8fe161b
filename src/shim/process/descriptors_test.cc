#include "shim/process/descriptors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>

namespace mw::shim {
namespace {

constexpr int kFd = 7000;  // numbers that no descriptor of the test has
constexpr uint32_t kSlot = 11;
constexpr uint32_t kGen = 5;
constexpr Entry kSocket{Kind::socket, kSlot, kGen};

// What the rooms above were told.
struct Told {
  int last_closes = 0;
  std::atomic<int> unnamed{0};
  int epoll_closes = 0;
  int group_references = 0;
};
Told told;

class DescriptorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    told.last_closes = told.unnamed = told.epoll_closes = told.group_references = 0;
    before_ = set_hooks(DescriptorHooks{
        .on_last_close = [](int, const Entry&) { ++told.last_closes; },
        .on_unnamed = [](uint32_t) { ++told.unnamed; },
        .on_epoll_close = [](int, const Entry&) { ++told.epoll_closes; },
        .on_group_reference = [](uint32_t, int delta) { told.group_references += delta; }});
  }
  void TearDown() override {
    for (int fd = kFd; fd < kFd + 10; ++fd) set_entry(fd, Entry{});
    set_hooks(before_);
  }
  DescriptorHooks before_{};
};

TEST_F(DescriptorsTest, WordHoldsEveryEntry) {
  for (const Entry& e : {Entry{Kind::lost, 1, 0}, Entry{Kind::socket, 0xfffff, UINT32_MAX}}) {
    const Entry back = unpack(pack(e));
    EXPECT_EQ(back.kind, e.kind);
    EXPECT_EQ(back.slot, e.slot);
    EXPECT_EQ(back.gen, e.gen);
  }
}

TEST_F(DescriptorsTest, NumbersOutsideTheTableAreTheKernels) {
  EXPECT_EQ(peek(-1).kind, Kind::kernel);
  set_entry(kTableSize, kSocket);
  EXPECT_EQ(peek(kTableSize).kind, Kind::kernel);
  EXPECT_EQ(references(kSlot, kGen), 0u);
}

TEST_F(DescriptorsTest, CountsTheDescriptorsOfASocket) {
  const uint32_t before = sockets_in_use();
  set_entry(kFd, kSocket);
  set_entry(kFd + 1, kSocket);
  EXPECT_EQ(references(kSlot, kGen), 2u);
  EXPECT_EQ(sockets_in_use(), before + 1);
  set_entry(kFd, {Kind::kernel, 0, 0});  // as dup2() does
  EXPECT_EQ(references(kSlot), 1u);
  EXPECT_EQ(told.unnamed, 0);
  set_entry(kFd + 1, Entry{});
  EXPECT_EQ(told.unnamed, 1);
  EXPECT_EQ(sockets_in_use(), before);
}

TEST_F(DescriptorsTest, LeftDescriptorsOfAnEarlierSocketDoNotCount) {
  constexpr Entry kEarlier{Kind::socket, kSlot + 1, kGen};
  constexpr Entry kLater{Kind::socket, kSlot + 1, kGen + 1};
  set_entry(kFd, kEarlier);
  set_entry(kFd + 1, kLater);
  EXPECT_EQ(references(kSlot + 1, kGen), 0u);
  EXPECT_EQ(references(kSlot + 1, kGen + 1), 1u);
  set_entry(kFd, Entry{});
  EXPECT_EQ(references(kSlot + 1, kGen + 1), 1u);
  set_entry(kFd, kEarlier);  // found late
  EXPECT_EQ(references(kSlot + 1), 1u);
}

TEST_F(DescriptorsTest, ForgettingTheLastOneIsTold) {
  set_entry(kFd, kSocket);
  set_entry(kFd + 1, kSocket);
  forget(kFd);
  EXPECT_EQ(told.last_closes, 0);
  forget(kFd + 1);
  EXPECT_EQ(told.last_closes, 1);
  EXPECT_EQ(peek(kFd + 1).kind, Kind::unknown);
}

TEST_F(DescriptorsTest, ForgettingAnInstanceIsTold) {
  set_entry(kFd, {Kind::epoll, 3, 0});
  EXPECT_EQ(told.group_references, 1);
  EXPECT_GE(highest_epoll_fd(), kFd);
  forget(kFd);
  EXPECT_EQ(told.epoll_closes, 1);
  EXPECT_EQ(told.group_references, 0);
}

TEST_F(DescriptorsTest, InstanceWithoutAGroupHasNoReference) {
  set_entry(kFd, {Kind::epoll, 0, 77});
  EXPECT_EQ(told.group_references, 0);
}

TEST_F(DescriptorsTest, OneOfTwoClosersTakesTheEntry) {
  set_entry(kFd, kSocket);
  EXPECT_TRUE(take_entry(kFd, kSocket));
  EXPECT_FALSE(take_entry(kFd, kSocket));
  EXPECT_EQ(references(kSlot, kGen), 0u);
}

TEST_F(DescriptorsTest, HiddenOneIsOutOfTheWay) {
  const int fd = ::open("/dev/null", O_RDONLY);
  ASSERT_GE(fd, 0);
  const int hidden = hide(fd);
  EXPECT_GT(hidden, fd);
  EXPECT_TRUE(is_hidden(hidden));
  EXPECT_LT(::fcntl(fd, F_GETFD), 0);
  EXPECT_EQ(::fcntl(hidden, F_GETFD), FD_CLOEXEC);
  unhide_and_close(hidden);
  EXPECT_FALSE(is_hidden(hidden));
  EXPECT_LT(::fcntl(hidden, F_GETFD), 0);
}

TEST_F(DescriptorsTest, HiddenCopyLeavesTheOriginal) {
  const int fd = ::open("/dev/null", O_RDONLY);
  ASSERT_GE(fd, 0);
  const int hidden = hidden_copy(fd);
  EXPECT_TRUE(is_hidden(hidden));
  EXPECT_GE(::fcntl(fd, F_GETFD), 0);
  unhide_and_close(hidden);
  ::close(fd);
}

// Each thread has a descriptor of the same socket, gets it and gives it up.
TEST_F(DescriptorsTest, NoThreadsReferenceIsLost) {
  constexpr int kRounds = 2000;
  const uint32_t before = sockets_in_use();
  std::atomic<int> taken{0};
  std::array<std::thread, 4> threads;
  for (int k = 0; k < 4; ++k)
    threads[k] = std::thread([&taken, fd = kFd + k] {
      for (int round = 0; round < kRounds; ++round) {
        set_entry(fd, kSocket);
        if (round % 2 == 0)
          set_entry(fd, Entry{});
        else if (take_entry(fd, kSocket))
          ++taken;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(taken, 4 * kRounds / 2);
  EXPECT_EQ(references(kSlot, kGen), 0u);
  EXPECT_EQ(sockets_in_use(), before);
  EXPECT_GE(told.unnamed, 1);
}

}  // namespace
}  // namespace mw::shim
