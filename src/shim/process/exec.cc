#include "shim/process/exec.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/raw_syscall.h"
#include "shim/process/attachment.h"
#include "shim/process/copies.h"
#include "shim/process/file_limit.h"
#include "shim/process/identity.h"
#include "shim/process/process.h"
#include "shim/process/user_memory.h"

namespace mw::shim {
namespace {

constexpr const char kPreload[] = "LD_PRELOAD=";
constexpr const char kSession[] = "MWCOMMS_SESSION=";
constexpr size_t kLineBytes = 1024;
constexpr const char kUncovered[] = "MWCOMMS_UNCOVERED=";

char own_library_name[4096];
char session_env[256];
// The entry of what may run although the shim does not reach it (coverage/coverage.h: is_allowed()),
// as it was when this program began; with an empty list if there was none.
char uncovered_env[kMaxAllowedBytes + 32] = "MWCOMMS_UNCOVERED=";

template <size_t N>
const char* value_of(const char* entry, const char (&name)[N]) {
  return strncmp(entry, name, N - 1) == 0 ? entry + N - 1 : nullptr;
}

// Writes `LD_PRELOAD=OURS[:THEIRS]` to `to`; returns the end of it.
char* write_preload(char* to, const char* theirs) {
  to = ::stpcpy(::stpcpy(to, kPreload), own_library());
  if (*theirs != 0) to = ::stpcpy(::stpcpy(to, ":"), theirs);
  return to + 1;
}

size_t preload_bytes(const char* theirs) {
  return sizeof kPreload + strlen(own_library()) + 1 + strlen(theirs);
}

bool is_readable(char* const* env) {
  for (size_t n = 0; env != nullptr; ++n) {
    if (!is_buffer(env + n, sizeof *env)) return false;
    if (env[n] == nullptr) break;
    if (!is_buffer(env[n], 1)) return false;
  }
  return true;
}

bool is_complete() {
  return own_library() != nullptr && session_setting() != nullptr;
}

// Or of none.
bool is_of_our_session(char* const* env) {
  for (size_t i = 0; env != nullptr && env[i] != nullptr; ++i)
    if (value_of(env[i], kSession) != nullptr) return strcmp(env[i], session_setting()) == 0;
  return true;
}

const char* uncovered_list() {
  return value_of(uncovered_env, kUncovered);
}

// ---- lines about programs ----

uint64_t last_told = 0;

// A program that searches PATH by itself meets the same file in several folders, and is told once.
bool is_told(const Judgement& j, bool allowed) {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  const uint64_t which = (j.device * 0x9e3779b97f4a7c15u + j.inode) * 2 + (allowed ? 1 : 0);
  const uint64_t entry = which << 32 | static_cast<uint32_t>(now.tv_sec + 1);
  const uint64_t before = StdAtomics::load_relaxed(last_told);
  StdAtomics::store_relaxed(last_told, entry);
  return before == entry || before == entry - 1;
}

void say(const char* text) {
  // A child of vfork() has descriptors of its own, which our table knows nothing of; if its stderr is
  // a protected socket, nothing can be written there.
  if (!in_vfork_child()) return log_line("mw", "%s", text);
  if (is_placeholder(STDERR_FILENO)) return;
  char line[kLineBytes];
  const int n = ::snprintf(line, sizeof line, "mw: %s\n", text);
  if (n > 0) raw_syscall(SYS_write, STDERR_FILENO, line, static_cast<size_t>(n));
}

void tell(const Judgement& j, const char* target, bool allowed) {
  char what[kLineBytes / 2];
  char line[kLineBytes - 8];
  describe(j, target, what, sizeof what);
  if (allowed) {
    ::snprintf(line, sizeof line, "%s. It runs uncovered, as --allow-uncovered says.", what);
  } else {
    const char* const name = name_of(j, target);
    const char* const slash = strrchr(name, '/');
    ::snprintf(line, sizeof line,
               "%s. It was not started; mw run --allow-uncovered=%.200s would let it run.", what,
               slash == nullptr ? name : slash + 1);
  }
  make_printable(line);
  say(line);
}

int refusal_for(const Judgement& j, const char* target) {
  // Who went into another network namespace has the kernel's own sockets there.
  if (!is_out_of_reach(j.coverage) || is_abroad()) return 0;
  const int saved = errno;
  const bool allowed = is_allowed(uncovered_list(), j, target);
  if (!is_told(j, allowed)) tell(j, target, allowed);
  errno = saved;
  return allowed ? 0 : EACCES;
}

// 0, or errno: why the dynamic linker will not find this library, as in a chroot, or for a user who
// may not read it. It leaves out what it does not find.
int fault_of_own_library() {
  const char* const path = own_library();
  if (strchr(path, '/') == nullptr || process.confined) return 0;
  const int saved = errno;
  const int fault = raw_syscall(SYS_faccessat, AT_FDCWD, path, R_OK) < 0 ? errno : 0;
  errno = saved;
  return fault;
}

Judgement judge_here(const ExecTarget& t, JudgeOptions options) {
  options.is_confined = process.confined;
  Judgement j = judge(t, options);
  if (j.coverage == Coverage::unreadable && j.error == EMFILE) {
    const FileLimit raised;
    j = judge(t, options);
  }
  if (j.coverage == Coverage::covered) {
    j.error = fault_of_own_library();
    if (j.error != 0) j.coverage = Coverage::shim_unreadable;
  }
  return j;
}

// Of what glibc's dynamic linker would start, given as a program.
int refusal_behind_loader(const Judgement& loader, const ExecTarget& t, char* const* argv) {
  // A script that names the linker.
  const char* const words[] = {loader.interpreter, *loader.argument != 0 ? loader.argument : t.path,
                               nullptr};
  const char* next = nullptr;
  if (loader.interpreter[0] != 0)
    next = behind_loader(words);
  else if (is_readable(argv))
    next = behind_loader(argv);
  if (next == nullptr) return 0;
  JudgeOptions options;
  options.is_mapped_by_loader = true;
  return refusal_for(judge_here({AT_FDCWD, next, 0}, options), next);
}

// `j`: what was found out about the target.
int refusal_after(const Judgement& j, const ExecTarget& t, char* const* argv) {
  return j.is_loader ? refusal_behind_loader(j, t, argv) : refusal_for(j, t.path);
}

// Where execvpe(3) and posix_spawnp(3) look.
constexpr const char kDefaultPath[] = "/bin:/usr/bin";

int refusal_of_searched(int folder, const char* file, char* const* argv, JudgeOptions options,
                        bool takes_text) {
  const bool is_path = strchr(file, '/') != nullptr;
  const char* path = ::getenv("PATH");
  if (path == nullptr) path = kDefaultPath;
  const size_t length = strlen(file);
  for (;;) {
    const size_t n = strcspn(path, ":");
    char candidate[PATH_MAX];
    const bool fits = length != 0 && n + 1 + length < sizeof candidate;
    if (is_path || fits) {
      if (!is_path) {
        memcpy(candidate, path, n);
        size_t at = n;
        if (n != 0) candidate[at++] = '/';
        memcpy(candidate + at, file, length + 1);
      }
      const ExecTarget t{folder, is_path ? file : candidate, 0};
      const Judgement j = judge_here(t, options);
      if (j.coverage == Coverage::no_format)
        return takes_text ? refusal_for(judge_shell(), t.path) : 0;
      const bool goes_on =
          j.coverage == Coverage::missing || j.coverage == Coverage::not_executable;
      if (!goes_on || is_path) return refusal_after(j, t, argv);
    }
    path += n;
    if (*path++ == 0) return 0;
  }
}

// glibc's own form of an action. It is no part of its interface; exec_test.cc holds it to this.
struct SpawnAction {
  enum Kind : int { kOpen = 2, kChdir = 3, kFchdir = 4 };
  int kind;
  union {
    struct {
      int fd;
      const char* path;
      int flags;
      mode_t mode;
    } open;
    struct {
      const char* path;
    } chdir;
    struct {
      int fd;
    } fchdir;
  };
};
static_assert(sizeof(SpawnAction) == 32);

}  // namespace

const char* own_library() {
  return own_library_name[0] != 0 ? own_library_name : nullptr;
}
const char* session_setting() {
  return session_env[0] != 0 ? session_env : nullptr;
}

void keep_settings(const char* session) {
  if (session != nullptr) ::snprintf(session_env, sizeof session_env, "%s%s", kSession, session);
  // A list that is too long for its place allows nothing.
  const char* const list = ::getenv("MWCOMMS_UNCOVERED");
  const size_t n = strlen(uncovered_env);
  if (list != nullptr && strlen(list) < sizeof uncovered_env - n) ::strcpy(uncovered_env + n, list);
  if (const char* const preloaded = ::getenv("LD_PRELOAD"))
    if (const PreloadWord own = find_own_library(preloaded); own.length < sizeof own_library_name)
      memcpy(own_library_name, own.text, own.length);
}

PreloadWord find_own_library(const char* list) {
  constexpr const char kName[] = "libmwshim.so";
  constexpr size_t kLength = sizeof kName - 1;
  while (*list != 0) {
    const size_t n = strcspn(list, ": ");
    const bool is_named = n >= kLength && strncmp(list + n - kLength, kName, kLength) == 0;
    if (is_named && (n == kLength || list[n - kLength - 1] == '/')) return {list, n};
    list += n;
    list += strspn(list, ": ");
  }
  return {list, 0};
}

size_t environment_room(char* const* env) {
  if (!is_complete() || !is_readable(env)) return 0;
  size_t bytes = 4 * sizeof(char*) + preload_bytes("");
  for (size_t n = 0; env != nullptr && env[n] != nullptr; ++n) {
    bytes += sizeof(char*);
    if (const char* list = value_of(env[n], kPreload)) bytes += preload_bytes(list);
  }
  return bytes;
}

char* const* environment_with_us(char* const* env, void* room) {
  if (!is_complete() || !is_readable(env)) return env;
  size_t count = 0;
  while (env != nullptr && env[count] != nullptr) ++count;
  auto** const out = static_cast<char**>(room);
  char* text = reinterpret_cast<char*>(out + count + 4);
  size_t n = 0;
  bool has_preload = false;
  bool has_session = false;
  bool has_uncovered = !is_of_our_session(env);  // not ours to say
  const bool is_ours = !has_uncovered;
  for (size_t i = 0; i < count; ++i) {
    out[n] = env[i];
    if (const char* list = value_of(env[i], kPreload)) {
      has_preload = true;
      if (find_own_library(list).length == 0) {
        out[n] = text;
        text = write_preload(text, list);
      }
    }
    if (value_of(env[i], kSession) != nullptr) has_session = true;
    if (is_ours && value_of(env[i], kUncovered) != nullptr) {
      out[n] = uncovered_env;
      has_uncovered = true;
    }
    ++n;
  }
  if (!has_preload) {
    out[n++] = text;
    write_preload(text, "");
  }
  if (!has_session) out[n++] = const_cast<char*>(session_setting());
  if (!has_uncovered && *uncovered_list() != 0) out[n++] = uncovered_env;
  out[n] = nullptr;
  return out;
}

void keep_own_environment() {
  if (!is_complete()) return;
  const char* list = ::getenv("LD_PRELOAD");
  if (list == nullptr) list = "";
  if (find_own_library(list).length == 0) {
    if (auto* text = static_cast<char*>(::malloc(preload_bytes(list)))) {
      write_preload(text, list);
      ::setenv("LD_PRELOAD", text + sizeof kPreload - 1, 1);
      ::free(text);
    }
  }
  if (::getenv("MWCOMMS_SESSION") == nullptr)
    ::setenv("MWCOMMS_SESSION", value_of(session_setting(), kSession), 1);
  const char* uncovered = ::getenv("MWCOMMS_UNCOVERED");
  if (is_of_our_session(environ) &&
      strcmp(uncovered == nullptr ? "" : uncovered, uncovered_list()) != 0)
    ::setenv("MWCOMMS_UNCOVERED", uncovered_list(), 1);
}

int refusal_of(const ExecTarget& target, char* const* argv) {
  if (!is_complete()) return 0;
  ExecTarget t = target;
  if (t.path == nullptr) {
    if ((t.flags & AT_EMPTY_PATH) == 0) return 0;
    t.path = "";
  }
  return refusal_after(judge_here(t, {}), t, argv);
}

int refusal_in_path(const char* file, char* const* argv) {
  return is_complete() ? refusal_of_searched(AT_FDCWD, file, argv, {}, true) : 0;
}

int refusal_of_shell() {
  constexpr const char kShell[] = "/bin/sh";
  return is_complete() ? refusal_for(judge_here({AT_FDCWD, kShell, 0}, {}), kShell) : 0;
}

int refusal_of(const Spawned& spawned, char* const* argv) {
  if (!is_complete()) return 0;
  JudgeOptions options;
  short flags = 0;
  if (spawned.attributes != nullptr && ::posix_spawnattr_getflags(spawned.attributes, &flags) == 0)
    options.resets_ids = (flags & POSIX_SPAWN_RESETIDS) != 0;
  const SpawnFolder folder(spawned.actions);
  if (!folder.is_there()) return 0;
  if (spawned.is_searched)
    return refusal_of_searched(folder.fd(), spawned.path, argv, options, false);
  const ExecTarget t{folder.fd(), spawned.path, 0};
  return refusal_after(judge_here(t, options), t, argv);
}

SpawnFolder::SpawnFolder(const posix_spawn_file_actions_t* actions) {
  if (actions == nullptr) return;
  const int saved = errno;
  const auto* const all = reinterpret_cast<const SpawnAction*>(actions->__actions);
  for (int i = 0; i < actions->__used && is_there_; ++i) {
    if (all[i].kind == SpawnAction::kChdir) go_to(fd_, all[i].chdir.path);
    if (all[i].kind != SpawnAction::kFchdir) continue;
    // The descriptor may be one that an action before has opened.
    int k = i - 1;
    while (k >= 0 && !(all[k].kind == SpawnAction::kOpen && all[k].open.fd == all[i].fchdir.fd))
      --k;
    if (k >= 0)
      go_to(fd_, all[k].open.path);
    else
      go_to(all[i].fchdir.fd, ".");
  }
  errno = saved;
}

SpawnFolder::~SpawnFolder() {
  const int saved = errno;
  if (is_ours_) raw_syscall(SYS_close, fd_);
  errno = saved;
}

void SpawnFolder::go_to(int folder, const char* path) {
  const auto fd =
      static_cast<int>(raw_syscall(SYS_openat, folder, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
  if (is_ours_) raw_syscall(SYS_close, fd_);
  fd_ = fd;
  is_ours_ = is_there_ = fd >= 0;
}

}  // namespace mw::shim
