// refusals.h - what a session's rules refused to let out, as lines for people.
//
// TRUST       The INS chooses how much is refused, and of what kind. The kernel counts it by destination,
//             so many of them at most; a report is a few lines, however much it was.
// THREADS     One.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mw {

class Refusals {
 public:
  static constexpr size_t kMostLines = 10;

  // `table`: what `nft -n list table` prints of the session's. What was refused since the last time, a
  // line each; the most frequent first.
  std::vector<std::string> news(const std::string& table);

 private:
  std::map<std::string, uint64_t> counted_;  // "tcp 192.0.2.1:80" -> packets
};

}  // namespace mw
