#include "frontend/refusals.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <utility>

#include "frontend/reach.h"

namespace mw {
namespace {

const char* name_of(const std::string& number) {
  if (number == std::to_string(IPPROTO_TCP)) return "tcp";
  return number == std::to_string(IPPROTO_UDP) ? "udp" : "udplite";
}

// Of "6 . 192.0.2.1 . 80 counter packets 3 bytes 180 expires 9m59s", one behind the other.
std::map<std::string, uint64_t> elements_of(const std::string& table) {
  constexpr size_t kWords = 8;
  std::istringstream in(table);
  const std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
  std::map<std::string, uint64_t> out;
  for (size_t i = 0; i + kWords <= words.size(); ++i) {
    const std::string* const w = &words[i];
    if (w[1] != "." || w[3] != "." || w[5] != "counter" || w[6] != "packets") continue;
    const bool v6 = w[2].find(':') != std::string::npos;
    out[std::string(name_of(w[0])) + " " + (v6 ? "[" + w[2] + "]" : w[2]) + ":" + w[4]] =
        std::strtoull(w[7].c_str(), nullptr, 10);
  }
  return out;
}

std::string line_of(const std::string& destination, uint64_t times) {
  return "egress refused: " + destination + " (" + std::to_string(times) +
         (times == 1 ? " time)" : " times)");
}

}  // namespace

std::vector<std::string> Refusals::news(const std::string& table) {
  std::map<std::string, uint64_t> now = elements_of(table);
  std::vector<std::pair<uint64_t, std::string>> fresh;
  for (const auto& [destination, count] : now) {
    const auto before = counted_.find(destination);
    // Fewer than before: it was forgotten meanwhile, or the rules were made anew.
    const bool goes_on = before != counted_.end() && before->second <= count;
    const uint64_t times = goes_on ? count - before->second : count;
    if (times != 0) fresh.emplace_back(times, destination);
  }
  counted_ = std::move(now);
  std::stable_sort(fresh.begin(), fresh.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::string> out;
  uint64_t left_out = 0;
  for (const auto& [times, destination] : fresh) {
    if (out.size() < kMostLines)
      out.push_back(line_of(destination, times));
    else
      left_out += times;
  }
  if (left_out != 0) out.push_back(line_of("other destinations", left_out));
  if (counted_.size() >= kMostRefused && !out.empty())
    out.emplace_back("egress refused: more destinations than are counted");
  return out;
}

}  // namespace mw
