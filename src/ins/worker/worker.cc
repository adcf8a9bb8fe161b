#include "ins/worker/worker.h"

#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "ring/atomics.h"
#include "ring/order.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr int kEventsPerTurn = 128;
// News that a sleeper is woken for together: it should find more than one answer to give, but start
// before we are through with all of them.
constexpr int kEventsPerRing = 16;
constexpr int kTurnsWithoutEvents = 4;
constexpr size_t kDeadBatch = 16;
// spin(): sleeps shorter than this would have been better spent awake; how the spin grows towards
// it; how long an answer about the other processors holds.
constexpr int64_t kLongestSpinNs = 100'000;
constexpr int64_t kFirstSpinNs = 10'000;
constexpr int64_t kLoadHoldsNs = 250'000;
constexpr int kPausesPerLook = 16;
constexpr int kLooksPerPoll = 4;

// epoll data: generation, then which end, then slot, or number if it is an accepted connection's
// placeholder. The tags stand where no generation is.
constexpr uint64_t kPlaceholderBit = uint64_t{1} << 31;
constexpr uint64_t kAcceptedBit = uint64_t{1} << 30;
constexpr uint64_t kTagBell = 1;
constexpr uint64_t kTagNotes = 2;
constexpr uint64_t kTagDrop = 3;
constexpr uint32_t kSlotMask = 0x3fffffff;

uint32_t accept_record_cost() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return 0;
  const UniqueFd a{pair[0]};
  const UniqueFd b{pair[1]};
  const mw_accept_record record{};
  const int fds[] = {b.get()};
  int queued = 0;
  if (!send_message(a.get(), bytes_of(record), fds, MSG_DONTWAIT)) return 0;
  if (::ioctl(a.get(), TIOCOUTQ, &queued) < 0 || queued <= 0) return 0;
  return static_cast<uint32_t>(queued);
}

}  // namespace

Worker::Worker(InsContext& ins, uint32_t index)
    : ins_(ins),
      index_(index),
      ch_(ins.channel),
      sock_news_(ch_.sock_news(index)),
      call_news_(ch_.call_news(index)),
      epoll_(ins.epolls[index].get()),
      stats_(*ins.stats[index]),
      telemetry_(ins.slots, index, ch_.geometry().workers),
      may_spin_(ins.cpus > 1),
      record_cost_(accept_record_cost()),
      sampler_(ins.slots, ch_, index, record_cost_),
      beat_slot_(index),
      group_bells_(ch_.geometry().groups, -1),
      group_doubts_(ch_.geometry().groups) {
  const auto own_slots = ch_.geometry().slots / ch_.geometry().workers + 1;
  batch_.reserve(own_slots + ch_.geometry().calls);
  // Reserved, not touched: the steady state must not allocate, and unused memory costs nothing.
  local_.reserve(own_slots);
  local_next_.reserve(own_slots);
  rings_due_.reserve(ch_.geometry().groups + kEventsPerRing * MW_MAX_WATCHES);
  warm_.reserve(own_slots);
  doubted_.reserve(ch_.geometry().groups);
  dead_.reserve(kMaxDead);
  closing_.reserve(own_slots);
}

Worker::~Worker() {
  close_dead();
  for (const int bell : group_bells_)
    if (bell >= 0) ::close(bell);
}

bool Worker::watch(int fd, uint32_t events, uint32_t i, uint32_t gen, bool placeholder, int op) {
  epoll_event e{};
  e.events = events | EPOLLET;
  e.data.u64 = uint64_t{gen} << 32 | (placeholder ? kPlaceholderBit : 0) | i;
  return ::epoll_ctl(ins_.epolls[ch_.worker_of(i)].get(), op, fd, &e) == 0;
}

// An accepted connection's placeholder, for its worker.
bool Worker::watch_placeholder(int end, uint32_t number, uint32_t gen) {
  epoll_event e{};
  e.events = kPlaceholderEvents | EPOLLET;
  e.data.u64 = uint64_t{gen} << 32 | kPlaceholderBit | kAcceptedBit | number;
  return ::epoll_ctl(ins_.epolls[ch_.worker_of(number)].get(), EPOLL_CTL_ADD, end, &e) == 0;
}

