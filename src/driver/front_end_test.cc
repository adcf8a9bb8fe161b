#include "driver/front_end.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <string>

#include "driver/keepers.h"
#include "tests/support/driver_session.h"

namespace mw {
namespace {

constexpr mw_geometry kSmall{.slots = 64,
                             .rx_ring = 4096,
                             .tx_ring = 4096,
                             .groups = 4,
                             .workers = 2,
                             .calls = 16,
                             .reserved = {0, 0}};

// Of a process that has ended.
uint32_t dead_pid() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
  return static_cast<uint32_t>(pid);
}

class FrontEndTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-front-end-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    auto registry = LocalRegistry::create(folder_ + "/r");
    ASSERT_TRUE(registry);
    registry_ = std::make_unique<LocalRegistry>(std::move(*registry));
    ASSERT_TRUE(registry_->write("mw/pvm/id", "t"));
    auto fds = make_session_fds("front-end-test-" + std::to_string(::getpid()), kSmall);
    ASSERT_TRUE(fds);
    fds_ = std::move(*fds);
    fds_.kept.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    options_ = options_for(fds_);
    options_.session = "t-0";
    options_.store_fds[0] = fds_.store_in.get();
    options_.store_fds[1] = fds_.store_out.get();
    options_.kept_fds = {fds_.kept[0].get()};
    options_.adopt_delay = std::chrono::milliseconds(5);
    auto poller = Poller::make();
    ASSERT_TRUE(poller);
    poller_ = std::make_unique<Poller>(std::move(*poller));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void open(uint32_t front_end) {
    options_.front_end = front_end;
    front_end_ = std::make_unique<FrontEnd>(*poller_, options_);
    ASSERT_TRUE(front_end_->open(*registry_));
  }

  // Handles events until the condition holds.
  bool until(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      auto events = poller_->wait(5);
      for (const Event& e : *events) {
        if (e.source == Source::adopt) front_end_->on_connect();
        if (e.source == Source::front_end_death) front_end_->on_death();
        if (e.source == Source::adopter_death) front_end_->on_adopter_end();
        if (e.source == Source::adopt_timer) front_end_->on_timer();
      }
    }
    return true;
  }

  Result<AdoptedSession> ask() {
    auto answer = std::async(std::launch::async, [this] { return take_over(folder_ + "/r"); });
    EXPECT_TRUE(until(
        [&] { return answer.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }));
    return answer.get();
  }

  // A program that leaves a line for each start.
  void start_with(const std::string& script) {
    options_.adopt_with = folder_ + "/adopt";
    std::ofstream(options_.adopt_with) << "#!/bin/bash\necho \"$@\" >>" << folder_ << "/starts\n"
                                       << script << "\n";
    ASSERT_EQ(::chmod(options_.adopt_with.c_str(), 0700), 0);
    auto keepers = Keepers::start(options_, 0, nullptr);
    ASSERT_TRUE(keepers);
    keepers_ = std::move(*keepers);
    options_.front_end_keeper = keepers_.front_end.get();
  }
  size_t starts() const {
    std::ifstream in(folder_ + "/starts");
    size_t n = 0;
    for (std::string line; std::getline(in, line); ++n) EXPECT_EQ(line, "adopt t-0");
    return n;
  }

  std::string folder_;
  std::unique_ptr<LocalRegistry> registry_;
  SessionFds fds_;
  DriverOptions options_;
  std::unique_ptr<Poller> poller_;
  Keepers keepers_;
  std::unique_ptr<FrontEnd> front_end_;
};

TEST_F(FrontEndTest, HandsOverNothingWhileItLives) {
  open(static_cast<uint32_t>(::getppid()));
  auto got = ask();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().fault, Fault::shutdown);
}

TEST_F(FrontEndTest, HandsOverAllToTheFirstThatComesAfterItsDeath) {
  open(dead_pid());
  auto got = ask();
  ASSERT_TRUE(got) << got.error().where;
  EXPECT_EQ(got->token, options_.token);
  EXPECT_EQ(got->fds.attach_name, fds_.attach_name);
  EXPECT_TRUE(same_file(got->fds.channel.get(), fds_.channel.get()));
  EXPECT_TRUE(same_file(got->fds.session.get(), fds_.session.get()));
  EXPECT_TRUE(same_file(got->fds.attach.get(), fds_.attach.get()));
  EXPECT_TRUE(same_file(got->fds.placeholders.get(), fds_.placeholders.get()));
  EXPECT_TRUE(same_file(got->fds.drop_pvm.get(), fds_.drop_pvm.get()));
  EXPECT_TRUE(same_file(got->fds.drop_ins.get(), fds_.drop_ins.get()));
  EXPECT_TRUE(same_file(got->fds.store_in.get(), fds_.store_in.get()));
  EXPECT_TRUE(same_file(got->fds.store_out.get(), fds_.store_out.get()));
  ASSERT_EQ(got->fds.bells.size(), 2u);
  ASSERT_EQ(got->fds.kept.size(), 1u);
  EXPECT_TRUE(same_file(got->fds.kept[0].get(), fds_.kept[0].get()));
  // We are the front end now, and live.
  EXPECT_FALSE(ask());
}

TEST_F(FrontEndTest, StartsASuccessorAndGivesUpAfterSomeThatFail) {
  start_with("exit 1");
  open(dead_pid());
  EXPECT_TRUE(until([this] { return starts() == FrontEnd::kMostFailures; }));
  const auto later = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  EXPECT_TRUE(until([&] { return std::chrono::steady_clock::now() > later; }));
  EXPECT_EQ(starts(), FrontEnd::kMostFailures);
  EXPECT_TRUE(ask()) << "one that a user starts is still welcome";
}

TEST_F(FrontEndTest, ASuccessorKnowsNoSecretBeforeItAsks) {
  ASSERT_EQ(::setenv("MWCOMMS_TOKEN", "secret", 1), 0);
  start_with("echo ${MWCOMMS_TOKEN-none} >" + folder_ + "/token; exit 1");
  open(dead_pid());
  std::string token;
  EXPECT_TRUE(until([&] {
    return std::getline(std::ifstream(folder_ + "/token") >> std::ws, token) && !token.empty();
  }));
  EXPECT_EQ(token, "none");
  ::unsetenv("MWCOMMS_TOKEN");
}

}  // namespace
}  // namespace mw
