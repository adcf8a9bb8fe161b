#include "registry/local_registry.h"

#include <dirent.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>

namespace mw {
namespace {

constexpr int kFolderFlags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr int kMaxDepth = 8;

Error sys_error(const char* where) {
  if (errno == ENOENT || errno == ENOTDIR) return {Fault::shutdown, errno, where};
  return {Fault::sys, errno, where};
}

// Reads a folder's names through a descriptor of our own, as fdopendir() takes it over.
Result<std::vector<std::string>> names_in(int folder, bool with_dot_files) {
  UniqueFd fd{::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return sys_error("open of a registry folder");
  std::unique_ptr<DIR, int (*)(DIR*)> dir{::fdopendir(fd.get()), ::closedir};
  if (!dir) return sys_error("fdopendir");
  fd.release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) {
      if (errno != 0) return sys_error("readdir");
      break;
    }
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (with_dot_files || name.front() != '.') names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Status remove_in(int folder, const char* name, int depth) {
  if (::unlinkat(folder, name, 0) == 0 || errno == ENOENT) return Ok{};
  if (errno != EISDIR && errno != EPERM) return sys_error("unlink in the registry");
  if (depth == 0) return Error{Fault::limit, 0, "registry tree too deep"};
  UniqueFd sub{::openat(folder, name, kFolderFlags)};
  if (!sub) return sys_error("open of a registry folder");
  auto names = names_in(sub.get(), true);
  if (!names) return names.error();
  for (const std::string& n : *names) {
    if (auto done = remove_in(sub.get(), n.c_str(), depth - 1); !done) return done;
  }
  if (::unlinkat(folder, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return Ok{};
  return sys_error("rmdir in the registry");
}

}  // namespace

Result<LocalRegistry> LocalRegistry::open(const std::string& root) {
  LocalRegistry r;
  r.root_ = UniqueFd{::open(root.c_str(), kFolderFlags)};
  if (!r.root_) return sys_error("open of the registry");
  r.inotify_ = UniqueFd{::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)};
  if (!r.inotify_) return sys_error("inotify_init1");
  return r;
}

Result<LocalRegistry> LocalRegistry::create(const std::string& root) {
  std::error_code failed;
  const auto parent = std::filesystem::path(root).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, failed);
  if (failed) return Error{Fault::sys, failed.value(), "mkdir for the registry"};
  if (::mkdir(root.c_str(), 0700) < 0 && errno != EEXIST) return sys_error("mkdir of the registry");
  auto r = open(root);
  if (!r) return r;
  struct stat st {};
  if (::fstat(r->root_.get(), &st) < 0) return sys_error("fstat of the registry");
  if (st.st_uid != ::geteuid() || (st.st_mode & 077) != 0)
    return Error{Fault::sys, EPERM, "the registry is not ours alone"};
  if (::mkdirat(r->root_.get(), "mw", 0755) < 0 && errno != EEXIST)
    return sys_error("mkdir in the registry");
  return r;
}

Result<UniqueFd> LocalRegistry::open_parent(std::string_view path, bool make, std::string* leaf) {
  if (!valid_registry_path(path)) return Error{Fault::limit, 0, "registry path"};
  UniqueFd at{::openat(root_.get(), ".", kFolderFlags)};
  if (!at) return sys_error("open of the registry");
  for (int depth = 0;; ++depth) {
    const size_t slash = path.find('/');
    if (slash == std::string_view::npos) break;
    if (depth == kMaxDepth) return Error{Fault::limit, 0, "registry path too deep"};
    const std::string name{path.substr(0, slash)};
    path.remove_prefix(slash + 1);
    if (make && ::mkdirat(at.get(), name.c_str(), 0755) < 0 && errno != EEXIST)
      return sys_error("mkdir in the registry");
    UniqueFd next{::openat(at.get(), name.c_str(), kFolderFlags)};
    if (!next) return sys_error("open of a registry folder");
    at = std::move(next);
  }
  leaf->assign(path);
  return at;
}

Result<UniqueFd> LocalRegistry::open_folder(std::string_view path) {
  std::string leaf;
  auto parent = open_parent(path, false, &leaf);
  if (!parent) return parent;
  UniqueFd fd{::openat(parent->get(), leaf.c_str(), kFolderFlags)};
  if (!fd) return sys_error("open of a registry folder");
  return fd;
}

Status LocalRegistry::write(std::string_view path, std::string_view value) {
  if (value.size() > kMaxRegistryValue) return Error{Fault::limit, 0, "registry value too long"};
  std::string leaf;
  auto parent = open_parent(path, true, &leaf);
  if (!parent) return parent.error();
  const std::string draft = "." + leaf + "." + std::to_string(::getpid());
  UniqueFd fd{::openat(parent->get(), draft.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644)};
  if (!fd) return sys_error("open in the registry");
  const ssize_t n = ::write(fd.get(), value.data(), value.size());
  if (n != static_cast<ssize_t>(value.size()) ||
      ::renameat(parent->get(), draft.c_str(), parent->get(), leaf.c_str()) < 0) {
    const int err = n >= 0 && n != static_cast<ssize_t>(value.size()) ? ENOSPC : errno;
    ::unlinkat(parent->get(), draft.c_str(), 0);
    return Error{Fault::sys, err, "write in the registry"};
  }
  return Ok{};
}

Result<std::string> LocalRegistry::read(std::string_view path) {
  std::string leaf;
  auto parent = open_parent(path, false, &leaf);
  if (!parent) return parent.error();
  UniqueFd fd{::openat(parent->get(), leaf.c_str(),
                       O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!fd) return sys_error("open in the registry");
  struct stat st {};
  if (::fstat(fd.get(), &st) < 0) return sys_error("fstat in the registry");
  if (!S_ISREG(st.st_mode)) return Error{Fault::limit, 0, "registry value is not a file"};
  std::string value(kMaxRegistryValue + 1, '\0');
  const ssize_t n = ::read(fd.get(), value.data(), value.size());
  if (n < 0) return sys_error("read in the registry");
  if (static_cast<size_t>(n) > kMaxRegistryValue)
    return Error{Fault::limit, 0, "registry value too long"};
  value.resize(static_cast<size_t>(n));
  return value;
}

Result<std::vector<std::string>> LocalRegistry::list(std::string_view path) {
  auto folder = open_folder(path);
  if (!folder) return folder.error();
  return names_in(folder->get(), false);
}

Status LocalRegistry::remove(std::string_view path) {
  std::string leaf;
  auto parent = open_parent(path, false, &leaf);
  if (!parent) {
    if (parent.error().fault == Fault::shutdown) return Ok{};
    return parent.error();
  }
  return remove_in(parent->get(), leaf.c_str(), kMaxDepth);
}

Status LocalRegistry::watch(std::string_view path) {
  auto folder = open_folder(path);
  if (!folder) return folder.error();
  const std::string link = "/proc/self/fd/" + std::to_string(folder->get());
  const int number =
      ::inotify_add_watch(inotify_.get(), link.c_str(),
                          IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ONLYDIR);
  if (number < 0) return sys_error("inotify_add_watch");
  watches_[number] = std::string(path);
  return Ok{};
}

void LocalRegistry::unwatch(std::string_view path) {
  const auto it = std::find_if(watches_.begin(), watches_.end(),
                               [&](const auto& w) { return w.second == path; });
  if (it == watches_.end()) return;
  // Fails if the folder is gone, and with it the watch: then there is nothing left to do.
  (void)::inotify_rm_watch(inotify_.get(), it->first);
  watches_.erase(it);
}

Result<std::vector<std::string>> LocalRegistry::changes() {
  std::set<std::string> changed;
  alignas(inotify_event) char buffer[16 * 1024];
  for (;;) {
    const ssize_t n = ::read(inotify_.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_error("read of inotify");
    for (ssize_t at = 0; at < n;) {
      inotify_event event{};
      std::memcpy(&event, buffer + at, sizeof event);
      const char* name = buffer + at + sizeof event;
      at += static_cast<ssize_t>(sizeof event + event.len);
      if ((event.mask & IN_Q_OVERFLOW) != 0) changed.insert("");
      const auto it = watches_.find(event.wd);
      if (it == watches_.end()) continue;
      if ((event.mask & IN_IGNORED) != 0) {
        changed.insert(it->second);
        watches_.erase(it);
        continue;
      }
      if (event.len > 0 && name[0] != '.') changed.insert(it->second + "/" + name);
    }
  }
  return std::vector<std::string>(changed.begin(), changed.end());
}

}  // namespace mw
