// slot_table.h - the INS's private side of every slot: the real socket, the placeholder, our
// indexes.
//
// INVARIANTS  A slot is live from allocate() to release(); `live` holds its generation meanwhile
//             and 0 otherwise. Free slots are handed out last-freed first, then lowest first, so
//             that the ready sets stay dense and the rings' memory warm.
// THREADS     allocate(), claim() and release() from any thread. A live slot belongs to its worker;
//             whoever allocates it fills it in and then calls publish(), which the worker's find()
//             pairs with. (The PVM may announce any slot at any time, so a worker can look while it
//             is being filled.)
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "abi/mw_region.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "ins/policy/limits.h"
#include "ins/policy/loopback_hint.h"
#include "transport/local/control.h"

namespace mw {

enum class SockKind : uint8_t { stream, dgram };

// A connection whose accept record was sent without a placeholder: nothing tells us that whoever
// took it died before he claimed it.
struct BareRecord {
  uint32_t slot = 0;
  uint32_t gen = 0;
  uint32_t number = 0;         // of the listener's records
  uint32_t missing_since = 0;  // the tick in which it was in the queue no more, and not claimed
};

// What only a listener needs.
struct ListenerState {
  uint32_t backlog = 0;          // of listen(), as far as the system lets it have that
  uint32_t share = 0;            // of that, what the real listener has now
  bool told = false;             // a record is under way that tells of a connection
  uint32_t told_at = 0;          // in which tick of the worker that was sent
  bool prompt = false;           // the application had taken everything when we looked last
  uint32_t limit = 1;            // records that may wait for the application
  uint32_t extra = 0;            // more than the backlog, as it takes what it is sent in time
  uint32_t taken = 0;            // records that it took in time, as far as we looked
  uint64_t sent_ms = 0;          // when the last one was sent
  uint32_t ahead = 0;            // upper bound of those that do
  bool armed = false;            // the placeholder's EPOLLOUT is watched: the application is behind
  bool stalled = false;          // out of descriptors or slots: in the worker's retry list
  bool bound_here = false;       // `local` holds for every accepted connection
  uint32_t sent = 0;             // records so far
  bool handing = false;          // in the worker's list of those with bare records
  std::vector<BareRecord> bare;  // not known to be claimed, oldest first
  mw_addr local{};

  bool is_cut() const { return share < backlog + extra; }
};

// The options set on a socket so far, for replay into a successor.
struct OptionLog {
  uint32_t count = 0;
  ReplayOption options[kMaxReplayOptions];
};

// Sock::flags
constexpr uint32_t kRxWait = 1;       // receive ring full: we asked for news of room
constexpr uint32_t kTxBlocked = 2;    // the kernel takes no more: EPOLLOUT will come
constexpr uint32_t kToEnd = 4;        // RDHUP, HUP or ERR was seen: read until the kernel says so
constexpr uint32_t kMarkAhead = 8;    // urgent data: the mark has not been reached
constexpr uint32_t kFinPending = 16;  // shutdown for writing waits for the send ring
constexpr uint32_t kLingering = 32;   // the last descriptor is gone, bytes are still leaving
constexpr uint32_t kQueued = 64;      // in the worker's local work list
constexpr uint32_t kWarm = 128;       // in the worker's list of slots with memory to give back
constexpr uint32_t kOobHeld = 256;    // `oob` holds an urgent byte for the application
constexpr uint32_t kAccepted = 512;   // came from a listener
constexpr uint32_t kBypassSeen = 2048;
constexpr uint32_t kReadDone = 4096;          // recv() said end or error: nothing more to read
constexpr uint32_t kRegistered = 8192;        // the real socket is in the epoll set
constexpr uint32_t kBlockingConnect = 16384;  // the application waits in connect()
constexpr uint32_t kUserTimeout = 32768;      // the application set TCP_USER_TIMEOUT
constexpr uint32_t kSentLast = 65536;         // bytes moved last towards the peer
constexpr uint32_t kLimited = 131072;         // it has `limits`
constexpr uint32_t kPaced = 262144;           // the driver set SO_MAX_PACING_RATE
constexpr uint32_t kTxDoubt = 1u << 20;       // at the last beat: bytes that nobody announced
constexpr uint32_t kRxDoubt = 1u << 21;       // at the last beat: room that nobody announced
constexpr uint32_t kHidesReuse = 1u << 22;    // SO_REUSEADDR is on, and for the application off
constexpr uint32_t kErrorTaken = 524288;  // an error ended the connection, and no FIN came first
constexpr uint32_t kFinSent = 1u << 22;   // it lingers until the peer has acknowledged our FIN

// SO_LINGER as the application set it.
enum class LingerMode : uint8_t { off, reset, wait };
// Of the option's value, as setsockopt() took it.
LingerMode linger_mode_of(const void* value);

// What only the samples of a socket need. Times are CLOCK_MONOTONIC milliseconds, 0: not known.
struct SampledState {
  uint64_t made_ms = 0;
  uint64_t first_in_ms = 0;
  uint64_t first_out_ms = 0;
  uint64_t last_in_ms = 0;  // these and the calls: kept while somebody listens
  uint64_t last_out_ms = 0;
  uint32_t calls_in = 0;
  uint32_t calls_out = 0;
  uint32_t named = 0;  // in which state its endpoints were asked for
};

struct alignas(64) Sock {
  std::atomic<uint32_t> live{0};
  uint32_t gen = 0;
  int fd = -1;
  int ph = -1;
  uint32_t rx_tail = 0;
  uint32_t tx_head = 0;
  uint32_t state = 0;
  uint32_t flags = 0;
  uint64_t bytes_in = 0;  // running totals, as the application sees them
  uint64_t bytes_out = 0;
  uint32_t last_tick = 0;  // when it was last active, in ticks of the worker
  uint32_t told = 0;       // the monitoring period in which the driver was told who this is
  uint32_t error_seq = 0;
  SockKind kind = SockKind::stream;
  uint8_t oob = 0;
  uint8_t domain = 0;
  uint8_t rx_touched = 0;  // the receive ring may have resident pages
  // Up to here a request's line.
  uint64_t made_ns = 0;  // CLOCK_REALTIME
  uint32_t oob_mark = 0;
  uint32_t next_free = 0;
  int32_t backlog = 0;
  uint32_t rcvlowat = 1;
  // How far the receive ring is filled: SO_RCVBUF as the application set it, without the overhead, or
  // for datagrams a part of it; 0: not set.
  uint32_t rx_limit = 0;
  uint32_t tx_high = 0;  // send ring bytes that may be resident
  LingerMode linger = LingerMode::off;
  uint8_t conn = 0;           // MW_CONN_*: how the connection stands
  uint16_t control_room = 0;  // datagrams: so many bytes of control messages the last one had
  bool in_use = false;        // under the lock of its part
  // An accepted connection's, while the worker that accepted it still registers it: it is not
  // closed yet, and that worker looks whether it has to be.
  std::atomic<bool> handed{true};
  int32_t protocol = 0;
  uint32_t beat_tx_tail = 0;  // as the last beat saw them
  uint32_t beat_rx_head = 0;
  LoopbackTarget loopback;  // a stream that connects
  uint32_t untold = 0;  // MW_ST_* bits that wait for the bytes before them (StreamPump::tell_end)
  std::unique_ptr<ListenerState> listener;
  std::unique_ptr<OptionLog> options;
  SampledState sampled;
  std::unique_ptr<Limits> limits;
};
static_assert(sizeof(Sock) <= 256);

// A slot by its number, together with its socket: most of what is done to one needs both. False if
// there is none.
class SlotRef {
 public:
  SlotRef() = default;
  SlotRef(uint32_t slot, Sock& sock) : index(slot), sock_(&sock) {}
  explicit operator bool() const { return sock_ != nullptr; }
  Sock& operator*() const { return *sock_; }
  Sock* operator->() const { return sock_; }

