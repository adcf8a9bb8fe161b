// epoll_nesting.h - what the kernel cannot know of its own instances: that one which stands in
// another has events of protected sockets, and that a listener is none any more.
//
// INVARIANTS  A group whose instance stands in another one is rung for at every piece of news, so
//             that its kernel descriptor is readable; whoever waits on the outer one gets it only
//             if there really is an event.
// THREADS     Any. Changes of the tables are guarded by instances_lock; reading them is not,
//             because an entry that is seen half made leads to one look too many or too few at an
//             instance that is being changed in the same moment.
#pragma once

#include <sys/epoll.h>

#include "shim/socket/socket.h"

namespace mw::shim {

// After an ordinary epoll_ctl that put one epoll instance into another.
void note_nesting(int outer, int op, int inner, const Entry& e, const epoll_event* event);
// After a listener was registered in the kernel's instance.
void note_listener_watch(int epfd, int op, const Sock& s, const epoll_event* event);
void forget_notes(int epfd);
bool any_nesting();

bool is_inner(int epfd);
void mark_nested(uint32_t group);
bool is_nested(uint32_t group);

// Makes the kernel's view of the instances in `outer` true: one that has events is readable.
void refresh_nested(int outer, int depth = 0);
bool kernel_readable(int epfd);
// Makes what the kernel reported true: drops events of nested instances that have nothing to give,
// and puts right those of sockets that are listeners no more. Returns how many are left.
int corrected(int epfd, epoll_event* events, int n);

}  // namespace mw::shim
