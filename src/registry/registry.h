// registry.h - where the INSs and the driver of a session find each other and publish state.
//
// A tree of small text values with the names that outside tools know ("mw/7/heartbeat"). On one
// host it is a directory (local_registry.h); on Xen it is XenStore, whose reads, writes and watches
// fit these calls one to one.
//
// TRUST       Values are written by other processes, some of which face an attacker: whoever reads
//             one checks it. parse_* below return nothing for anything that is not exactly right.
// INVARIANTS  A path is components joined by '/', without a leading one; a component is
//             [A-Za-z0-9._-]+, does not start with a dot, and is at most 64 characters long.
// THREADS     One at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mw {

constexpr size_t kMaxRegistryValue = 4096;  // XenStore's limit as well

class Registry {
 public:
  virtual ~Registry() = default;

  // Replaces the value as a whole: a reader sees the old one or the new one. Makes missing parents.
  // Errors: limit (bad path, value too long), sys.
  virtual Status write(std::string_view path, std::string_view value) = 0;
  // Errors: limit (bad path, value too long), shutdown (there is no such value), sys.
  virtual Result<std::string> read(std::string_view path) = 0;
  // The names directly below, sorted. Errors: limit, shutdown (no such folder), sys.
  virtual Result<std::vector<std::string>> list(std::string_view path) = 0;
  // Removes a value, or a folder with all that is in it; nothing there is no error. Errors: limit,
  // sys.
  virtual Status remove(std::string_view path) = 0;

  // Asks to be told about names made, replaced and removed directly below a folder, which must
  // exist. Errors: limit, shutdown (no such folder), sys.
  virtual Status watch(std::string_view path) = 0;
  virtual void unwatch(std::string_view path) = 0;
  // Readable when changes() has something to say.
  virtual int event_fd() const = 0;
  // Paths whose value or existence may have changed, without duplicates. An empty path: some were
  // lost, look at everything. Errors: sys.
  virtual Result<std::vector<std::string>> changes() = 0;
};

// True for a path that fits INVARIANTS.
bool valid_registry_path(std::string_view path);

// A decimal number without sign or leading zeros.
std::optional<uint64_t> parse_registry_number(std::string_view text);

// The ids of the INSs below "mw", ascending: names that are numbers. Errors: as list().
Result<std::vector<uint32_t>> list_ins(Registry& registry);
std::string ins_path(uint32_t id, std::string_view name);

}  // namespace mw