  uint32_t index = 0;

 private:
  Sock* sock_ = nullptr;
};

// What this end of a connection does now (MW_CONN_*), unless the connection is over already.
void note_end(Sock& s, uint8_t what);

class SlotTable {
 public:
  SlotTable() = default;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  ~SlotTable();

  // Errors: sys (no memory).
  Status init(const mw_geometry& geometry, uint32_t first_gen);

  // A free slot of this worker with a new generation. Errors: limit (none is free).
  Result<SlotRef> allocate(uint32_t worker);
  // This very slot, with the generation it had: a listener that is made again.
  // Errors: limit (it is in use, or there is no such slot). Only before any allocate() of its
  // worker.
  Status claim(uint32_t slot, uint32_t gen);
  void publish(uint32_t slot) {
    socks_[slot].live.store(socks_[slot].gen, std::memory_order_release);
  }
  // Gives the slot back. Its descriptors are the caller's to close; those of slots that are live at
  // the end are closed by the destructor.
  void release(uint32_t slot);
  // Runs `fn` if the slot is free, and keeps it free meanwhile.
  template <class Fn>
  void if_free(uint32_t slot, Fn&& fn) {
    const std::lock_guard hold(parts_[slot % workers_].lock);
    if (!socks_[slot].in_use) fn();
  }

  // Allocated as that, and not published yet: by another worker, at this moment.
  bool is_being_made(uint32_t slot, uint32_t gen) const {
    if (socks_[slot].live.load(std::memory_order_acquire) != 0) return false;
    const std::lock_guard hold(parts_[slot % workers_].lock);
    const Sock& s = socks_[slot];
    return s.in_use && s.gen == gen && s.live.load(std::memory_order_relaxed) == 0;
  }

  // The live socket at `slot`, if there is one. `slot` is range-checked by the caller.
  SlotRef find(uint32_t slot) {
    Sock& s = socks_[slot];
    return s.live.load(std::memory_order_acquire) == 0 ? SlotRef{} : SlotRef{slot, s};
  }
  // Whether it is live or not.
  SlotRef at(uint32_t slot) { return {slot, socks_[slot]}; }
  // A copy of the real socket, for an option that the driver has the right to set and we have not;
  // the question becomes the answer. By the socket's worker, or before there are workers.
  UniqueFd lend(ControlOption& option);
  // All slots of this worker that were ever used are below.
  uint32_t used_end(uint32_t worker) const {
    const std::lock_guard hold(parts_[worker].lock);
    return std::max(parts_[worker].fresh, parts_[worker].claimed_end);
  }
  uint32_t open_count() const { return open_.load(std::memory_order_relaxed); }

 private:
  struct Part {
    std::mutex lock;
    uint32_t fresh = 0;        // the lowest slot that was never used
    uint32_t free = 0;         // 1 + the slot freed last
    uint32_t claimed_end = 0;  // all claimed slots are below
  };
  uint32_t next_gen();

  Sock* socks_ = nullptr;
  uint64_t bytes_ = 0;
  uint32_t slots_ = 0;
  uint32_t workers_ = 1;
  std::unique_ptr<Part[]> parts_;
  std::atomic<uint32_t> gen_{1};
  std::atomic<uint32_t> open_{0};
};

}  // namespace mw
