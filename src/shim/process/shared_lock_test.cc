#include "shim/process/shared_lock.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <thread>

namespace mw::shim {
namespace {

// A thread number that no thread has any more, left in the word.
void leave_to_a_dead_thread(uint32_t& word) {
  std::thread([&word] { StdAtomics::store_release(word, this_thread()); }).join();
  while (!is_thread_gone(StdAtomics::load_relaxed(word))) ::sched_yield();
}

TEST(SharedLock, IsFreeAgainAfterwards) {
  uint32_t word = 0;
  {
    SharedLock lock(word);
    EXPECT_EQ(word, this_thread());
  }
  EXPECT_EQ(word, 0u);
}

// A signal handler that interrupted the critical section.
TEST(SharedLock, OwnerEntersAgain) {
  uint32_t word = 0;
  SharedLock lock(word);
  {
    SharedLock again(word);
    EXPECT_EQ(word, this_thread());
  }
  EXPECT_EQ(word, this_thread());
}

TEST(SharedLock, LetsOneThreadInAtATime) {
  constexpr int kRounds = 3000;
  uint32_t word = 0;
  int count = 0;  // a race if two are in
  std::array<std::thread, 4> threads;
  for (std::thread& t : threads)
    t = std::thread([&] {
      for (int k = 0; k < kRounds; ++k) {
        SharedLock lock(word);
        ++count;
        if (k % 64 == 0) ::sched_yield();  // others go to sleep on the word
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(count, 4 * kRounds);
  EXPECT_EQ(word, 0u);
}

TEST(SharedLock, DeadOwnerIsSucceeded) {
  uint32_t word = 0;
  leave_to_a_dead_thread(word);
  {
    SharedLock lock(word);
    EXPECT_EQ(word & ~kWaiters, this_thread());
  }
  EXPECT_EQ(word, 0u);
}

TEST(SharedLock, KeepsErrnoWhileItWaits) {
  uint32_t word = 0;
  leave_to_a_dead_thread(word);
  errno = ENOTTY;
  { SharedLock lock(word); }
  EXPECT_EQ(errno, ENOTTY);
}

TEST(TryLock, FailsForTheOwnerToo) {
  uint32_t word = 0;
  SharedLock lock(word);
  EXPECT_FALSE(TryLock(word).held());
  EXPECT_EQ(word, this_thread());
}

TEST(TryLock, HoldsAFreeOneUntilItEnds) {
  uint32_t word = 0;
  {
    const TryLock lock(word);
    EXPECT_TRUE(lock.held());
    EXPECT_EQ(word, this_thread());
  }
  EXPECT_EQ(word, 0u);
}

TEST(FreeLeftLock, OfALivingThreadIsNoted) {
  uint32_t word = this_thread();
  uint32_t lost = 0;
  free_left_lock(word, lost);
  EXPECT_EQ(word, 0u);
  EXPECT_EQ(lost, 1u);
}

TEST(FreeLeftLock, OfADeadThreadIsFreeAndNoMore) {
  uint32_t word = 0;
  uint32_t lost = 0;
  leave_to_a_dead_thread(word);
  free_left_lock(word, lost);
  EXPECT_EQ(word, 0u);
  EXPECT_EQ(lost, 0u);
}

}  // namespace
}  // namespace mw::shim
