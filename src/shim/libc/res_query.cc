// res_query.cc - the resolver library's own functions (res_query and its family), on top of one
// call that has the INS exchange a DNS message with its name servers.
//
// What they hand out are answers as they came from the network: the program that parses them has
// always had to distrust them. Which servers are asked is the INS's configuration, whatever stands
// in the caller's res_state; its search list and options are honoured.
#include <arpa/nameser.h>
#include <errno.h>
#include <netdb.h>
#include <resolv.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "shim/libc/interpose.h"
#include "shim/process/attachment.h"
#include "shim/process/stack.h"
#include "shim/socket/call_cells.h"

using namespace mw::shim;  // NOLINT: the exported names have to be global

namespace {

constexpr int kHeaderBytes = NS_HFIXEDSZ;

// Returns the answer's length, which may be more than the room; -1 with errno.
int exchange(res_state state, const u_char* query, int length, u_char* answer, int room) {
  if (length < kHeaderBytes || length > static_cast<int>(MW_CALL_PAYLOAD) || room < kHeaderBytes) {
    errno = EINVAL;
    return -1;
  }
  if (is_abroad()) return libc.res_nsend(state, query, length, answer, room);
  if (!attach()) {
    errno = ENETDOWN;
    return -1;
  }
  CallRequest r;
  r.op = MW_OP_QUERY;
  r.in[0] = {query, static_cast<uint32_t>(length)};
  u_char got[MW_CALL_PAYLOAD];
  const CallAnswer a = call(r, got, sizeof got);
  if (a.ret < 0) {
    errno = a.err > 0 ? a.err : ETIMEDOUT;
    return -1;
  }
  if (a.len < static_cast<uint32_t>(kHeaderBytes)) {
    poison(stack_for_new(), "answer to a query");
    errno = ECONNRESET;
    return -1;
  }
  const int n = static_cast<int>(a.len);
  memcpy(answer, got, static_cast<size_t>(std::min(n, room)));
  if (n > room) reinterpret_cast<HEADER*>(answer)->tc = 1;
  return n;
}

int fail(res_state state, int herr) {
  state->res_h_errno = herr;
  h_errno = herr;
  return -1;
}

// The calling thread's own state, configured at its first use.
res_state own_state() {
  res_state state = __res_state();
  if ((state->options & RES_INIT) == 0 && res_init() < 0) {
    h_errno = NETDB_INTERNAL;
    return nullptr;
  }
  return state;
}

int query(res_state state, const char* name, int klass, int type, u_char* answer, int room) {
  if (room < kHeaderBytes) {
    errno = EINVAL;
    return fail(state, NETDB_INTERNAL);
  }
  u_char message[NS_PACKETSZ];
  const int length = res_nmkquery(state, ns_o_query, name, klass, type, nullptr, 0, nullptr,
                                  message, sizeof message);
  if (length <= 0) return fail(state, NO_RECOVERY);
  auto* header = reinterpret_cast<HEADER*>(answer);
  header->rcode = ns_r_noerror;  // in case nothing comes
  const int n = exchange(state, message, length, answer, room);
  if (n < 0) return fail(state, TRY_AGAIN);
  switch (header->rcode) {
    case ns_r_noerror:
      return ntohs(header->ancount) != 0 ? n : fail(state, NO_DATA);
    case ns_r_nxdomain:
      return fail(state, HOST_NOT_FOUND);
    case ns_r_servfail:
      return fail(state, TRY_AGAIN);
    default:
      return fail(state, NO_RECOVERY);
  }
}

// `domain` may be null: the name as it stands, without its last dot.
int query_domain(res_state state, const char* name, const char* domain, int klass, int type,
                 u_char* answer, int room) {
  char whole[NS_MAXDNAME];
  const size_t n = strlen(name);
  int length = 0;
  if (domain != nullptr)
    length = snprintf(whole, sizeof whole, "%s.%s", name, domain);
  else
    length = snprintf(whole, sizeof whole, "%.*s",
                      static_cast<int>(n > 0 && name[n - 1] == '.' ? n - 1 : n), name);
  if (length < 0 || length >= static_cast<int>(sizeof whole)) return fail(state, NO_RECOVERY);
  return query(state, whole, klass, type, answer, room);
}

int search(res_state state, const char* name, int klass, int type, u_char* answer, int room) {
  const size_t n = strlen(name);
  const auto dots = static_cast<unsigned>(std::count(name, name + n, '.'));
  const bool rooted = n > 0 && name[n - 1] == '.';
  const auto as_it_stands = [&] {
    return query_domain(state, name, nullptr, klass, type, answer, room);
  };
  int first_failure = -1;
  if (rooted || dots >= state->ndots) {
    const int got = as_it_stands();
    if (got > 0 || rooted) return got;
    first_failure = h_errno;
  }
  bool no_data = false;
  bool try_again = false;
  const bool domains =
      dots == 0 ? (state->options & RES_DEFNAMES) != 0 : (state->options & RES_DNSRCH) != 0;
  for (int i = 0; domains && i < MAXDNSRCH && state->dnsrch[i] != nullptr; ++i) {
    const int got = query_domain(state, name, state->dnsrch[i], klass, type, answer, room);
    if (got > 0) return got;
    if (h_errno == TRY_AGAIN && reinterpret_cast<HEADER*>(answer)->rcode != ns_r_servfail)
      return -1;  // no server answers: nor would it for the next domain
    if (h_errno == NO_RECOVERY) break;
    no_data = no_data || h_errno == NO_DATA;
    try_again = try_again || h_errno == TRY_AGAIN;
    if ((state->options & RES_DNSRCH) == 0) break;
  }
  if (first_failure == -1 && (dots != 0 || (state->options & RES_NOTLDQUERY) == 0)) {
    const int got = as_it_stands();
    if (got > 0) return got;
    first_failure = h_errno;
  }
  if (first_failure != -1) return fail(state, first_failure);
  return fail(state, no_data ? NO_DATA : try_again ? TRY_AGAIN : HOST_NOT_FOUND);
}

}  // namespace

