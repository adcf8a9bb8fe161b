#include "ins/tables/placeholder_table.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace mw {

PlaceholderTable::~PlaceholderTable() {
  if (entries_ == nullptr) return;
  for (uint32_t w = 0; w < workers_; ++w)
    for (uint32_t p = w; p < parts_[w].fresh; p += workers_)
      if (entries_[p].end_and_1 != 0) ::close(entries_[p].end_and_1 - 1);
}

Status PlaceholderTable::init(const mw_geometry& geometry) {
  numbers_ = geometry.slots;
  workers_ = geometry.workers;
  entries_.reset(static_cast<Entry*>(std::calloc(numbers_, sizeof(Entry))));
  if (entries_ == nullptr) return Error{Fault::sys, ENOMEM, "memory for placeholders"};
  parts_ = std::make_unique<Part[]>(workers_);
  for (uint32_t w = 0; w < workers_; ++w) parts_[w].fresh = w;
  return Ok{};
}

Result<uint32_t> PlaceholderTable::add(uint32_t worker, UniqueFd end, Made made) {
  Part& part = parts_[worker];
  const std::lock_guard hold(part.lock);
  uint32_t number = part.fresh;
  if (part.free != 0) {
    number = part.free - 1;
    part.free = entries_[number].next_free;
  } else if (number < numbers_) {
    part.fresh += workers_;
  } else {
    return Error{Fault::limit, 0, "no free placeholder"};
  }
  Entry& e = entries_[number];
  e.made = made;
  std::atomic_ref(e.end_and_1).store(end.release() + 1, std::memory_order_release);
  return number;
}

int PlaceholderTable::end(uint32_t number) const {
  return std::atomic_ref(entries_[number].end_and_1).load(std::memory_order_acquire) - 1;
}

UniqueFd PlaceholderTable::remove(uint32_t number) {
  Part& part = parts_[number % workers_];
  Entry& e = entries_[number];
  const std::lock_guard hold(part.lock);
  UniqueFd end{std::atomic_ref(e.end_and_1).exchange(0) - 1};
  if (!end) return end;  // the application named one that is not there
  e.next_free = part.free;
  part.free = number + 1;
  return end;
}

}  // namespace mw
