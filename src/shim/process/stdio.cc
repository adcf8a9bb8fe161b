#include "shim/process/stdio.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <cstdint>

#include "shim/process/identity.h"

namespace mw::shim {
namespace {

int fd_of(void* cookie) {
  return static_cast<int>(reinterpret_cast<intptr_t>(cookie));
}

// Our own interposed calls, through the ordinary names.
ssize_t stream_read(void* cookie, char* to, size_t n) {
  return ::read(fd_of(cookie), to, n);
}
ssize_t stream_write(void* cookie, const char* from, size_t n) {
  const ssize_t put = ::write(fd_of(cookie), from, n);
  return put < 0 ? 0 : put;  // fopencookie's convention for an error
}
int stream_close(void* cookie) {
  return ::close(fd_of(cookie));
}

FILE* made_for[3] = {nullptr, nullptr, nullptr};
FILE* original[3] = {nullptr, nullptr, nullptr};
FILE** variable_of(int fd) {
  return fd == 0 ? &stdin : fd == 1 ? &stdout : &stderr;
}

}  // namespace

FILE* open_stream(int fd, const char* mode) {
  if (mode == nullptr || strchr("rwa", mode[0]) == nullptr) {
    errno = EINVAL;
    return nullptr;
  }
  const bool update = strchr(mode, '+') != nullptr;
  const cookie_io_functions_t io = {
      .read = mode[0] == 'r' || update ? stream_read : nullptr,
      .write = mode[0] != 'r' || update ? stream_write : nullptr,
      .seek = nullptr,
      .close = stream_close,
  };
  FILE* f = ::fopencookie(reinterpret_cast<void*>(static_cast<intptr_t>(fd)), mode, io);
  if (f != nullptr) f->_fileno = fd;  // so that fileno() answers as for any stream
  return f;
}

void adopt_standard_stream(int fd) {
  FILE** variable = variable_of(fd);
  const bool socket = is_protected(look_up(fd));
  if (socket && made_for[fd] == nullptr) {
    FILE* f = open_stream(fd, fd == 0 ? "r" : "w");
    if (f == nullptr) return;
    if (fd == 2) ::setvbuf(f, nullptr, _IONBF, 0);
    original[fd] = *variable;
    made_for[fd] = f;
    *variable = f;
  } else if (!socket && made_for[fd] != nullptr && *variable == made_for[fd]) {
    ::fflush(made_for[fd]);
    *variable = original[fd];
    made_for[fd] = nullptr;  // its memory stays: somebody may hold the pointer
  }
}

void adopt_standard_streams() {
  for (int fd = 0; fd < 3; ++fd)
    if (is_protected(look_up(fd))) adopt_standard_stream(fd);
}

}  // namespace mw::shim
