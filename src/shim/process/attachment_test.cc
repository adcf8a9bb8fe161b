#include "shim/process/attachment.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace mw::shim {
namespace {

const std::string kSecret = "0123456789abcdef0123456789abcdef";

// What `check` says in a process of its own, as a session is noted for good.
template <class Check>
bool is_true_in_child(Check&& check) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(check() ? 0 : 1);
  int status = -1;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

TEST(Attachment, WholeSettingIsASession) {
  EXPECT_TRUE(is_true_in_child(
      [] { return note_session(("mw-1000-f00d:" + kSecret).c_str()) && is_in_session(); }));
}

TEST(Attachment, NameMayHaveColons) {
  EXPECT_TRUE(
      is_true_in_child([] { return note_session(("a:b:" + kSecret).c_str()) && is_in_session(); }));
}

// A program is then told that there is no session, and not that its driver does not answer.
TEST(Attachment, MalformedSettingIsNoSession) {
  for (const std::string& setting :
       {std::string(), std::string("name"), ":" + kSecret, "name:" + kSecret.substr(1),
        "name:" + kSecret + "0", "name:" + kSecret.substr(1) + "g",
        std::string(160, 'n') + ":" + kSecret}) {
    EXPECT_FALSE(note_session(setting.c_str())) << setting;
    EXPECT_FALSE(is_in_session()) << setting;
  }
}

TEST(Attachment, WithoutASessionNothingIsJoined) {
  EXPECT_FALSE(attach());
  EXPECT_FALSE(attach_as_this_process());
}

TEST(Attachment, WithoutAHomeNothingIsAbroad) {
  EXPECT_FALSE(is_abroad());
}

}  // namespace
}  // namespace mw::shim
