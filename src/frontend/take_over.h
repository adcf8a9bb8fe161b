// take_over.h - the step between `mw run` and a program that inherits sockets.
//
// PURPOSE     `mw run` starts this program, mw, in the program's place: under the shim, so that its socket
//             calls go to the INS. It makes the sockets that inherited.h describes, puts them under their
//             numbers, and becomes the program. So the program has its pid, which LISTEN_PID names.
#pragma once

#include <string>
#include <vector>

#include "frontend/socket_copy.h"

namespace mw {

// The first word of its arguments.
constexpr const char* kTakeOver = "take-over";

// How it is started: `mw` is this program.
std::vector<std::string> take_over_command(const std::string& mw,
                                           const std::vector<SocketCopy>& sockets,
                                           const std::vector<std::string>& command);

// What it does with the words that follow kTakeOver. Returns only if it fails, which it has said: the exit
// status.
int take_over_and_exec(const std::vector<std::string>& words);

}  // namespace mw
