// interpose_exec.cc - the exported functions that start programs: they take the shim with them, or
// start nothing.
#include <alloca.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim/libc/interpose.h"
#include "shim/process/exec.h"
#include "shim/socket/epoll_group.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {
// Says it as functions do that give -1.
bool is_refused(int error) {
  if (error != 0) errno = error;
  return error != 0;
}
}  // namespace

#define MW_OUR_ENVIRONMENT(env) environment_with_us(env, alloca(environment_room(env)))

MW_EXPORT int execve(const char* path, char* const* argv, char* const* env) noexcept {
  if (is_refused(refusal_of({AT_FDCWD, path, 0}, argv))) return -1;
  epoll_before_exec();
  return libc.execve(path, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execv(const char* path, char* const* argv) noexcept {
  return execve(path, argv, environ);
}
MW_EXPORT int execvpe(const char* file, char* const* argv, char* const* env) noexcept {
  if (is_refused(refusal_in_path(file, argv))) return -1;
  epoll_before_exec();
  return libc.execvpe(file, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execvp(const char* file, char* const* argv) noexcept {
  return execvpe(file, argv, environ);
}
MW_EXPORT int fexecve(int fd, char* const* argv, char* const* env) noexcept {
  if (is_refused(refusal_of({fd, "", AT_EMPTY_PATH}, argv))) return -1;
  epoll_before_exec();
  return libc.fexecve(fd, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int execveat(int fd, const char* path, char* const* argv, char* const* env,
                       int flags) noexcept {
  if (is_refused(refusal_of({fd, path, flags}, argv))) return -1;
  epoll_before_exec();
  return libc.execveat(fd, path, argv, MW_OUR_ENVIRONMENT(env), flags);
}

namespace {
size_t count_arguments(va_list ap) {
  size_t n = 1;
  while (va_arg(ap, char*) != nullptr) ++n;
  return n;
}
void collect_arguments(const char* first, size_t n, va_list ap, char** out) {
  out[0] = const_cast<char*>(first);
  for (size_t i = 1; i <= n; ++i) out[i] = va_arg(ap, char*);
}
}  // namespace

#define MW_ARGUMENTS(first)                                               \
  va_list ap;                                                             \
  va_start(ap, first);                                                    \
  const size_t count = count_arguments(ap);                               \
  va_end(ap);                                                             \
  char** argv = static_cast<char**>(alloca((count + 1) * sizeof(char*))); \
  va_start(ap, first);                                                    \
  collect_arguments(first, count, ap, argv)

MW_EXPORT int execl(const char* path, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  va_end(ap);
  return execve(path, argv, environ);
}
MW_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  va_end(ap);
  return execvpe(file, argv, environ);
}
MW_EXPORT int execle(const char* path, const char* first, ...) noexcept {
  MW_ARGUMENTS(first);
  char* const* env = va_arg(ap, char* const*);
  va_end(ap);
  return execve(path, argv, env);
}
MW_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                          const posix_spawnattr_t* attributes, char* const* argv,
                          char* const* env) {
  if (const int error = refusal_of({path, false, actions, attributes}, argv); error != 0)
    return error;
  epoll_before_exec();
  const Copying copying;
  return libc.posix_spawn(pid, path, actions, attributes, argv, MW_OUR_ENVIRONMENT(env));
}
MW_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                           const posix_spawnattr_t* attributes, char* const* argv,
                           char* const* env) {
  if (const int error = refusal_of({file, true, actions, attributes}, argv); error != 0)
    return error;
  epoll_before_exec();
  const Copying copying;
  return libc.posix_spawnp(pid, file, actions, attributes, argv, MW_OUR_ENVIRONMENT(env));
}

// These start a program without any of the functions above. A library's constructor may call them
// before ours has run.
namespace {
void find_libc_calls() {
  if (libc.system == nullptr) resolve_libc_calls();
}
}  // namespace

MW_EXPORT int system(const char* command) {
  find_libc_calls();
  // As if the shell could not be executed.
  if (refusal_of_shell() != 0) return command == nullptr ? 0 : W_EXITCODE(127, 0);
  keep_own_environment();
  epoll_before_exec();
  const Copying copying;
  return libc.system(command);
}
MW_EXPORT FILE* popen(const char* command, const char* type) {
  find_libc_calls();
  if (is_refused(refusal_of_shell())) return nullptr;
  keep_own_environment();
  epoll_before_exec();
  const Copying copying;
  return libc.popen(command, type);
}
// Without the handlers of fork().
MW_EXPORT pid_t _Fork() noexcept {
  find_libc_calls();
  begin_copying();
  const pid_t pid = libc._Fork();
  if (pid == 0)
    after_fork_in_child();
  else
    end_copying();
  return pid;
}
// What a child of clone() with memory and descriptors of its own begins with.
struct CloneStart {
  int (*run)(void*);
  void* argument;
};
static int start_clone(void* p) {
  after_fork_in_child();
  const CloneStart start = *static_cast<const CloneStart*>(p);
  return start.run(start.argument);
}
MW_EXPORT int clone(int (*run)(void*), void* stack, int flags, void* argument, ...) noexcept {
  va_list ap;
  va_start(ap, argument);
  void* const parent_tid = va_arg(ap, void*);
  void* const tls = va_arg(ap, void*);
  void* const child_tid = va_arg(ap, void*);
  va_end(ap);
  find_libc_calls();
  const Copying copying;
  CloneStart start{run, argument};
  if ((flags & (CLONE_VM | CLONE_FILES)) == 0 && run != nullptr)
    return libc.clone(start_clone, stack, flags, &start, parent_tid, tls, child_tid);
  return libc.clone(run, stack, flags, argument, parent_tid, tls, child_tid);
}
