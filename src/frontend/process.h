// process.h - start a program with exactly the descriptors, namespaces and signals it should have,
// and name processes so that a reused pid is never mistaken for the one we meant.
//
// INVARIANTS  A ProcId is a pid plus its start time; it stays unique until the machine reboots.
//             spawn() reports a failed exec as a Failure, never as a child that exits with 127.
// THREADS     The caller must be single-threaded: spawn() runs ordinary code between fork and exec.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "frontend/failure.h"

namespace mw {

struct ProcId {
  pid_t pid = 0;
  uint64_t start = 0;  // clock ticks since boot, field 22 of /proc/PID/stat
};

// The identity of a running (or not yet reaped) process; start = 0 if there is none.
ProcId identify(pid_t pid);
// Still there, and not a zombie.
bool is_alive(const ProcId& id);
// Whether its first thread has work to do and no processor to do it on: it is neither asleep nor
// has it run since `ran_ns` was last set here.
bool is_starved(pid_t pid, uint64_t* ran_ns);
// Processes whose parent is `parent`, a process with one thread; zombies too. One that comes while
// another one ends may be missing.
std::vector<pid_t> children_of(pid_t parent);
// The same, from a look at every process of the host.
std::vector<pid_t> all_children_of(pid_t parent);
// Every process whose initial environment holds this NAME=VALUE prefix. (A program that writes its
// title over its environment is not found so.)
std::vector<pid_t> processes_with_environment(const std::string& prefix);
// A memory file (memfd), as a process that maps it shows it.
struct MemoryId {
  uint64_t inode = 0;  // 0: none
  std::string name;
};
// Every process that maps it.
std::vector<pid_t> processes_with_memory(const MemoryId& memory);
// Every process that has these two words, one after the other, among its arguments.
std::vector<pid_t> processes_with_arguments(const std::string& first, const std::string& second);
bool ignores(pid_t pid, int signal);
// 0: there is no such process.
pid_t parent_of(pid_t pid);

struct SpawnRequest {
  std::vector<std::string> argv;         // argv[0] is a path, or looked up in PATH
  std::vector<std::string> environment;  // added; NAME=VALUE replaces an older NAME
  std::vector<int> keep;  // descriptors that the program inherits under their numbers
  int netns = -1;         // network namespace to enter first
  // It is the first process of a pid namespace of its own, if we may make one: it names no process of
  // ours, and those that it leaves end with it. A signal for which it has no handler and that it does not
  // block is lost to it, but for SIGKILL.
  bool own_pids = false;
  // A helper: own process group, no stdin, stdout to stderr, many fds; of our environment and
  // descriptors it has what base/helper.h and `keep` say. Else it has all of ours.
  bool background = false;
  int messages = -1;  // with background: its stdout and stderr; else ours
  sigset_t mask{};    // signal mask that it starts with
};

Outcome<pid_t> spawn(const SpawnRequest& request);

// The descriptors that our caller gave us: for the application, whose ends they mark. A lock or a pipe
// that all others have closed must not live on in us.
class InheritedDescriptors {
 public:
  // Those that there are now, at our beginning.
  InheritedDescriptors();
  // Closes them, the standard input and output too; messages still go to the standard error.
  void close();
  // Those that the application gets, in rising order.
  std::vector<int> all() const;

 private:
  std::vector<int> fds_;
};

// Whether the dynamic linker really preloads this library: what cannot be loaded it leaves out with
// a warning, and the program would run without. `program` is one that says nothing and succeeds.
Outcome<Done> check_preload(const std::string& library, const std::string& program);

// Runs a well-known tool (base/helper.h) to its end with `input` on stdin. The outcome is its stdout;
// a status other than 0 is a Failure that quotes its stderr.
Outcome<std::string> run_tool(const std::string& step, const std::vector<std::string>& argv,
                              const std::string& input = {});

// The file, at most so much of it, or an empty string if it cannot be read.
std::string read_text(const std::string& path, size_t most = SIZE_MAX);
// Replaces a file in one step, so that a reader sees the old or the new text.
Outcome<Done> write_text_atomically(const std::string& path, const std::string& text);

}  // namespace mw
