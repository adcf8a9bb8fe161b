#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {
namespace {

TEST(Result, CarriesAValueOrAnError) {
  Result<int> good{7};
  ASSERT_TRUE(good);
  EXPECT_EQ(*good, 7);
  Result<int> bad{Error{Fault::peer, 0, "tail out of window"}};
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().fault, Fault::peer);
}

TEST(UniqueFd, ClosesOnceAndKeepsErrno) {
  int raw = -1;
  {
    UniqueFd fd{::eventfd(0, EFD_CLOEXEC)};
    raw = fd.get();
    UniqueFd moved{std::move(fd)};
    EXPECT_FALSE(fd);  // NOLINT: the moved-from state is the point
    errno = EXDEV;
  }
  EXPECT_EQ(errno, EXDEV);
  EXPECT_EQ(::fcntl(raw, F_GETFD), -1);
}

TEST(UniqueFdDeathTest, AbortsWhenSomebodyElseClosedIt) {
  EXPECT_DEATH(
      {
        UniqueFd fd{::eventfd(0, EFD_CLOEXEC)};
        ::close(fd.get());
      },
      "");
}

}  // namespace
}  // namespace mw
