#include "frontend/take_over.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "frontend/run.h"

namespace mw {
namespace {

constexpr const char* kWho = "mw";
constexpr const char* kEnd = "--";

int fail(const Failure& failure) {
  log_line(kWho, "%s", failure.text().c_str());
  return kExitOwnFailure;
}

Outcome<Done> put_under_numbers(const SocketCopy& copy, const UniqueFd& socket) {
  for (const int number : copy.numbers) {
    if (::dup2(socket.get(), number) < 0)
      return Failure{"take over " + copy.text(), "dup2: " + errno_text(errno), ""};
  }
  return Done{};
}

}  // namespace

std::vector<std::string> take_over_command(const std::string& mw,
                                           const std::vector<SocketCopy>& sockets,
                                           const std::vector<std::string>& command) {
  std::vector<std::string> out{mw, kTakeOver};
  for (const SocketCopy& c : sockets) out.push_back(encode(c));
  out.emplace_back(kEnd);
  out.insert(out.end(), command.begin(), command.end());
  return out;
}

int take_over_and_exec(const std::vector<std::string>& words) {
  const auto end = std::find(words.begin(), words.end(), kEnd);
  if (end == words.end() || end + 1 == words.end()) {
    log_line(kWho, "%s is what `mw run` starts for itself", kTakeOver);
    return kExitUsage;
  }
  for (auto word = words.begin(); word != end; ++word) {
    const auto copy = decode_socket(*word);
    if (!copy) {
      log_line(kWho, "%s: not the description of a socket", kTakeOver);
      return kExitUsage;
    }
    auto socket = make_socket(*copy);
    if (!socket) return fail(socket.error());
    // Their numbers are taken until then: no new socket gets another one's.
    if (auto put = put_under_numbers(*copy, *socket); !put) return fail(put.error());
  }
  std::vector<std::string> command(end + 1, words.end());
  std::vector<char*> pointers;
  for (std::string& word : command) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execvp(pointers[0], pointers.data());
  return fail({"start " + command[0], "execute the program: " + errno_text(errno), ""});
}

}  // namespace mw
