// Driver and INS are shell scripts here: what counts is who is started, watched, replaced and
// ended.
#include "frontend/supervisor.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace mw {
namespace {

using std::chrono::milliseconds;

// Says ready and stays until TERM.
std::string serve(int ready_fd) {
  const std::string fd = std::to_string(ready_fd);
  return "echo >&" + fd + "; exec " + fd + ">&-; trap 'exit 0' TERM; sleep 1000 & wait; ";
}

SpawnRequest shell(const std::string& script) {
  SpawnRequest request;
  request.argv = {"/bin/bash", "-c", script};
  return request;
}

class Supervise : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-supervisor-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    config_.driver = [](int fd) { return shell("" + serve(fd)); };
    config_.ins = [this](unsigned id, int fd) {
      return shell("echo " + std::to_string(id) + " >>" + folder_ + "/ids; " + serve(fd));
    };
    config_.changed = [] {};
    config_.ins_gone = [this](unsigned id) { gone_.push_back(id); };
    config_.heartbeat = [](unsigned) { return std::string(); };
    config_.driver_heartbeat = [] { return std::string(); };
    config_.running = [] {};
    config_.serving = [this] { served_ = true; };
    config_.log = [this](const std::string& text) { log_ += text + "\n"; };
    config_.ready_timeout = milliseconds(5000);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Outcome<int> run(const std::string& application) {
    config_.application = shell(application);
    auto outcome = supervise();
    // Whoever is still there has been killed and ends now; anybody else would keep this test
    // waiting for ever.
    while (::waitpid(-1, nullptr, 0) > 0) {
    }
    return outcome;
  }

  Outcome<int> supervise() {
    const HeldSignals signals;
    Supervisor supervisor(config_, signals);
    supervisor_ = &supervisor;
    auto outcome = supervisor.run();
    supervisor_ = nullptr;
    return outcome;
  }

  SupervisorConfig config_;
  Supervisor* supervisor_ = nullptr;
  std::string folder_;
  std::string log_;
  std::vector<unsigned> gone_;
  bool served_ = false;
};

TEST_F(Supervise, ReturnsTheCommandsStatus) {
  for (const auto& [script, status] : {std::pair{"true", 0}, {"exit 7", 7}, {"kill -9 $$", 137}}) {
    auto outcome = run(script);
    ASSERT_TRUE(outcome) << outcome.error().text();
    EXPECT_EQ(*outcome, status) << script;
    EXPECT_TRUE(served_);
  }
}

TEST_F(Supervise, FailsIfTheInsDiesBeforeItServes) {
  config_.ins = [](unsigned, int) { return shell("exit 3"); };
  auto outcome = run("touch " + folder_ + "/ran");
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().text().find("mwins"), std::string::npos) << outcome.error().text();
  EXPECT_NE(outcome.error().text().find("status 3"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/ran"));
}

TEST_F(Supervise, FailsIfTheDriverIsNeverReady) {
  config_.driver = [](int) { return shell("trap 'exit 0' TERM; sleep 1000 & wait"); };
  config_.ready_timeout = milliseconds(300);
  auto outcome = run("true");
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().text().find("mwcommsd was not ready"), std::string::npos)
      << outcome.error().text();
}

TEST_F(Supervise, FailsIfTheCommandCannotBeStarted) {
  config_.application.argv = {"/no/such/program"};
  const HeldSignals signals;
  Supervisor supervisor(config_, signals);
  auto outcome = supervisor.run();
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().text().find("/no/such/program"), std::string::npos);
}

TEST_F(Supervise, ReplacesADeadInsWithANewId) {
  // The application kills its INS twice and sees the third.
  config_.changed = [this] {
    if (supervisor_ == nullptr) return;
    const std::string pid = std::to_string(supervisor_->ins().pid);
    EXPECT_TRUE(write_text_atomically(folder_ + "/pid", pid));
  };
  auto outcome = run("cd " + folder_ +
                     "; old=0; for n in 2 3; do"
                     " until p=$(cat pid) && [ $p != 0 ] && [ $p != $old ]; do sleep 0.02; done;"
                     " kill -9 $p; old=$p;"
                     " until [ $(wc -l <ids) -eq $n ]; do sleep 0.02; done; done");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 0);
  EXPECT_EQ(read_text(folder_ + "/ids"), "1\n2\n3\n");
  EXPECT_EQ(gone_, (std::vector<unsigned>{1, 2}));
  EXPECT_NE(log_.find("was killed by SIGKILL; starting another"), std::string::npos) << log_;
}

TEST_F(Supervise, EndsAnInsThatStopsBeating) {
  config_.heartbeat = [](unsigned id) { return id == 1 ? "stuck" : ""; };
  config_.heartbeat_timeout = milliseconds(200);
  auto outcome = run("until [ $(wc -l <" + folder_ + "/ids) -eq 2 ]; do sleep 0.05; done");
  ASSERT_TRUE(outcome);
  EXPECT_NE(log_.find("stopped beating"), std::string::npos) << log_;
}

