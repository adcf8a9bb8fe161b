// resolve.h - host names are looked up inside the INS, so that a protected client leaks nothing
// through the host's resolver. Service names, numeric hosts and passive addresses need no network
// and stay here.
#pragma once

#include <netdb.h>

namespace mw::shim {

int shim_getaddrinfo(const char* node, const char* service, const addrinfo* hints, addrinfo** out);
int shim_getnameinfo(const sockaddr* a, socklen_t len, char* host, socklen_t host_len, char* serv,
                     socklen_t serv_len, int flags);

}  // namespace mw::shim
