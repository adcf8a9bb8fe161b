// fd_store.h - what a driver must find again when it is started anew, descriptors included.
//
// A restarted driver needs the doorbell and the life pipe of every group, the kept end of every
// listener, and who its INS was. The store is a SOCK_SEQPACKET pair that the front end makes
//     socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)
// keeps for the session's life, and passes to each driver as `--store-fds pair[0],pair[1]`. The
// driver sends records into pair[0]; they wait in the kernel's queue of pair[1], descriptors and
// all, and nobody but the next driver takes them out. Without a store the driver works; after a
// restart it then knows only what the INS announces again.
//
// TRUST       Only drivers of this session write here. A record that does not fit is dropped all
//             the same.
// INVARIANTS  A log: the last record of a key counts. Compaction copies a record to the end before
//             it takes it from the front, so a driver killed at any point loses nothing.
// THREADS     One at a time. Never blocks.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "transport/local/control.h"

namespace mw {

enum class StoreKind : uint32_t { mark = 0, ins = 1, group = 2, listener = 3 };

struct StoreKey {
  StoreKind kind;
  uint32_t id;
  auto operator<=>(const StoreKey&) const = default;
};

struct StoreEntry {
  std::vector<std::byte> data;
  std::vector<UniqueFd> fds;
};

constexpr size_t kMaxStoreData = sizeof(ControlListener);
constexpr size_t kMaxStoreFds = 4;

class FdStore {
 public:
  // Without a store (-1): put and drop succeed and do nothing.
  FdStore(int in, int out);

  // Reads what earlier drivers left. Errors: sys.
  Result<std::map<StoreKey, StoreEntry>> load();
  // Errors: limit (the store is full), sys.
  Status put(StoreKey key, std::span<const std::byte> data, std::span<const int> fds);
  Status drop(StoreKey key);

 private:
  struct Record;
  Status append(StoreKey key, bool live, std::span<const std::byte> data, std::span<const int> fds);
  // Moves each record for which keep(record, fds) holds from the front of the queue to its end.
  template <class Keep>
  Status rotate(Keep&& keep);
  Status compact();

  int in_, out_;
  uint64_t next_serial_ = 1;
  std::map<StoreKey, uint64_t> live_;  // key to the serial number of the record that counts
  size_t records_ = 0;                 // in the queue, dead ones included
};

}  // namespace mw
