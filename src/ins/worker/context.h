// context.h - what the threads of an INS share, and the notes that they pass to each other.
//
// THREADS     Control thread: driver, publication, name lookups. Workers: one for each ready set;
//             each owns its slots, its epoll set and its calls. They meet in this file only.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "ins/policy/loopback_hint.h"
#include "ins/policy/wishes.h"
#include "ins/report/telemetry.h"
#include "ins/tables/call_table.h"
#include "ins/tables/decode.h"
#include "ins/tables/placeholder_table.h"
#include "ins/tables/slot_table.h"
#include "ins/worker/local_call_done.h"
#include "ring/channel.h"
#include "transport/local/control.h"
#include "transport/local/mapping.h"

namespace mw {

// A queue that wakes its reader through an eventfd. For rare things: it takes a lock and allocates.
template <class Note>
class NoteQueue {
 public:
  NoteQueue() : bell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  int bell() const { return bell_.get(); }
  void post(Note note) {
    {
      const std::lock_guard hold(lock_);
      notes_.push_back(std::move(note));
    }
    ring();
  }
  void ring() {
    const uint64_t one = 1;
    // EAGAIN means that the counter is full, so the reader is awake anyway.
    if (::write(bell_.get(), &one, sizeof one) < 0 && errno != EAGAIN) std::abort();
  }
  std::vector<Note> take() {
    uint64_t count = 0;
    if (::read(bell_.get(), &count, sizeof count) < 0 && errno != EAGAIN) std::abort();
    const std::lock_guard hold(lock_);
    return std::exchange(notes_, {});
  }

 private:
  UniqueFd bell_;
  std::mutex lock_;
  std::vector<Note> notes_;
};

// Worker to control thread.
struct ControlNote {
  enum class Kind { listener_up, listener_down, bypass, resolve, reply, lent, stopped };
  explicit ControlNote(Kind k, uint32_t about = 0, uint32_t its_gen = 0)
      : kind(k), slot(about), gen(its_gen) {}
  Kind kind;
  uint32_t slot;
  uint32_t gen;
  std::unique_ptr<ControlListener> listener;  // listener_up
  UniqueFd placeholder;                       // listener_up: a duplicate
  std::unique_ptr<Request> request;           // resolve
  uint32_t call = 0;                          // resolve
  ControlOption option{};                     // lent
  UniqueFd socket;                            // lent: a duplicate of the real one
  InsReply reply{};
};

// Control thread to worker, or worker to worker.
struct WorkerNote {
  enum class Kind {
    group_open,
    group_close,
    adopt,
    abandon,
    telemetry,
    request,
    look,
    looked,
    lend,
    option_set,
    reset_all,
    stop
  };
  explicit WorkerNote(Kind k, uint32_t about = 0, UniqueFd doorbell = UniqueFd{})
      : kind(k), index(about), bell(std::move(doorbell)) {}
  Kind kind;
  // Group; slot of a listener that was made again, or of a socket nobody can watch; look: the worker
  // that asks; looked: the call it asks for.
  uint32_t index;
  uint32_t gen = 0;  // abandon: the socket's; look: the call
  UniqueFd bell;
  std::shared_ptr<TelemetryChannel> telemetry;
  InsRequest request{};
  ControlOption option{};  // lend, option_set
};

struct Stats {
  std::atomic<uint32_t> beat{0};  // the tick that this worker has seen last
  std::atomic<uint64_t> bytes_recv{0};
  std::atomic<uint64_t> bytes_sent{0};

  // One writer: a store costs less than an atomic addition.
  void received(uint64_t n) {
    bytes_recv.store(bytes_recv.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void sent(uint64_t n) {
    bytes_sent.store(bytes_sent.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
};

struct InsContext {
  // Filled by the control thread before the workers start, constant afterwards.
  UniqueFd channel_fd;
  UniqueFd drop;
  std::vector<UniqueFd> bells;
  std::vector<UniqueFd>
      epolls;  // one for each worker; any thread adds a new socket to its worker's
  Mapping mapping;
  Channel channel;
  uint32_t first_gen = 1;
  const unsigned cpus = std::thread::hardware_concurrency();  // asked before the sandbox
  UniqueFd load;  // /proc/loadavg, opened before the sandbox; without it nobody spins for long

  SlotTable slots;
  PlaceholderTable placeholders;  // of accepted connections
  LocalCallDone call_done;
  CallTable calls;
  Wishes wishes;
  LoopbackHint loopback_hint;
  NoteQueue<ControlNote> to_control;
  std::vector<std::unique_ptr<NoteQueue<WorkerNote>>> to_worker;
  std::vector<std::unique_ptr<Stats>> stats;
  std::atomic<uint32_t> tick{1};               // seconds, roughly: counts the heartbeats
  std::atomic<const char*> poisoned{nullptr};  // a literal: what the PVM did

  // Ends the session: the first reason counts and is logged by the control thread.
  void poison(const char* why) {
    const char* none = nullptr;
    if (poisoned.compare_exchange_strong(none, why)) to_control.ring();
  }
};

}  // namespace mw
