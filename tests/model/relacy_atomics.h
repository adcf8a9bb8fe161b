// relacy_atomics.h - the Atomics policy of src/ring over the model checker's atomics.
//
// Orders says how strong each operation is. ShippedOrders is what StdAtomics does; the others
// weaken one thing each and exist so that the models can show that they would notice.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <ostream>
#include <streambuf>
#include <string_view>

#include "abi/mw_slot.h"
#include "ring/byte_ring.h"
#include "ring/call_cell.h"
#include "ring/ready_set.h"
#include "ring/telemetry_ring.h"
#include "transport/local/session_region.h"

// The checker defines new, delete, malloc and free for the code under test, which would break every
// header after it: so it comes last, and these go. Nothing that is modelled here allocates.
#include <relacy/relacy.hpp>
#undef new
#undef delete
#undef malloc
#undef calloc
#undef realloc
#undef free

namespace mw::model {

struct ShippedOrders {
  static constexpr rl::memory_order kAcquire = rl::mo_acquire;
  static constexpr rl::memory_order kRelease = rl::mo_release;
  static constexpr rl::memory_order kSeqLoad = rl::mo_seq_cst;
  static constexpr rl::memory_order kReadModifyWrite = rl::mo_seq_cst;
  static constexpr rl::memory_order kFence = rl::mo_seq_cst;
};

template <class Orders = ShippedOrders>
struct RelacyAtomics {
  template <class T>
  static T load_relaxed(rl::atomic<T>& w) {
    return w.load(rl::mo_relaxed, $);
  }
  template <class T>
  static T load_acquire(rl::atomic<T>& w) {
    return w.load(Orders::kAcquire, $);
  }
  template <class T>
  static T load_seq(rl::atomic<T>& w) {
    return w.load(Orders::kSeqLoad, $);
  }
  template <class T, class U>
  static void store_relaxed(rl::atomic<T>& w, U v) {
    w.store(static_cast<T>(v), rl::mo_relaxed, $);
  }
  template <class T, class U>
  static void store_release(rl::atomic<T>& w, U v) {
    w.store(static_cast<T>(v), Orders::kRelease, $);
  }
  template <class T, class U>
  static T fetch_or(rl::atomic<T>& w, U v) {
    return w.fetch_or(static_cast<T>(v), Orders::kReadModifyWrite, $);
  }
  template <class T, class U>
  static T fetch_and(rl::atomic<T>& w, U v) {
    return w.fetch_and(static_cast<T>(v), Orders::kReadModifyWrite, $);
  }
  template <class T, class U>
  static T fetch_add(rl::atomic<T>& w, U v) {
    return w.fetch_add(static_cast<T>(v), Orders::kReadModifyWrite, $);
  }
  template <class T, class U>
  static T exchange(rl::atomic<T>& w, U v) {
    return w.exchange(static_cast<T>(v), Orders::kReadModifyWrite, $);
  }
  template <class T, class U>
  static bool compare_exchange(rl::atomic<T>& w, U expected, U v) {
    T seen = static_cast<T>(expected);
    return w.compare_exchange_strong(seen, static_cast<T>(v), Orders::kReadModifyWrite, $);
  }
  static void fence() { rl::atomic_thread_fence(Orders::kFence, $); }
};

// Where the checker writes its report: it replaces operator new while it runs, so nothing may grow.
class FixedReport : public std::streambuf {
 public:
  FixedReport() { setp(text_, text_ + sizeof text_); }
  std::string_view text() const { return {text_, static_cast<size_t>(pptr() - text_)}; }

 private:
  int overflow(int c) override { return traits_type::not_eof(c); }  // the rest is dropped
  char text_[49152];
};

// Explores interleavings until the first bad one, and compares what that was with what it should
// be: rl::test_result_success if there is to be none.
template <class Model>
testing::AssertionResult explore(rl::test_result_e expected = rl::test_result_success,
                                 rl::iteration_t iterations = 100000) {
  FixedReport report;
  std::ostream out(&report);
  rl::test_params p;
  p.iteration_count = iterations;
  p.output_stream = &out;
  p.progress_stream = &out;
  rl::simulate<Model>(p);
  if (p.test_result == expected) return testing::AssertionSuccess();
  return testing::AssertionFailure() << report.text();
}

}  // namespace mw::model