bool Worker::watch_real(SlotRef s) {
  if ((s->flags & kRegistered) != 0) return true;
  if (!watch(s->fd, kRealEvents, s.index, s->gen, false, EPOLL_CTL_ADD)) return false;
  s->flags |= kRegistered;
  return true;
}

bool Worker::begin() {
  const auto add = [this](int fd, uint32_t events, uint64_t tag) {
    epoll_event e{};
    e.events = events;
    e.data.u64 = tag;
    return ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e) == 0;
  };
  // The doorbell is never read: each ring is an edge.
  if (!add(ins_.bells[index_].get(), EPOLLIN | EPOLLET, kTagBell) ||
      !add(ins_.to_worker[index_]->bell(), EPOLLIN, kTagNotes) ||
      (index_ == 0 && !add(ins_.drop.get(), EPOLLIN, kTagDrop))) {
    log_line("mwins", "worker %u cannot watch its doorbells: %s", index_, std::strerror(errno));
    return false;
  }
  on_notes();
  return true;
}

void Worker::run() {
  if (begin())
    while (!stop_ && ins_.poisoned.load(std::memory_order_relaxed) == nullptr) turn(true);
  ins_.to_control.post(ControlNote(Kind::stopped));
}

void Worker::turn(bool may_sleep) {
  // One piece of news is not yet load: the look at both sets before the sleep is cheaper then than
  // a system call that finds nothing. Unless somebody takes our sleep for the end of all work.
  bool busy =
      turn_news() > (sock_news_.is_asked() ? 0 : 1) || !late_.empty() || !asked_looks_.empty();
  if (!local_.empty()) {
    turn_local();
    busy = true;
  }
  busy |= telemetry_.turn(tick_);
  busy |= sampler_.turn();
  if (busy || retry_now_ || !may_sleep || ++turns_without_events_ > kTurnsWithoutEvents) {
    turn_events(0);
  } else if (!spin()) {
    sleep();
  }
  if (!doubted_.empty()) settle_doubts();
  if (!late_.empty() || !asked_looks_.empty()) see_closes();
  const uint32_t tick = ins_.tick.load(std::memory_order_relaxed);
  if (tick != tick_) {
    tick_ = tick;
    ins_.stats[index_]->beat.store(tick, std::memory_order_relaxed);
    release_idle_memory();
    close_dead();
    look_for_missing();
    beat();
    retry_now_ = true;
  }
  if (retry_now_) retry_stalled();
  if (!wheel_.empty()) limits_turn();
  sock_news_.end_turn();
}

void Worker::sleep() {
  if (dead_.size() >= kDeadBatch && !records_under_way()) close_dead();
  const auto wait = [this] {
    const int64_t from = may_spin_ ? monotonic_ns() : 0;
    if (turn_events(sleep_ms()) == 0) look_after_sleep();
    if (!may_spin_) return;
    const bool was_short = monotonic_ns() - from < kLongestSpinNs;
    spin_ns_ = was_short ? std::clamp(2 * spin_ns_, kFirstSpinNs, kLongestSpinNs) : spin_ns_ / 2;
  };
  // What the turn so far has announced is rung for first.
  sleep_in(
      sock_news_, call_news_, [this] { ring_groups(); }, wait);
}

// Waits awake for what will come within microseconds, because waking up costs more than that: from
// an idle processor tens of them. Lasts as long as lately would have saved a sleep, and only while
// nobody else wants the processor. True: there is or was something to do.
bool Worker::spin() {
  if (spin_ns_ < kFirstSpinNs) return false;
  const int64_t from = monotonic_ns();
  if (!processors_free(from)) return false;
  bool found = false;
  do {
    found = turn_events(0) > 0;
    sock_news_.watch(true);
    for (int look = 0; look < kLooksPerPoll && !found; ++look) {
      for (int p = 0; p < kPausesPerLook; ++p) __builtin_ia32_pause();
      found = !sock_news_.empty() || !call_news_.empty();
    }
    sock_news_.watch(false);
  } while (!found && monotonic_ns() - from < spin_ns_);
  // What the kernel tells, a close perhaps, may have come before the call that we saw.
  if (found) turn_events(0);
  return found;
}

