// identity.h - finds out what a descriptor is from the kernel object behind it.
//
// PURPOSE     Sockets come by exec, SCM_RIGHTS or from a vfork child, and nothing of ours comes with
//             them. So a placeholder carries its socket's number and generation: its send timeout means
//             nothing to us, as nobody sends on it; it is 64 bits that live and travel with the kernel
//             object, and only its holders can change them.
// TRUST       Holders of a placeholder may write what they like: the number is checked, and the
//             generation has to be the slot's.
// THREADS     Any, and signal handlers. errno is preserved.
#pragma once

#include <cstdint>

#include "shim/process/descriptors.h"
#include "shim/process/process.h"

namespace mw::shim {

// Asks the kernel object, and remembers the answer.
Entry look_up_slowly(int fd);
// What the descriptor is.
inline Entry look_up(int fd) {
  const Entry e = peek(fd);
  if (e.kind != Kind::unknown && (e.kind != Kind::lost || !process.attached)) [[likely]]
    return e;
  return look_up_slowly(fd);
}
// Copies old's entry to fresh (dup).
void copy_entry(int old, int fresh);

// Writes the identity of a socket into its placeholder. 0 or -errno.
int identify(int fd, uint32_t slot, uint32_t gen, bool listener = false);
// Asks the kernel object alone, whatever the table says: bytes written to it reach nobody.
bool is_placeholder(int fd);
// The result of a call about a lost socket: -1 with errno. A program that is told of readiness by an
// epoll instance which came along, and calls again at once, does not take a processor.
int lost_call();

// What the rooms above know of descriptors that come from elsewhere. start() sets them.
struct IdentityHooks {
  // What a descriptor that is no socket is; Kind::kernel for all but epoll instances.
  Entry (*find_other)(int fd);
  // A socket that this program has not seen before.
  void (*on_found)(uint32_t slot);
};
void set_hooks(const IdentityHooks& hooks);

}  // namespace mw::shim
