// process.h - what one process knows: its attachment to the session and which descriptors are ours.
//
// The descriptor table is a cache. An entry is unknown until it is used; then the kernel object is
// asked (its identity stands in the placeholder, see identify()), so sockets that came by exec,
// SCM_RIGHTS or from a vfork child are found again. A descriptor once found to be an ordinary one
// stays so until one of our own calls puts a socket there.
//
// INVARIANTS  Hidden descriptors are ours alone: the application can neither close nor see them.
// THREADS     Entries are single atomic words. Attaching is serialised by a lock.
#pragma once

#include <sys/resource.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <span>

#include "abi/mw_region.h"
#include "base/log.h"
#include "base/result.h"
#include "shim/libc_calls.h"
#include "shim/regions.h"
#include "shim/shared_lock.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw::shim {

// lost: a socket of the session that this process could not join. Calls about it fail with ENETDOWN,
// and nothing is taken from its placeholder.
enum class Kind : uint8_t { unknown = 0, kernel = 1, socket = 2, epoll = 3, hidden = 4, lost = 5 };

struct Entry {
  Kind kind = Kind::unknown;
  uint32_t slot = 0;  // socket: slot; epoll: 0, or 1 + group; lost: 1 if it is a listener
  uint32_t gen = 0;   // socket; epoll without a group: see epoll.cc
};

// Bytes of it are the shim's to give, or nobody's.
inline bool is_protected(const Entry& e) {
  return e.kind == Kind::socket || e.kind == Kind::lost;
}

constexpr int kTableSize = 1 << 20;

struct Process {
  ChannelView channel;
  SessionView session;
  int attach_fd = -1;
  int drop_fd = -1;
  int bells[MW_MAX_WORKERS] = {};
  uint32_t pid = 0;         // of the process that this state belongs to
  uint32_t attach_pid = 0;  // of the process that made attach_fd
  uint64_t home = 0;        // the session's network namespace; 0: not known
  bool attached = false;
  bool poisoned = false;  // by the INS of poisoned_epoch; see is_poisoned()
  uint32_t poisoned_epoch = 0;
  // See session_end.h.
  uint32_t over = 0;        // nobody of the session is left
  uint32_t over_told = 0;   // all sockets of this process have become events
  uint32_t life_ended = 0;  // a life pipe has no holder any more
  int64_t life_ended_at = 0;
  // The program has confined itself with a seccomp filter: from now on the shim sleeps with read()
  // and poll() only, which every such filter of a network program allows.
  bool confined = false;
  bool locks_memory = false;  // mlockall(MCL_FUTURE): what is mapped from now on is locked
  // The program talks to itself over the network (it connected to a port that it listens on, at an
  // address of its own). See settle.h.
  bool talks_to_itself = false;
  bool unsettled = false;  // something was sent since the last settle()
  // An epoll instance came by exec or SCM_RIGHTS; it may watch sockets that we never looked at.
  bool found_instance = false;
};
extern Process process;

// Joins the session; true if it is joined. The first failure is said once on stderr.
bool attach();
// True if the calling thread's network namespace is not the session's: the program went elsewhere
// by unshare(), setns() or clone(), so what it makes now is the kernel's own over there. The second
// form asks about a socket that the calling thread has just made. errno is preserved.
bool is_abroad();
bool is_abroad(int socket);
// Makes sure that attach_fd is this process's own (after fork). False if the driver is not there.
bool attach_as_this_process();

// The table. peek() never asks the kernel; look_up() does so for unknown entries.
Entry peek(int fd);
Entry look_up(int fd);
void set_entry(int fd, Entry e);
// Copies old's entry to fresh (dup).
void copy_entry(int old, int fresh);
// Forgets fd before it is closed or replaced; drops the epoll registrations when it was the last
// one.
void forget(int fd);
// Descriptors of this process that name the socket; or the newest one that it has seen of a slot.
uint32_t references(uint32_t slot, uint32_t gen);
uint32_t references(uint32_t slot);
// Slots that descriptors of this process name.
uint32_t sockets_in_use();
// Maps what this process needs of a slot. False: there is no memory for it.
bool has_slot(uint32_t slot);
// No descriptor that names an epoll instance is above this one.
int highest_epoll_fd();

