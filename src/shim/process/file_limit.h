// file_limit.h - descriptors that the application does not count as its own, beyond its soft limit.
//
// PROMISE     The limit is as before when the guard ends, and no copy of the process inherits the
//             raised one: whoever copies descriptors waits for it (copies.h).
// THREADS     Any. errno is preserved. While it lasts, other threads may pass their limit too.
#pragma once

#include <sys/resource.h>

#include <cerrno>

#include "shim/process/copies.h"

namespace mw::shim {

// The hard limit on descriptors stands in for the soft one.
class FileLimit {
 public:
  enum class Raise { always, unless_copying };
  explicit FileLimit(Raise raise = Raise::always);
  ~FileLimit();
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  // A descriptor that the application would not have got.
  bool exceeds(int fd) const { return static_cast<rlim_t>(fd) >= was_.rlim_cur; }

 private:
  Momentary momentary_;
  rlimit was_{};
  bool raised_ = false;
};

// Runs `make` (which returns a descriptor or -1 with errno), and once more with the limit raised if it
// fails for want of descriptors.
template <class Make>
int beyond_limit(Make&& make, FileLimit::Raise raise = FileLimit::Raise::always) {
  const int fd = make();
  if (fd >= 0 || (errno != EMFILE && errno != EINVAL)) return fd;
  const FileLimit raised(raise);
  return make();
}

}  // namespace mw::shim
