// news.h - which epoll instances watch a socket, and telling them.
//
// PURPOSE     A protected socket's registrations stand in the session region (SessionSlot::watches). Here
//             they are read, published to the INS, and ended; epoll.h is what programs call.
// INVARIANTS  A registration belongs to (group, descriptor, open file); it ends with EPOLL_CTL_DEL, or with
//             the last descriptor of the socket in any process. A process that closes its last one
//             removes the registration if no other process can have the socket. Else it leaves it, and
//             keeps a witness: an epoll set with the placeholder, in which the kernel shows it as
//             writable as long as some process has it. Nothing is reported of a socket that this
//             process has closed and whose witness says that it is gone.
// THREADS     Any. Registrations are guarded by SessionSlot::watch_lock.
#pragma once

#include <cstdint>

#include "shim/socket/socket.h"

namespace mw::shim {

constexpr uint32_t kNoGroup = UINT32_MAX;
constexpr uint32_t kNoWatch = UINT32_MAX;

// The group of a registration; kNoGroup if there is none, or its instance is closed by now. Read once:
// the driver removes the registrations of a closed instance at any time, without the lock.
uint32_t watching_group(const SessionWatch& w);
SessionWatches watches_of(const Sock& s);
// Tells the INS which groups to tell. Requires: the caller holds watch_lock, as for what follows.
void publish_watches(const Sock& s);
// Room for one more registration, or kNoWatch.
uint32_t free_watch(const Sock& s);
// Ends all of them. Requires: their records are void, whatever the session region says of them.
void remove_watches(const Sock& s);

// Adds a socket to the news of a group, as the INS does.
void add_news(uint32_t group, const Sock& s);
// The same for the groups that watch it.
void epoll_add_news(const Sock& s);

// Whether any process still has the socket of a registration.
bool is_open(const Sock& s);
// Before this process closes its last descriptor of a socket. DescriptorHooks::on_last_close.
void epoll_last_close(int fd, const Entry& e);
// In the child of fork().
void epoll_after_fork();

}  // namespace mw::shim
