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
// INVARIANTS  A registration belongs to (group, descriptor, open file); it ends with EPOLL_CTL_DEL,
//             or with the last descriptor of the socket in any process. Whoever closes the last one
//             of his process removes it if nobody else can have the socket. Else he leaves it, and
//             keeps a witness: an epoll set with the placeholder, in which the kernel shows it as
//             writable as long as somebody has it. Nothing is reported of a socket that this
//             process has closed and whose witness says that it is gone.
// THREADS     Any. Registrations are guarded by SessionSlot::watch_lock.
#pragma once

#include <sys/epoll.h>

#include "shim/socket.h"

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

// Adds a socket to the news of the groups that watch it, as the INS does.
void epoll_add_news(const Sock& s);
// Before this process closes its last descriptor of a socket.
void epoll_last_close(int fd, const Entry& e);
void epoll_closed(int epfd, const Entry& e);
void epoll_socket_became_listener(const Sock& s);
void epoll_after_fork();

}  // namespace mw::shim
