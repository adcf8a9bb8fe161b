// epoll_group.h - the groups of this process's epoll instances: made, found again, shown to the
// driver, let go.
//
// TRUST       The driver's answers are checked for range; it is trusted otherwise.
// THREADS     Any. The table is guarded by instances_lock; a group's own entry is written by
//             whoever makes or finds the group, before anyone else can know its number.
#pragma once

#include "shim/socket/registrations.h"
#include "shim/socket/socket.h"

namespace mw::shim {

// What this process knows of a group.
struct Instance {
  int epfd = -1;  // the descriptor through which the group was made
  int bell = -1;
  int life = -1;  // read end of the life pipe: the driver sees when the last process has closed it
  uint32_t references = 0;
  bool used_here = false;  // false after fork until the child uses the instance itself
  bool kept = false;       // shown to the driver: the group lasts as long as the instance
  uint16_t serial = 0;  // tells the group's present instance from earlier ones of the same number
  uint8_t kernel_first = 0;  // the next epoll_wait() asks for ordinary descriptors first
};
extern Instance instances[MW_MAX_GROUPS];
extern uint32_t instances_lock;

// What an instance is now: another process that has it may have made its group.
Entry instance_of(int epfd);
// The group of an epoll instance, made on its first protected socket. Returns its number or -errno.
int group_of(int epfd);
void group_closed(uint32_t group);
void group_count_reference(uint32_t group, int delta);

// An instance that this process made.
void epoll_created(int epfd);
// Has ready what the next group needs, if this process has an instance and is attached. errno is preserved.
void prepare_group();
// In a child, before it runs.
void groups_after_fork();
// What an instance that came from elsewhere is.
Entry epoll_find(int epfd);
// What a descriptor is that is no socket and that this process has not looked at yet.
Entry epoll_look_up(int fd);
// An instance is about to be passed to another process.
void epoll_leaves(int epfd, const Entry& e);
// This process is about to become another program, or to start one.
void epoll_before_exec();

}  // namespace mw::shim
