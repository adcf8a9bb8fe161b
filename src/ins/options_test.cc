// Which socket options are set: the list, the INS, and its system call filter.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "codec/socket_options.h"
#include "ins/sandbox.h"
#include "tests/support/fake_pvm.h"

namespace mw {
namespace {

constexpr int kOptionLevels[] = {SOL_SOCKET,  IPPROTO_IP,  IPPROTO_IPV6,
                                 IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE};
constexpr int kOptionNames = 260;

// What is left out of the list although the kernel knows it.
bool is_left_out(int level, int name) {
  switch (level) {
    case SOL_SOCKET:
      return name == SO_ATTACH_FILTER || name == SO_ATTACH_BPF || name == SO_ZEROCOPY ||
             name == 76 /* SO_PASSPIDFD */ || name == 80 /* SO_DEVMEM_DONTNEED */ ||
             name == 83 /* SO_PASSRIGHTS */ || name == SO_ATTACH_REUSEPORT_CBPF ||
             name == SO_ATTACH_REUSEPORT_EBPF;
    case IPPROTO_TCP:
      return name == TCP_MD5SIG || name == TCP_MD5SIG_EXT || name == TCP_ULP ||
             name == TCP_REPAIR || name == TCP_REPAIR_QUEUE || name == TCP_QUEUE_SEQ ||
             name == TCP_REPAIR_OPTIONS || name == TCP_REPAIR_WINDOW ||
             name == TCP_ZEROCOPY_RECEIVE || (name >= 38 && name <= 43);  // TCP-AO, MPTCP
    case IPPROTO_UDP:
    case IPPROTO_UDPLITE:
      return name == UDP_ENCAP;
    case IPPROTO_IP:  // and the tables of iptables and ebtables
      return name == IP_IPSEC_POLICY || name == IP_XFRM_POLICY || (name >= 64 && name < 160);
    case IPPROTO_IPV6:
      return name == IPV6_IPSEC_POLICY || name == IPV6_XFRM_POLICY || name == 64 || name == 65;
    default:
      return false;
  }
}

TEST(SocketOptions, WhatIsNotSettableTheKernelDoesNotKnow) {
  utsname kernel{};
  ::uname(&kernel);
  char* dot = nullptr;
  const long major = std::strtol(kernel.release, &dot, 10);
  if (major > 6 || (major == 6 && std::strtol(dot + 1, nullptr, 10) > 18))
    GTEST_SKIP() << "this kernel is newer than the list, and may know more";
  for (const int domain : {AF_INET, AF_INET6}) {
    for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
      const UniqueFd fd{::socket(domain, type | SOCK_CLOEXEC, 0)};
      if (!fd) continue;
      for (const int level : kOptionLevels) {
        for (int name = 0; name < kOptionNames; ++name) {
          if (option_is_settable(level, name) || is_left_out(level, name)) continue;
          for (const socklen_t len : {0, 1, 4, 8}) {
            const uint64_t zero = 0;
            errno = 0;
            EXPECT_EQ(::setsockopt(fd.get(), level, name, &zero, len), -1);
            EXPECT_EQ(errno, errno_of_unsettable(type == SOCK_STREAM, domain == AF_INET6, level,
                                                 name, len))
                << "domain " << domain << " type " << type << " level " << level << " name " << name
                << " length " << len;
          }
        }
      }
    }
  }
}

TEST(InsProgram, EveryOptionThatCanBeAskedForIsAnswered) {
  FakePvm pvm(kTestGeometry, MWINS_PROGRAM);
  pvm.begin();
  for (const int domain : {AF_INET, AF_INET6}) {
    for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
      int err = 0;
      FakeSock s = pvm.socket(type, &err, domain);
      if (err == EAFNOSUPPORT) continue;
      for (const int level : kOptionLevels) {
        for (int name = -1; name < kOptionNames; ++name) {
          const auto r =
              pvm.call(MW_OP_SETSOCKOPT, s, {level, name}, std::string_view("\0\0\0", 4));
          if (!option_is_settable(level, name)) {
            EXPECT_EQ(r.ret, -1) << level << " " << name;
            EXPECT_TRUE(r.err == ENOPROTOOPT || r.err == EOPNOTSUPP || r.err == EPERM);
          }
        }
      }
      EXPECT_EQ(pvm.call(MW_OP_GETSOCKNAME, s).ret, 0);
    }
  }
  EXPECT_EQ(pvm.wait_child(SIGTERM), 0);
}

// In a child behind the filter: how it ends that sets this option.
int status_behind_filter(int level, int name) {
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool filtered = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && filter_system_calls();
    if (!filtered) ::_exit(2);
    const int value = 0;
    (void)::setsockopt(fd, level, name, &value, sizeof value);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(Sandbox, SetsNoOptionThatIsNotSettable) {
  for (const int name : {TCP_NODELAY, TCP_TX_DELAY, TCP_CONGESTION})
    EXPECT_EQ(status_behind_filter(IPPROTO_TCP, name), 0) << name;
  EXPECT_EQ(status_behind_filter(SOL_SOCKET, SO_LINGER), 0);
  EXPECT_EQ(status_behind_filter(IPPROTO_IPV6, IPV6_V6ONLY), 0);
  constexpr int kIptSoSetReplace = 64;
  constexpr int kEbtSoSetEntries = 128;
  constexpr int kMrtInit = 200;
  const std::pair<int, int> forbidden[] = {{SOL_SOCKET, SO_ATTACH_FILTER},
                                           {SOL_SOCKET, SO_ATTACH_BPF},
                                           {IPPROTO_TCP, TCP_ULP},
                                           {IPPROTO_TCP, TCP_MD5SIG},
                                           {IPPROTO_TCP, TCP_MD5SIG_EXT},
                                           {IPPROTO_TCP, TCP_REPAIR},
                                           {IPPROTO_IP, kIptSoSetReplace},
                                           {IPPROTO_IP, kEbtSoSetEntries},
                                           {IPPROTO_IPV6, kIptSoSetReplace},
                                           {IPPROTO_IP, kMrtInit},
                                           {IPPROTO_IP, IP_XFRM_POLICY},
                                           {IPPROTO_UDP, UDP_ENCAP},
                                           {IPPROTO_TCP, IPV6_V6ONLY + 1000},
                                           {IPPROTO_RAW, 1},
                                           {SOL_SOCKET, -1}};
  for (const auto& [level, name] : forbidden) {
    const int status = status_behind_filter(level, name);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) << level << " " << name;
  }
}

}  // namespace
}  // namespace mw
