// descriptors.h - which descriptors of this process are ours, and what they name.
//
// PURPOSE     One word for each descriptor: a call about an ordinary one costs one look here. The table
//             is a cache: an entry is unknown until it is used, then the kernel object is asked
//             (identity.h). A descriptor once found to be an ordinary one stays so until one of our
//             own calls puts a socket there.
// INVARIANTS  Hidden descriptors are ours alone: the application can neither close nor see them.
// THREADS     Any, and signal handlers. Entries are single atomic words.
#pragma once

#include <atomic>
#include <cstdint>

namespace mw::shim {

// lost: a socket of the session that this process could not join. Calls about it fail with ENETDOWN,
// and nothing is taken from its placeholder.
enum class Kind : uint8_t { unknown = 0, kernel = 1, socket = 2, epoll = 3, hidden = 4, lost = 5 };

struct Entry {
  Kind kind = Kind::unknown;
  uint32_t slot = 0;  // socket: its number; epoll: 0, or 1 + group; lost: 1 if it is a listener
  uint32_t gen = 0;   // socket; epoll without a group: see epoll_group.cc
};

// Bytes of it are the shim's to give, or nobody's.
inline bool is_protected(const Entry& e) {
  return e.kind == Kind::socket || e.kind == Kind::lost;
}

constexpr int kTableSize = 1 << 20;
extern uint64_t* descriptor_table;  // null before start()

// fd -> Entry in one word: kind (4 bits) | slot (20 bits) | gen (32 bits).
constexpr uint64_t pack(const Entry& e) {
  return static_cast<uint64_t>(e.kind) << 60 | static_cast<uint64_t>(e.slot) << 32 | e.gen;
}
constexpr Entry unpack(uint64_t w) {
  return {static_cast<Kind>(w >> 60), static_cast<uint32_t>(w >> 32 & 0xfffff),
          static_cast<uint32_t>(w)};
}

// What the table says. The kernel is not asked.
inline Entry peek(int fd) {
  if (fd < 0 || fd >= kTableSize || descriptor_table == nullptr) return {Kind::kernel, 0, 0};
  return unpack(std::atomic_ref(descriptor_table[fd]).load(std::memory_order_acquire));
}
void set_entry(int fd, Entry e);
// Forgets fd before it is closed or replaced; tells the rooms above if it was the last one.
void forget(int fd);
// Takes the entry of a descriptor that is about to be closed. False: another thread was first.
bool take_entry(int fd, const Entry& e);

// Descriptors of this process that name the socket; or the newest one that it has seen of a slot.
uint32_t references(uint32_t slot, uint32_t gen);
uint32_t references(uint32_t slot);
// Slots that descriptors of this process name.
uint32_t sockets_in_use();
// No descriptor that names an epoll instance is above this one.
int highest_epoll_fd();

// Moves a descriptor out of the application's way and marks it; returns the new one, or -1 with
// errno.
int hide(int fd);
// A hidden descriptor for what fd names. -1 if there is no room out of the way, or not now.
int hidden_copy(int fd);
void unhide_and_close(int fd);
inline bool is_hidden(int fd) {
  return peek(fd).kind == Kind::hidden;
}

// What the rooms above do when entries come and go. start() sets them, before the program runs.
struct DescriptorHooks {
  // Before this process closes its last descriptor of a socket.
  void (*on_last_close)(int fd, const Entry& e);
  // After that: no descriptor of this process names the slot any more.
  void (*on_unnamed)(uint32_t slot);
  // Before a descriptor of an epoll instance is closed.
  void (*on_epoll_close)(int fd, const Entry& e);
  // One more descriptor names the group's instance, or (-1) one less.
  void (*on_group_reference)(uint32_t group, int delta);
};
// Returns the ones before.
DescriptorHooks set_hooks(const DescriptorHooks& hooks);
// Makes room for the table. False: no memory.
bool open_descriptors();

}  // namespace mw::shim
