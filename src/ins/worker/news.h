// news.h - what a worker tells the PVM about a socket: its state, its errors, and that there is
// something to look at.
//
// PROMISE     After announce() whoever watches the socket looks at it again, as soon as flush() has
//             rung.
// ORDERING    Publication (index, state, error: release), fence, look at watches and want:
//             announce().
// THREADS     The worker's.
#pragma once

#include <cstdint>
#include <vector>

#include "ins/seams/bells.h"
#include "ins/worker/placeholders.h"
#include "ins/worker/scope.h"

namespace mw {

// What an announcement is about.
constexpr uint32_t kNewsIn = 1;   // input, state or error
constexpr uint32_t kNewsOut = 2;  // room in the send ring, state or error
constexpr uint32_t kNewsAll = kNewsIn | kNewsOut;

class News {
 public:
  // At most `batch` announcements are made between two flushes.
  News(const WorkerScope& scope, const Placeholders& placeholders, Bells& bells, uint32_t batch);

  void set_state(SlotRef s, uint32_t state) const;
  void publish_error(SlotRef s, int err) const;
  // An error and the state that follows from it, as one: who takes the error finds that state, and
  // who finds the state finds the error.
  void publish_failure(SlotRef s, int err, uint32_t state) const;
  void announce(SlotRef s, uint32_t news);
  // Rings for the sleepers that the news since the last time concerned: one wake-up for a batch of
  // news.
  void flush();

 private:
  const Placeholders& placeholders_;
  Bells& bells_;
  const Channel ch_;
  std::vector<uint32_t> due_;  // groups whose sleeper waits for the end of the batch
};

}  // namespace mw
