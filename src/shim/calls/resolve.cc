#include "shim/calls/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "shim/process/attachment.h"
#include "shim/process/exec.h"
#include "shim/process/stack.h"
#include "shim/socket/call_cells.h"

namespace mw::shim {
namespace {

constexpr uint32_t kMaxAddresses = 48;

struct Lookup {
  mw_addr addresses[kMaxAddresses];
  uint32_t count = 0;
  char canonical[256];
};

int as_eai(const CallAnswer& a) {
  if (a.ret >= 0) return 0;
  // Failures of the channel come as errno values, lookups as EAI_*, which are negative.
  if (a.err < 0) return a.err;
  errno = a.err;
  return EAI_AGAIN;
}

// The search list of a process that the environment gives one of its own, each domain with its end;
// returns ndots. -1: the INS's holds.
int own_search_list(char* room, size_t most, Bytes& out) {
  if (::getenv("LOCALDOMAIN") == nullptr && ::getenv("RES_OPTIONS") == nullptr) return -1;
  res_state const state = __res_state();
  if ((state->options & RES_INIT) == 0 && res_ninit(state) < 0) return -1;
  size_t used = 0;
  for (int i = 0; i < MAXDNSRCH && state->dnsrch[i] != nullptr; ++i) {
    const size_t n = strlen(state->dnsrch[i]) + 1;
    if (n > most - used) break;
    memcpy(room + used, state->dnsrch[i], n);
    used += n;
  }
  out = {room, static_cast<uint32_t>(used)};
  return static_cast<int>(std::min<unsigned>(state->ndots, 15));
}

// Asks the INS. 0 or EAI_*.
int look_up_name(const char* node, int family, int flags, Lookup& out) {
  const size_t n = strlen(node) + 1;
  if (n > 256) return EAI_NONAME;
  if (!attach()) {
    errno = ENETDOWN;
    return EAI_SYSTEM;
  }
  CallRequest r;
  r.op = MW_OP_RESOLVE;
  r.arg[0] = family;
  r.arg[1] = flags;
  r.in[0] = {node, static_cast<uint32_t>(n)};
  char domains[512];
  if (const int ndots = own_search_list(domains, sizeof domains, r.in[1]); ndots >= 0)
    r.arg[2] = 1 + ndots;
  alignas(8) static thread_local char answer[MW_CALL_PAYLOAD];
  const CallAnswer a = call(r, answer, sizeof answer);
  if (a.ret < 0) return as_eai(a);
  out.count = std::min(static_cast<uint32_t>(a.ret), kMaxAddresses);
  const uint32_t bytes = out.count * static_cast<uint32_t>(sizeof(mw_addr));
  if (bytes > a.len) {
    poison(stack_for_new(), "answer to a lookup");
    return EAI_FAIL;
  }
  memcpy(out.addresses, answer, bytes);
  const uint32_t rest = std::min<uint32_t>(a.len - bytes, sizeof out.canonical - 1);
  memcpy(out.canonical, answer + bytes, rest);
  out.canonical[rest] = 0;
  return out.count != 0 ? 0 : EAI_NONAME;
}

// One result list for one numeric address, from the C library itself (service, socket types,
// flags).
int numeric(const mw_addr& a, const char* service, const addrinfo* hints, addrinfo** out) {
  char text[INET6_ADDRSTRLEN + 16];
  sockaddr_in6 in6{};
  memcpy(&in6, a.bytes, std::min<size_t>(a.len, sizeof in6));
  const int family = in6.sin6_family;
  if (family == AF_INET) {
    sockaddr_in in{};
    memcpy(&in, a.bytes, sizeof in);
    ::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
  } else if (family == AF_INET6) {
    ::inet_ntop(AF_INET6, &in6.sin6_addr, text, sizeof text);
  } else {
    return EAI_FAMILY;
  }
  addrinfo h{};
  if (hints != nullptr) h = *hints;
  h.ai_flags = (h.ai_flags & ~(AI_CANONNAME | AI_ADDRCONFIG)) | AI_NUMERICHOST;
  if (family == AF_INET && h.ai_family == AF_INET6) h.ai_flags |= AI_V4MAPPED;
  const int rc = libc.getaddrinfo(text, service, &h, out);
  if (rc == 0 && family == AF_INET6) {
    for (addrinfo* i = *out; i != nullptr; i = i->ai_next)
      reinterpret_cast<sockaddr_in6*>(i->ai_addr)->sin6_scope_id = in6.sin6_scope_id;
  }
  return rc;
}

}  // namespace

int shim_getaddrinfo(const char* node, const char* service, const addrinfo* hints, addrinfo** out) {
  if (node == nullptr || session_setting() == nullptr || is_abroad())
    return libc.getaddrinfo(node, service, hints, out);
  addrinfo h{};
  if (hints != nullptr) h = *hints;
  // A numeric host, and every mistake in the hints, is settled without a lookup.
  addrinfo local = h;
  local.ai_flags |= AI_NUMERICHOST;
  const int as_number = libc.getaddrinfo(node, service, &local, out);
  if (as_number != EAI_NONAME || (h.ai_flags & AI_NUMERICHOST) != 0 || node[0] == 0)
    return as_number;
  Lookup found;
  if (const int rc = look_up_name(node, h.ai_family, h.ai_flags, found); rc != 0) return rc;
  addrinfo* first = nullptr;
  addrinfo** tail = &first;
  int last = EAI_NONAME;
  for (uint32_t i = 0; i < found.count; ++i) {
    addrinfo* some = nullptr;
    last = numeric(found.addresses[i], service, hints, &some);
    if (last != 0) continue;
    *tail = some;
    while (*tail != nullptr) tail = &(*tail)->ai_next;
  }
  if (first == nullptr) return last;
  if ((h.ai_flags & AI_CANONNAME) != 0)
    first->ai_canonname = ::strdup(found.canonical[0] != 0 ? found.canonical : node);
  *out = first;
  return 0;
}

int shim_getnameinfo(const sockaddr* a, socklen_t len, char* host, socklen_t host_len, char* serv,
                     socklen_t serv_len, int flags) {
  const bool wants_name = host != nullptr && host_len != 0 && (flags & NI_NUMERICHOST) == 0;
  const bool inet = a != nullptr && len >= sizeof(sa_family_t) &&
                    (a->sa_family == AF_INET || a->sa_family == AF_INET6);
  if (wants_name && inet && len <= sizeof(sockaddr_in6) && session_setting() != nullptr &&
      !is_abroad() && attach()) {
    CallRequest r;
    r.op = MW_OP_RESOLVE_ADDR;
    r.arg[0] = flags;
    r.in[0] = {a, len};
    char name[256];
    const CallAnswer answer = call(r, name, sizeof name - 1);
    if (answer.ret >= 0) {
      name[answer.len] = 0;
      if (strlen(name) >= host_len) return EAI_OVERFLOW;
      if (serv != nullptr && serv_len != 0)
        if (const int rc = libc.getnameinfo(a, len, nullptr, 0, serv, serv_len, flags); rc != 0)
          return rc;
      memcpy(host, name, strlen(name) + 1);
      return 0;
    }
    if ((flags & NI_NAMEREQD) != 0) return as_eai(answer);
    flags |= NI_NUMERICHOST;
  }
  return libc.getnameinfo(a, len, host, host_len, serv, serv_len, flags);
}

}  // namespace mw::shim
