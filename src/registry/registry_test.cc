#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "registry/local_registry.h"

namespace mw {
namespace {

class LocalRegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-registry-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    auto r = LocalRegistry::create(folder_ + "/session");
    ASSERT_TRUE(r);
    registry_ = std::make_unique<LocalRegistry>(std::move(*r));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> changes() {
    pollfd p{registry_->event_fd(), POLLIN, 0};
    if (::poll(&p, 1, 10000) != 1) return {};
    return *registry_->changes();
  }

  std::string folder_;
  std::unique_ptr<LocalRegistry> registry_;
};

TEST(RegistryPath, AcceptsOnlyPlainNames) {
  for (const char* good : {"mw", "mw/7/heartbeat", "mw/pvm/id", "a.b-c_d"})
    EXPECT_TRUE(valid_registry_path(good)) << good;
  for (const char* bad : {"", "/mw", "mw/", "mw//7", "..", "mw/../x", ".hidden", "mw/a b", "mw/\n"})
    EXPECT_FALSE(valid_registry_path(bad)) << bad;
  EXPECT_FALSE(valid_registry_path(std::string(65, 'a')));
}

TEST(RegistryNumber, AcceptsOnlyCanonicalOnes) {
  EXPECT_EQ(parse_registry_number("0"), 0u);
  EXPECT_EQ(parse_registry_number("18446744073709551615"), UINT64_MAX);
  for (const char* bad : {"", "-1", "+1", " 1", "1 ", "01", "1x", "18446744073709551616"})
    EXPECT_FALSE(parse_registry_number(bad)) << bad;
}

TEST_F(LocalRegistryTest, KeepsValues) {
  EXPECT_EQ(registry_->read("mw/7/heartbeat").error().fault, Fault::shutdown);
  ASSERT_TRUE(registry_->write("mw/7/heartbeat", "1"));
  ASSERT_TRUE(registry_->write("mw/7/heartbeat", "2"));
  ASSERT_TRUE(registry_->write("mw/12/ip_addrs", ""));
  ASSERT_TRUE(registry_->write("mw/pvm/id", "s"));
  EXPECT_EQ(*registry_->read("mw/7/heartbeat"), "2");
  EXPECT_EQ(*registry_->read("mw/12/ip_addrs"), "");
  EXPECT_EQ(*list_ins(*registry_), (std::vector<uint32_t>{7, 12}));
  EXPECT_EQ(*registry_->list("mw/7"), std::vector<std::string>{"heartbeat"});
  ASSERT_TRUE(registry_->remove("mw/7"));
  ASSERT_TRUE(registry_->remove("mw/7"));  // nothing there is no error
  EXPECT_EQ(*list_ins(*registry_), std::vector<uint32_t>{12});
}

TEST_F(LocalRegistryTest, RefusesBadPathsAndLongValues) {
  EXPECT_EQ(registry_->write("mw/../../x", "1").error().fault, Fault::limit);
  EXPECT_EQ(registry_->write("mw/x", std::string(4097, 'x')).error().fault, Fault::limit);
  ASSERT_TRUE(registry_->write("mw/x", std::string(4096, 'x')));
  std::ofstream(folder_ + "/session/mw/long") << std::string(4097, 'x');
  EXPECT_EQ(registry_->read("mw/long").error().fault, Fault::limit);
}

TEST_F(LocalRegistryTest, FollowsNoLinksAndReadsOnlyFiles) {
  std::filesystem::create_symlink("/etc", folder_ + "/session/mw/8");
  EXPECT_FALSE(registry_->read("mw/8/hostname"));
  EXPECT_FALSE(registry_->write("mw/8/heartbeat", "1"));
  std::filesystem::create_symlink("/etc/hostname", folder_ + "/session/mw/link");
  EXPECT_FALSE(registry_->read("mw/link"));
  ASSERT_EQ(::mkfifo((folder_ + "/session/mw/fifo").c_str(), 0600), 0);
  EXPECT_EQ(registry_->read("mw/fifo").error().fault, Fault::limit);  // and does not block
  ASSERT_TRUE(registry_->remove("mw/8"));
  EXPECT_TRUE(std::filesystem::exists("/etc/passwd"));
}

TEST_F(LocalRegistryTest, TellsWhatChanged) {
  ASSERT_TRUE(registry_->watch("mw"));
  EXPECT_EQ(registry_->watch("mw/9").error().fault, Fault::shutdown);
  ASSERT_TRUE(registry_->write("mw/9/heartbeat", "1"));
  EXPECT_EQ(changes(), std::vector<std::string>{"mw/9"});
  ASSERT_TRUE(registry_->watch("mw/9"));
  ASSERT_TRUE(registry_->write("mw/9/heartbeat", "2"));
  EXPECT_EQ(changes(), std::vector<std::string>{"mw/9/heartbeat"});
  registry_->unwatch("mw/9");
  ASSERT_TRUE(registry_->write("mw/9/heartbeat", "3"));
  ASSERT_TRUE(registry_->remove("mw/9"));
  EXPECT_EQ(changes(), std::vector<std::string>{"mw/9"});
  EXPECT_TRUE(registry_->changes()->empty());
}

TEST_F(LocalRegistryTest, ClearsWhatAKilledWriterLeft) {
  ASSERT_TRUE(registry_->write("mw/9/heartbeat", "1"));
  std::ofstream(folder_ + "/session/mw/9/.heartbeat.4711") << "2";
  EXPECT_EQ(*registry_->list("mw/9"), std::vector<std::string>{"heartbeat"});
  ASSERT_TRUE(registry_->remove("mw/9"));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/session/mw/9"));
}

TEST_F(LocalRegistryTest, KeepsTheOldValueWhenTheDiskIsFull) {
  ASSERT_TRUE(registry_->write("mw/9/heartbeat", "1"));
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tiny { 0, old.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tiny), 0);
  const auto written = registry_->write("mw/9/heartbeat", "2");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(written ? Fault::would_block : written.error().fault, Fault::sys);
  EXPECT_EQ(*registry_->read("mw/9/heartbeat"), "1");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ + "/session/mw/9"), {}), 1);
}

TEST_F(LocalRegistryTest, RefusesARootThatOthersMayEnter) {
  std::filesystem::create_directory(folder_ + "/open");
  ASSERT_EQ(::chmod((folder_ + "/open").c_str(), 0755), 0);
  EXPECT_EQ(LocalRegistry::create(folder_ + "/open").error().err, EPERM);
  EXPECT_EQ(LocalRegistry::open(folder_ + "/none").error().fault, Fault::shutdown);
}

}  // namespace
}  // namespace mw