// True if no more threads want to run than there are processors. Holds for a while.
bool Worker::processors_free(int64_t now) {
  if (now - load_read_at_ < kLoadHoldsNs) return processors_free_;
  load_read_at_ = now;
  char text[64];
  const ssize_t n = ::pread(ins_.load.get(), text, sizeof text - 1, 0);
  text[std::max<ssize_t>(n, 0)] = 0;
  unsigned running = 0;
  processors_free_ = std::sscanf(text, "%*s %*s %*s %u", &running) == 1 && running <= ins_.cpus;
  return processors_free_;
}

int Worker::sleep_ms() const {
  // The only timed work: memory and descriptors to give back, listeners that wait for a free
  // descriptor, minimum rates, and the beats: ours for our sockets, and the heartbeat of the INS, which
  // stops if one worker hangs.
  const bool nothing =
      warm_.empty() && dead_.empty() && handing_.empty() && ins_.slots.open_count() == 0;
  constexpr int kIdleBeatMs = 2000;
  const int rest = !stalled_.empty() ? 100 : nothing ? kIdleBeatMs : 1000;
  if (wheel_.empty()) return rest;
  const int due = wheel_.wait_ms(monotonic_ns());
  return std::min(rest, due);
}

// Returns how many there were.
uint32_t Worker::turn_calls() {
  uint32_t calls = 0;
  call_news_.drain([&](uint32_t call) {
    ++calls;
    on_call(call);
    return true;
  });
  return calls;
}

// Takes calls and sockets in the order in which they were announced, so that what one thread did on
// two sockets happens in its order. A call takes its socket's place if that is earlier: what was
// written before a shutdown() leaves in one segment with its FIN. Returns how many members there
// were.
uint32_t Worker::turn_news() {
  constexpr uint32_t kCall = 0x80000000u;
  constexpr size_t kFewSockets = 64;
  const uint32_t begun = order_stamp();
  batch_.clear();
  uint32_t later = 0;
  const auto collect = [&](ReadySet& news, uint32_t member, uint32_t stamp, uint32_t kind) {
    if (came_later(stamp, begun)) {
      news.put_back(member);
      ++later;
    } else {
      batch_.push_back({begun - stamp, member | kind});
    }
    return true;
  };
  call_news_.drain([&](uint32_t call) {
    mw_call& cell = ch_.call(call);
    return collect(call_news_, call, A::load_relaxed(cell.sent_at), kCall);
  });
  const size_t calls = batch_.size();
  sock_news_.drain([&](uint32_t i) {
    if (i % ch_.geometry().workers != index_) return true;
    return collect(sock_news_, i, A::load_relaxed(ch_.slot(i).sent_at), 0);
  });
  if (calls != 0 && batch_.size() - calls <= kFewSockets)
    for (size_t c = 0; c < calls; ++c) {
      const uint32_t slot = A::load_relaxed(ch_.call(batch_[c].index & ~kCall).slot);
      for (size_t k = calls; k < batch_.size(); ++k)
        if (batch_[k].index == slot) batch_[c].age = std::max(batch_[c].age, batch_[k].age + 1);
    }
  sort_by_age(batch_.data(), static_cast<uint32_t>(batch_.size()));
  for (const OrderedMember& member : batch_) {
    if ((member.index & kCall) != 0)
      on_call(member.index & ~kCall);
    else
      on_sock_news(member.index);
  }
  auto members = static_cast<uint32_t>(batch_.size()) + later;
  // What was posted before a close comes before it.
  if (!closing_.empty()) {
    members += turn_calls();
    close_marked();
  }
  return members;
}

// A close() is seen by epoll, which may be looked at before the news: what the application called
// before it, in another thread perhaps, still finds the socket.
void Worker::serve_before_close() {
  if (!call_news_.empty()) turn_news();
}

int Worker::turn_events(int timeout_ms) {
  epoll_event events[kEventsPerTurn];
  turns_without_events_ = 0;
  const int n = ::epoll_wait(epoll_, events, kEventsPerTurn, timeout_ms);
  for (int k = 0; k < n; ++k) {
    on_event(events[k]);
    if (k % kEventsPerRing == kEventsPerRing - 1) ring_groups();
  }
  ring_groups();
  return n;
}