// How often descriptors of this process went to another one as a whole (fork and its kin), plus 1.
// A socket for which that has not happened since it came to be, and which was not passed on by
// itself, is nobody else's. `then`: descriptor_copies() before the socket's descriptor existed.
uint32_t descriptor_copies();
// Around whatever copies them: what is there while it lasts may be somebody else's too.
void begin_copying();
void end_copying();
bool is_copying();
class Copying {
 public:
  Copying() { begin_copying(); }
  ~Copying() { end_copying(); }
  Copying(const Copying&) = delete;
  Copying& operator=(const Copying&) = delete;
};
// In the new process.
void after_fork_in_child();
void note_origin(uint32_t slot, uint32_t then);
bool is_nobody_elses(uint32_t slot);
// A message with descriptors is about to leave.
void note_passed(const msghdr* m);

// The soft limit on descriptors while the hard one stands in for it; the guard puts it back. What
// copies descriptors waits for that (begin_copying()), or the copy would inherit the raised one.
class FileLimit {
 public:
  enum class Raise { always, unless_copying };
  explicit FileLimit(Raise raise = Raise::always);
  ~FileLimit();
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  // A descriptor that the application would not have got.
  bool exceeds(int fd) const { return static_cast<rlim_t>(fd) >= was_.rlim_cur; }

 private:
  rlimit was_{};
  bool raised_ = false;
};

// Runs `make` (which returns a descriptor or -1 with errno), with RLIMIT_NOFILE raised to its hard
// limit if it fails for want of descriptors: for those that the application does not count as its
// own.
template <class Make>
int beyond_limit(Make&& make, FileLimit::Raise raise = FileLimit::Raise::always) {
  const int fd = make();
  if (fd >= 0 || (errno != EMFILE && errno != EINVAL)) return fd;
  const FileLimit raised(raise);
  return make();
}

// Moves a descriptor out of the application's way and marks it; returns the new one, or -1 with
// errno.
int hide(int fd);
// A hidden descriptor for what fd names. -1 if there is no room out of the way, or not now.
int hidden_copy(int fd);
// Takes the entry of a descriptor that is about to be closed. False: another thread was first.
bool take_entry(int fd, const Entry& e);
void unhide_and_close(int fd);
inline bool is_hidden(int fd) {
  return peek(fd).kind == Kind::hidden;
}
// True in a child of vfork(), which shares our memory but not our descriptors (vfork.S).
bool in_vfork_child();

// Nobody listens at the address at which the application attaches.
bool is_address_free();

// One request to the driver about these descriptors, with the session's secret, over attach_fd (for
// attach itself: over `connection`). Errors: sys (its answer's status), peer, shutdown.
Result<ReceivedMessage> ask_driver(int connection, AttachType what, std::span<const int> fds,
                                   AttachReply& reply);
// Has the driver set an option that the INS has no right to. proof: transport/local/privileged.h.
// 0 or -errno.
int set_by_driver(const SocketOption& wanted, int proof);

// A placeholder where there is a descriptor for one end only: the driver passes the other one on.
// type: as of make_placeholder(). Returns the descriptor or -errno.
int connect_placeholder(int type);
// With it the driver learns whose it is. False: it is not to be had.
bool say_whose_placeholder(int fd, const mw_drop_record& record);

// Writes the identity of a socket into its placeholder. 0 or -errno.
int identify(int fd, uint32_t slot, uint32_t gen, bool listener = false);
// Asks the kernel object alone, whatever the table says: bytes written to it reach nobody.
bool is_placeholder(int fd);
// The result of a call about a lost socket: -1 with errno. A program that is told of readiness by an
// epoll instance which came along, and calls again at once, does not take a processor.
int lost_call();
// The program is about to install a seccomp filter, which may forbid to map memory.
void become_confined();

// What a program started by us needs in its environment: the name of this library as LD_PRELOAD has
// it, and the entry of the session. Null before the constructor ran, or where there is none.
const char* own_library();
const char* session_setting();
// The entry of what may run although the shim does not reach it (coverage/coverage.h: is_allowed()),
// as it was when this program began; with an empty list if there was none.
const char* uncovered_setting();

// Marks the channel as broken by its other end: says so once, to the user and to the driver, which
// ends that INS. Every protected socket of this process fails until another INS serves.
void poison(const char* where);
bool still_poisoned();
inline bool is_poisoned() {
  return process.poisoned && still_poisoned();
}

void ring_bell(int fd);

// An INS serves.
inline bool is_session_up() {
  return StdAtomics::load_relaxed(process.session.header().state) == kSessionUp;
}

}  // namespace mw::shim
