// sample_rows.h - both ends of the rows that an INS writes about its sockets, round by round.
//
// TRUST       Both ends may be hostile. The writer reads nothing but the number of the round that
//             is wanted. The reader takes a private copy of a row; what stands in it is the
//             caller's to judge.
// INVARIANTS  A row has one writer, the worker of its slot. The reader never waits for it: a row
//             that is being written, or pretends to be, is no row.
// ORDERING    Writer: seq odd, fence, contents, seq even with release; after the last row
//             of a round, round_done with release. Reader: acquire round_done; acquire seq, copy,
//             fence, seq again.
// THREADS     One writer for each worker, one reader.
#pragma once

#include <cstdint>
#include <cstring>

#include "abi/mw_telemetry.h"
#include "ring/atomics.h"

namespace mw {

class SampleRowWriter {
 public:
  SampleRowWriter() = default;
  SampleRowWriter(std::byte* base, uint32_t worker, uint32_t workers)
      : h_(reinterpret_cast<mw_telemetry_header*>(base + MW_TELEMETRY_STRIDE * worker)),
        rows_(reinterpret_cast<mw_sample_row*>(base + MW_TELEMETRY_STRIDE * workers)) {}

  // The round that is wanted and has not been finished; 0: none.
  uint32_t due() const {
    const uint32_t round = h_ == nullptr ? 0 : wanted();
    return round == done_ ? 0 : round;
  }
  // The slot is range-checked by the caller; row.seq is ours.
  void write(uint32_t slot, mw_sample_row& row) {
    mw_sample_row& shared = rows_[slot];
    const uint32_t seq = StdAtomics::load_relaxed(shared.seq) | 1;
    StdAtomics::store_relaxed(shared.seq, seq);
    StdAtomics::fence();
    row.seq = seq;
    std::memcpy(&shared, &row, sizeof row);
    StdAtomics::store_release(shared.seq, seq + 1);
  }
  void finish(uint32_t round, uint32_t rows_end) {
    done_ = round;
    StdAtomics::store_relaxed(h_->rows_end, rows_end);
    StdAtomics::store_release(h_->round_done, round);
  }

 private:
  uint32_t wanted() const { return StdAtomics::load_relaxed(h_->round); }

  mw_telemetry_header* h_ = nullptr;
  mw_sample_row* rows_ = nullptr;
  uint32_t done_ = 0;
};

class SampleRowReader {
 public:
  SampleRowReader() = default;
  SampleRowReader(std::byte* base, uint32_t workers, uint32_t slots)
      : base_(base), workers_(workers), slots_(slots) {}

  void want(uint32_t round) {
    for (uint32_t w = 0; w < workers_; ++w) StdAtomics::store_relaxed(header(w).round, round);
  }
  bool is_done(uint32_t worker, uint32_t round) const {
    return StdAtomics::load_acquire(header(worker).round_done) == round;
  }
  // No slot from here on has a row.
  uint32_t end() const {
    uint32_t end = 0;
    for (uint32_t w = 0; w < workers_; ++w) {
      const uint32_t its = StdAtomics::load_relaxed(header(w).rows_end);
      end = its > end ? its : end;
    }
    return end < slots_ ? end : slots_;
  }
  // Copies the row of a slot if it is of one of these two rounds. False: it is not, or it is being
  // written.
  bool read(uint32_t slot, uint32_t round, uint32_t other, mw_sample_row& out) const {
    mw_sample_row& row = rows()[slot];
    const uint32_t its = StdAtomics::load_relaxed(row.round);
    if (its != round && its != other) return false;
    const uint32_t seq = StdAtomics::load_acquire(row.seq);
    if ((seq & 1) != 0) return false;
    std::memcpy(&out, &row, sizeof out);
    // Nothing of the copy may be read from the row again.
    asm volatile("" : : "r"(&out) : "memory");
    StdAtomics::fence();
    return StdAtomics::load_relaxed(row.seq) == seq && (out.round == round || out.round == other);
  }

 private:
  mw_telemetry_header& header(uint32_t worker) const {
    return *reinterpret_cast<mw_telemetry_header*>(base_ + MW_TELEMETRY_STRIDE * worker);
  }
  mw_sample_row* rows() const {
    return reinterpret_cast<mw_sample_row*>(base_ + MW_TELEMETRY_STRIDE * workers_);
  }

  std::byte* base_ = nullptr;
  uint32_t workers_ = 0;
  uint32_t slots_ = 0;
};

}  // namespace mw
