// limits.h - what a connection may not do, as the driver wants it: be slower than a minimum rate,
// or move at all while it is paused.
//
// INVARIANTS  A connection without a limit has none of this. One with a limit costs the same
//             however many there are: its deadline stands in a wheel and is looked at when it may
//             have passed, not when bytes move.
// THREADS     A connection's limits and the wheel that they hang in: its worker.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "ins/policy/peer_address.h"
#include "transport/local/control.h"

namespace mw {

// The clock of one direction: it runs during a turn, and counts all bytes of the turn.
struct RateClock {
  static constexpr int64_t kSecond = 1'000'000'000;

  bool runs() const { return since_ns != 0; }
  void begin(int64_t now_ns, uint64_t bytes) {
    since_ns = now_ns;
    base = bytes;
  }
  void stop() { since_ns = 0; }
  // When the connection is too slow if no byte comes until then.
  int64_t deadline_ns(uint64_t bytes) const {
    const uint64_t n = bytes - base;
    const uint64_t whole = std::min<uint64_t>(n / rule.rate, kMaxGraceSeconds);
    const uint64_t rest = n % rule.rate * kSecond / rule.rate;
    return since_ns + static_cast<int64_t>((rule.grace_s + whole) * kSecond + rest);
  }

  MinRate rule;
  int64_t since_ns = 0;  // CLOCK_MONOTONIC; 0: no turn
  uint64_t base = 0;     // the direction's total when the turn began
};

// Limits::paused
constexpr uint32_t kPauseIn = 1;
constexpr uint32_t kPauseOut = 2;

struct Limits {
  uint32_t slot = 0;
  PeerAddress peer;
  uint32_t counted = 0;  // the census (Wishes) in which it counts; 0: none
  uint32_t paused = 0;
  int64_t paused_at_ns = 0;
  uint32_t cut = 0;  // why it was cut: MW_TEL_CUT_*
  RateClock in;
  RateClock out;
  // In the wheel.
  Limits* next = nullptr;
  Limits** link = nullptr;  // what points here; null: it does not hang there
};

// Who is due when, to a twentieth of a second.
class TimerWheel {
 public:
  static constexpr int64_t kTickNs = 50'000'000;

  ~TimerWheel() {
    // What hangs here outlives it.
    for (Limits*& head : buckets_)
      while (head != nullptr) remove(*head);
  }
  bool empty() const { return count_ == 0; }
  // What is due beyond the wheel's reach comes at its end, too early.
  void set(Limits& l, int64_t now_ns, int64_t due_ns) {
    remove(l);
    if (count_ == 0) done_ = now_ns / kTickNs;
    const int64_t tick = due_ns / kTickNs + 1;
    const int64_t at = std::clamp(tick, done_ + 1, done_ + kBuckets - 1);
    Limits*& head = buckets_[static_cast<size_t>(at % kBuckets)];
    l.next = head;
    l.link = &head;
    if (head != nullptr) head->link = &l.next;
    head = &l;
    ++count_;
  }
  void remove(Limits& l) {
    if (l.link == nullptr) return;
    *l.link = l.next;
    if (l.next != nullptr) l.next->link = l.link;
    l.next = nullptr;
    l.link = nullptr;
    --count_;
  }
  // Takes everything out that is due and calls look(limits), which may put it back.
  template <class Look>
  void advance(int64_t now_ns, Look&& look) {
    const int64_t now = now_ns / kTickNs;
    if (now - done_ > kBuckets) done_ = now - kBuckets;
    while (done_ < now && count_ != 0) {
      Limits*& head = buckets_[static_cast<size_t>(++done_ % kBuckets)];
      while (head != nullptr) {
        Limits& l = *head;
        remove(l);
        look(l);
      }
    }
  }
  // How long there is nothing to look at; -1: for ever.
  int wait_ms(int64_t now_ns) const {
    if (count_ == 0) return -1;
    int64_t at = done_ + 1;
    while (buckets_[static_cast<size_t>(at % kBuckets)] == nullptr) ++at;
    return static_cast<int>(std::max<int64_t>(0, at * kTickNs - now_ns) / 1'000'000 + 1);
  }

 private:
  static constexpr int64_t kBuckets = 256;
  std::array<Limits*, kBuckets> buckets_{};
  int64_t done_ = 0;  // the last tick that was looked at
  uint32_t count_ = 0;
};

}  // namespace mw
