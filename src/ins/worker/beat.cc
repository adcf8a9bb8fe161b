// beat.cc - once a second a worker looks for wake-ups that were lost.
//
// Everything that is to be done is announced, and whoever sleeps is rung for. If that fails, it is a
// fault of this program; the beat then makes it cost a second instead of for ever, and counts it
// (mw_ready_set.repairs) where `mw ps --json`, the metrics and the tests see it. A doubt becomes a
// repair only if nothing has changed at the next beat, so what is under way is not counted.
#include <algorithm>

#include "base/log.h"
#include "ins/worker/worker.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

// So many slots are looked at in one beat, the others in the next ones.
constexpr uint32_t kSlotsPerBeat = 2048;
// A sleeper that was rung for has this many beats to wake.
constexpr uint8_t kBeatsIfRung = 3;
// How long a ring that is on its way is waited for.
constexpr int kPatienceMs = 50;

}  // namespace

void Worker::repaired(const char* what) {
  if (sock_news_.repairs() == 0)
    log_line("mwins", "a wake-up was lost and repaired by the clock: %s; please report this", what);
  sock_news_.count_repair();
  ins_.to_control.ring();
}

// The sleep ended by its time limit. Whoever added members since then is about to ring.
void Worker::look_after_sleep() {
  if (sock_news_.empty() && call_news_.empty()) return;
  if (turn_events(kPatienceMs) != 0) return;
  if (!sock_news_.empty() || !call_news_.empty()) repaired("news for the stack");
}

void Worker::beat() {
  const uint32_t workers = ch_.geometry().workers;
  const uint32_t end = ins_.slots.used_end(index_);
  for (uint32_t k = 0; k < kSlotsPerBeat; ++k, beat_slot_ += workers) {
    if (beat_slot_ >= end) {
      beat_slot_ = index_;
      break;
    }
    const SlotRef s = ins_.slots.find(beat_slot_);
    if (s && s->kind == SockKind::stream && s->listener == nullptr && s->fd >= 0 &&
        (s->state & MW_ST_CONNECTED) != 0 && !sock_news_.has(beat_slot_))
      beat_of(s);
  }
  for (uint32_t g = 0; g < group_bells_.size(); ++g)
    if (group_bells_[g] >= 0) beat_of_group(g);
}

void Worker::beat_of(SlotRef s) {
  mw_slot& shared = ch_.slot(s.index);
  const uint32_t tail = A::load_acquire(shared.tx_tail);
  const bool unsent =
      tail != s->tx_head && (s->flags & (kTxBlocked | kQueued)) == 0 && !is_paused(*s, kPauseOut);
  if (unsent && (s->flags & kTxDoubt) != 0 && s->beat_tx_tail == tail) {
    // Bytes under a cork leave after a while, as in the kernel, whatever the program does.
    if ((A::load_relaxed(shared.want) & MW_WANT_HOLD) == 0) repaired("bytes to send");
    if (const uint32_t news = stream_tx(s, 0, true); news != 0) announce(s, news);
  }
  s->beat_tx_tail = tail;
  s->flags = unsent ? s->flags | kTxDoubt : s->flags & ~kTxDoubt;

  const uint32_t head = A::load_acquire(shared.rx_head);
  const bool room = (s->flags & kRxWait) != 0 && s->rx_tail - head <= rx_limit(*s) / 2 &&
                    (s->flags & kQueued) == 0 && !is_paused(*s, kPauseIn);
  if (room && (s->flags & kRxDoubt) != 0 && s->beat_rx_head == head) {
    repaired("room for bytes");
    if (const uint32_t news = stream_rx(s); news != 0) announce(s, news);
  }
  s->beat_rx_head = head;
  s->flags = room ? s->flags | kRxDoubt : s->flags & ~kRxDoubt;
}

// A group whose sleeper is kept waiting from one beat to the next, as far as we saw, is rung for. If
// that wakes it, the ring that it should have had was lost; if not, its process does not run. One
// that was rung for may only be slow to run: it is given longer.
void Worker::beat_of_group(uint32_t g) {
  ReadySet news = ch_.group_news(g);
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
    const uint64_t one = 1;
    (void)!::write(group_bells_[g], &one, sizeof one);
  } else if (doubt.beats > kBeatsIfRung + 1) {
    doubt.beats = kBeatsIfRung + 1;
    doubt.given_up = doubt.rung;
  }
}

// In every turn: a sleeper that woke is in no doubt any more.
void Worker::settle_doubts() {
  std::erase_if(doubted_, [this](uint32_t g) {
    GroupDoubt& doubt = group_doubts_[g];
    if (doubt.beats == 0 || doubt.given_up) return true;
    if (ch_.group_news(g).keeps_waiting()) return false;
    if (doubt.rung) repaired("a sleeper in epoll_wait()");
    doubt = {};
    return true;
  });
}

}  // namespace mw
