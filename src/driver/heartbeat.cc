#include "driver/heartbeat.h"

#include <fcntl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"

namespace mw {

Status Heartbeat::open(LocalRegistry& registry) {
  timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  const itimerspec every{{1, 0}, {1, 0}};
  if (!timer_ || ::timerfd_settime(timer_.get(), 0, &every, nullptr) < 0)
    return Error{Fault::sys, errno, "timer of the heartbeat"};
  if (auto folder = registry.open_folder("mw/pvm"))
    file_ = UniqueFd{::openat(folder->get(), "heartbeat",
                              O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644)};
  write();
  return Ok{};
}

void Heartbeat::on_time(bool turning) {
  uint64_t expired = 0;
  (void)!::read(timer_.get(), &expired, sizeof expired);
  if (!turning) return;
  ++count_;
  write();
}

void Heartbeat::write() {
  char text[16];
  const int n = std::snprintf(text, sizeof text, "%010u\n", count_);
  // Without a first beat nobody waits for the next ones.
  if (::pwrite(file_.get(), text, static_cast<size_t>(n), 0) != n && count_ == 0)
    log_line("mwcommsd", "no heartbeat: nobody will notice if this driver hangs");
}

}  // namespace mw
