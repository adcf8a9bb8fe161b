// listeners.h - the listeners of the session, kept so that a successor of a dead INS can make them
// again.
//
// We keep a copy of the INS's end of each listener's placeholder: as long as it is open the
// application's end does not hang up, and the listener stays open and silent while there is no INS.
//
// TRUST       Records come from an INS. They are checked here before they are kept, and only ever
//             given to another INS.
#pragma once

#include <cstdint>
#include <map>

#include "base/unique_fd.h"
#include "driver/fd_store.h"
#include "transport/local/control.h"

namespace mw {

class Listeners {
 public:
  struct Listener {
    ControlListener record;
    UniqueFd end;
  };

  Listeners(uint32_t slots, FdStore& store) : slots_(slots), store_(store) {}

  void restore(uint32_t slot, StoreEntry entry);
  // Errors: peer (the record or the descriptor cannot be), limit (too many).
  Status put(const ControlListener& record, UniqueFd end);
  void drop(uint32_t slot, uint32_t gen);
  // Forgets those whose last descriptor in the application was closed while no INS looked.
  void drop_closed();
  const std::map<uint32_t, Listener>& all() const { return listeners_; }

  static constexpr size_t kMaxListeners = 4096;

 private:
  Status check(const ControlListener& r, int end) const;

  uint32_t slots_;
  FdStore& store_;
  std::map<uint32_t, Listener> listeners_;
};

}  // namespace mw
