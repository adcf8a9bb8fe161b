#include "frontend/app_network.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstdio>

#include "base/hex.h"
#include "frontend/in_network.h"
#include "frontend/net.h"
#include "frontend/process.h"

namespace mw {
namespace {

constexpr const char* kStep = "make the network namespace of the application";
constexpr const char* kRemedy =
    "run as root on a host that allows network namespaces, or use --net host";

struct Interface {
  unsigned index = 0;
  int mtu = 0;
  std::string hardware_address;
};

Outcome<Interface> ins_interface(int ins_network) {
  auto there = InNetwork::enter(ins_network);
  if (!there) return there.error();
  const UniqueFd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  ifreq r{};
  ::strncpy(r.ifr_name, kInsInterface, sizeof r.ifr_name - 1);
  Interface out;
  out.index = ::if_nametoindex(kInsInterface);
  bool ok = out.index != 0 && ::ioctl(socket.get(), SIOCGIFMTU, &r) == 0;
  out.mtu = r.ifr_mtu;
  ok = ok && ::ioctl(socket.get(), SIOCGIFHWADDR, &r) == 0;
  if (!ok)
    return Failure{kStep, std::string("look at ") + kInsInterface + ": " + errno_text(errno), ""};
  for (int i = 0; i < 6; ++i) {
    const auto two = hex_digits(static_cast<uint8_t>(r.ifr_hwaddr.sa_data[i]));
    if (i != 0) out.hardware_address += ':';
    out.hardware_address.append(two.begin(), two.end());
  }
  return out;
}

}  // namespace

Outcome<UniqueFd> make_app_network() {
  auto home = current_network();
  if (!home) return home.error();
  if (::unshare(CLONE_NEWNET) < 0) return Failure{kStep, "unshare: " + errno_text(errno), kRemedy};
  auto made = current_network();
  if (::setns(home->get(), CLONE_NEWNET) < 0)
    return Failure{kStep, "leave it again: " + errno_text(errno), kRemedy};
  return made;
}

Outcome<Done> make_dead_end(const std::vector<std::string>& properties) {
  Outcome<std::string> made = Failure{};
  // Both drop what is sent there and are running; a kernel that lacks one may have the other.
  for (const char* type : {"dummy", "ifb"}) {
    std::vector<std::string> words{"ip", "link", "add", "name", kInsInterface};
    words.insert(words.end(), properties.begin(), properties.end());
    words.insert(words.end(), {"type", type});
    made = run_tool(kStep, words);
    if (made) return Done{};
  }
  return Failure{kStep, made.error().cause,
                 "load the kernel's module dummy or ifb, or use --net host"};
}

Outcome<Done> show_ins_interfaces(int app_network, int ins_network, const AddressPlan& plan) {
  auto wanted = ins_interface(ins_network);
  if (!wanted) return wanted.error();
  if (auto done = take_over_settings(app_network); !done) return done;
  auto there = InNetwork::enter(app_network);
  if (!there) return there.error();
  auto made = make_dead_end({"index", std::to_string(wanted->index), "address",
                             wanted->hardware_address, "mtu", std::to_string(wanted->mtu)});
  if (!made) return made;
  const std::string flags = std::string("link set dev ") + kInsInterface + " arp on multicast on\n";
  auto addressed = run_tool(kStep, {"ip", "-batch", "-"}, flags + ins_addresses(plan));
  if (!addressed) return addressed.error();
  return Done{};
}

}  // namespace mw
