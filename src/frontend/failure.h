// failure.h - why a step of the front end did not work, as a sentence for the person at the
// terminal.
//
// Set-up happens once, far from the data path, so unlike mw::Error these own their text: which
// step, what went wrong, and what to do about it.
#pragma once

#include <string>

#include "base/result.h"

namespace mw {

struct Failure {
  std::string step;    // "create the network namespace mw-apache2-0"
  std::string cause;   // "ip: command not found"
  std::string remedy;  // "install iproute2"; empty if none is known

  std::string text() const {
    std::string s = "cannot " + step + ": " + cause;
    if (!remedy.empty()) s += "; " + remedy;
    return s;
  }
};

// What to do when something cannot be written to a file system.
inline constexpr const char* kWriteRemedy =
    "check that file system: it must be writable by you and have room";

// "No such file or directory" for ENOENT.
std::string errno_text(int err);

template <class T>
using Outcome = Result<T, Failure>;

struct Done {};

}  // namespace mw
