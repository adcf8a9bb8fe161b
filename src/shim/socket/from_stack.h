// from_stack.h - what an INS may tell a program about a peer: addresses and control messages.
//
// PROBLEM     A program takes what a system call returns for the kernel's word. An INS that was taken
//             over could name descriptors that no kernel passed, lengths that run over the program's
//             buffers, or addresses of another family than the socket's.
// PROMISE     Whatever passes here has the form that the kernel gives it: an address has the family
//             of its socket and that family's length; a control message is one of a closed list and
//             has its exact length. Descriptors and credentials never pass.
// TRUST       All bytes are the INS's. The caller has copied them out of shared memory.
// THREADS     Any; no state.
#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "abi/mw_call.h"

namespace mw::shim {

// Whether a socket of this domain can have such an address.
bool is_address_of(int domain, const void* name, uint32_t len);

// The same for a socket that IPV6_ADDRFORM makes, or has made, one of IPv4: it may have addresses of
// both forms. Those of before become IPv4's; of what is no IPv4 address only the port stays.
bool follow_address_form(int domain, void* name, uint32_t* len);

// Of an accepted connection: the peer's address has to be there, our own may be missing.
bool are_addresses_of(int domain, const mw_addr& local, const mw_addr& peer);

enum class Verdict : uint8_t {
  give,
  drop,  // nothing that we know, or cut short
  lie    // no kernel says so
};
// About one control message of a socket of this domain. `data`: its h.cmsg_len - sizeof h bytes. `cut`:
// there was no room for all (MSG_CTRUNC), and the last one may be shorter than it is.
Verdict judge_control_message(int domain, const cmsghdr& h, const char* data, bool cut);

// Calls visit(header, data) for each control message of `len` bytes; what does not hold together ends
// it.
template <class Visit>
void each_control_message(const char* from, uint32_t len, Visit&& visit) {
  cmsghdr h{};
  for (uint64_t at = 0; at + sizeof h <= len; at += CMSG_ALIGN(h.cmsg_len)) {
    __builtin_memcpy(&h, from + at, sizeof h);
    if (h.cmsg_len < sizeof h || h.cmsg_len > len - at) return;
    visit(h, from + at + sizeof h);
  }
}

// Whether the kernel could have answered a device request so: names end, addresses are IPv4's.
// `answer`: the bytes that it wrote.
bool is_device_answer(uint32_t request, const char* answer, uint32_t len);
// The same for a question of SIOCETHTOOL: its strings end.
bool is_ethtool_answer(uint32_t command, const char* answer, uint32_t len);
// The same for entries of SIOCGIFCONF.
bool are_interface_entries(const char* entries, uint32_t len);
// The same for the value of a socket option, which may be cut short.
bool is_option_value(int domain, int level, int name, const void* value, uint32_t len);

// True if the option's value is a row of control messages.
bool is_row_of_messages(int level, int name);

}  // namespace mw::shim
