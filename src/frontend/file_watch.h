// file_watch.h - whether what some paths lead to may have changed.
//
// PROBLEM     A file changes in many ways: it is written in place or replaced by another, a symbolic link
//             on the way to it leads elsewhere, a folder comes or goes, something is mounted over it. A
//             watch of the file alone misses most of them.
// PROMISE     Every change of what open() of a path would read, from the time of watch() on, is told.
//             Nothing is polled.
// INVARIANTS  Each folder on the way is watched before the name in it is looked at.
// THREADS     One.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"

namespace mw {

class FileWatch {
 public:
  // Errors: a Failure if the system has no watch left.
  static Outcome<FileWatch> open();

  // Watches these absolute paths, and no others any more. Links count as they are now: to be called
  // again after take() said true, before the files are read.
  void watch(const std::vector<std::string>& paths);
  // Readable when take() is to be called.
  int fd() const { return epoll_.get(); }
  // True: look again. Changes that follow each other within a moment are told once.
  bool take();
  // take() says true after this time.
  void look_again_in(int milliseconds);

 private:
  void walk(const std::string& path);
  bool watch_name(const std::string& folder, const std::string& name);
  bool anything_happened();
  bool mounts_changed();

  UniqueFd epoll_;
  UniqueFd inotify_;
  UniqueFd timer_;
  // The kernel tells each open file once that mounts have changed: one wakes us, one is asked.
  UniqueFd mounts_wake_;
  UniqueFd mounts_;
  bool timed_ = false;
  // inotify's number of a folder or file, and the names in that folder which matter.
  std::map<int, std::set<std::string>> names_;
};

}  // namespace mw
