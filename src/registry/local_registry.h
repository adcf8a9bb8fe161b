// local_registry.h - the registry of one host: a directory watched with inotify.
//
// TRUST       The root directory belongs to the session's user and nobody else may enter it.
//             Folders in it may belong to an INS, so no component is ever followed if it is a
//             symbolic link, and a value that is not a regular file is not read.
// INVARIANTS  A value is written to a dot-file beside it and renamed over it. A writer that was
//             killed leaves at most such a dot-file; list() does not show them and remove() takes
//             them along.
// THREADS     One at a time.
#pragma once

#include <map>
#include <string>

#include "base/unique_fd.h"
#include "registry/registry.h"

namespace mw {

class LocalRegistry final : public Registry {
 public:
  // Opens a registry's root, which must exist. Errors: shutdown (it does not), sys.
  static Result<LocalRegistry> open(const std::string& root);
  // Makes the root (mode 0700) and its parents (0755) if need be, and "mw" in it. Errors: sys.
  static Result<LocalRegistry> create(const std::string& root);

  Status write(std::string_view path, std::string_view value) override;
  Result<std::string> read(std::string_view path) override;
  Result<std::vector<std::string>> list(std::string_view path) override;
  Status remove(std::string_view path) override;
  Status watch(std::string_view path) override;
  void unwatch(std::string_view path) override;
  int event_fd() const override { return inotify_.get(); }
  Result<std::vector<std::string>> changes() override;

  // The folder as an O_PATH descriptor: an INS that gives up the file system keeps its own, and a
  // socket in it is reached as /proc/self/fd/N/name however long the path is.
  // Errors: limit, shutdown, sys.
  Result<UniqueFd> open_folder(std::string_view path);

 private:
  LocalRegistry() = default;
  Result<UniqueFd> open_parent(std::string_view path, bool make, std::string* leaf);

  UniqueFd root_;
  UniqueFd inotify_;
  std::map<int, std::string> watches_;  // inotify's number to path
};

}  // namespace mw
