#include "ins/worker/lost_wakeups.h"

#include <algorithm>

#include "base/log.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

// So many slots are looked at in one beat, the others in the next ones.
constexpr uint32_t kSlotsPerBeat = 2048;
// A sleeper that was rung for has this many beats to wake.
constexpr uint8_t kBeatsIfRung = 3;

}  // namespace

LostWakeups::LostWakeups(const WorkerScope& scope, NoteQueue<ControlNote>& to_control, Bells& bells,
                         News& news, StreamPump& streams)
    : scope_(scope),
      to_control_(to_control),
      bells_(bells),
      news_(news),
      streams_(streams),
      room_(scope),
      sock_news_(scope.ch.sock_news(scope.index)),
      next_slot_(scope.index),
      group_doubts_(scope.ch.geometry().groups) {
  doubted_.reserve(scope.ch.geometry().groups);
}

void LostWakeups::repaired(const char* what) {
  if (sock_news_.repairs() == 0)
    log_line("mwins", "a wake-up was lost and repaired by the clock: %s; please report this", what);
  sock_news_.count_repair();
  to_control_.ring();
}

void LostWakeups::beat() {
  const uint32_t workers = scope_.ch.geometry().workers;
  const uint32_t end = scope_.slots.used_end(scope_.index);
  for (uint32_t k = 0; k < kSlotsPerBeat; ++k, next_slot_ += workers) {
    if (next_slot_ >= end) {
      next_slot_ = scope_.index;
      break;
    }
    const SlotRef s = scope_.slots.find(next_slot_);
    if (s && s->kind == SockKind::stream && s->listener == nullptr && s->fd >= 0 &&
        (s->state & MW_ST_CONNECTED) != 0 && !sock_news_.has(next_slot_))
      look_at(s);
  }
  for (uint32_t g = 0; g < group_doubts_.size(); ++g)
    if (bells_.has_group(g)) look_at_group(g);
}

void LostWakeups::look_at(SlotRef s) {
  mw_slot& shared = scope_.ch.slot(s.index);
  const uint32_t tail = A::load_acquire(shared.tx_tail);
  const bool unsent = tail != s->tx_head && (s->flags & (kTxBlocked | kQueued)) == 0 &&
                      !LimitClock::is_paused(*s, kPauseOut);
  if (unsent && (s->flags & kTxDoubt) != 0 && s->beat_tx_tail == tail) {
    // Bytes under a cork leave after a while, as in the kernel, whatever the program does.
    if ((A::load_relaxed(shared.want) & MW_WANT_HOLD) == 0) repaired("bytes to send");
    if (const uint32_t news = streams_.send(s, 0, true); news != 0) news_.announce(s, news);
  }
  s->beat_tx_tail = tail;
  s->flags = unsent ? s->flags | kTxDoubt : s->flags & ~kTxDoubt;

  const uint32_t head = A::load_acquire(shared.rx_head);
  const bool room = (s->flags & kRxWait) != 0 && s->rx_tail - head <= room_.limit(s) / 2 &&
                    (s->flags & kQueued) == 0 && !LimitClock::is_paused(*s, kPauseIn);
  if (room && (s->flags & kRxDoubt) != 0 && s->beat_rx_head == head) {
    repaired("room for bytes");
    if (const uint32_t news = streams_.receive(s); news != 0) news_.announce(s, news);
  }
  s->beat_rx_head = head;
  s->flags = room ? s->flags | kRxDoubt : s->flags & ~kRxDoubt;
}

// A group whose sleeper is kept waiting from one beat to the next, as far as we saw, is rung for. If
// that wakes it, the ring that it should have had was lost; if not, its process does not run. One
// that was rung for may only be slow to run: it is given longer.
void LostWakeups::look_at_group(uint32_t g) {
  ReadySet news = scope_.ch.group_news(g);
  GroupDoubt& doubt = group_doubts_[g];
  if (!news.keeps_waiting() || news.is_watched()) {
    doubt = {};
    return;
  }
  if (doubt.beats++ == 0) {
    doubted_.push_back(g);
  } else if (!doubt.rung && (doubt.beats > kBeatsIfRung || !news.is_rung())) {
    doubt.rung = true;
    doubt.beats = kBeatsIfRung;
    bells_.ring_group(g);
  } else if (doubt.beats > kBeatsIfRung + 1) {
    doubt.beats = kBeatsIfRung + 1;
    doubt.given_up = doubt.rung;
  }
}

void LostWakeups::settle_doubts() {
  std::erase_if(doubted_, [this](uint32_t g) {
    GroupDoubt& doubt = group_doubts_[g];
    if (doubt.beats == 0 || doubt.given_up) return true;
    if (scope_.ch.group_news(g).keeps_waiting()) return false;
    if (doubt.rung) repaired("a sleeper in epoll_wait()");
    doubt = {};
    return true;
  });
}

}  // namespace mw
