// unique_fd.h - an owned file descriptor. Borrowed ones are passed as plain ints.
//
// INVARIANTS  A descriptor has one owner. Closing one that is not open is a bug and aborts.
//             The destructor preserves errno.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

namespace mw {

class [[nodiscard]] UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& o) noexcept {
    reset(std::exchange(o.fd_, -1));
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  void reset(int fd = -1) noexcept {
    const int old = std::exchange(fd_, fd);  // forget first: a failed close() is still closed
    if (old < 0) return;
    const int saved = errno;
    if (::close(old) < 0 && errno == EBADF) std::abort();  // somebody closed our fd: a bug
    errno = saved;
  }
  int get() const noexcept { return fd_; }
  int release() noexcept { return std::exchange(fd_, -1); }
  explicit operator bool() const noexcept { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace mw
