#include "transport/local/session_fds.h"

#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdio>
#include <cstring>

#include "ring/channel.h"
#include "transport/local/mapping.h"
#include "transport/local/session_region.h"

namespace mw {
namespace {

Result<UniqueFd> listen_abstract(const std::string& name) {
  UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fd) return Error{Fault::sys, errno, "socket for attaching"};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof a.sun_path) return Error{Fault::limit, 0, "session name too long"};
  std::memcpy(a.sun_path + 1, name.data(), name.size());
  const auto len = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), len) < 0)
    return Error{Fault::sys, errno, "bind of the attach socket"};
  if (::listen(fd.get(), 1024) < 0) return Error{Fault::sys, errno, "listen for attaching"};
  return fd;
}

// Not to be guessed, so that nobody takes it beforehand; nor do two sessions share it that have the
// same name in different network namespaces.
Result<std::string> make_attach_name(const std::string& session) {
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number)
    return Error{Fault::sys, errno, "getrandom"};
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return "mwcomms/" + session + "/" + text;
}

}  // namespace

Result<SessionFds> make_session_fds(const std::string& session, const mw_geometry& geometry) {
  mw_layout layout{};
  if (mw_layout_of(&geometry, &layout) != 0) return Error{Fault::peer, 0, "geometry"};
  SessionFds out;
  auto channel = make_sealed_memfd("mw-channel", layout.bytes);
  if (!channel) return channel.error();
  auto region_a = map_sealed(channel->get());
  if (!region_a) return region_a.error();
  auto* header = reinterpret_cast<mw_region_header*>(region_a->base());
  header->magic = MW_MAGIC;
  header->version = MW_PROTOCOL_VERSION;
  header->features = 0;
  header->geometry = geometry;
  header->bytes = layout.bytes;

  auto private_part = make_sealed_memfd("mw-session", session_layout_of(geometry).bytes);
  if (!private_part) return private_part.error();
  auto region_b = map_sealed(private_part->get());
  if (!region_b) return region_b.error();
  auto* session_header = reinterpret_cast<SessionHeader*>(region_b->base());
  session_header->magic = kSessionMagic;
  session_header->geometry = geometry;
  session_header->state = kSessionStarting;

  auto name = make_attach_name(session);
  if (!name) return name.error();
  out.attach_name = *name;
  auto attach = listen_abstract(out.attach_name);
  if (!attach) return attach.error();
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return Error{Fault::sys, errno, "socketpair for new sockets"};
  out.drop_pvm = UniqueFd{pair[0]};
  out.drop_ins = UniqueFd{pair[1]};
  for (uint32_t i = 0; i < geometry.workers; ++i) {
    UniqueFd bell{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!bell) return Error{Fault::sys, errno, "eventfd"};
    out.bells.push_back(std::move(bell));
  }
  out.channel = std::move(*channel);
  out.session = std::move(*private_part);
  out.attach = std::move(*attach);
  return out;
}

}  // namespace mw
