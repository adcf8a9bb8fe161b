#include "transport/local/session_fds.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "ring/channel.h"
#include "transport/local/control.h"
#include "transport/local/fd_message.h"
#include "transport/local/mapping.h"
#include "transport/local/namespace.h"
#include "transport/local/session_region.h"

namespace mw {
namespace {

constexpr time_t kAnswerSeconds = 5;

struct HandOverRecord {
  uint32_t version;
  SessionFdRole role;
  SessionToken token;
};

// Puts one descriptor in its place. False: a role that is unknown or taken already.
bool place(SessionFds& out, SessionFdRole role, UniqueFd fd) {
  const auto only = [&fd](UniqueFd& at) {
    if (at) return false;
    at = std::move(fd);
    return true;
  };
  const auto one_of = [&fd](std::vector<UniqueFd>& list, size_t most) {
    if (list.size() == most) return false;
    list.push_back(std::move(fd));
    return true;
  };
  switch (role) {
    case SessionFdRole::channel:
      return only(out.channel);
    case SessionFdRole::session:
      return only(out.session);
    case SessionFdRole::attach:
      return only(out.attach);
    case SessionFdRole::placeholders:
      return only(out.placeholders);
    case SessionFdRole::drop_pvm:
      return only(out.drop_pvm);
    case SessionFdRole::drop_ins:
      return only(out.drop_ins);
    case SessionFdRole::bell:
      return one_of(out.bells, MW_MAX_WORKERS);
    case SessionFdRole::store_in:
      return only(out.store_in);
    case SessionFdRole::store_out:
      return only(out.store_out);
    case SessionFdRole::kept:
      return one_of(out.kept, kMaxKeptFds);
    case SessionFdRole::end:
      return false;
  }
  return false;
}

bool complete(const SessionFds& s) {
  return s.channel && s.session && s.attach && s.placeholders && s.drop_pvm && s.drop_ins &&
         s.store_in && s.store_out && !s.bells.empty();
}

// Through the folder's descriptor, so that a long path fits. Only the folder's owner, which has to
// be us, can have put a socket there.
Result<UniqueFd> connect_to_driver(const std::string& folder) {
  const std::string path = folder + "/" + kAdoptFolder;
  const UniqueFd at{::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  if (!at) return Error{Fault::shutdown, errno, "open of the driver's folder"};
  UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
  if (!fd) return Error{Fault::sys, errno, "socket for the driver"};
  const timeval limit{kAnswerSeconds, 0};
  for (const int direction : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (::setsockopt(fd.get(), SOL_SOCKET, direction, &limit, sizeof limit) < 0)
      return Error{Fault::sys, errno, "time limit for the driver"};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const std::string name = "/proc/self/fd/" + std::to_string(at.get()) + "/" + kAdoptSocket;
  std::memcpy(a.sun_path, name.c_str(), name.size() + 1);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0)
    return Error{errno == EAGAIN ? Fault::would_block : Fault::shutdown, errno,
                 "connect to the driver"};
  ucred who{};
  socklen_t size = sizeof who;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) < 0)
    return Error{Fault::sys, errno, "SO_PEERCRED"};
  if (who.uid != 0 && who.uid != ::geteuid())
    return Error{Fault::peer, 0, "the driver's socket belongs to another user"};
  return fd;
}

Result<UniqueFd> listen_abstract(const std::string& name, int type) {
  UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fd) return Error{Fault::sys, errno, "socket for the session's processes"};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof a.sun_path) return Error{Fault::limit, 0, "session name too long"};
  std::memcpy(a.sun_path + 1, name.data(), name.size());
  const auto len = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), len) < 0)
    return Error{Fault::sys, errno, "bind of a socket for the session's processes"};
  if (::listen(fd.get(), 1024) < 0)
    return Error{Fault::sys, errno, "listen for the session's processes"};
  return fd;
}

// Not to be guessed, so that nobody takes it beforehand; nor do two sessions share it that have the
// same name in different network namespaces. Behind the random number stands the namespace in which
// the name can be reached, so that a process can tell whether it has left it.
Result<std::string> make_attach_name(const std::string& session) {
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number)
    return Error{Fault::sys, errno, "getrandom"};
  const UniqueFd probe{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!probe) return Error{Fault::sys, errno, "socket for the namespace's number"};
  char text[40];
  std::snprintf(text, sizeof text, "%016llx-%llx", static_cast<unsigned long long>(number),
                static_cast<unsigned long long>(network_namespace_of(probe.get())));
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

  auto private_part = make_sealed_memfd(kSessionMemoryName, session_layout_of(geometry).bytes);
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
  auto attach = listen_abstract(out.attach_name, SOCK_SEQPACKET);
  if (!attach) return attach.error();
  auto placeholders = listen_abstract(out.attach_name + kPlaceholderSuffix, SOCK_STREAM);
  if (!placeholders) return placeholders.error();
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return Error{Fault::sys, errno, "socketpair for new sockets"};
  out.drop_pvm = UniqueFd{pair[0]};
  out.drop_ins = UniqueFd{pair[1]};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return Error{Fault::sys, errno, "socketpair for the driver's store"};
  out.store_in = UniqueFd{pair[0]};
  out.store_out = UniqueFd{pair[1]};
  for (uint32_t i = 0; i < geometry.workers; ++i) {
    UniqueFd bell{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!bell) return Error{Fault::sys, errno, "eventfd"};
    out.bells.push_back(std::move(bell));
  }
  out.channel = std::move(*channel);
  out.session = std::move(*private_part);
  out.attach = std::move(*attach);
  out.placeholders = std::move(*placeholders);
  return out;
}

Status hand_over(int socket, const SessionToken& token, std::span<const SessionFdRef> fds) {
  HandOverRecord record{MW_PROTOCOL_VERSION, SessionFdRole::end, token};
  for (const SessionFdRef& ref : fds) {
    record.role = ref.role;
    const int one[] = {ref.fd};
    if (auto sent = send_message(socket, bytes_of(record), one, MSG_DONTWAIT); !sent) return sent;
  }
  record.role = SessionFdRole::end;
  return send_message(socket, bytes_of(record), {}, MSG_DONTWAIT);
}

Result<AdoptedSession> take_over(const std::string& folder) {
  auto driver = connect_to_driver(folder);
  if (!driver) return driver.error();
  AdoptedSession out{};
  for (;;) {
    HandOverRecord record{};
    auto m = receive_message(driver->get(), writable_bytes_of(record), 0);
    if (!m) return m.error();
    if (m->bytes != sizeof record || record.version != MW_PROTOCOL_VERSION)
      return Error{Fault::peer, 0, "the driver is of another version"};
    out.token = record.token;
    if (record.role == SessionFdRole::end && m->fd_count == 0) break;
    if (m->fd_count != 1 || !place(out.fds, record.role, std::move(m->fds[0])))
      return Error{Fault::peer, 0, "the driver's answer does not fit"};
  }
  if (!complete(out.fds)) return Error{Fault::peer, 0, "the driver's answer is not complete"};
  sockaddr_un a{};
  socklen_t size = sizeof a;
  if (::getsockname(out.fds.attach.get(), reinterpret_cast<sockaddr*>(&a), &size) < 0 ||
      a.sun_family != AF_UNIX || size <= offsetof(sockaddr_un, sun_path) + 1 || size > sizeof a)
    return Error{Fault::peer, 0, "the driver's attach socket is none"};
  out.fds.attach_name.assign(a.sun_path + 1, size - offsetof(sockaddr_un, sun_path) - 1);
  return out;
}

}  // namespace mw
