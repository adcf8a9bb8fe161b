#include "shim/process/copies.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "shim/process/file_limit.h"
#include "shim/process/process.h"

namespace mw::shim {
namespace {

constexpr uint32_t kSlot = 21;

TEST(Copies, NewSocketIsNobodyElses) {
  note_origin(kSlot, descriptor_copies());
  EXPECT_TRUE(is_nobody_elses(kSlot));
}

TEST(Copies, SocketOfBeforeACopyIsOthersToo) {
  note_origin(kSlot, descriptor_copies());
  { const Copying copying; }
  EXPECT_FALSE(is_nobody_elses(kSlot));
}

TEST(Copies, WhileCopyingNothingIsOursAlone) {
  const Copying copying;
  note_origin(kSlot, descriptor_copies());
  EXPECT_FALSE(is_nobody_elses(kSlot));
}

TEST(Copies, SocketMadeWhileCopyingStaysOthersToo) {
  {
    const Copying copying;
    note_origin(kSlot, descriptor_copies());
  }
  EXPECT_FALSE(is_nobody_elses(kSlot));
}

TEST(Copies, SocketFromElsewhereIsOthersToo) {
  note_origin(kSlot, 0);
  EXPECT_FALSE(is_nobody_elses(kSlot));
}

TEST(Copies, ChildOfForkOwnsNothingOfItsParents) {
  note_origin(kSlot, descriptor_copies());
  const pid_t child = ::fork();
  if (child == 0) {
    const bool right = !is_copying() && !is_nobody_elses(kSlot) &&
                       process.pid == static_cast<uint32_t>(::getpid());
    ::_exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(is_copying());
  EXPECT_FALSE(is_nobody_elses(kSlot));
}

class FileLimitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &was_), 0);
    const rlimit low{was_.rlim_max / 2, was_.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  }
  void TearDown() override { ::setrlimit(RLIMIT_NOFILE, &was_); }
  static bool is_raised() {
    rlimit now{};
    ::getrlimit(RLIMIT_NOFILE, &now);
    return now.rlim_cur == now.rlim_max;
  }
  rlimit was_{};
};

TEST_F(FileLimitTest, IsRaisedWhileTheGuardLasts) {
  {
    const FileLimit limit;
    EXPECT_TRUE(is_raised());
    EXPECT_TRUE(limit.exceeds(static_cast<int>(was_.rlim_max / 2)));
    EXPECT_FALSE(limit.exceeds(3));
  }
  EXPECT_FALSE(is_raised());
}

TEST_F(FileLimitTest, IsNotRaisedUnderACopier) {
  const Copying copying;
  const FileLimit limit(FileLimit::Raise::unless_copying);
  EXPECT_FALSE(is_raised());
}

TEST_F(FileLimitTest, SecondTryIsBeyondTheLimit) {
  int tries = 0;
  const int fd = beyond_limit([&] {
    errno = EMFILE;
    return ++tries == 2 && is_raised() ? 5 : -1;
  });
  EXPECT_EQ(fd, 5);
}

TEST_F(FileLimitTest, OtherFailuresAreNotTriedAgain) {
  int tries = 0;
  const int fd = beyond_limit([&] {
    ++tries;
    errno = EACCES;
    return -1;
  });
  EXPECT_EQ(fd, -1);
  EXPECT_EQ(tries, 1);
}

}  // namespace
}  // namespace mw::shim
