// helper.h - what a program that we start for ourselves gets of what its starter has: nothing but
// what it needs.
//
// PURPOSE     Helpers (mwins, mwcommsd, a front end that adopts) and tools (ip, nft) run with more
//             rights than the application, or face the network. Whatever the caller of `mw run` has
//             open or in its environment is a secret from them, and must not steer them.
// TRUST       The caller's environment and descriptors are hostile, the preloads of another session
//             that we run in included.
// THREADS     exec_helper() and close_on_exec_from() may run between fork() and exec in a program
//             with threads; the environment is made before.
#pragma once

#include <fcntl.h>
#include <linux/close_range.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/raw_syscall.h"
#include "base/sanitized.h"

namespace mw {

// Where tools are looked for, whatever PATH says.
constexpr const char* kToolFolders[] = {"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"};
constexpr const char* kToolPath = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

// The environment of a helper. Of ours it has the resolver's settings, which hold for the whole
// session, and where a user's sessions are.
class HelperEnvironment {
 public:
  // `added`: NAME=VALUE.
  explicit HelperEnvironment(std::vector<std::string> added = {}) : strings_(std::move(added)) {
    strings_.emplace_back(kToolPath);
    for (const char* name : kKept) {
      for (char** e = environ; *e != nullptr; ++e) {
        const size_t n = std::strlen(name);
        if (std::strncmp(*e, name, n) == 0 && (*e)[n] == '=') strings_.emplace_back(*e);
      }
    }
    for (std::string& s : strings_) pointers_.push_back(s.data());
    pointers_.push_back(nullptr);
  }
  HelperEnvironment(const HelperEnvironment&) = delete;
  HelperEnvironment& operator=(const HelperEnvironment&) = delete;

  char* const* get() const { return pointers_.data(); }

 private:
  static constexpr const char* kKept[] = {
      "RES_OPTIONS",  "LOCALDOMAIN",  "XDG_RUNTIME_DIR",
#ifdef MW_SANITIZED
      "ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS",    "UBSAN_OPTIONS",
#endif
  };

  std::vector<std::string> strings_;
  std::vector<char*> pointers_;
};

// No descriptor from this number on passes an exec. False: errno says why.
inline bool close_on_exec_from(unsigned first) {
  return raw_syscall(SYS_close_range, first, ~0u, CLOSE_RANGE_CLOEXEC) == 0;
}

// A helper, at its beginning: whatever its starter left open beside these and the standard three is
// closed. False: errno says why.
inline bool close_all_but(std::vector<int> kept) {
  std::sort(kept.begin(), kept.end());
  auto next = static_cast<unsigned>(STDERR_FILENO) + 1;
  for (const int fd : kept) {
    const auto number = static_cast<unsigned>(fd);
    if (fd < 0 || number < next) continue;
    if (number > next && raw_syscall(SYS_close_range, next, number - 1, 0) < 0) return false;
    next = number + 1;
  }
  return raw_syscall(SYS_close_range, next, ~0u, 0) == 0;
}

// Becomes the program argv[0], a path or the name of a tool. Not by the C library's name: a shim that
// we run under would take the helper into its session. Returns only if that fails; errno says why.
inline void exec_helper(char* const* argv, char* const* environment) {
  if (std::strchr(argv[0], '/') != nullptr) {
    raw_syscall(SYS_execve, argv[0], argv, environment);
    return;
  }
  for (const char* folder : kToolFolders) {
    char path[256];
    if (std::strlen(folder) + std::strlen(argv[0]) >= sizeof path) break;
    ::stpcpy(::stpcpy(path, folder), argv[0]);
    raw_syscall(SYS_execve, static_cast<const char*>(path), argv, environment);
    if (errno != ENOENT && errno != ENOTDIR) return;
  }
  errno = ENOENT;
}

}  // namespace mw
