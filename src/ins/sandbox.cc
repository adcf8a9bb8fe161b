#include "ins/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <netinet/in.h>
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

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>

#include "base/capabilities.h"
#include "base/sanitized.h"
#include "base/unique_fd.h"
#include "codec/socket_options.h"

namespace mw {
namespace {

constexpr rlim_t kMaxFileBytes = 64 * 1024;
// Memory of its own, beside the session's regions: tables for the most sockets that there can be, and
// the worker threads' stacks.
constexpr rlim_t kMaxDataBytes = rlim_t{1} << 30;
// The kernel's own name for "first of all".
constexpr const char* kFirstToDie = "1000";

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

// Where there is no right to mounts, as for root in most containers, but one to chroot(): a folder that is
// gone, in which nothing can be made. Who has no folder open, and no right to chroot() any more, does
// not leave it.
Status vanished_root() {
  char path[] = "/tmp/mwins-XXXXXX";
  if (::mkdtemp(path) == nullptr) return failed("folder for an empty root");
  const bool inside = ::chdir(path) == 0;
  const bool gone = ::rmdir(path) == 0;
  if (!inside || !gone || ::chroot(".") < 0) return failed("chroot to an empty root");
  return Ok{};
}

// Lowers a limit, the hard one too.
Status lower_limit(__rlimit_resource which, rlim_t most, const char* what) {
  rlimit limit{};
  if (::getrlimit(which, &limit) < 0) return failed(what);
  limit = {std::min(limit.rlim_cur, most), std::min(limit.rlim_max, most)};
  if (::setrlimit(which, &limit) < 0) return failed(what);
  return Ok{};
}

// What an INS that was taken over could use up.
Status limit_resources() {
  // What it publishes is small; the file system that it stands in is everybody's.
  if (const Status s = lower_limit(RLIMIT_FSIZE, kMaxFileBytes, "limit of file sizes"); !s)
    return s;
  if (const Status s = lower_limit(RLIMIT_CORE, 0, "limit of core files"); !s) return s;
#ifndef MW_SANITIZED
  if (const Status s = lower_limit(RLIMIT_DATA, kMaxDataBytes, "limit of memory"); !s) return s;
#endif
  return Ok{};
}

// What a call may be made with: anything; or an argument, seen through a mask, that has one of a
// few values; or nothing: it fails with `error` instead of being fatal, because a library asks for
// it and lives without.
struct Rule {
  int call;
  int error = 0;
  unsigned argument = 0;
  uint64_t mask = 0;  // 0: the arguments do not matter
  std::initializer_list<uint64_t> values = {};
};

constexpr uint64_t kWhole = ~uint64_t{0};
constexpr uint64_t kTypeBits = 0xf;  // of a socket's type: the rest is flags
constexpr uint64_t kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

#define CALL(name) SCMP_SYS(name)

const Rule kRules[] = {
    // The data path (stream.cc, dgram.cc, worker.cc). fallocate() gives memory back, and nothing
    // else: it could fill the file system that the registry's files are in.
    {CALL(recvfrom)},
    {CALL(readv)},
    {CALL(recvmsg)},
    {CALL(sendto)},
    {CALL(sendmsg)},
    {CALL(epoll_wait)},
    {CALL(epoll_pwait)},
    {CALL(write)},
    {CALL(poll)},
    {CALL(futex)},
    {CALL(fallocate), 0, 1, kWhole, {kPunch}},
    // Sockets (calls.cc, listener.cc); add_socket_rules() says which are made, and add_option_rules()
    // which of their options are set. A pair is of streams:
    // one end of a pair of datagram sockets could be pointed at another program's local socket.
    {CALL(socketpair), 0, 1, kTypeBits, {SOCK_STREAM}},
    {CALL(accept4)},
    {CALL(bind)},
    {CALL(listen)},
    {CALL(connect)},
    {CALL(shutdown)},
    {CALL(getsockopt)},
    {CALL(getsockname)},
    {CALL(getpeername)},
    {CALL(close)},
    {CALL(epoll_ctl)},
    {CALL(epoll_create1)},
    {CALL(eventfd2)},
    {CALL(ioctl), 0, 1, kWhole, {FIONREAD,      SIOCOUTQ,       SIOCOUTQNSD,    SIOCATMARK,
                                 FIONBIO,       SIOCGIFNAME,    SIOCGIFINDEX,   SIOCGIFFLAGS,
                                 SIOCGIFADDR,   SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK,
                                 SIOCGIFMETRIC, SIOCGIFMTU,     SIOCGIFHWADDR,  SIOCGIFTXQLEN,
                                 SIOCGIFMAP,    SIOCGIFCONF,    SIOCETHTOOL,    SIOCGARP}},
    // The region and the control thread (control.cc, publish.cc, resolve.cc).
    {CALL(read)},
    {CALL(writev)},
    {CALL(pwrite64)},
    {CALL(pread64)},
    {CALL(ftruncate)},
    {CALL(fstat)},
    {CALL(newfstatat), EACCES},  // also takes names
    {CALL(fcntl), 0, 1, kWhole, {F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_GET_SEALS}},
    {CALL(recvmmsg)},
    {CALL(sendmmsg)},
    // Memory, time, random numbers, the end (libc). No memory becomes executable.
    {CALL(mmap), 0, 2, PROT_EXEC, {0}},
    {CALL(mprotect), 0, 2, PROT_EXEC, {0}},
    {CALL(munmap)},
    {CALL(mremap)},
    {CALL(madvise)},
    {CALL(brk)},
    {CALL(clock_gettime)},
    {CALL(gettimeofday)},
    {CALL(clock_nanosleep)},
    {CALL(getrandom)},
    {CALL(sched_yield)},
    {CALL(restart_syscall)},
    {CALL(rt_sigreturn)},
    {CALL(rt_sigprocmask)},
    {CALL(rt_sigaction)},
    {CALL(getpid)},
    {CALL(gettid)},
    {CALL(exit)},
    {CALL(exit_group)},
    {CALL(set_robust_list)},
    {CALL(rseq)},
    {CALL(membarrier)},
#ifdef MW_SANITIZED
    // What the sanitizers' own runtime asks for, to check and to report.
    {CALL(open)},
    {CALL(openat)},
    {CALL(readlink)},
    {CALL(sigaltstack)},
    {CALL(sched_getaffinity)},
    {CALL(prctl)},
    {CALL(getrlimit)},
    {CALL(prlimit64)},
    {CALL(setrlimit)},
    {CALL(clone)},
    {CALL(clone3)},
    {CALL(wait4)},
    {CALL(ptrace)},
    {CALL(pipe)},
    {CALL(pipe2)},
    {CALL(getppid)},
    {CALL(dup2)},
    {CALL(lseek)},
    {CALL(stat)},
    {CALL(lstat)},
    {CALL(getdents64)},
    {CALL(process_vm_readv)},
    {CALL(uname)},
    {CALL(nanosleep)},
    {CALL(arch_prctl)},
    {CALL(kill)},
    {CALL(getuid)},
    {CALL(access)},
    {CALL(ioctl)},
    {CALL(mincore)},
    {CALL(set_tid_address)},
#else
    {CALL(open), EACCES},
    {CALL(openat), EACCES},
    {CALL(prlimit64), EACCES},
    {CALL(readlink), EACCES},
#endif
};

// Sockets of TCP, UDP and UDP-Lite and nothing else: making one of another protocol would load its module.
int add_socket_rules(scmp_filter_ctx filter) {
  struct Kind {
    uint64_t type, protocol;
  };
  constexpr Kind kKinds[] = {{SOCK_STREAM, 0},
                             {SOCK_STREAM, IPPROTO_TCP},
                             {SOCK_DGRAM, 0},
                             {SOCK_DGRAM, IPPROTO_UDP},
                             {SOCK_DGRAM, IPPROTO_UDPLITE}};
  int bad = 0;
  for (const uint64_t family : {AF_INET, AF_INET6}) {
    for (const Kind& k : kKinds) {
      const scmp_arg_cmp when[] = {{0, SCMP_CMP_EQ, family, 0},
                                   {1, SCMP_CMP_MASKED_EQ, kTypeBits, k.type},
                                   {2, SCMP_CMP_EQ, k.protocol, 0}};
      if (bad == 0)
        bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, CALL(socket), std::size(when), when);
    }
  }
  // What the C library may ask for, and does without.
  for (const uint64_t family : {AF_UNIX, AF_NETLINK}) {
    const scmp_arg_cmp when{0, SCMP_CMP_EQ, family, 0};
    if (bad == 0)
      bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), CALL(socket), 1, &when);
  }
  return bad;
}

