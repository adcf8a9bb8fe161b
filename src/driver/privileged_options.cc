#include "driver/privileged_options.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/socket_option.h"
#include "transport/local/namespace.h"
#include "transport/local/privileged.h"

namespace mw {
namespace {

// What the proof shows that the process may set goes to `o`. False: nothing.
bool read_proof(int proof, uint64_t network, ReplayOption& o) {
  const int type = type_of_proof(o.level, o.name);
  if (type == 0 || o.len > sizeof o.value || socket_option(proof, SO_TYPE) != type ||
      socket_option(proof, SO_DOMAIN) != AF_INET || network == 0 ||
      network_namespace_of(proof) != network)
    return false;
  if (type == SOCK_RAW) return true;
  if (o.level == SOL_SOCKET && (o.name == SO_RCVBUFFORCE || o.name == SO_SNDBUFFORCE)) {
    // The kernel has doubled it, and will again.
    const int size = socket_option(proof, o.name == SO_RCVBUFFORCE ? SO_RCVBUF : SO_SNDBUF) / 2;
    o.len = sizeof size;
    std::memcpy(o.value, &size, sizeof size);
    return true;
  }
  socklen_t len = sizeof o.value;
  if (::getsockopt(proof, o.level, o.name, o.value, &len) < 0) return false;
  o.len = len;
  return true;
}

uint32_t status_of_set(int socket, const ReplayOption& o) {
  const int domain = socket_option(socket, SO_DOMAIN);
  if (domain != AF_INET && domain != AF_INET6) return EPERM;
  return ::setsockopt(socket, o.level, o.name, o.value, o.len) < 0 ? static_cast<uint32_t>(errno)
                                                                   : 0;
}

}  // namespace

uint32_t PrivilegedOptions::ask(uint32_t id, const SocketOption& wanted, int proof) {
  Asked asked{id, wanted};
  if (!read_proof(proof, network_, asked.option.option)) return EPERM;
  if (asked_.size() >= kMaxAsked) return ENOBUFS;
  asked_.push_back(asked);
  send(ControlType::lend, asked.option);
  return 0;
}

bool PrivilegedOptions::on_lent(const ControlOption& said, UniqueFd socket) {
  const auto it = std::find_if(asked_.begin(), asked_.end(), [&](const Asked& one) {
    return one.option.slot == said.slot && one.option.gen == said.gen &&
           one.option.option.level == said.level && one.option.option.name == said.name;
  });
  if (it == asked_.end()) return false;
  const Asked asked = *it;
  asked_.erase(it);
  uint32_t status = said.status;
  if (socket) status = status_of_set(socket.get(), asked.option.option);
  if (status == 0 && !socket) status = ECONNRESET;
  if (status == 0) {
    send(ControlType::option_set, asked.option);
    if (asked.id != kNobody) keep(asked.option);
  }
  if (asked.id != kNobody) on_answer(asked.id, status);
  return true;
}

void PrivilegedOptions::on_replayed(uint32_t slot, uint32_t gen) {
  const auto it = kept_.find(slot);
  if (it == kept_.end() || it->second.gen != gen) return;
  for (const ReplayOption& o : it->second.options) {
    asked_.push_back({kNobody, {slot, gen, o}});
    send(ControlType::lend, asked_.back().option);
  }
}

void PrivilegedOptions::on_listener_down(uint32_t slot) {
  kept_.erase(slot);
}

void PrivilegedOptions::ins_gone() {
  for (const Asked& one : std::exchange(asked_, {}))
    if (one.id != kNobody) on_answer(one.id, ENETDOWN);
}

void PrivilegedOptions::send(ControlType type, const SocketOption& o) const {
  on_ask({type, o.slot, o.gen, o.option.level, o.option.name, 0});
}

void PrivilegedOptions::keep(const SocketOption& o) {
  if (kept_.size() >= kMaxKept && kept_.count(o.slot) == 0) kept_.erase(kept_.begin());
  Kept& kept = kept_[o.slot];
  if (kept.gen != o.gen) kept = {o.gen, {}};
  std::erase_if(kept.options, [&](const ReplayOption& one) {
    return one.level == o.option.level && one.name == o.option.name;
  });
  kept.options.push_back(o.option);
}

}  // namespace mw
