// epoll.h - epoll instances that watch protected sockets.
//
// The kernel's epoll instance stays what the application holds; ordinary descriptors and listeners
// are registered there as ever. A protected data socket is registered in the session region instead
// (SessionSlot::watches), and the INS adds its news to the instance's group (a ready set in the
// region). epoll_wait() looks there first and makes a system call only for the ordinary descriptors
// or to sleep; a sleeper is woken through one eventfd, the group's bell, which stands in the
// kernel's instance.
//
// A process that gets an instance from elsewhere finds its group again in the kernel object: the
// bell's registration carries the number, and the driver, who can read it, gives out the bell.
//
// INVARIANTS  Of registrations: news.h.
// THREADS     Any. Registrations are guarded by SessionSlot::watch_lock.
#pragma once

#include <sys/epoll.h>

#include "shim/socket/socket.h"

namespace mw::shim {

// The events that a registration for `wanted` is told.
inline uint32_t epoll_reportable(uint32_t wanted) {
  constexpr uint32_t kEvents = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDNORM |
                               EPOLLRDBAND | EPOLLWRNORM | EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP;
  return (wanted & kEvents) | EPOLLERR | EPOLLHUP;
}

int shim_epoll_ctl(int epfd, int op, int fd, epoll_event* event);
// timeout_ns < 0: no limit. Returns the count or -errno.
int shim_epoll_wait(int epfd, epoll_event* out, int max, int64_t timeout_ns, const sigset_t* mask);

// For poll() on an epoll descriptor: whether the kernel alone cannot judge it, and whether it is
// readable.
bool epoll_is_ours(const Entry& e);
bool epoll_is_readable(int epfd, const Entry& e);
// Whether a registration in the group has something to report; it stays to be reported.
bool epoll_has_events(uint32_t group);
bool epoll_prepare_sleep(uint32_t group);
void epoll_wake(uint32_t group);

// Before a descriptor of an instance is closed. DescriptorHooks::on_epoll_close.
void epoll_closed(int epfd, const Entry& e);
void epoll_socket_became_listener(const Sock& s);

}  // namespace mw::shim