// What an application may set, and what the INS and its name lookups set by themselves is among it. The
// kernel looks at the lower halves of the arguments.
int add_option_rules(scmp_filter_ctx filter) {
  constexpr uint64_t kInt = UINT32_MAX;
  int bad = 0;
  for (const OptionLevel& l : kSettableOptions) {
    for (size_t k = 0; k < l.count && bad == 0; ++k) {
      const scmp_arg_cmp when[] = {
          {1, SCMP_CMP_MASKED_EQ, kInt, static_cast<uint64_t>(l.level)},
          {2, SCMP_CMP_MASKED_EQ, kInt, static_cast<uint64_t>(l.names[k])}};
      bad =
          ::seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, CALL(setsockopt), std::size(when), when);
    }
  }
  return bad;
}

int add_rule(scmp_filter_ctx filter, const Rule& r) {
  const uint32_t action = r.error == 0 ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(r.error);
  if (r.mask == 0) return ::seccomp_rule_add_array(filter, action, r.call, 0, nullptr);
  int bad = 0;
  for (const uint64_t value : r.values) {  // alternatives
    const scmp_arg_cmp when{r.argument, SCMP_CMP_MASKED_EQ, r.mask, value};
    if (bad == 0) bad = ::seccomp_rule_add_array(filter, action, r.call, 1, &when);
  }
  return bad;
}

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

