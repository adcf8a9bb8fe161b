// hostent.cc - the older lookup functions (gethostbyname and its family) on top of resolve.h.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "shim/calls/resolve.h"
#include "shim/libc/interpose.h"
#include "shim/process/process.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {

// Takes aligned pieces from the caller's buffer.
class Arena {
 public:
  Arena(char* at, size_t n) : at_(at), left_(n) {}
  void* take(size_t n) {
    const size_t skip = (8 - reinterpret_cast<uintptr_t>(at_) % 8) % 8;
    if (skip + n > left_) return nullptr;
    char* out = at_ + skip;
    at_ = out + n;
    left_ -= skip + n;
    return out;
  }

 private:
  char* at_;
  size_t left_;
};

int h_errno_of(int eai) {
  if (eai == EAI_NONAME) return HOST_NOT_FOUND;
  if (eai == EAI_NODATA || eai == EAI_ADDRFAMILY) return NO_DATA;
  if (eai == EAI_AGAIN) return TRY_AGAIN;
  return NO_RECOVERY;
}

// Fills a hostent from a result list. 0 or ERANGE.
int fill(const addrinfo* list, const char* name, int family, hostent* out, char* buffer, size_t n) {
  Arena arena(buffer, n);
  const size_t size = family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr);
  size_t count = 0;
  for (const addrinfo* i = list; i != nullptr; i = i->ai_next) count += i->ai_family == family;
  auto** addresses = static_cast<char**>(arena.take((count + 1) * sizeof(char*)));
  auto** aliases = static_cast<char**>(arena.take(sizeof(char*)));
  if (addresses == nullptr || aliases == nullptr) return ERANGE;
  size_t k = 0;
  for (const addrinfo* i = list; i != nullptr; i = i->ai_next) {
    if (i->ai_family != family) continue;
    auto* raw = static_cast<char*>(arena.take(size));
    if (raw == nullptr) return ERANGE;
    if (family == AF_INET)
      memcpy(raw, &reinterpret_cast<const sockaddr_in*>(i->ai_addr)->sin_addr, size);
    else
      memcpy(raw, &reinterpret_cast<const sockaddr_in6*>(i->ai_addr)->sin6_addr, size);
    addresses[k++] = raw;
  }
  addresses[k] = nullptr;
  aliases[0] = nullptr;
  const char* canonical =
      list != nullptr && list->ai_canonname != nullptr ? list->ai_canonname : name;
  auto* copy = static_cast<char*>(arena.take(strlen(canonical) + 1));
  if (copy == nullptr) return ERANGE;
  memcpy(copy, canonical, strlen(canonical) + 1);
  *out = {copy, aliases, family, static_cast<int>(size), addresses};
  return 0;
}

int by_name(const char* name, int family, hostent* out, char* buffer, size_t n, hostent** result,
            int* herr) {
  *result = nullptr;
  addrinfo hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_CANONNAME;
  addrinfo* list = nullptr;
  if (const int rc = shim_getaddrinfo(name, nullptr, &hints, &list); rc != 0) {
    *herr = h_errno = h_errno_of(rc);
    return rc == EAI_AGAIN ? EAGAIN : 0;
  }
  const int rc = fill(list, name, family, out, buffer, n);
  ::freeaddrinfo(list);
  if (rc == 0)
    *result = out;
  else
    *herr = NETDB_INTERNAL;
  return rc;
}

int by_address(const void* address, socklen_t len, int family, hostent* out, char* buffer, size_t n,
               hostent** result, int* herr) {
  *result = nullptr;
  sockaddr_in6 in6{};
  sockaddr_in in{};
  const sockaddr* a = nullptr;
  socklen_t a_len = 0;
  if (family == AF_INET && len >= sizeof in.sin_addr) {
    in.sin_family = AF_INET;
    memcpy(&in.sin_addr, address, sizeof in.sin_addr);
    a = reinterpret_cast<sockaddr*>(&in);
    a_len = sizeof in;
  } else if (family == AF_INET6 && len >= sizeof in6.sin6_addr) {
    in6.sin6_family = AF_INET6;
    memcpy(&in6.sin6_addr, address, sizeof in6.sin6_addr);
    a = reinterpret_cast<sockaddr*>(&in6);
    a_len = sizeof in6;
  } else {
    *herr = HOST_NOT_FOUND;
    return 0;
  }
  char host[NI_MAXHOST];
  if (const int rc = shim_getnameinfo(a, a_len, host, sizeof host, nullptr, 0, NI_NAMEREQD);
      rc != 0) {
    *herr = h_errno = h_errno_of(rc);
    return 0;
  }
  addrinfo one{};
  one.ai_family = family;
  one.ai_addr = const_cast<sockaddr*>(a);
  const int rc = fill(&one, host, family, out, buffer, n);
  if (rc == 0)
    *result = out;
  else
    *herr = NETDB_INTERNAL;
  return rc;
}

