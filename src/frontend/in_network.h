// in_network.h - being in another network namespace for a while.
//
// THREADS     The caller must be single-threaded.
#pragma once

#include <utility>

#include "base/unique_fd.h"
#include "frontend/failure.h"

namespace mw {

// The network namespace that the calling process is in.
Outcome<UniqueFd> current_network();

// The calling process, and what it starts meanwhile, is in that network namespace while this lives.
class InNetwork {
 public:
  static Outcome<InNetwork> enter(int netns);
  InNetwork(InNetwork&&) = default;
  InNetwork& operator=(InNetwork&&) = delete;
  ~InNetwork();

 private:
  explicit InNetwork(UniqueFd home) : home_(std::move(home)) {}
  UniqueFd home_;
};

}  // namespace mw
