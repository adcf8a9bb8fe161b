// local_bells.h - Bells on one host: eventfds.
#pragma once

#include <vector>

#include "ins/seams/bells.h"
#include "ins/worker/context.h"

namespace mw {

class LocalBells final : public Bells {
 public:
  LocalBells(const std::vector<UniqueFd>& workers, uint32_t worker, uint32_t groups)
      : workers_(workers), worker_(worker), groups_(groups) {}

  int wait_fd() const override { return workers_[worker_].get(); }
  uint32_t wait_events() const override;
  void heard() override {}  // it is never read: each ring is an edge
  void set_group(uint32_t group, UniqueFd doorbell) override;
  bool has_group(uint32_t group) const override { return static_cast<bool>(groups_[group]); }
  void ring_group(uint32_t group) override { ring(groups_[group]); }
  void ring_worker(uint32_t worker) override { ring(workers_[worker]); }

 private:
  static void ring(const UniqueFd& doorbell);

  const std::vector<UniqueFd>& workers_;
  const uint32_t worker_;
  std::vector<UniqueFd> groups_;
};

}  // namespace mw
