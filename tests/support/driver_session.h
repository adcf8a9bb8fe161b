// driver_session.h - what the driver's tests share: the options of a driver whose session they made.
#pragma once

#include <sys/stat.h>

#include "driver/options.h"
#include "transport/local/session_fds.h"

namespace mw {

inline bool same_file(int a, int b) {
  struct stat x {
  }, y{};
  return ::fstat(a, &x) == 0 && ::fstat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

// The token is 0, 1, 2 ...
inline DriverOptions options_for(const SessionFds& fds) {
  DriverOptions o;
  for (uint8_t i = 0; i < 16; ++i) o.token[i] = i;
  o.channel_fd = fds.channel.get();
  o.session_fd = fds.session.get();
  o.attach_fd = fds.attach.get();
  o.placeholders_fd = fds.placeholders.get();
  o.drop_pvm_fd = fds.drop_pvm.get();
  o.drop_ins_fd = fds.drop_ins.get();
  for (const UniqueFd& bell : fds.bells) o.bell_fds.push_back(bell.get());
  return o;
}

}  // namespace mw
