// peer.h - which user of this host is at the other end of a connection.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace mw::netflow {

// Of a connected AF_UNIX socket, or of a TCP connection between two sockets of this network
// namespace (the kernel is asked who owns the other one, which has to be established still).
// Nothing if it cannot be told, which is the case for every other connection.
std::optional<uint32_t> peer_uid(int socket);

// "command[number]" of the process that connected an AF_UNIX socket; "" for every other one.
std::string peer_process(int socket);

}  // namespace mw::netflow
