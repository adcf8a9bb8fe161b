#include "ins/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/unique_fd.h"

namespace mw {
namespace {

Error failed(const char* where) {
  return {Fault::sys, errno, where};
}

bool write_file(const char* path, const std::string& text) {
  const UniqueFd fd{::open(path, O_WRONLY | O_CLOEXEC)};
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// A new mount namespace whose root is an empty file system that cannot be written to.
Status empty_root() {
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0)
    return failed("private mounts");
  if (::mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "size=4k,nr_inodes=1,mode=555") < 0)
    return failed("mount of an empty root");
  if (::chdir("/tmp") < 0) return failed("chdir to the empty root");
  // The old root ends up stacked on the new one and is taken away from there.
  if (::syscall(SYS_pivot_root, ".", ".") < 0) return failed("pivot_root");
  if (::umount2(".", MNT_DETACH) < 0) return failed("umount of the old root");
  if (::chdir("/") < 0) return failed("chdir to /");
  if (::mount(nullptr, "/", nullptr,
              MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) < 0)
    return failed("read-only root");
  return Ok{};
}

Status drop_capabilities() {
  for (int cap = 0; ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; ++cap)
    if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
      return failed("capability bound");
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
    return failed("ambient capabilities");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  if (::syscall(SYS_capset, &header, none) < 0) return failed("capset");
  return Ok{};
}

struct Rule {
  int call;
  // None, or one condition on an argument; several rules of one call are alternatives.
  unsigned conditions;
  scmp_arg_cmp when[1];
};

constexpr scmp_arg_cmp when_arg(unsigned n, scmp_compare op, uint64_t a, uint64_t b = 0) {
  return {n, op, a, b};
}

#define ALLOW(name)       \
  {                       \
    SCMP_SYS(name), 0, {} \
  }
#define ALLOW_IF(name, ...) \
  {                         \
    SCMP_SYS(name), 1, {    \
      __VA_ARGS__           \
    }                       \
  }

const Rule kRules[] = {
    // The data path (stream.cc, dgram.cc, worker.cc).
    ALLOW(recvfrom),
    ALLOW(readv),
    ALLOW(recvmsg),
    ALLOW(sendto),
    ALLOW(sendmsg),
    ALLOW(epoll_wait),
    ALLOW(epoll_pwait),
    ALLOW(write),
    ALLOW(poll),
    ALLOW(fallocate),
    ALLOW(futex),
    // Sockets (calls.cc, listener.cc): only those of the internet families are made.
    ALLOW_IF(socket, when_arg(0, SCMP_CMP_EQ, AF_INET)),
    ALLOW_IF(socket, when_arg(0, SCMP_CMP_EQ, AF_INET6)),
    ALLOW_IF(socketpair, when_arg(0, SCMP_CMP_EQ, AF_UNIX)),
    ALLOW(accept4),
    ALLOW(bind),
    ALLOW(listen),
    ALLOW(connect),
    ALLOW(shutdown),
    ALLOW(getsockopt),
    ALLOW(setsockopt),
    ALLOW(getsockname),
    ALLOW(getpeername),
    ALLOW(close),
    ALLOW(epoll_ctl),
    ALLOW(epoll_create1),
    ALLOW(eventfd2),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, FIONREAD)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCOUTQ)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCOUTQNSD)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCATMARK)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, FIONBIO)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFNAME)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFINDEX)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFFLAGS)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFADDR)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFDSTADDR)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFBRDADDR)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFNETMASK)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFMETRIC)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFMTU)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFHWADDR)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFTXQLEN)),
    ALLOW_IF(ioctl, when_arg(1, SCMP_CMP_EQ, SIOCGIFMAP)),
    // The region and the control thread (control.cc, publish.cc, resolve.cc).
    ALLOW(read),
    ALLOW(writev),
    ALLOW(pwrite64),
    ALLOW(pread64),
    ALLOW(ftruncate),
    ALLOW(fstat),
    ALLOW(newfstatat),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_DUPFD_CLOEXEC)),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_GETFL)),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_SETFL)),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_GETFD)),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_SETFD)),
    ALLOW_IF(fcntl, when_arg(1, SCMP_CMP_EQ, F_GET_SEALS)),
    ALLOW(recvmmsg),
    ALLOW(sendmmsg),
    // Memory, time, random numbers, the end (libc). No memory becomes executable.
    ALLOW_IF(mmap, when_arg(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)),
    ALLOW_IF(mprotect, when_arg(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)),
    ALLOW(munmap),
    ALLOW(mremap),
    ALLOW(madvise),
    ALLOW(brk),
    ALLOW(clock_gettime),
    ALLOW(gettimeofday),
    ALLOW(clock_nanosleep),
    ALLOW(getrandom),
    ALLOW(sched_yield),
    ALLOW(restart_syscall),
    ALLOW(rt_sigreturn),
    ALLOW(rt_sigprocmask),
    ALLOW(rt_sigaction),
    ALLOW(getpid),
    ALLOW(gettid),
    ALLOW(tgkill),
    ALLOW(exit),
    ALLOW(exit_group),
    ALLOW(set_robust_list),
    ALLOW(rseq),
    ALLOW(membarrier),
