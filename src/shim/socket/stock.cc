#include "shim/socket/stock.h"

#include <algorithm>

#include "shim/process/copies.h"
#include "shim/process/descriptors.h"
#include "shim/process/stack.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// More connections than this are rarely open in one process and short-lived at the same time.
constexpr uint32_t kPlaces = 256;

enum PlaceState : uint32_t { kFree = 0, kBusy = 1, kFull = 2 };
struct Place {
  uint32_t state;
  Stocked what;
};
constinit Place places[kPlaces] = {};
uint32_t size = 0;
uint32_t used_end = 0;  // all places that were ever used are below

bool become(Place& p, uint32_t from, uint32_t to) {
  return A::load_relaxed(p.state) == from &&
         std::atomic_ref(p.state).compare_exchange_strong(from, to);
}

}  // namespace

bool stock_is_usable(const Stocked& s) {
  Stack& stack = stack_of(s.number);
  return !is_copying() && s.then == descriptor_copies() && s.first_gen == stack.first_gen() &&
         !stack.is_poisoned();
}

void stock_put(const Stocked& s) {
  for (uint32_t i = 0; i < kPlaces; ++i) {
    Place& p = places[i];
    if (!become(p, kFree, kBusy)) continue;
    p.what = s;
    if (i >= A::load_relaxed(used_end)) A::store_relaxed(used_end, i + 1);
    A::fetch_add(size, 1u);
    A::store_release(p.state, uint32_t{kFull});
    return;
  }
  unhide_and_close(s.fd);
}

bool stock_take(uint32_t number, Stocked& out) {
  if (stock_size() == 0) return false;
  Stack& stack = stack_of(number);
  const uint32_t worker = stack.worker_of(number);
  // A place that two threads begin to use at once is lost to a scan, not to the stock.
  const uint32_t end = std::min(kPlaces, A::load_relaxed(used_end) + 1);
  for (uint32_t i = 0; i < end; ++i) {
    Place& p = places[i];
    if (!become(p, kFull, kBusy)) continue;
    const Stocked s = p.what;
    const bool usable = stock_is_usable(s);
    const bool fits = &stack_of(s.number) == &stack && stack.worker_of(s.number) == worker;
    if (usable && !fits) {
      A::store_release(p.state, uint32_t{kFull});
      continue;
    }
    A::fetch_add(size, ~uint32_t{0});
    A::store_release(p.state, uint32_t{kFree});
    if (usable) {
      out = s;
      return true;
    }
    unhide_and_close(s.fd);
  }
  return false;
}

uint32_t stock_size() {
  return A::load_relaxed(size);
}

void stock_clear() {
  for (Place& p : places) {
    if (!become(p, kFull, kBusy)) continue;
    unhide_and_close(p.what.fd);
    A::fetch_add(size, ~uint32_t{0});
    A::store_release(p.state, uint32_t{kFree});
  }
}

void stock_after_fork() {
  for (Place& p : places) {
    // Half done by a thread that does not exist here.
    if (p.state == kFull) unhide_and_close(p.what.fd);
    p.state = kFree;
  }
  size = 0;
}

}  // namespace mw::shim
