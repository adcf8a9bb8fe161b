#include "frontend/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>

#include "base/unique_fd.h"

namespace mw {
namespace {

int status_of(pid_t pid) {
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return status;
}

TEST(Spawn, ReportsAFailedExec) {
  SpawnRequest request;
  request.argv = {"/no/such/program"};
  auto pid = spawn(request);
  ASSERT_FALSE(pid);
  EXPECT_NE(pid.error().text().find("No such file"), std::string::npos) << pid.error().text();
}

TEST(Spawn, PassesOnWhatWasAskedFor) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd in{ends[0]};
  UniqueFd out{ends[1]};
  ASSERT_EQ(::setenv("MW_TEST_OLD", "old", 1), 0);
  SpawnRequest request;
  const std::string fd = std::to_string(out.get());
  // The reading end is not asked for; the environment is ours with the change.
  request.argv = {
      "/bin/bash", "-c",
      "[ ! -e /proc/self/fd/" + std::to_string(in.get()) + " ]; echo \"$MW_TEST_OLD $?\" >&" + fd};
  request.environment = {"MW_TEST_OLD=new"};
  request.keep = {out.get()};
  auto pid = spawn(request);
  ASSERT_TRUE(pid);
  out.reset();
  EXPECT_EQ(status_of(*pid), 0);
  char text[64] = {};
  ASSERT_GT(::read(in.get(), text, sizeof(text) - 1), 0);
  EXPECT_STREQ(text, "new 0\n");
}

// What a program is told of sockets that were passed to us: by systemd's names, and by a pid that is
// exactly ours.
std::string told_by(const std::string& listen_pid) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd in{ends[0]};
  UniqueFd out{ends[1]};
  EXPECT_EQ(::setenv("LISTEN_PID", listen_pid.c_str(), 1), 0);
  EXPECT_EQ(::setenv("LISTEN_PIDFDID", "4711", 1), 0);
  SpawnRequest request;
  request.argv = {"/bin/bash", "-c",
                  "[ \"$LISTEN_PID\" = $$ ] && echo mine ${LISTEN_PIDFDID-gone} >&" +
                      std::to_string(out.get()) + " || echo $LISTEN_PID $LISTEN_PIDFDID >&" +
                      std::to_string(out.get())};
  request.keep = {out.get()};
  auto pid = spawn(request);
  EXPECT_TRUE(pid);
  out.reset();
  EXPECT_EQ(status_of(*pid), 0);
  char text[64] = {};
  EXPECT_GT(::read(in.get(), text, sizeof(text) - 1), 0);
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_PIDFDID");
  return text;
}

TEST(Spawn, SocketsThatWerePassedToUsAreThePrograms) {
  const std::string ours = std::to_string(::getpid());
  EXPECT_EQ(told_by(ours), "mine gone\n");
  for (const std::string& other : {ours + "x", "0" + ours, "x" + ours, std::string("1")})
    EXPECT_EQ(told_by(other), other + " 4711\n");
}

TEST(Spawn, BackgroundHasItsOwnGroup) {
  SpawnRequest request;
  request.argv = {"/bin/cat"};  // ends at once: its stdin is /dev/null
  request.background = true;
  auto pid = spawn(request);
  ASSERT_TRUE(pid);
  EXPECT_EQ(::getpgid(*pid), *pid);
  EXPECT_EQ(status_of(*pid), 0);
}

TEST(RunTool, QuotesWhatTheToolSays) {
  auto good = run_tool("count", {"wc", "-c"}, "12345");
  ASSERT_TRUE(good);
  EXPECT_EQ(*good, "5\n");
  auto bad = run_tool("list", {"sh", "-c", "echo this is why >&2; exit 3"});
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().text().find("this is why"), std::string::npos);
  auto missing = run_tool("try", {"no-such-tool"});
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().remedy.find("install"), std::string::npos);
}

TEST(RunTool, SurvivesAToolThatReadsNothing) {
  const std::string large(1 << 20, 'x');
  EXPECT_TRUE(run_tool("ignore", {"true"}, large));
  auto echoed = run_tool("echo", {"cat"}, large);
  ASSERT_TRUE(echoed);
  EXPECT_EQ(*echoed, large);
}

TEST(Identify, TellsProcessesApart) {
  const ProcId self = identify(::getpid());
  EXPECT_NE(self.start, 0u);
  EXPECT_TRUE(is_alive(self));
  EXPECT_FALSE(is_alive({self.pid, self.start + 1}));
  EXPECT_FALSE(is_alive({0, 0}));
  SpawnRequest request;
  request.argv = {"/bin/cat"};
  request.background = true;
  auto pid = spawn(request);
  ASSERT_TRUE(pid);
  const ProcId child = identify(*pid);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(*pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(is_alive(child)) << "a zombie is not alive";
  EXPECT_EQ(status_of(*pid), 0);
}

// Two that never sleep share a processor with us, and one of them gets what nobody else wants.
TEST(IsStarved, TellsWhoWaitsForAProcessorFromWhoSleeps) {
  cpu_set_t all;
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  const auto begin = [&one](bool idle, bool asleep) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const sched_param none{};
    if (::sched_setaffinity(0, sizeof one, &one) != 0 ||
        (idle && ::sched_setscheduler(0, SCHED_IDLE, &none) != 0))
      ::_exit(1);
    for (;;) (void)(asleep ? ::pause() : ::getppid());
  };
  const pid_t hog = begin(false, false);
  const pid_t starved = begin(true, false);
  const pid_t sleeper = begin(false, true);
  uint64_t ran = 0;
  uint64_t slept = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  bool seen = false;
  while (!seen && std::chrono::steady_clock::now() < end) {
    seen = is_starved(starved, &ran);
    ::poll(nullptr, 0, 1);
  }
  EXPECT_TRUE(seen);
  while (read_text("/proc/" + std::to_string(sleeper) + "/stat").find(") S ") ==
             std::string::npos &&
         std::chrono::steady_clock::now() < end)
    ::poll(nullptr, 0, 1);
  for (int look = 0; look < 3; ++look) EXPECT_FALSE(is_starved(sleeper, &slept));
  for (const pid_t pid : {hog, starved, sleeper}) {
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    status_of(pid);
  }
  EXPECT_FALSE(is_starved(starved, &ran));
}

TEST(Processes, AreFoundByEnvironmentAndParent) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd in{ends[0]};
  UniqueFd out{ends[1]};
  SpawnRequest request;
  request.argv = {"/bin/sh", "-c", "read x <&" + std::to_string(in.get())};
  request.environment = {"MW_TEST_MARK=abc:def"};
  request.keep = {in.get()};
  auto pid = spawn(request);
  ASSERT_TRUE(pid);
  const auto marked = processes_with_environment("MW_TEST_MARK=abc:");
  EXPECT_EQ(marked, std::vector<pid_t>{*pid});
  const auto children = children_of(::getpid());
  EXPECT_NE(std::find(children.begin(), children.end(), *pid), children.end());
  out.reset();
  status_of(*pid);
  EXPECT_TRUE(processes_with_environment("MW_TEST_MARK=abc:").empty());
}

}  // namespace
}  // namespace mw
