#include "driver/groups.h"

#include <sys/stat.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/log.h"
#include "transport/local/mapping.h"

namespace mw {
namespace {

bool is_eventfd(int fd) {
  char name[64];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t n = ::readlink(link.c_str(), name, sizeof name);
  return n > 0 && std::string_view(name, static_cast<size_t>(n)) == "anon_inode:[eventfd]";
}

bool is_write_end(int fd) {
  struct stat st {};
  const int flags = ::fcntl(fd, F_GETFL);
  return ::fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode) && flags >= 0 &&
         (flags & O_ACCMODE) == O_WRONLY;
}

// Calls visit(data) for each registration of an epoll instance until it returns false. Errors: sys.
template <class Visit>
Status each_registration(int epfd, Visit&& visit) {
  // An instance can be made as large as its maker likes; its doorbell is among the first, as a
  // rule.
  constexpr size_t kMostBytes = 16 << 20;
  const UniqueFd info{
      ::open(("/proc/self/fdinfo/" + std::to_string(epfd)).c_str(), O_RDONLY | O_CLOEXEC)};
  if (!info) return Error{Fault::sys, errno, "description of an epoll instance"};
  std::string text;
  char piece[16384];
  ssize_t n = 0;
  while (text.size() < kMostBytes && (n = ::read(info.get(), piece, sizeof piece)) > 0)
    text.append(piece, static_cast<size_t>(n));
  if (n < 0) return Error{Fault::sys, errno, "description of an epoll instance"};
  constexpr std::string_view kField = " data:";
  for (size_t at = text.find(kField); at != std::string::npos; at = text.find(kField, at)) {
    at += kField.size();
    if (!visit(std::strtoull(text.c_str() + at, nullptr, 16))) break;
  }
  return Ok{};
}

bool is_empty(int epfd) {
  bool empty = true;
  auto read = each_registration(epfd, [&](uint64_t) { return empty = false; });
  return read && empty;
}

void ring(int eventfd) {
  const uint64_t one = 1;
  // EAGAIN: the counter is full, so whoever watches it is awake or will be.
  if (::write(eventfd, &one, sizeof one) < 0 && errno != EAGAIN)
    log_line("mwcommsd", "cannot ring a group's doorbell: error %d", errno);
}

}  // namespace

void Groups::restore(uint32_t group, StoreEntry entry) {
  if (group >= memory_.geometry().groups || entry.fds.size() < 3) return;
  Group g{std::move(entry.fds[0]), std::move(entry.fds[1]), std::move(entry.fds[2]), {}};
  if (entry.fds.size() > 3) g.witness = std::move(entry.fds[3]);
  if (auto added = poller_.add(g.life.get(), 0, Source::group, group); !added) return;
  memory_.set_group_in_use(group, true);
  groups_[group] = std::move(g);
}

void Groups::free_unknown() {
  for (uint32_t i = 0; i < memory_.geometry().groups; ++i) {
    if (!memory_.group_in_use(i) || groups_.contains(i)) continue;
    memory_.clear_group(i);
    memory_.set_group_in_use(i, false);
  }
}

Result<uint32_t> Groups::open(UniqueFd bell, UniqueFd life, UniqueFd registrations) {
  if (!is_eventfd(bell.get()) || !is_write_end(life.get()) || !check_sealed(registrations.get()))
    return Error{Fault::peer, 0, "descriptors of a group"};
  const int flags = ::fcntl(bell.get(), F_GETFL);
  if (flags < 0 || ::fcntl(bell.get(), F_SETFL, flags | O_NONBLOCK) < 0)
    return Error{Fault::sys, errno, "fcntl of a doorbell"};
  const uint32_t count = memory_.geometry().groups;
  uint32_t id = next_;
  for (uint32_t tries = 0; groups_.contains(id) || memory_.group_in_use(id); ++tries) {
    if (tries == count) return Error{Fault::limit, 0, "no group is free"};
    id = (id + 1) % count;
  }
  if (auto added = poller_.add(life.get(), 0, Source::group, id); !added) return added.error();
  const int fds[] = {bell.get(), life.get(), registrations.get()};
  if (auto stored = store_.put({StoreKind::group, id}, {}, fds); !stored)
    log_line("mwcommsd", "group %u will be lost at a restart: %s", id, stored.error().where);
  next_ = (id + 1) % count;
  memory_.set_group_in_use(id, true);
  groups_[id] = {std::move(bell), std::move(life), std::move(registrations), {}};
  return id;
}

