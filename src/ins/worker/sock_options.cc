#include "ins/worker/sock_options.h"

#include <algorithm>
#include <cstring>

namespace mw {

int get_option(const Sock& s, int level, int name, void* value, socklen_t* len) {
  const bool of_stream = level == SOL_SOCKET && s.kind == SockKind::stream;
  if (of_stream && name == SO_RCVLOWAT) {
    const int own = static_cast<int>(s.rcvlowat);
    *len = std::min<socklen_t>(*len, sizeof own);
    std::memcpy(value, &own, *len);
    return 0;
  }
  const int rc = ::getsockopt(s.fd, level, name, value, len);
  if (rc == 0 && of_stream && name == SO_REUSEADDR && (s.flags & kHidesReuse) != 0)
    std::memset(value, 0, *len);
  return rc;
}

int set_option(Sock& s, int level, int name, const void* value, socklen_t len) {
  int on = 0;
  const bool is_reuse =
      level == SOL_SOCKET && name == SO_REUSEADDR && s.kind == SockKind::stream && len >= sizeof on;
  if (!is_reuse) return ::setsockopt(s.fd, level, name, value, len);
  std::memcpy(&on, value, sizeof on);
  const bool keeps = on == 0 && (s.listener != nullptr || (s.flags & kHidesReuse) != 0);
  if (!keeps && ::setsockopt(s.fd, level, name, value, len) < 0) return -1;
  s.flags = keeps ? s.flags | kHidesReuse : s.flags & ~kHidesReuse;
  return 0;
}

}  // namespace mw