// The notification of getaddrinfo_a(), as its caller asked for it.
void notify(const sigevent& how) {
  if (how.sigev_notify == SIGEV_SIGNAL) {
    siginfo_t info{};
    info.si_signo = how.sigev_signo;
    info.si_code = SI_ASYNCNL;
    info.si_pid = ::getpid();
    info.si_uid = ::getuid();
    info.si_value = how.sigev_value;
    libc.syscall(SYS_rt_sigqueueinfo, info.si_pid, how.sigev_signo, &info);
  } else if (how.sigev_notify == SIGEV_THREAD) {
    auto* copy = static_cast<sigevent*>(::malloc(sizeof how));
    if (copy == nullptr) return;
    *copy = how;
    const auto body = [](void* p) -> void* {
      const sigevent e = *static_cast<sigevent*>(p);
      ::free(p);
      ::pthread_detach(::pthread_self());
      e.sigev_notify_function(e.sigev_value);
      return nullptr;
    };
    pthread_t thread{};
    if (::pthread_create(&thread, how.sigev_notify_attributes, body, copy) != 0) ::free(copy);
  }
}

thread_local hostent static_entry;
thread_local char static_buffer[2048];

}  // namespace

MW_EXPORT int gethostbyname2_r(const char* name, int family, hostent* out, char* buffer, size_t n,
                               hostent** result, int* herr) {
  return by_name(name, family, out, buffer, n, result, herr);
}
MW_EXPORT int gethostbyname_r(const char* name, hostent* out, char* buffer, size_t n,
                              hostent** result, int* herr) {
  return by_name(name, AF_INET, out, buffer, n, result, herr);
}
MW_EXPORT hostent* gethostbyname2(const char* name, int family) {
  hostent* result = nullptr;
  int herr = 0;
  by_name(name, family, &static_entry, static_buffer, sizeof static_buffer, &result, &herr);
  if (result == nullptr) h_errno = herr;
  return result;
}
MW_EXPORT hostent* gethostbyname(const char* name) {
  return gethostbyname2(name, AF_INET);
}
MW_EXPORT int gethostbyaddr_r(const void* address, socklen_t len, int family, hostent* out,
                              char* buffer, size_t n, hostent** result, int* herr) {
  return by_address(address, len, family, out, buffer, n, result, herr);
}
MW_EXPORT hostent* gethostbyaddr(const void* address, socklen_t len, int family) {
  hostent* result = nullptr;
  int herr = 0;
  by_address(address, len, family, &static_entry, static_buffer, sizeof static_buffer, &result,
             &herr);
  if (result == nullptr) h_errno = herr;
  return result;
}
// The C library's own would look up with its own resolver. Ours has the answers before it returns,
// also with GAI_NOWAIT: gai_error() then tells them, and gai_suspend() finds nothing to wait for.
MW_EXPORT int getaddrinfo_a(int mode, gaicb* list[], int n, sigevent* how) {
  if (mode != GAI_WAIT && mode != GAI_NOWAIT) {
    errno = EINVAL;
    return EAI_SYSTEM;
  }
  for (int i = 0; i < n; ++i) {
    if (list[i] == nullptr) continue;
    gaicb& one = *list[i];
    one.__return = shim_getaddrinfo(one.ar_name, one.ar_service, one.ar_request, &one.ar_result);
  }
  if (mode == GAI_NOWAIT && how != nullptr) notify(*how);
  return 0;
}