Result<uint32_t> Groups::number_of(int epfd) {
  std::optional<uint32_t> found;
  auto read = each_registration(epfd, [&](uint64_t data) {
    const uint32_t group = bell_group(data);
    if (!is_bell_data(data) || !groups_.contains(group) ||
        memory_.group_serial(group) != bell_serial(data))
      return true;
    found = group;
    return false;
  });
  if (!read) return read.error();
  if (!found) return Error{Fault::sys, ENOENT, "no group stands in the epoll instance"};
  return *found;
}

Result<Groups::Found> Groups::find(int epfd) {
  auto group = number_of(epfd);
  if (!group) return group.error();
  Group& g = groups_.at(*group);
  const std::string end = "/proc/self/fd/" + std::to_string(g.life.get());
  UniqueFd life{::open(end.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  if (!life) return Error{Fault::sys, errno, "read end of a life pipe"};
  if (g.abandoned) {
    if (auto added = poller_.add(g.life.get(), 0, Source::group, *group); !added)
      return added.error();
    g.abandoned = false;
  }
  return Found{*group, g.bell.get(), g.registrations.get(), std::move(life)};
}

Status Groups::keep(int epfd) {
  auto group = number_of(epfd);
  if (!group) return group.error();
  Group& g = groups_.at(*group);
  if (g.witness) return Ok{};
  UniqueFd witness{::epoll_create1(EPOLL_CLOEXEC)};
  epoll_event silent{};
  if (!witness || ::epoll_ctl(witness.get(), EPOLL_CTL_ADD, epfd, &silent) < 0)
    return Error{Fault::sys, errno, "witness of an epoll instance"};
  g.witness = std::move(witness);
  const int fds[] = {g.bell.get(), g.life.get(), g.registrations.get(), g.witness.get()};
  if (auto stored = store_.put({StoreKind::group, *group}, {}, fds); !stored)
    log_line("mwcommsd", "group %u will be lost at a restart: %s", *group, stored.error().where);
  return Ok{};
}

bool Groups::on_life_event(uint32_t group, uint32_t events) {
  const auto it = groups_.find(group);
  if (it == groups_.end() || (events & EPOLLERR) == 0) return false;
  poller_.remove(it->second.life.get());
  it->second.abandoned = true;
  if (it->second.witness && !is_empty(it->second.witness.get())) return false;
  close(group);
  return true;
}

std::vector<uint32_t> Groups::sweep() {
  std::vector<uint32_t> gone;
  for (const auto& [id, g] : groups_)
    if (g.abandoned && is_empty(g.witness.get())) gone.push_back(id);
  for (const uint32_t id : gone) close(id);
  return gone;
}

void Groups::close(uint32_t group) {
  groups_.erase(group);
  memory_.clear_group(group);
  memory_.set_group_in_use(group, false);
  if (auto dropped = store_.drop({StoreKind::group, group}); !dropped)
    log_line("mwcommsd", "cannot forget group %u: %s", group, dropped.error().where);
}

void Groups::ring_those_kept_waiting() {
  for (const auto& [id, group] : groups_)
    if (memory_.channel().group_news(id).keeps_waiting()) ring(group.bell.get());
}

void Groups::ring_all() {
  for (const auto& [id, group] : groups_) ring(group.bell.get());
}

}  // namespace mw
