#include "shim/process/ring_window.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "shim/process/descriptors.h"
#include "shim/process/shared_lock.h"
#include "shim/process/stack.h"
#include "transport/local/session_fds.h"

namespace mw::shim {
namespace {

constexpr mw_geometry kGeometry{.slots = 256,
                                .rx_ring = 1 << 20,
                                .tx_ring = 1 << 20,
                                .groups = 40,
                                .workers = 1,
                                .calls = 8,
                                .reserved = {0, 0}};
constexpr uint32_t kGen = 7;
constexpr int kFirstFd = 5000;  // numbers that no descriptor of the test has

// A process that has joined a session. Descriptors are entries of the table only.
class RingWindowTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = make_session_fds("ring-window-" + std::to_string(::getpid()), kGeometry);
    ASSERT_TRUE(made);
    fds_ = std::move(*made);
    ASSERT_TRUE(stacks.add(*check_sealed(fds_.channel.get()), kGeometry));
    ASSERT_TRUE(process.session.open(*check_sealed(fds_.session.get()), kGeometry));
    auto whole = map_sealed(fds_.channel.get());
    ASSERT_TRUE(whole);
    whole_ = std::move(*whole);
    auto ins = Channel::over(whole_.base(), whole_.bytes(), kGeometry);
    ASSERT_TRUE(ins);
    ins_ = *ins;
  }
  void TearDown() override {
    for (uint32_t i = 0; i < kGeometry.slots; ++i) give_up(i);
    stacks.close();
    process.session.close();
  }
  static void have(uint32_t slot) {
    set_entry(kFirstFd + static_cast<int>(slot), {Kind::socket, slot, kGen});
  }
  static void give_up(uint32_t slot) { set_entry(kFirstFd + static_cast<int>(slot), Entry{}); }
  static void use(uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; ++i) {
      SharedLock lock(process.session.slot(i).rx_lock);
      ASSERT_TRUE(stack_of(0).rx(i).is_there());
    }
  }
  static RingWindow& window() { return stack_of(0).rings(); }

  SessionFds fds_;
  Mapping whole_;
  Channel ins_;
};

TEST_F(RingWindowTest, MapsNothingBeforeItIsUsed) {
  EXPECT_EQ(window().mapped(), 0u);
  use(3, 4);
  use(3, 4);
  EXPECT_EQ(window().mapped(), 1u);
}

TEST_F(RingWindowTest, ShowsTheSlotsOwnRings) {
  char text[6] = {};
  ins_.rx(9).copy_in(10, "inward", 6);
  stack_of(0).rx(9).copy_out(10, text, 6);
  EXPECT_EQ(std::string_view(text, 6), "inward");
  stack_of(0).tx(9).copy_in((1 << 20) - 2, "abroad", 6);  // across the ring's end
  ins_.tx(9).copy_out((1 << 20) - 2, text, 6);
  EXPECT_EQ(std::string_view(text, 6), "abroad");
}

TEST_F(RingWindowTest, KeepsTheRingsOfSocketsThatAreOpen) {
  for (uint32_t i = 0; i < 200; ++i) have(i);
  use(0, 200);
  window().trim();
  EXPECT_EQ(window().mapped(), 200u);
}

// The kernel lets a process have 65530 mappings, unless told otherwise.
#ifndef __SANITIZE_THREAD__  // whose own mappings lie between
TEST_F(RingWindowTest, NeighboursAreOneMapping) {
  for (uint32_t i = 0; i < 200; ++i) have(i);
  use(0, 200);
  std::ifstream maps("/proc/self/maps");
  uint32_t lines = 0;
  for (std::string line; std::getline(maps, line);)
    if (line.find("mw-channel") != line.npos) ++lines;
  EXPECT_LE(lines, 10u);
}
#endif

TEST_F(RingWindowTest, UnmapsWhatIsGivenUpButForAFew) {
  for (uint32_t i = 0; i < 200; ++i) have(i);
  use(0, 200);
  for (uint32_t i = 0; i < 200; ++i) give_up(i);
  EXPECT_EQ(window().mapped(), window().most(0));
  EXPECT_LE(window().most(0) * uint64_t{kGeometry.rx_ring + kGeometry.tx_ring},
            RingWindow::kSpareBytes);
  EXPECT_TRUE(window().drop_unused());
  EXPECT_EQ(window().mapped(), 0u);
  EXPECT_FALSE(window().drop_unused());
}

TEST_F(RingWindowTest, KeepsThoseOfASlotWithASecondDescriptor) {
  have(5);
  set_entry(kFirstFd + 1000, {Kind::socket, 5, kGen});
  use(5, 6);
  give_up(5);
  EXPECT_FALSE(window().drop_unused());
  set_entry(kFirstFd + 1000, Entry{});
  EXPECT_TRUE(window().drop_unused());
}

