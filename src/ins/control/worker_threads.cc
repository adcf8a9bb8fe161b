#include "ins/control/worker_threads.h"

#include "ins/worker/worker.h"

namespace mw {

WorkerThreads::WorkerThreads(uint32_t count) : count_(count) {
  for (uint32_t i = 0; i < count; ++i) threads_.emplace_back([this, i] { run(i); });
}

WorkerThreads::~WorkerThreads() {
  {
    const std::lock_guard hold(lock_);
    over_ = true;
  }
  changed_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void WorkerThreads::start(InsContext& ins) {
  {
    const std::lock_guard hold(lock_);
    ins_ = &ins;
  }
  changed_.notify_all();
}

void WorkerThreads::run(uint32_t index) {
  InsContext* ins = nullptr;
  {
    std::unique_lock hold(lock_);
    changed_.wait(hold, [this] { return over_ || ins_ != nullptr; });
    ins = ins_;
  }
  if (ins != nullptr && index < ins->channel.geometry().workers) Worker(*ins, index).run();
}

}  // namespace mw
