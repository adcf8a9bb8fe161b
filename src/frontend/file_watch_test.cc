#include "frontend/file_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace mw {
namespace {

namespace fs = std::filesystem;

class FileWatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-file-watch-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    auto watch = FileWatch::open();
    ASSERT_TRUE(watch);
    watch_ = std::move(*watch);
  }
  void TearDown() override { fs::remove_all(base_); }

  static void write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }
  void watch(const fs::path& path) { watch_.watch({path}); }

  // Whether a change is told. Until it is said that there is none a moment has to pass.
  bool told(int patience_ms = 10000) {
    pollfd p{watch_.fd(), POLLIN, 0};
    while (::poll(&p, 1, patience_ms) == 1)
      if (watch_.take()) return true;
    return false;
  }
  // Other programs mount and unmount meanwhile, which is rightly told.
  bool quiet() {
    constexpr int kMostTimes = 100;
    for (int k = 0; k < kMostTimes; ++k) {
      if (!told(100)) return true;
      pollfd p{mounts_.get(), POLLPRI, 0};
      if (::poll(&p, 1, 0) != 1) return false;
    }
    return false;
  }

  fs::path base_;
  UniqueFd mounts_{::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)};
  FileWatch watch_;
};

TEST_F(FileWatchTest, WrittenInPlace_IsTold) {
  write(base_ / "file", "a");
  watch(base_ / "file");
  EXPECT_TRUE(quiet());
  std::ofstream(base_ / "file", std::ios::app) << "b";
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, WriterThatKeepsItOpen_IsTold) {
  std::ofstream open(base_ / "file");
  watch(base_ / "file");
  open << "a" << std::flush;
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, ReplacedByRename_IsToldAgainAndAgain) {
  write(base_ / "file", "a");
  for (int k = 0; k < 3; ++k) {
    watch(base_ / "file");
    write(base_ / "new", "b");
    EXPECT_TRUE(quiet()) << "a file of another name";
    fs::rename(base_ / "new", base_ / "file");
    EXPECT_TRUE(told());
  }
}

TEST_F(FileWatchTest, RemovedAndMade_AreTold) {
  write(base_ / "file", "a");
  watch(base_ / "file");
  fs::remove(base_ / "file");
  EXPECT_TRUE(told());
  watch(base_ / "file");
  write(base_ / "file", "b");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, LinkThatIsReplaced_IsTold) {
  write(base_ / "one", "1");
  write(base_ / "two", "2");
  fs::create_symlink("one", base_ / "link");
  watch(base_ / "link");
  fs::create_symlink("two", base_ / "new");
  fs::rename(base_ / "new", base_ / "link");
  EXPECT_TRUE(told());
  watch(base_ / "link");
  write(base_ / "one", "3");
  EXPECT_TRUE(quiet()) << "it leads there no more";
  write(base_ / "two", "4");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, TargetInAnotherFolder_IsTold) {
  fs::create_directories(base_ / "etc");
  fs::create_directories(base_ / "run/names");
  write(base_ / "run/names/file", "a");
  fs::create_symlink("../run/../run/names/file", base_ / "etc/file");
  watch(base_ / "etc/file");
  write(base_ / "run/names/new", "b");
  fs::rename(base_ / "run/names/new", base_ / "run/names/file");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, FolderBehindALink_IsTold) {
  for (const char* one : {"1", "2"}) {
    fs::create_directories(base_ / one);
    write(base_ / one / "file", one);
  }
  fs::create_directory_symlink("1", base_ / "now");
  watch(base_ / "now/file");
  fs::create_directory_symlink("2", base_ / "new");
  fs::rename(base_ / "new", base_ / "now");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, FolderThatComesLater_IsTold) {
  fs::create_symlink(base_ / "run/names/file", base_ / "link");
  watch(base_ / "link");
  for (const char* folder : {"run", "run/names"}) {
    fs::create_directory(base_ / folder);
    EXPECT_TRUE(told());
    watch(base_ / "link");
  }
  write(base_ / "run/names/file", "a");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, LinksInACircle_EndTheWalk) {
  fs::create_symlink("two", base_ / "one");
  fs::create_symlink("one", base_ / "two");
  watch(base_ / "one");
  fs::remove(base_ / "two");
  EXPECT_TRUE(told());
}

TEST_F(FileWatchTest, ManyChanges_AreToldOnce) {
  write(base_ / "file", "a");
  watch(base_ / "file");
  for (int k = 0; k < 100; ++k) std::ofstream(base_ / "file", std::ios::app) << k;
  EXPECT_TRUE(told());
  EXPECT_TRUE(quiet());
}

TEST_F(FileWatchTest, TimeThatIsOver_IsTold) {
  watch_.look_again_in(1);
  EXPECT_TRUE(told());
  EXPECT_TRUE(quiet());
}

}  // namespace
}  // namespace mw
