#include "frontend/file_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <sstream>

namespace mw {
namespace {

// Whoever writes a file empties it first, and writes in pieces.
constexpr int kMomentMs = 20;
constexpr int kMostLinks = 40;  // as many as the kernel follows
constexpr uint32_t kEvents = IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_MODIFY |
                             IN_CLOSE_WRITE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF |
                             IN_DONT_FOLLOW;

// The names in a path, the last one first.
std::vector<std::string> names_backwards(const std::string& path) {
  std::vector<std::string> names;
  std::istringstream in(path);
  for (std::string name; std::getline(in, name, '/');)
    if (!name.empty() && name != ".") names.push_back(name);
  std::reverse(names.begin(), names.end());
  return names;
}

std::string folder_of(const std::vector<std::string>& names) {
  std::string path;
  for (const std::string& name : names) path += "/" + name;
  return path.empty() ? "/" : path;
}

UniqueFd open_mounts() {
  return UniqueFd{::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)};
}

}  // namespace

Outcome<FileWatch> FileWatch::open() {
  FileWatch w;
  w.epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  w.inotify_ = UniqueFd{::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)};
  w.timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  w.mounts_wake_ = open_mounts();
  w.mounts_ = open_mounts();
  const std::pair<const UniqueFd*, uint32_t> all[] = {
      {&w.inotify_, EPOLLIN}, {&w.timer_, EPOLLIN}, {&w.mounts_wake_, EPOLLPRI}};
  for (const auto& [fd, events] : all) {
    epoll_event e{};
    e.events = events;
    if (*fd && ::epoll_ctl(w.epoll_.get(), EPOLL_CTL_ADD, fd->get(), &e) == 0) continue;
    return Failure{"watch files", errno_text(errno),
                   "raise fs.inotify.max_user_instances and the limit of open files"};
  }
  return w;
}

void FileWatch::watch(const std::vector<std::string>& paths) {
  std::map<int, std::set<std::string>> before;
  before.swap(names_);
  for (const std::string& path : paths) walk(path);
  // Fails for what is gone, and with it the watch.
  for (const auto& [number, names] : before)
    if (names_.count(number) == 0) (void)::inotify_rm_watch(inotify_.get(), number);
}

bool FileWatch::watch_name(const std::string& folder, const std::string& name) {
  const int number = ::inotify_add_watch(inotify_.get(), folder.c_str(), kEvents | IN_ONLYDIR);
  if (number >= 0) names_[number].insert(name);
  // A folder that may be passed through, and not read, tells nothing.
  return number >= 0 || errno == EACCES;
}

void FileWatch::walk(const std::string& path) {
  std::vector<std::string> left = names_backwards(path);
  std::vector<std::string> at;  // a folder, no part of whose path is a link
  for (int links = 0; !left.empty();) {
    const std::string name = left.back();
    left.pop_back();
    if (name == "..") {
      if (!at.empty()) at.pop_back();
      continue;
    }
    if (!watch_name(folder_of(at), name)) return;
    at.push_back(name);
    const std::string here = folder_of(at);
    char target[PATH_MAX];
    const ssize_t n = ::readlink(here.c_str(), target, sizeof target);
    if (n < 0) {
      if (!left.empty()) continue;
      // What is mounted there changes where the folder does not see it.
      if (const int number = ::inotify_add_watch(inotify_.get(), here.c_str(), kEvents);
          number >= 0)
        names_[number];
      return;
    }
    if (++links > kMostLinks) return;
    at.pop_back();
    if (n > 0 && target[0] == '/') at.clear();
    const auto more = names_backwards(std::string(target, static_cast<size_t>(n)));
    left.insert(left.end(), more.begin(), more.end());
  }
}

bool FileWatch::anything_happened() {
  bool any = false;
  alignas(inotify_event) char buffer[16 * 1024];
  for (;;) {
    const ssize_t n = ::read(inotify_.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return any;
    for (ssize_t at = 0; at < n;) {
      inotify_event event{};
      std::memcpy(&event, buffer + at, sizeof event);
      const char* const name = buffer + at + sizeof event;
      at += static_cast<ssize_t>(sizeof event + event.len);
      const auto it = names_.find(event.wd);
      any = any || (event.mask & IN_Q_OVERFLOW) != 0 ||
            (it != names_.end() && (event.len == 0 || it->second.count(name) != 0));
    }
  }
}

bool FileWatch::mounts_changed() {
  pollfd p{mounts_.get(), POLLPRI, 0};
  return ::poll(&p, 1, 0) == 1 && (p.revents & (POLLPRI | POLLERR)) != 0;
}

bool FileWatch::take() {
  uint64_t expired = 0;
  const bool due = ::read(timer_.get(), &expired, sizeof expired) == sizeof expired;
  if (due) timed_ = false;
  const bool any = anything_happened();
  if ((mounts_changed() || any) && !timed_ && !due) look_again_in(kMomentMs);
  return due;
}

void FileWatch::look_again_in(int milliseconds) {
  const itimerspec when{{0, 0}, {milliseconds / 1000, milliseconds % 1000 * 1'000'000L}};
  timed_ = ::timerfd_settime(timer_.get(), 0, &when, nullptr) == 0;
}

}  // namespace mw