TEST_F(RingWindowTest, KeepsThoseThatAThreadIsIn) {
  use(5, 6);
  uint32_t& lock = process.session.slot(5).tx_lock;
  {
    SharedLock held(lock);  // also by the very thread that unmaps: in a signal handler
    EXPECT_FALSE(window().drop_unused());
  }
  EXPECT_TRUE(window().drop_unused());
}

TEST_F(RingWindowTest, KeepsThoseThatAThreadMayStillBeIn) {
  use(5, 6);
  SessionSlot& slot = process.session.slot(5);
  slot.rx_lock = this_thread();
  free_left_lock(slot.rx_lock, slot.lock_lost);
  renew(slot);
  EXPECT_EQ(slot.rx_lock, 0u);
  EXPECT_FALSE(window().drop_unused());
  slot.lock_lost = 0;
}

TEST_F(RingWindowTest, UnmapsThoseWhoseLockAThreadTookAlong) {
  use(5, 6);
  SessionSlot& slot = process.session.slot(5);
  std::thread([&slot] { slot.rx_lock = this_thread(); }).join();
  while (!is_thread_gone(slot.rx_lock)) ::sched_yield();  // its number lives a little longer
  free_left_lock(slot.rx_lock, slot.lock_lost);
  EXPECT_TRUE(window().drop_unused());
}

TEST_F(RingWindowTest, MapsNoOtherFile) {
  const int other = ::memfd_create("other", MFD_CLOEXEC);
  ASSERT_GE(::dup2(other, fds_.channel.get()), 0);
  EXPECT_FALSE(stack_of(0).rx(7).is_there());
  EXPECT_FALSE(stack_of(0).tx(7).is_there());
  ::close(other);
}

TEST_F(RingWindowTest, MapsAllForAProgramThatConfinesItself) {
  use(3, 4);
  std::byte* const before = window().rings(3);
  stack_of(0).map_all();
  process.session.map_all();
  ASSERT_GE(::dup2(fds_.bells[0].get(), fds_.channel.get()), 0);  // no more of it
  use(0, kGeometry.slots);
  EXPECT_EQ(window().rings(3), before);
  ins_.rx(200).copy_in(0, "x", 1);
  char x = 0;
  stack_of(0).rx(200).copy_out(0, &x, 1);
  EXPECT_EQ(x, 'x');
  EXPECT_FALSE(window().drop_unused());
}

TEST_F(RingWindowTest, GroupsAndFarWatchesAreTheRegions) {
  ASSERT_TRUE(stack_of(0).has_group(33));
  stack_of(0).group_news(33).add(200);
  uint32_t seen = 0;
  ins_.group_news(33).drain([&](uint32_t i) { return (seen = i, true); });
  EXPECT_EQ(seen, 200u);
  process.session.slot(200).watch_end = MW_MAX_WATCHES;
  process.session.watches(200)[MW_MAX_WATCHES - 1].fd = 42;
  auto session = map_sealed(fds_.session.get());
  ASSERT_TRUE(session);
  EXPECT_EQ((SessionRegion{session->base(), kGeometry}.watches(200)[MW_MAX_WATCHES - 1].fd), 42u);
}

// Threads copy to and from the rings of slots that come and go, while one unmaps what it can.
TEST_F(RingWindowTest, NoThreadLosesTheRingsItIsIn) {
  constexpr uint32_t kSlots = 4;
  constexpr uint32_t kRounds = 300;
  std::atomic<bool> over{false};
  std::atomic<uint32_t> wrong{0};
  const auto copies = [&](uint32_t me) {
    for (uint32_t k = 0; k < kRounds; ++k) {
      const uint32_t i = (k + me) % kSlots;
      SharedLock lock(process.session.slot(i).tx_lock);
      const RingBytes ring = stack_of(0).tx(i);
      std::array<char, 512> out, in;
      out.fill(static_cast<char>(k));
      ring.copy_in(k, out.data(), out.size());
      ::sched_yield();  // in the rings, and not running
      ring.copy_out(k, in.data(), in.size());
      if (in != out) ++wrong;
    }
  };
  std::thread unmaps([&] {
    while (!over) (void)window().drop_unused();
  });
  std::array<std::thread, 3> threads;
  for (uint32_t k = 0; k < threads.size(); ++k) threads[k] = std::thread(copies, k);
  for (std::thread& t : threads) t.join();
  over = true;
  unmaps.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace mw::shim
