#include "driver/groups.h"

#include <sys/stat.h>

#include <string_view>

#include "base/log.h"

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

void ring(int eventfd) {
  const uint64_t one = 1;
  // EAGAIN: the counter is full, so whoever watches it is awake or will be.
  if (::write(eventfd, &one, sizeof one) < 0 && errno != EAGAIN)
    log_line("mwcommsd", "cannot ring a group's doorbell: error %d", errno);
}

}  // namespace

void Groups::restore(uint32_t group, StoreEntry entry) {
  if (group >= memory_.geometry().groups || entry.fds.size() != 2) return;
  Group g{std::move(entry.fds[0]), std::move(entry.fds[1])};
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

Result<uint32_t> Groups::open(UniqueFd bell, UniqueFd life) {
  if (!is_eventfd(bell.get()) || !is_write_end(life.get()))
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
  const int fds[] = {bell.get(), life.get()};
  if (auto stored = store_.put({StoreKind::group, id}, {}, fds); !stored)
    log_line("mwcommsd", "group %u will be lost at a restart: %s", id, stored.error().where);
  next_ = (id + 1) % count;
  memory_.set_group_in_use(id, true);
  groups_[id] = {std::move(bell), std::move(life)};
  return id;
}

bool Groups::on_life_event(uint32_t group, uint32_t events) {
  const auto it = groups_.find(group);
  if (it == groups_.end() || (events & EPOLLERR) == 0) return false;
  poller_.remove(it->second.life.get());
  groups_.erase(it);
  memory_.clear_group(group);
  memory_.set_group_in_use(group, false);
  if (auto dropped = store_.drop({StoreKind::group, group}); !dropped)
    log_line("mwcommsd", "cannot forget group %u: %s", group, dropped.error().where);
  return true;
}

void Groups::ring_all() {
  for (const auto& [id, group] : groups_) ring(group.bell.get());
}

}  // namespace mw
