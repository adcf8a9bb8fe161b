// exec.h - programs started by a protected program stay protected: LD_PRELOAD, MWCOMMS_SESSION and
// MWCOMMS_UNCOVERED are put back into environments that lost them, and a program whose sockets the
// shim would not reach is not started. What the program asked for itself stays.
//
// THREADS     Any; nothing here allocates, but for keep_own_environment(), so it may run in a child
//             of vfork().
#pragma once

#include <spawn.h>
#include <stddef.h>

#include "coverage/coverage.h"

namespace mw::shim {

struct PreloadWord {
  const char* text;
  size_t length;
};
// The word of a list of preloaded libraries that names this one; length 0: none does.
PreloadWord find_own_library(const char* list);

// What a program started by us needs in its environment: the name of this library as LD_PRELOAD has
// it, and the entry of the session. Null before keep_settings(), or where there is none.
const char* own_library();
const char* session_setting();
// Keeps what stands in the environment now, as this program may change it. `session`: what it says of
// the session; null: nothing that is one.
void keep_settings(const char* session);

// Bytes that environment_with_us() needs.
size_t environment_room(char* const* env);
// Fills `room` with env, this library first among the preloaded ones if it is not among them, the
// session, and what may run uncovered in it, whatever env says of that. (An environment of another
// session keeps what it has.) Returns what to start the program with: `env` itself if it cannot be
// read, which is the kernel's to refuse.
char* const* environment_with_us(char* const* env, void* room);

// Mends the process's own environment, for what the C library starts with it by itself.
void keep_own_environment();

// Asked before a program is started: 0, or the errno with which that fails, as the program would run
// outside the session (docs/decisions/0021). One line on stderr says why; it also says so if the
// program may run all the same. What the kernel refuses anyway is left to the kernel. errno is
// preserved.
int refusal_of(const ExecTarget& target, char* const* argv);
// Of the program that execvpe(3) finds in PATH, or of the shell that it runs a plain text with.
int refusal_in_path(const char* file, char* const* argv);
// Of the shell of system(3) and popen(3).
int refusal_of_shell();

// What posix_spawn(3) would start, found from the folder that its actions go to.
struct Spawned {
  const char* path;
  bool is_searched;  // in PATH, if it has no slash
  const posix_spawn_file_actions_t* actions;
  const posix_spawnattr_t* attributes;
};
int refusal_of(const Spawned& spawned, char* const* argv);

// The folder that a process is in after these actions, open until the object ends.
class SpawnFolder {
 public:
  // Requires: `actions` are null, or as the C library's functions have made them.
  explicit SpawnFolder(const posix_spawn_file_actions_t* actions);
  ~SpawnFolder();
  SpawnFolder(const SpawnFolder&) = delete;
  SpawnFolder& operator=(const SpawnFolder&) = delete;
  int fd() const { return fd_; }
  // False: an action goes to a folder that is not there, so nothing will be started.
  bool is_there() const { return is_there_; }

 private:
  void go_to(int folder, const char* path);

  int fd_ = AT_FDCWD;
  bool is_ours_ = false;
  bool is_there_ = true;
};

}  // namespace mw::shim
