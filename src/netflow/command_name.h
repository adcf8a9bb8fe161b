// command_name.h - a process's name in a message: 16 bytes, NUL-padded, as the kernel keeps it.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace mw::netflow {

using CommandName = std::array<char, 16>;

// What is longer is cut.
inline CommandName command_name(std::string_view text) {
  CommandName name{};
  std::copy_n(text.data(), std::min(text.size(), name.size()), name.data());
  return name;
}

// Up to the first NUL. The bytes are the process's own choice.
inline std::string command_text(const CommandName& name) {
  return {name.begin(), std::find(name.begin(), name.end(), '\0')};
}

}  // namespace mw::netflow
