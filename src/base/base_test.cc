#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <csignal>
#include <string>

#include "base/hex.h"
#include "base/pidfd.h"
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

TEST(Result, CarriesAReasonOfAnotherType) {
  Result<int, std::string> bad{std::string("no such file")};
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error(), "no such file");
  EXPECT_EQ(*(Result<int, std::string>{7}), 7);
}

TEST(Hex, GoesThereAndBack) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto two = hex_digits(static_cast<uint8_t>(byte));
    uint8_t back = 0;
    ASSERT_TRUE(parse_hex({two.data(), 2}, {&back, 1})) << byte;
    EXPECT_EQ(back, byte);
  }
  const auto two = hex_digits(0x5a);
  EXPECT_EQ(std::string(two.begin(), two.end()), "5a");
}

TEST(Hex, TakesBothCasesAndNothingElse) {
  EXPECT_EQ(hex_value('a'), 10);
  EXPECT_EQ(hex_value('F'), 15);
  for (const char c : {'/', ':', '@', 'G', '`', 'g', ' ', '\0', '\xff'})
    EXPECT_EQ(hex_value(c), -1) << int{c};
}

TEST(Hex, RefusesAnotherLengthOrOtherCharacters) {
  uint8_t out[2] = {};
  EXPECT_TRUE(parse_hex("0aB1", out));
  EXPECT_EQ(out[1], 0xb1);
  for (const char* text : {"", "0a1", "0a1b2", "0a1b2c", "0a1g", "g0a1", "0x0a"})
    EXPECT_FALSE(parse_hex(text, out)) << text;
}

TEST(PidFd, TellsWhenItsProcessDied) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  const UniqueFd fd = open_pidfd(child);
  ASSERT_TRUE(fd);
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_FALSE(has_died(fd.get()));
  EXPECT_TRUE(signal_pidfd(fd.get(), SIGKILL));
  EXPECT_TRUE(has_died(fd.get(), -1));  // a zombie
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(has_died(fd.get()));
  EXPECT_FALSE(signal_pidfd(fd.get(), SIGKILL));
  EXPECT_EQ(errno, ESRCH);
  EXPECT_FALSE(open_pidfd(child));  // its number is free
}

}  // namespace
}  // namespace mw
