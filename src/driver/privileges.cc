#include "driver/privileges.h"

#include <errno.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "base/capabilities.h"
#include "base/sanitized.h"

namespace mw {
namespace {

constexpr uint64_t kKept =
    capability_bit(CAP_KILL)                // an INS that hangs, the owner of a socket
    | capability_bit(CAP_SYS_PTRACE)        // to look at processes of other users in /proc
    | capability_bit(CAP_NET_ADMIN)         // options of sockets (privileged_options.h)
    | capability_bit(CAP_NET_RAW)           // the same
    | capability_bit(CAP_NET_BIND_SERVICE)  // NetFlow and exporters at any port
    | capability_bit(CAP_DAC_READ_SEARCH)   // the INS's folder in the registry
    | capability_bit(CAP_SYS_RESOURCE);     // descriptors on their way (fd_store.h)

// No thread of a driver makes these; each is a way to the host, or into another process.
constexpr int kRefused[] = {
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(vfork),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(pidfd_getfd),
    SCMP_SYS(setns),
    SCMP_SYS(unshare),
    SCMP_SYS(chroot),
    SCMP_SYS(pivot_root),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(open_tree),
    SCMP_SYS(move_mount),
    SCMP_SYS(fsopen),
    SCMP_SYS(fsconfig),
    SCMP_SYS(fsmount),
    SCMP_SYS(fspick),
    SCMP_SYS(mount_setattr),
    SCMP_SYS(bpf),
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(delete_module),
    SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load),
    SCMP_SYS(reboot),
    SCMP_SYS(swapon),
    SCMP_SYS(swapoff),
    SCMP_SYS(settimeofday),
    SCMP_SYS(clock_settime),
    SCMP_SYS(adjtimex),
    SCMP_SYS(clock_adjtime),
    SCMP_SYS(sethostname),
    SCMP_SYS(setdomainname),
    SCMP_SYS(acct),
    SCMP_SYS(quotactl),
    SCMP_SYS(keyctl),
    SCMP_SYS(add_key),
    SCMP_SYS(request_key),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(name_to_handle_at),
    SCMP_SYS(iopl),
    SCMP_SYS(ioperm),
    SCMP_SYS(setuid),
    SCMP_SYS(setgid),
    SCMP_SYS(setreuid),
    SCMP_SYS(setregid),
    SCMP_SYS(setresuid),
    SCMP_SYS(setresgid),
    SCMP_SYS(setgroups),
    SCMP_SYS(setfsuid),
    SCMP_SYS(setfsgid),
    SCMP_SYS(mknod),
    SCMP_SYS(mknodat),
    SCMP_SYS(chown),
    SCMP_SYS(lchown),
    SCMP_SYS(fchown),
    SCMP_SYS(fchownat),
    SCMP_SYS(personality),
    SCMP_SYS(syslog),
};

Status failed(const char* what, int err) {
  return Error{Fault::sys, err, what};
}

Status refuse_calls() {
  scmp_filter_ctx filter = ::seccomp_init(SCMP_ACT_ALLOW);
  if (filter == nullptr) return failed("system call filter", ENOMEM);
  int bad = ::seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
  for (const int call : kRefused)
    if (bad == 0) bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), call, 0, nullptr);
  // A thread, but no process. What flags clone3() has no filter can see; the C library then uses the
  // other call.
  const scmp_arg_cmp no_thread{0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0};
#ifndef MW_SANITIZED  // they start a process that looks for leaks
  if (bad == 0)
    bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1, &no_thread);
  if (bad == 0)
    bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0, nullptr);
  if (bad == 0)
    bad = ::seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ptrace), 0, nullptr);
#else
  (void)no_thread;
#endif
  if (bad == 0) bad = ::seccomp_load(filter);
  ::seccomp_release(filter);
  if (bad != 0) return failed("system call filter", -bad);
  return Ok{};
}

}  // namespace

Status give_up_privileges() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return failed("no new privileges", errno);
  const rlimit none{0, 0};
  if (::setrlimit(RLIMIT_CORE, &none) < 0) return failed("limit of core files", errno);
  if (auto kept = keep_capabilities(kKept); !kept) return kept;
  return refuse_calls();
}

}  // namespace mw