// Everything that was closed before now is seen, for calls that found an address taken.
void Worker::see_closes() {
  const std::vector<WorkerNote> asked = std::exchange(asked_looks_, {});
  turn_news();
  while (turn_events(0) == kEventsPerTurn) {
  }
  for (const WorkerNote& note : asked)
    ins_.to_worker[note.index]->post(WorkerNote(WorkerNote::Kind::looked, note.gen));
  retry_late();
}

void Worker::turn_local() {
  std::swap(local_, local_next_);
  local_.clear();
  for (const uint32_t i : local_next_) {
    const SlotRef s = ins_.slots.find(i);
    if (!s || (s->flags & kQueued) == 0) continue;
    s->flags &= ~kQueued;
    if (s->listener != nullptr)
      accept_some(s);
    else if (s->kind == SockKind::stream)
      on_stream_event(s, 0);
    else
      on_dgram_event(s, 0);
  }
}

void Worker::requeue(SlotRef s) {
  if ((s->flags & kQueued) != 0) return;
  s->flags |= kQueued;
  local_.push_back(s.index);
}

void Worker::on_event(const epoll_event& e) {
  const uint64_t tag = e.data.u64;
  if (tag >> 32 == 0) {
    if (tag == kTagNotes) on_notes();
    if (tag == kTagDrop) on_drop();
    return;
  }
  const uint32_t i = static_cast<uint32_t>(tag) & kSlotMask;
  const auto gen = static_cast<uint32_t>(tag >> 32);
  if ((tag & kAcceptedBit) != 0) return on_accepted_placeholder(i, gen, e.events);
  const SlotRef s = ins_.slots.find(i);
  if (!s || s->gen != gen) return;
  if ((tag & kPlaceholderBit) != 0)
    on_placeholder(s, e.events);
  else if (s->listener != nullptr)
    on_listener_event(s);
  else if (s->kind == SockKind::stream)
    on_stream_event(s, e.events);
  else
    on_dgram_event(s, e.events);
}

void Worker::on_placeholder(SlotRef s, uint32_t events) {
  if ((events & EPOLLIN) != 0 && drain_placeholder(s->ph)) report_bypass(s);
  if ((events & EPOLLHUP) != 0) {
    const uint32_t gen = s->gen;
    serve_before_close();
    const SlotRef left = ins_.slots.find(s.index);
    if (left && left->gen == gen) last_close(left);
    return;
  }
  if ((events & EPOLLOUT) != 0 && s->listener != nullptr) accept_some(s);
}

void Worker::on_notes() {
  for (WorkerNote& note : ins_.to_worker[index_]->take()) {
    switch (note.kind) {
      case WorkerNote::Kind::group_open:
      case WorkerNote::Kind::group_close: {
        int& bell = group_bells_[note.index];
        if (bell >= 0) ::close(bell);
        bell = note.bell.release();
        // What was announced before we knew the doorbell was not rung for, though it counts as
        // rung.
        if (bell >= 0) {
          const uint64_t one = 1;
          (void)!::write(bell, &one, sizeof one);
        }
        break;
      }
      case WorkerNote::Kind::adopt: {
        const SlotRef s = ins_.slots.find(note.index);
        if (!s) break;
        listener_started(s, s->backlog);
        watch(s->ph, kPlaceholderEvents, note.index, s->gen, true, EPOLL_CTL_ADD);
        break;
      }
      case WorkerNote::Kind::abandon: {
        const SlotRef s = ins_.slots.find(note.index);
        if (!s || s->gen != note.gen) break;
        abandon(s);
        break;
      }
      case WorkerNote::Kind::telemetry:
        sampler_.attach(note.telemetry);
        telemetry_.attach(std::move(note.telemetry));
        break;
      case WorkerNote::Kind::request:
        on_request(note.request);
        break;
      case WorkerNote::Kind::lend: {
        ControlNote lent(ControlNote::Kind::lent);
        lent.option = note.option;
        lent.socket = ins_.slots.lend(lent.option);
        ins_.to_control.post(std::move(lent));
        break;
      }
      case WorkerNote::Kind::option_set: {
        const SlotRef s = ins_.slots.find(note.option.slot);
        if (s && s->gen == note.option.gen && s->fd >= 0)
          option_set(s, note.option.level, note.option.name);
        break;
      }
      case WorkerNote::Kind::look:
        asked_looks_.push_back(std::move(note));
        break;
      case WorkerNote::Kind::looked:
        for (LateCall& late : late_)
          if (late.call == note.index && late.looks_due != 0) --late.looks_due;
        break;
      case WorkerNote::Kind::reset_all:
        reset_all();
        break;
      case WorkerNote::Kind::stop:
        stop_ = true;
        break;
    }
  }
}

