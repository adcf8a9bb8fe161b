// local_ring_memory.h - RingMemory on one host: pages of the region that the kernel takes back.
#pragma once

#include <vector>

#include "ins/seams/ring_memory.h"
#include "ins/worker/scope.h"

namespace mw {

class LocalRingMemory final : public RingMemory {
 public:
  LocalRingMemory(const WorkerScope& scope, const UniqueFd& region)
      : scope_(scope), region_(region) {
    in_use_.reserve(scope.most_slots());
  }

  void release(SlotRef s) override;
  void turn() override;
  bool is_idle() const override { return in_use_.empty(); }

 protected:
  bool begin_use(SlotRef s) override;

 private:
  void punch(uint64_t offset, uint64_t bytes);

  const WorkerScope& scope_;
  const UniqueFd& region_;
  std::vector<uint32_t> in_use_;  // slots whose rings may have memory to give back
};

}  // namespace mw
