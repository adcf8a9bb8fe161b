#include "driver/ins_link.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

namespace mw {
namespace {

// Every listener and every group, and some more.
constexpr size_t kMaxWaiting = 16384;

}  // namespace

Result<InsLink> InsLink::connect(LocalRegistry& registry, uint32_t id, Poller& poller) {
  InsLink link(id, poller);
  auto folder = registry.open_folder(ins_path(id, ""));
  if (!folder) return Error{Fault::would_block, 0, "its folder is not there"};
  struct stat st {};
  if (::fstat(folder->get(), &st) < 0) return Error{Fault::sys, errno, "fstat of an INS's folder"};

  link.control_ = UniqueFd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!link.control_) return Error{Fault::sys, errno, "socket for an INS"};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const std::string path = "/proc/self/fd/" + std::to_string(folder->get()) + "/channel";
  std::memcpy(a.sun_path, path.c_str(), path.size() + 1);
  if (::connect(link.control_.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0) {
    if (errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN)
      return Error{Fault::would_block, errno, "it does not listen"};
    return Error{Fault::sys, errno, "connect to an INS"};
  }
  auto who = peer_of(link.control_.get());
  if (!who) return who.error();
  link.who_ = std::move(*who);
  // The folder's owner is the user that the front end gave this INS.
  if (link.who_.uid != 0 && link.who_.uid != ::geteuid() && link.who_.uid != st.st_uid)
    return Error{Fault::peer, 0, "its channel belongs to another user"};

  if (auto added = poller.add(link.control_.get(), EPOLLIN | EPOLLRDHUP, Source::ins, id); !added)
    return added.error();
  if (link.who_.death) {
    if (auto added = poller.add(link.who_.death.get(), EPOLLIN, Source::ins_death, id); !added)
      return added.error();
  }
  return link;
}

Status InsLink::send(std::span<const std::byte> data, std::span<const int> fds) {
  if (!control_) return Error{Fault::shutdown, 0, "the INS is gone"};
  if (waiting_.empty()) {
    auto sent = send_message(control_.get(), data, fds, MSG_DONTWAIT);
    if (sent || sent.error().fault != Fault::would_block) return sent;
    if (auto armed =
            poller_->modify(control_.get(), EPOLLIN | EPOLLRDHUP | EPOLLOUT, Source::ins, id_);
        !armed)
      return armed;
  }
  if (waiting_.size() == kMaxWaiting) return Error{Fault::limit, 0, "the INS does not read"};
  Waiting w;
  w.data.assign(data.begin(), data.end());
  for (int fd : fds) {
    UniqueFd copy{::fcntl(fd, F_DUPFD_CLOEXEC, 3)};
    if (!copy) return Error{Fault::sys, errno, "copy of a descriptor"};
    w.fds.push_back(std::move(copy));
  }
  waiting_.push_back(std::move(w));
  return Ok{};
}

Status InsLink::flush() {
  while (!waiting_.empty()) {
    const Waiting& w = waiting_.front();
    std::vector<int> fds;
    for (const UniqueFd& fd : w.fds) fds.push_back(fd.get());
    if (auto sent = send_message(control_.get(), w.data, fds, MSG_DONTWAIT); !sent) {
      if (sent.error().fault == Fault::would_block) return Ok{};
      return sent;
    }
    waiting_.pop_front();
  }
  return poller_->modify(control_.get(), EPOLLIN | EPOLLRDHUP, Source::ins, id_);
}

void InsLink::disconnect() {
  phase_ = Phase::lost;
  waiting_.clear();
  if (!control_) return;
  poller_->remove(control_.get());
  control_.reset();
}

}  // namespace mw