namespace {

// What the system call filter keeps from us anyway; a system may count or lack these namespaces.
void unshare_the_rest() {
  for (const int kind : {CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP}) (void)::unshare(kind);
}

}  // namespace

Result<SandboxNotes> drop_privileges(uint32_t uid, uint32_t gid) {
  SandboxNotes notes;
  // An INS can be replaced; the application and the others cannot. Where /proc is read-only it stays as
  // it is.
  (void)write_file("/proc/self/oom_score_adj", kFirstToDie);
  if (::geteuid() == 0) {
    if (::unshare(CLONE_NEWNS) == 0) {
      unshare_the_rest();
      if (const Status root = empty_root(); !root) return root.error();
    } else if (errno == EPERM) {
      notes.empty_root = static_cast<bool>(vanished_root());
    } else {
      return failed("unshare of namespaces");
    }
    if (::setgroups(0, nullptr) < 0) return failed("setgroups");
    // The bounding set can only shrink while there are capabilities; the others go with the uid.
    if (::setresgid(gid, gid, gid) < 0) return failed("setresgid");
    if (const Status bounded = bound_capabilities(0); !bounded) return bounded.error();
    if (::setresuid(uid, uid, uid) < 0) return failed("setresuid");
  } else {
    const auto own_uid = std::to_string(::geteuid());
    const auto own_gid = std::to_string(::getegid());
    notes.empty_root = ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
    if (notes.empty_root) {
      unshare_the_rest();
      const bool mapped = write_file("/proc/self/setgroups", "deny") &&
                          write_file("/proc/self/uid_map", own_uid + " " + own_uid + " 1") &&
                          write_file("/proc/self/gid_map", own_gid + " " + own_gid + " 1");
      if (!mapped) return failed("user namespace");
      // Some systems grant the namespace and then forbid to mount in it.
      notes.empty_root = static_cast<bool>(empty_root());
    }
  }
  if (const Status dropped = keep_capabilities(0); !dropped) return dropped.error();
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return failed("no_new_privs");
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return failed("dumpable");
  if (const Status limited = limit_resources(); !limited) return limited.error();
  return notes;
}

Status filter_system_calls() {
  const auto with = [](int negative, const char* where) {
    return Error{Fault::sys, -negative, where};
  };
  // All threads are there.
  if (const Status s = lower_limit(RLIMIT_NPROC, 0, "limit of processes"); !s) return s;
  scmp_filter_ctx ctx = ::seccomp_init(SCMP_ACT_KILL_PROCESS);
  if (ctx == nullptr) return Error{Fault::sys, ENOMEM, "seccomp filter"};
  int bad = ::seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
  if (bad == 0) bad = ::seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
  for (const Rule& r : kRules)
    if (bad == 0) bad = add_rule(ctx, r);
  if (bad == 0) bad = add_socket_rules(ctx);
  if (bad == 0) bad = add_option_rules(ctx);
  // abort() signals its own thread. Without root the INS runs as the user's own uid, which could
  // signal all of the user's processes.
  const Rule own{CALL(tgkill), 0, 0, kWhole, {static_cast<uint64_t>(::getpid())}};
  if (bad == 0) bad = add_rule(ctx, own);
  if (bad == 0) bad = ::seccomp_load(ctx);
  ::seccomp_release(ctx);
  if (bad != 0) return with(bad, "seccomp filter");
  return Ok{};
}

}  // namespace mw
