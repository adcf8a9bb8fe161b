// placeholder_table.h - our ends of the placeholders of accepted connections, by number.
//
// A placeholder outlives its connection if the application keeps its end for another one, so it has
// a number of its own and no fixed slot. Which connection it serves now the PVM says (`bound` and
// `claim` in the slots); for which one it was made we know ourselves.
//
// INVARIANTS  A placeholder and the slots that it serves belong to the same worker.
// THREADS     add() from any thread; all else from the placeholder's worker.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "abi/mw_region.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

class PlaceholderTable {
 public:
  // The connection that a placeholder was made for; its generation also tells the placeholder from
  // earlier ones of the same number.
  struct Made {
    uint32_t slot = 0;
    uint32_t gen = 0;
  };

  PlaceholderTable() = default;
  PlaceholderTable(const PlaceholderTable&) = delete;
  PlaceholderTable& operator=(const PlaceholderTable&) = delete;
  ~PlaceholderTable();

  // Errors: sys (no memory).
  Status init(const mw_geometry& geometry);
  // A number for our end of a placeholder of this worker. Errors: limit (none is free).
  Result<uint32_t> add(uint32_t worker, UniqueFd end, Made made);
  // -1 if there is no such placeholder. `number` is range-checked by the caller.
  int end(uint32_t number) const;
  Made made(uint32_t number) const { return entries_[number].made; }
  UniqueFd remove(uint32_t number);

 private:
  struct Entry {
    int end_and_1;  // 0: there is none
    uint32_t next_free;
    Made made;
  };
  struct Part {
    std::mutex lock;
    uint32_t fresh = 0;  // the lowest number that was never used
    uint32_t free = 0;   // 1 + the number that came free last
  };
  struct Free {
    void operator()(Entry* e) const { std::free(e); }
  };
  std::unique_ptr<Entry[], Free> entries_;  // zero pages until they are used
  std::unique_ptr<Part[]> parts_;
  uint32_t numbers_ = 0;
  uint32_t workers_ = 1;
};

}  // namespace mw
