#include "shim/process/exec.h"

#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

namespace mw::shim {
namespace {

// A folder of actions, as posix_spawn(3) and as we see it.
class SpawnFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-exec-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    ASSERT_EQ(::mkdir((folder_ + "/inner").c_str(), 0755), 0);
    ASSERT_EQ(::posix_spawn_file_actions_init(&actions_), 0);
  }
  void TearDown() override {
    ::posix_spawn_file_actions_destroy(&actions_);
    std::filesystem::remove_all(folder_);
  }
  // Checks that a program that is started with the actions is in the folder that we found.
  void expect_agreement() {
    const std::string result = folder_ + "/result";
    ASSERT_EQ(::posix_spawn_file_actions_addopen(&actions_, STDOUT_FILENO, result.c_str(),
                                                 O_WRONLY | O_CREAT | O_TRUNC, 0644),
              0);
    const SpawnFolder found(&actions_);
    ASSERT_TRUE(found.is_there());
    char pwd[] = "/bin/pwd";
    char physical[] = "-P";
    char* const argv[] = {pwd, physical, nullptr};
    pid_t child = 0;
    ASSERT_EQ(::posix_spawn(&child, pwd, &actions_, nullptr, argv, environ), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    const std::filesystem::path expected = text_of(result);
    struct stat theirs {};
    struct stat ours {};
    ASSERT_EQ(::stat(expected.c_str(), &theirs), 0);
    ASSERT_EQ(::fstatat(found.fd(), ".", &ours, 0), 0);
    EXPECT_EQ(ours.st_ino, theirs.st_ino) << expected;
  }
  static std::string text_of(const std::string& path) {
    char text[4096];
    FILE* const file = ::fopen(path.c_str(), "r");
    const bool read = file != nullptr && ::fgets(text, sizeof text, file) != nullptr;
    if (file != nullptr) ::fclose(file);
    std::string line = read ? text : "";
    if (!line.empty()) line.pop_back();
    return line;
  }

  std::string folder_;
  posix_spawn_file_actions_t actions_;
};

TEST_F(SpawnFolderTest, NoActionsLeaveItWhereItIs) {
  EXPECT_EQ(SpawnFolder(nullptr).fd(), AT_FDCWD);
  ASSERT_EQ(::posix_spawn_file_actions_addclose(&actions_, 77), 0);
  ASSERT_EQ(::posix_spawn_file_actions_adddup2(&actions_, 0, 78), 0);
  expect_agreement();
}

TEST_F(SpawnFolderTest, StepsFollowOneAnother) {
  ASSERT_EQ(::posix_spawn_file_actions_addchdir_np(&actions_, folder_.c_str()), 0);
  ASSERT_EQ(::posix_spawn_file_actions_adddup2(&actions_, 0, 78), 0);
  ASSERT_EQ(::posix_spawn_file_actions_addchdir_np(&actions_, "inner"), 0);
  expect_agreement();
}

TEST_F(SpawnFolderTest, ADescriptorOfTheCallerAndOneThatIsOpenedBefore) {
  const int inner = ::open((folder_ + "/inner").c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(inner, 0);
  ASSERT_EQ(::posix_spawn_file_actions_addfchdir_np(&actions_, inner), 0);
  expect_agreement();
  ASSERT_EQ(::posix_spawn_file_actions_addopen(&actions_, inner, folder_.c_str(), O_RDONLY, 0), 0);
  ASSERT_EQ(::posix_spawn_file_actions_addfchdir_np(&actions_, inner), 0);
  expect_agreement();
  ::close(inner);
}

TEST_F(SpawnFolderTest, AFolderThatIsNotThereStartsNothing) {
  ASSERT_EQ(::posix_spawn_file_actions_addchdir_np(&actions_, "/no/such/folder"), 0);
  EXPECT_FALSE(SpawnFolder(&actions_).is_there());
}

}  // namespace
}  // namespace mw::shim