void Worker::on_sock_news(uint32_t i) {
  const SlotRef s = ins_.slots.find(i);
  if (!s) return;
  if ((s->flags & kAccepted) != 0 && A::load_acquire(ch_.slot(i).closed) == s->gen) {
    if (s->handed.load(std::memory_order_acquire)) closing_.push_back(i);
    return;
  }
  // It has no bytes: somebody wants a token, to tell those who sleep in accept() of its end.
  if (s->listener != nullptr) return announce(s, kNewsIn);
  uint32_t news = 0;
  if (s->kind == SockKind::stream) {
    if ((s->flags & kTxBlocked) == 0) news |= stream_tx(s);
    if ((s->flags & kRxWait) != 0) news |= stream_rx(s);
  } else if ((s->flags & kRxWait) != 0) {
    news |= dgram_rx(s);
  }
  if (news != 0) announce(s, news);
}

void Worker::set_state(SlotRef s, uint32_t state) {
  s->state = state;
  A::store_release(ch_.slot(s.index).state, state);
}

void Worker::publish_error(SlotRef s, int err) {
  if (err == ECONNREFUSED && s->kind == SockKind::dgram) datagram_refused(*s);
  mw_slot& shared = ch_.slot(s.index);
  A::store_relaxed(shared.error, err);
  A::store_release(shared.error_seq, ++s->error_seq);
}

// An error and the state that follows from it, as one: who takes the error finds that state, and who
// finds the state finds the error.
void Worker::publish_failure(SlotRef s, int err, uint32_t state) {
  set_state(s, s->state | MW_ST_FAILING);
  publish_error(s, err);
  set_state(s, state & ~MW_ST_FAILING);
}

// Rings for the sleepers that the news since the last time concerned: one wake-up for a batch of
// news.
void Worker::ring_groups() {
  for (const uint32_t group : rings_due_) {
    const uint64_t one = 1;
    if (group_bells_[group] >= 0) (void)!::write(group_bells_[group], &one, sizeof one);
  }
  rings_due_.clear();
}

void Worker::announce(SlotRef s, uint32_t news) {
  A::fence();
  mw_slot& shared = ch_.slot(s.index);
  const uint32_t want = A::load_relaxed(shared.want);
  bool out = (news & kNewsOut) != 0;
  if ((news & kNewsIn) != 0 || (want & MW_WANT_OUT_EVENT) != 0) {
    if (out && (want & MW_WANT_OUT_EVENT) != 0) A::fetch_and(shared.want, ~MW_WANT_OUT_EVENT);
    for (const uint64_t& word : shared.watches) {
      for (uint64_t watches = A::load_relaxed(word); watches != 0; watches >>= 16) {
        const uint32_t group = static_cast<uint32_t>(watches & 0xffff);
        if (group == 0 || group > ch_.geometry().groups) continue;
        ReadySet group_news = ch_.group_news(group - 1);
        if (!group_news.has(s.index)) A::store_relaxed(shared.told_at, order_stamp());
        if (group_news.add(s.index)) rings_due_.push_back(group - 1);
      }
    }
  }
  const uint32_t tokens =
      ((news & kNewsIn) != 0 ? MW_WANT_TOKEN_IN : 0) | (out ? MW_WANT_TOKEN_OUT : 0);
  if ((want & tokens) == 0) return;
  if ((A::fetch_and(shared.want, ~tokens) & tokens) == 0) return;
  // Among accept records a token has their size, or it would be glued to the next one.
  mw_accept_record token{};
  token.magic = MW_ACCEPT_MAGIC;
  // A full queue holds tokens enough to wake anybody.
  (void)!::send(placeholder_of(s), &token, s->listener != nullptr ? sizeof token : 1,
                MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace mw
