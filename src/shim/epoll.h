// epoll.h - epoll instances that watch protected sockets.
//
// The kernel's epoll instance stays what the application holds; ordinary descriptors and listeners
// are registered there as ever. A protected data socket is registered in the session region instead
// (SessionSlot::watches), and the INS adds its news to the instance's group (a ready set in the
// region). epoll_wait() looks there first and makes a system call only for the ordinary descriptors
// or to sleep; a sleeper is woken through one eventfd, the group's bell, which stands in the
// kernel's instance.
//
// INVARIANTS  A registration belongs to (group, descriptor, socket); it ends with EPOLL_CTL_DEL, or
// when
//             a process that uses the instance closes its last descriptor of the socket.
// THREADS     Any. Registrations are guarded by SessionSlot::watch_lock.
#pragma once

#include <sys/epoll.h>

#include "shim/socket.h"

namespace mw::shim {

int shim_epoll_ctl(int epfd, int op, int fd, epoll_event* event);
// timeout_ns < 0: no limit. Returns the count or -errno.
int shim_epoll_wait(int epfd, epoll_event* out, int max, int64_t timeout_ns, const sigset_t* mask);

// For poll() on an epoll descriptor of the given group.
bool epoll_has_events(uint32_t group);
bool epoll_prepare_sleep(uint32_t group);
void epoll_wake(uint32_t group);

// Adds a socket to the news of the groups that watch it, as the INS does.
void epoll_add_news(const Sock& s);
void epoll_forget_socket(uint32_t slot, uint32_t gen);
void epoll_forget_instance(int epfd, uint32_t group);
void epoll_count_reference(uint32_t group, int delta);
void epoll_socket_became_listener(const Sock& s);
void epoll_after_fork();

}  // namespace mw::shim
