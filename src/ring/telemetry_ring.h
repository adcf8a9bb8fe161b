// telemetry_ring.h - both ends of a struct mw_telemetry_header and the records behind it.
//
// TRUST       Both ends may be hostile. The writer trusts nothing it reads to index with: a head
//             outside of the window counts as a full ring. The reader loads the tail once, checks
//             the window, and copies each record once; what stands in it is the caller's to judge.
// INVARIANTS  0 <= tail - head <= capacity, a power of two. Each side keeps its own index private.
//             The writer never waits: without room it counts a drop.
// ORDERING    Writer: copy in, store tail with release, at the end of a batch fence and look at
//             sleeping. Reader: acquire tail, copy out, store head with release; before it sleeps:
//             set sleeping, fence, look at the tail again (tests/model/telemetry_model_test.cc).
// THREADS     One writer and one reader.
#pragma once

#include <cstdint>
#include <cstring>

#include "abi/mw_telemetry.h"
#include "base/result.h"
#include "ring/atomics.h"

namespace mw {

template <class Atomics = StdAtomics, class Header = mw_telemetry_header,
          class Record = mw_telemetry_record>
class BasicTelemetryWriter {
 public:
  BasicTelemetryWriter() = default;
  // The ring must be new: both indexes are taken to be `start`.
  BasicTelemetryWriter(Header* header, Record* records, uint32_t capacity, uint32_t start)
      : h_(header), records_(records), capacity_(capacity), tail_(start), head_(start) {}

  bool attached() const { return h_ != nullptr; }
  // The monitoring period, 0 if nobody listens.
  uint32_t epoch() const { return h_ == nullptr ? 0 : Atomics::load_relaxed(h_->epoch); }
  bool muted() const { return Atomics::load_relaxed(h_->muted) != 0; }

  // False: there is no room, which was counted. Seen by the reader at once, but see need_ring().
  bool push(const Record& record) {
    if (tail_ - head_ >= capacity_) {
      const uint32_t head = Atomics::load_acquire(h_->head);
      // A head beyond the tail, or behind the last one, is a lie and makes no room.
      if (tail_ - head > capacity_) return drop();
      head_ = head;
      if (tail_ - head_ == capacity_) return drop();
    }
    copy(records_[tail_ & (capacity_ - 1)], record);
    Atomics::store_release(h_->tail, ++tail_);
    unannounced_ = true;
    return true;
  }
  // Counts something that was not worth a record.
  bool drop() {
    Atomics::store_relaxed(h_->dropped, ++dropped_);
    return false;
  }

  // At the end of a batch. True: the reader sleeps, and its doorbell is to be rung.
  bool unannounced() const { return unannounced_; }
  bool need_ring() {
    unannounced_ = false;
    Atomics::fence();
    if (Atomics::load_relaxed(h_->sleeping) == 0) return false;
    return Atomics::exchange(h_->sleeping, 0u) != 0;
  }

 private:
  static void copy(Record& to, const Record& from) { std::memcpy(&to, &from, sizeof to); }

  Header* h_ = nullptr;
  Record* records_ = nullptr;
  uint32_t capacity_ = 0;
  uint32_t tail_ = 0;
  uint32_t head_ = 0;  // the reader's, as we last saw it
  uint64_t dropped_ = 0;
  bool unannounced_ = false;
};

template <class Atomics = StdAtomics, class Header = mw_telemetry_header,
          class Record = mw_telemetry_record>
class BasicTelemetryReader {
 public:
  BasicTelemetryReader() = default;
  // Prepares a ring of zeroed memory.
  BasicTelemetryReader(Header* header, Record* records, uint32_t capacity, uint32_t start)
      : h_(header), records_(records), capacity_(capacity), head_(start) {
    Atomics::store_relaxed(h_->head, start);
    Atomics::store_relaxed(h_->tail, start);
  }

  void set_epoch(uint32_t epoch) { Atomics::store_relaxed(h_->epoch, epoch); }
  void set_muted(bool muted) { Atomics::store_relaxed(h_->muted, muted ? 1u : 0u); }
  uint64_t dropped() const { return Atomics::load_relaxed(h_->dropped); }

  // Calls take(record) with private copies, for at most `limit` records. Returns how many.
  // Errors: peer (the tail is out of the window).
  template <class Take>
  Result<uint32_t> drain(uint32_t limit, Take&& take) {
    const uint32_t ready = Atomics::load_acquire(h_->tail) - head_;
    if (ready > capacity_) return Error{Fault::peer, 0, "telemetry tail out of window"};
    const uint32_t n = ready < limit ? ready : limit;
    for (uint32_t k = 0; k < n; ++k) {
      Record record;
      std::memcpy(&record, &records_[(head_ + k) & (capacity_ - 1)], sizeof record);
      // Nothing of the copy may be read from the ring again.
      asm volatile("" : : "r"(&record) : "memory");
      take(record);
    }
    head_ += n;
    if (n != 0) Atomics::store_release(h_->head, head_);
    return n;
  }

  // Announces a sleep. False: there is something to read, do not sleep.
  bool prepare_sleep() {
    Atomics::store_relaxed(h_->sleeping, 1u);
    Atomics::fence();
    if (Atomics::load_relaxed(h_->tail) == head_) return true;
    Atomics::store_relaxed(h_->sleeping, 0u);
    return false;
  }
  void wake() { Atomics::store_relaxed(h_->sleeping, 0u); }

 private:
  Header* h_ = nullptr;
  Record* records_ = nullptr;
  uint32_t capacity_ = 0;
  uint32_t head_ = 0;
};

using TelemetryWriter = BasicTelemetryWriter<>;
using TelemetryReader = BasicTelemetryReader<>;

// The end of worker `w` in memory that holds MW_TELEMETRY_STRIDE bytes for each.
template <class End>
End telemetry_end(std::byte* base, uint32_t worker) {
  std::byte* at = base + MW_TELEMETRY_STRIDE * worker;
  return End(reinterpret_cast<mw_telemetry_header*>(at),
             reinterpret_cast<mw_telemetry_record*>(at + MW_PAGE), MW_TELEMETRY_RECORDS,
             MW_TELEMETRY_START);
}

}  // namespace mw
