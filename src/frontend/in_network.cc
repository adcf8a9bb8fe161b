#include "frontend/in_network.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>

#include <cstdlib>

#include "base/log.h"
#include "frontend/process.h"

namespace mw {
namespace {

constexpr const char* kStep = "enter a network namespace";
constexpr const char* kRemedy =
    "run as root on a host that allows network namespaces, or use --net host";

}  // namespace

Outcome<UniqueFd> current_network() {
  UniqueFd fd{::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)};
  if (!fd) return Failure{kStep, "open /proc/self/ns/net: " + errno_text(errno), kRemedy};
  return fd;
}

Outcome<InNetwork> InNetwork::enter(int netns) {
  auto home = current_network();
  if (!home) return home.error();
  if (::setns(netns, CLONE_NEWNET) < 0)
    return Failure{kStep, "setns: " + errno_text(errno), kRemedy};
  return InNetwork(std::move(*home));
}

InNetwork::~InNetwork() {
  if (!home_ || ::setns(home_.get(), CLONE_NEWNET) == 0) return;
  // Whatever we did next would be done to the wrong network.
  log_line("mw", "cannot leave a network namespace again: %s", errno_text(errno).c_str());
  std::abort();
}

}  // namespace mw
