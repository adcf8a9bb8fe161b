// app_network.h - the network namespace of an isolated session's application.
//
// PURPOSE     What the shim does not take reaches no network: raw sockets, programs that run without it.
//             What asks the kernel for interfaces, addresses and routes (getifaddrs(), netlink, ioctl)
//             is told of those of the INS, which the application's sockets really have.
// INVARIANTS  It has no way out. It has no name: it ends with the last process or socket in it.
// THREADS     The caller must be single-threaded.
#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/plan.h"

namespace mw {

// A new network namespace with nothing in it.
Outcome<UniqueFd> make_app_network();

// Makes an interface in the network namespace that we are in, named as the INS's. What is sent there
// goes nowhere. `properties`: words for `ip link add`.
Outcome<Done> make_dead_end(const std::vector<std::string>& properties);

// Gives it what the INS's namespace has: loopback, an interface of the same name, index, hardware
// address and addresses, and the routes.
Outcome<Done> show_ins_interfaces(int app_network, int ins_network, const AddressPlan& plan);

}  // namespace mw