#ifdef MW_SANITIZED
    // What the sanitizers' own runtime asks for, to check and to report.
    ALLOW(open),
    ALLOW(openat),
    ALLOW(readlink),
    ALLOW(sigaltstack),
    ALLOW(sched_getaffinity),
    ALLOW(prctl),
    ALLOW(getrlimit),
    ALLOW(prlimit64),
    ALLOW(setrlimit),
    ALLOW(clone),
    ALLOW(clone3),
    ALLOW(wait4),
    ALLOW(ptrace),
    ALLOW(pipe),
    ALLOW(pipe2),
    ALLOW(getppid),
    ALLOW(dup2),
    ALLOW(lseek),
    ALLOW(stat),
    ALLOW(lstat),
    ALLOW(getdents64),
    ALLOW(process_vm_readv),
    ALLOW(uname),
    ALLOW(nanosleep),
    ALLOW(arch_prctl),
    ALLOW(kill),
    ALLOW(getuid),
    ALLOW(access),
    ALLOW(ioctl),
    ALLOW(mincore),
    ALLOW(set_tid_address),
#endif
};

// Asked for by libraries that live without it: an error instead of death.
const Rule kRefused[] = {
#ifndef MW_SANITIZED
    ALLOW(open),
    ALLOW(openat),
    ALLOW(prlimit64),
    ALLOW(readlink),
#endif
    ALLOW_IF(socket, when_arg(0, SCMP_CMP_EQ, AF_UNIX)),
    ALLOW_IF(socket, when_arg(0, SCMP_CMP_EQ, AF_NETLINK)),
};

}  // namespace

void raise_descriptor_limit() {
  rlimit most{};
  if (::getrlimit(RLIMIT_NOFILE, &most) < 0) return;
  unsigned long open_max = 0;
  if (FILE* f = std::fopen("/proc/sys/fs/nr_open", "re"); f != nullptr) {
    if (std::fscanf(f, "%lu", &open_max) != 1) open_max = 0;
    std::fclose(f);
  }
  const rlimit wanted{open_max, open_max};
  if (open_max > most.rlim_max && ::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return;
  most.rlim_cur = most.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &most);  // at worst it stays as it was
}

Result<SandboxNotes> drop_privileges(uint32_t uid, uint32_t gid) {
  SandboxNotes notes;
  if (::geteuid() == 0) {
    if (::unshare(CLONE_NEWNS) < 0) return failed("unshare of the mount namespace");
    if (const Status root = empty_root(); !root) return root.error();
    if (::setgroups(0, nullptr) < 0) return failed("setgroups");
    // The bounding set can only shrink while there are capabilities; the others go with the uid.
    if (::setresgid(gid, gid, gid) < 0) return failed("setresgid");
    for (int cap = 0; ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; ++cap)
      if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) return failed("capability bound");
    if (::setresuid(uid, uid, uid) < 0) return failed("setresuid");
  } else {
    const auto own_uid = std::to_string(::geteuid());
    const auto own_gid = std::to_string(::getegid());
    notes.empty_root = ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
    if (notes.empty_root) {
      const bool mapped = write_file("/proc/self/setgroups", "deny") &&
                          write_file("/proc/self/uid_map", own_uid + " " + own_uid + " 1") &&
                          write_file("/proc/self/gid_map", own_gid + " " + own_gid + " 1");
      if (!mapped) return failed("user namespace");
      // Some systems grant the namespace and then forbid to mount in it.
      notes.empty_root = static_cast<bool>(empty_root());
    }
  }
  if (const Status dropped = drop_capabilities(); !dropped) return dropped.error();
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return failed("no_new_privs");
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return failed("dumpable");
  return notes;
}

Status filter_system_calls() {
  const auto with = [](int negative, const char* where) {
    return Error{Fault::sys, -negative, where};
  };
  scmp_filter_ctx ctx = ::seccomp_init(SCMP_ACT_KILL_PROCESS);
  if (ctx == nullptr) return Error{Fault::sys, ENOMEM, "seccomp filter"};
  int bad = ::seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
  if (bad == 0) bad = ::seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
  for (const Rule& r : kRules)
    if (bad == 0) bad = ::seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, r.call, r.conditions, r.when);
  for (const Rule& r : kRefused) {
    const uint32_t error = SCMP_ACT_ERRNO(r.call == SCMP_SYS(socket) ? EAFNOSUPPORT : EACCES);
    if (bad == 0) bad = ::seccomp_rule_add_array(ctx, error, r.call, r.conditions, r.when);
  }
  if (bad == 0) bad = ::seccomp_load(ctx);
  ::seccomp_release(ctx);
  if (bad != 0) return with(bad, "seccomp filter");
  return Ok{};
}

}  // namespace mw
