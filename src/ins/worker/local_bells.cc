#include "ins/worker/local_bells.h"

#include <sys/epoll.h>
#include <unistd.h>

namespace mw {

uint32_t LocalBells::wait_events() const {
  return EPOLLIN | EPOLLET;
}

void LocalBells::ring(const UniqueFd& doorbell) {
  const uint64_t one = 1;
  // A counter that is full has woken its reader already. One that the PVM made useless costs the
  // PVM its wake-ups and no more.
  if (doorbell) (void)!::write(doorbell.get(), &one, sizeof one);
}

void LocalBells::set_group(uint32_t group, UniqueFd doorbell) {
  groups_[group] = std::move(doorbell);
  // Events added before this doorbell was here set `rung` and rang nothing. Ring once now, or the
  // sleeper misses them.
  ring_group(group);
}

}  // namespace mw
