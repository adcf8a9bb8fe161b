#include "shim/socket/epoll_group.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "shim/process/file_limit.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"

namespace mw::shim {

constinit Instance instances[MW_MAX_GROUPS];
uint32_t instances_lock = 0;

namespace {

using A = StdAtomics;

bool group_in_range(uint32_t group) {
  return group < stack_of_group().geometry().groups;
}

// Asks the driver about descriptors. Returns the group or -errno.
int ask_about(AttachType what, std::span<const int> fds, ReceivedMessage* got = nullptr) {
  if (!attach_as_this_process()) return -ENETDOWN;
  AttachReply reply{};
  auto answer = ask_driver(attachment.fd, what, fds, reply);
  if (!answer) return answer.error().fault == Fault::sys ? -answer.error().err : -ENETDOWN;
  if (!group_in_range(reply.group)) return -ENETDOWN;
  if (!stack_of_group().has_group(reply.group)) return -ENOMEM;
  if (got != nullptr) *got = std::move(*answer);
  return static_cast<int>(reply.group);
}

// Hidden descriptors that a new group needs: the memory of its registrations, its bell, and a pipe whose
// write end the driver gets.
struct GroupParts {
  int memory = -1;
  int bell = -1;
  int life[2] = {-1, -1};
};

void close_parts(GroupParts& parts) {
  for (int* const fd : {&parts.memory, &parts.bell, &parts.life[0], &parts.life[1]})
    if (*fd >= 0) unhide_and_close(std::exchange(*fd, -1));
}

// 0 or -errno.
int make_parts_once(GroupParts& parts) {
  const int memory = Registrations::make_memory(stacks.slots());
  if (memory < 0) return memory;
  parts.memory = hide(memory);
  parts.bell = hide(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int life[2] = {-1, -1};
  if (parts.bell < 0 || ::pipe2(life, O_CLOEXEC) < 0) {
    const int err = errno;
    close_parts(parts);
    return -err;
  }
  for (int i = 0; i < 2; ++i) parts.life[i] = hide(life[i]);
  return 0;
}

int make_parts(GroupParts& parts) {
  const int rc = make_parts_once(parts);
  if (rc != -EMFILE) return rc;
  const FileLimit raised;
  return make_parts_once(parts);
}

// For the next group, guarded by instances_lock. A program may use up its descriptors, up to the hard limit,
// before it registers its first socket, for which it natively needs none.
GroupParts prepared;

int take_parts(GroupParts& parts) {
  if (prepared.memory < 0) return make_parts(parts);
  parts = std::exchange(prepared, GroupParts{});
  return 0;
}

// The entry of an instance without a group remembers, 16 bits each, since when this process alone
// has it (0: it does not) and how many groups the session had made when it was asked about last.
Entry groupless(uint32_t since, uint32_t groups_made) {
  const uint32_t kept = since < 0xffff ? since : 0;
  return {Kind::epoll, 0, kept << 16 | (groups_made & 0xffff)};
}
uint32_t groups_made() {
  return process.attached ? A::load_acquire(process.session.header().groups_made) : 0;
}

Status open_registrations(uint32_t group, int memory) {
  registrations_of(group).close();  // of an instance that went without our being told
  return registrations_of(group).open(memory, stacks.slots());
}

// Wakes whoever sleeps in the instance when driver and front end, who hold the other end, are gone. It
// looks like the bell, so that nothing else has to know it.
void watch_life(int epfd, const Instance& i, uint32_t group) {
  epoll_event at_the_end{EPOLLET, {.u64 = bell_data(group, i.serial)}};
  // Without it nobody wakes for that; EEXIST: it is there.
  const int saved = errno;
  (void)libc.epoll_ctl(epfd, EPOLL_CTL_ADD, i.life, &at_the_end);
  errno = saved;
}

void keep_group(int epfd, uint32_t group) {
  if (instances[group].kept) return;
  SharedLock lock(instances_lock);
  const int fds[] = {epfd};
  instances[group].kept = ask_about(AttachType::group_keep, fds) >= 0;
}

}  // namespace

Entry instance_of(int epfd) {
  const Entry e = look_up(epfd);
  if (e.kind != Kind::epoll || e.slot != 0 || !process.attached) return e;
  if (e.gen >> 16 == descriptor_copies() || (e.gen & 0xffff) == (groups_made() & 0xffff)) return e;
  const Entry found = epoll_find(epfd);
  if (found.kind != Kind::epoll) return e;
  set_entry(epfd, found);
  return found;
}

int group_of(int epfd) {
  Entry e = instance_of(epfd);
  if (e.kind == Kind::epoll && e.slot != 0) return static_cast<int>(e.slot - 1);
  SharedLock lock(instances_lock);
  e = instance_of(epfd);
  if (e.kind == Kind::epoll && e.slot != 0) return static_cast<int>(e.slot - 1);
  if (!have_registrations()) return -ENOMEM;
  GroupParts parts;
  if (const int rc = take_parts(parts); rc < 0) return rc;
  const int bell = parts.bell;
  const int fds[] = {bell, parts.life[1], parts.memory};
  int group = ask_about(AttachType::group_open, fds);
  unhide_and_close(std::exchange(parts.life[1], -1));
  uint16_t serial = 0;
  if (group >= 0) {
    SessionGroup& shared = process.session.group(static_cast<uint32_t>(group));
    A::store_relaxed(shared.flags, uint16_t{0});
    serial = static_cast<uint16_t>(A::fetch_add(shared.serial, uint16_t{1}) + 1);
    epoll_event on_bell{EPOLLIN | EPOLLET,
                        {.u64 = bell_data(static_cast<uint32_t>(group), serial)}};
    if (libc.epoll_ctl(epfd, EPOLL_CTL_ADD, bell, &on_bell) < 0)
      group = -errno;
    else {
      set_entry(parts.memory, Entry{});  // open() hides it by itself
      if (!open_registrations(static_cast<uint32_t>(group), std::exchange(parts.memory, -1)))
        group = -ENOMEM;
    }
  }
  if (group < 0) {
    close_parts(parts);
    return group;
  }
  instances[group] = {epfd, bell, parts.life[0], 0, true, false, serial};
  watch_life(epfd, instances[group], static_cast<uint32_t>(group));
  set_entry(epfd, {Kind::epoll, static_cast<uint32_t>(group) + 1, 0});
  A::fetch_add(process.session.header().groups_made, 1u);
  // Whoever sleeps in the instance, in any process, looks again and finds the group. The ring with
  // which the INS greets a new group may have come before the count could tell.
  ring_bell(bell);
  return group;
}

void group_closed(uint32_t group) {
  Instance& i = instances[group];
  if (i.references > 1) return;
  if (i.bell >= 0) unhide_and_close(i.bell);
  if (i.life >= 0) unhide_and_close(i.life);
  i = Instance{};
  registrations_of(group).close();
}

void group_count_reference(uint32_t group, int delta) {
  instances[group].references += static_cast<uint32_t>(delta);
}

void epoll_created(int epfd) {
  set_entry(epfd, groupless(descriptor_copies(), groups_made()));
  prepare_group();
}

void prepare_group() {
  if (!process.attached || highest_epoll_fd() < 0 || in_vfork_child()) return;
  if (A::load_relaxed(prepared.memory) >= 0) return;
  const int saved = errno;
  SharedLock lock(instances_lock);
  // Without room the group asks again when it is made.
  if (prepared.memory < 0) (void)make_parts(prepared);
  errno = saved;
}

void groups_after_fork() {
  instances_lock = 0;
  for (Instance& i : instances) i.used_here = false;
  // The parent's: its driver would not see the parent's end while we have the pipe.
  close_parts(prepared);
}

// Asks the kernel whether a descriptor that is no socket is an epoll instance.
static bool epoll_is_instance(int fd) {
  if (process.confined) return false;
  struct stat st {};
  if (libc.syscall(SYS_fstat, fd, &st) < 0 || (st.st_mode & S_IFMT) != 0) return false;
  // One of the kernel's anonymous files. Only an epoll instance can say what it does not watch.
  const int other = ::eventfd(0, EFD_CLOEXEC);
  if (other < 0) return false;
  epoll_event none{};
  const bool is = libc.epoll_ctl(fd, EPOLL_CTL_DEL, other, &none) < 0 && errno == ENOENT;
  libc.close(other);
  return is;
}

Entry epoll_find(int epfd) {
  // What a child of vfork() opened would be closed with it, and we would remember it.
  if (in_vfork_child() || !attach()) return {};
  const uint32_t made = groups_made();
  SharedLock lock(instances_lock);
  ReceivedMessage got;
  const int fds[] = {epfd};
  const int group = ask_about(AttachType::group_find, fds, &got);
  if (group < 0 || got.fd_count != 3 || !have_registrations()) return groupless(0, made);
  process.found_instance = true;
  Instance& i = instances[group];
  const uint16_t serial = A::load_relaxed(process.session.group(group).serial);
  if (i.bell < 0 || i.serial != serial) {
    if (!open_registrations(static_cast<uint32_t>(group), got.fds[2].release()))
      return groupless(0, made);
    i = {epfd, hide(got.fds[0].release()), hide(got.fds[1].release()), 0, false, true, serial};
    watch_life(epfd, i, static_cast<uint32_t>(group));
  }
  return {Kind::epoll, static_cast<uint32_t>(group) + 1, 0};
}

Entry epoll_look_up(int fd) {
  return epoll_is_instance(fd) ? epoll_find(fd) : Entry{Kind::kernel, 0, 0};
}

void epoll_leaves(int epfd, const Entry& e) {
  if (e.slot != 0)
    keep_group(epfd, e.slot - 1);
  else
    set_entry(epfd, groupless(0, e.gen));
}

void epoll_before_exec() {
  if (!process.attached) return;
  const int saved = errno;
  for (int fd = 0; fd <= highest_epoll_fd(); ++fd) {
    const Entry e = peek(fd);
    if (e.kind != Kind::epoll || e.slot == 0 || instances[e.slot - 1].kept) continue;
    const int flags = libc.fcntl(fd, F_GETFD);
    if (flags >= 0 && (flags & FD_CLOEXEC) == 0) keep_group(fd, e.slot - 1);
  }
  errno = saved;
}

}  // namespace mw::shim
