// worker_threads.h - the workers' threads, made before the sandbox closes and set to work later.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "ins/worker/context.h"

namespace mw {

class WorkerThreads {
 public:
  explicit WorkerThreads(uint32_t count);
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;
  // Stops them if they run. Whoever started them has sent the stop notes.
  ~WorkerThreads();
  void start(InsContext& ins);
  uint32_t count() const { return count_; }
  bool started() const { return ins_ != nullptr; }

 private:
  void run(uint32_t index);
  const uint32_t count_;
  std::mutex lock_;
  std::condition_variable changed_;
  InsContext* ins_ = nullptr;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace mw