MW_EXPORT int res_nsend(res_state state, const u_char* message, int length, u_char* answer,
                        int room) {
  const int n = exchange(state, message, length, answer, room);
  return n < 0 ? fail(state, TRY_AGAIN) : n;
}
MW_EXPORT int res_send(const u_char* message, int length, u_char* answer, int room) {
  res_state state = own_state();
  return state == nullptr ? -1 : res_nsend(state, message, length, answer, room);
}
MW_EXPORT int res_nquery(res_state state, const char* name, int klass, int type, u_char* answer,
                         int room) {
  return query(state, name, klass, type, answer, room);
}
MW_EXPORT int res_query(const char* name, int klass, int type, u_char* answer, int room) {
  res_state state = own_state();
  return state == nullptr ? -1 : query(state, name, klass, type, answer, room);
}
MW_EXPORT int res_nquerydomain(res_state state, const char* name, const char* domain, int klass,
                               int type, u_char* answer, int room) {
  return query_domain(state, name, domain, klass, type, answer, room);
}
MW_EXPORT int res_querydomain(const char* name, const char* domain, int klass, int type,
                              u_char* answer, int room) {
  res_state state = own_state();
  return state == nullptr ? -1 : query_domain(state, name, domain, klass, type, answer, room);
}
MW_EXPORT int res_nsearch(res_state state, const char* name, int klass, int type, u_char* answer,
                          int room) {
  return search(state, name, klass, type, answer, room);
}
MW_EXPORT int res_search(const char* name, int klass, int type, u_char* answer, int room) {
  res_state state = own_state();
  return state == nullptr ? -1 : search(state, name, klass, type, answer, room);
}

// The names that programs built against a glibc before 2.34 ask for.
#define MW_OLD_NAME(now, old) \
  extern "C" [[gnu::visibility("default"), gnu::alias(#now), gnu::nothrow]] decltype(now) old
MW_OLD_NAME(res_nsend, __res_nsend);
MW_OLD_NAME(res_send, __res_send);
MW_OLD_NAME(res_nquery, __res_nquery);
MW_OLD_NAME(res_query, __res_query);
MW_OLD_NAME(res_nquerydomain, __res_nquerydomain);
MW_OLD_NAME(res_querydomain, __res_querydomain);
MW_OLD_NAME(res_nsearch, __res_nsearch);
MW_OLD_NAME(res_search, __res_search);