TEST_F(Supervise, ReplacesAnInsThatDiesAtOnceWithGrowingDelays) {
  config_.ins = [this](unsigned id, int fd) {
    const std::string die = id == 1 ? serve(fd) : "kill -9 $$";
    return shell("echo " + std::to_string(id) + " $$ >>" + folder_ + "/ids; " + die);
  };
  const auto began = std::chrono::steady_clock::now();
  auto outcome = run("cd " + folder_ +
                     "; read id pid <ids; kill -9 $pid; until [ $(wc -l <ids) -ge 6 ]; do sleep "
                     "0.02; done");
  ASSERT_TRUE(outcome);
  // At once, then after 40, 80, 160 and 320 ms.
  EXPECT_GT(std::chrono::steady_clock::now() - began, milliseconds(600));
}

TEST_F(Supervise, GivesUpAnInsThatIsPoisonedAgainAndAgain) {
  config_.driver = [this](int fd) {
    return shell("trap 'touch " + folder_ + "/over' USR1; echo >&" + std::to_string(fd) +
                 "; trap 'exit 0' TERM; while :; do sleep 0.02; done");
  };
  config_.ins = [this](unsigned id, int fd) {
    return shell("cd " + folder_ + "; echo " + std::to_string(id) + " >>ids; echo >&" +
                 std::to_string(fd) + "; until [ -e up ]; do sleep 0.02; done; exit 3");
  };
  config_.poison_delay = milliseconds(5);
  auto outcome =
      run("cd " + folder_ + "; touch up; until [ -e over ]; do sleep 0.02; done; sleep 0.3");
  ASSERT_TRUE(outcome) << outcome.error().text();
  EXPECT_EQ(*outcome, 0) << "the application goes on";
  EXPECT_EQ(read_text(folder_ + "/ids"), "1\n2\n3\n4\n5\n");
  const std::string said = "no other is started";
  ASSERT_NE(log_.find(said), std::string::npos) << log_;
  EXPECT_EQ(log_.find(said, log_.find(said) + 1), std::string::npos) << "said once";
}

TEST_F(Supervise, APoisoningNowAndThenIsForgotten) {
  config_.ins = [this](unsigned id, int fd) {
    return shell("echo " + std::to_string(id) + " >>" + folder_ + "/ids; echo >&" +
                 std::to_string(fd) + "; until [ -e " + folder_ +
                 "/up ]; do sleep 0.02; done; exit 3");
  };
  config_.poison_delay = config_.poison_calm = milliseconds(1);
  auto outcome = run("touch " + folder_ + "/up; until [ $(wc -l <" + folder_ +
                     "/ids) -ge 8 ]; do sleep 0.02; done");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(log_.find("no other is started"), std::string::npos) << log_;
}

TEST_F(Supervise, GoesOnWithASessionThatAnotherHadStarted) {
  const auto start = [](const std::string& script) {
    auto pid = spawn(shell(script));
    EXPECT_TRUE(pid);
    return identify(*pid);
  };
  Adopted found;
  found.driver = start("exec sleep 1000");
  found.ins = start("exec sleep 1000");
  found.ins_id = 7;
  found.application = start("until [ -e " + folder_ + "/ids ]; do sleep 0.02; done");
  config_.session_processes = [&] {
    return is_alive(found.application) ? std::vector<pid_t>{found.application.pid}
                                       : std::vector<pid_t>{};
  };
  ::kill(found.ins.pid, SIGKILL);
  const HeldSignals signals;
  Supervisor supervisor(config_, signals);
  auto outcome = supervisor.adopt(found);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 0);
  EXPECT_EQ(read_text(folder_ + "/ids"), "8\n") << "a new INS with the next number";
  EXPECT_FALSE(is_alive(found.driver)) << "the helpers ended with the session";
  EXPECT_FALSE(served_);
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
}

TEST_F(Supervise, WaitsForDaemonsThatTheCommandLeavesBehind) {
  auto outcome = run("setsid bash -c 'sleep 0.3; touch " + folder_ + "/end' & exit 4");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 4);
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/end"));
}

TEST_F(Supervise, PassesSignalsOn) {
  const std::string self = std::to_string(::getpid());
  auto outcome = run("trap 'exit 42' USR1; kill -USR1 " + self + "; while :; do sleep 0.02; done");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 42);
}

TEST_F(Supervise, CtrlCEndsADaemon) {
  const std::string self = std::to_string(::getpid());
  auto outcome = run("setsid bash -c 'trap \"touch " + folder_ + "/term; exit 0\" TERM; touch " +
                     folder_ + "/up; while :; do sleep 0.02; done' & until [ -e " + folder_ +
                     "/up ]; do sleep 0.02; done; setsid bash -c 'sleep 0.2; kill -INT " + self +
                     "' & exit 0");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 0);
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/term"));
}

TEST_F(Supervise, ASignalDuringStartEndsTheSession) {
  config_.ins = [](unsigned, int) {
    return shell("kill -TERM $PPID; trap 'exit 0' TERM; sleep 1000 & wait");
  };
  auto outcome = run("touch " + folder_ + "/ran");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, 128 + SIGTERM);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/ran"));
}

}  // namespace
}  // namespace mw
