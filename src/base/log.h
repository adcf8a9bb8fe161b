// log.h - one line to stderr, written with a single write() so that lines of several processes do
// not mix. Used by the main-side code of daemons and, for the few lines a user must see, by the
// shim; libraries return errors instead. Preserves errno, allocates nothing.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>

namespace mw {

[[gnu::format(printf, 2, 3)]] inline void log_line(const char* who, const char* format, ...) {
  const int saved = errno;
  char line[1024];
  int n = std::snprintf(line, sizeof line, "%s: ", who);
  if (n < 0) n = 0;
  va_list ap;
  va_start(ap, format);
  const int m = std::vsnprintf(line + n, sizeof line - static_cast<size_t>(n) - 1, format, ap);
  va_end(ap);
  size_t len = static_cast<size_t>(n) + (m > 0 ? static_cast<size_t>(m) : 0);
  if (len > sizeof line - 2) len = sizeof line - 2;
  line[len++] = '\n';
  if (::write(STDERR_FILENO, line, len) < 0) { /* nowhere left to say it */
  }
  errno = saved;
}

}  // namespace mw
