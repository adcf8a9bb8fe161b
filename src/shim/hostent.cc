// hostent.cc - the older lookup functions (gethostbyname and its family) on top of resolve.h.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include <algorithm>

#include "shim/process.h"
#include "shim/resolve.h"

#define MW_EXPORT extern "C" [[gnu::visibility("default")]]

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
    *herr = h_errno_of(rc);
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
    *herr = h_errno_of(rc);
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
