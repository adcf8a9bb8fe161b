#include "transport/local/listener_record.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "codec/socket_options.h"

namespace mw {
namespace {

bool is_own_address(int domain, const mw_addr& a) {
  sa_family_t family = 0;
  std::memcpy(&family, a.bytes, sizeof family);
  return a.len == (domain == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)) &&
         family == domain;
}

bool is_replayable(const ReplayOption& o) {
  return o.len <= sizeof o.value && option_is_settable(o.level, o.name);
}

}  // namespace

Status check_listener(const ControlListener& record, uint32_t slots) {
  bool good = record.slot < slots && record.gen != 0 &&
              (record.domain == AF_INET || record.domain == AF_INET6) &&
              record.socket_type == SOCK_STREAM &&
              (record.protocol == 0 || record.protocol == IPPROTO_TCP) &&
              is_own_address(record.domain, record.local) &&
              record.option_count <= kMaxReplayOptions;
  for (uint32_t i = 0; good && i < record.option_count; ++i)
    good = is_replayable(record.options[i]);
  if (!good) return Error{Fault::peer, 0, "announcement of a listener"};
  return Ok{};
}

}  // namespace mw
