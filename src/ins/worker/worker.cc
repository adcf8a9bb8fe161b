#include "ins/worker/worker.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr int kEventsPerTurn = 128;
// News that a sleeper is woken for together: it should find more than one answer to give, but start
// before we are through with all of them.
constexpr int kEventsPerRing = 16;
constexpr int kTurnsWithoutEvents = 4;
constexpr int kPausesPerLook = 16;
constexpr int kLooksPerPoll = 4;
// How long a ring that is on its way is waited for.
constexpr int kPatienceMs = 50;

}  // namespace

Worker::Worker(InsContext& ins, uint32_t index)
    : ins_(ins),
      scope_(ins, index),
      events_(ins, index),
      work_(scope_.most_slots()),
      telemetry_(ins.slots, index, scope_.ch.geometry().workers),
      placeholders_(scope_, ins.placeholders, events_),
      transport_(scope_, ins, events_),
      news_(scope_, placeholders_, transport_.bells, kEventsPerRing),
      limits_(scope_, ins.wishes, work_),
      streams_(scope_, news_, work_, transport_.memory, limits_, telemetry_, *ins.stats[index],
               ins.loopback_hint),
      datagrams_(scope_, news_, work_, transport_.memory, telemetry_, *ins.stats[index], ins.wishes,
                 ins.loopback_hint),
      options_(streams_, datagrams_),
      ending_(scope_, news_, streams_, transport_.accepts, placeholders_, limits_,
              transport_.memory, stalled_, telemetry_),
      openings_(scope_, ins.drop, ins.calls, ins.wishes, placeholders_, events_, telemetry_),
      acceptor_({.scope = scope_,
                 .to_control = ins.to_control,
                 .wishes = ins.wishes,
                 .news = news_,
                 .work = work_,
                 .stalled = stalled_,
                 .sink = transport_.accepts,
                 .bells = transport_.bells,
                 .events = events_,
                 .openings = openings_,
                 .placeholders = placeholders_,
                 .streams = streams_,
                 .limits = limits_,
                 .ending = ending_,
                 .telemetry = telemetry_}),
      calls_({.scope = scope_,
              .ins = ins,
              .news = news_,
              .work = work_,
              .accepts = transport_.accepts,
              .events = events_,
              .placeholders = placeholders_,
              .streams = streams_,
              .datagrams = datagrams_,
              .options = options_,
              .limits = limits_,
              .ending = ending_,
              .acceptor = acceptor_,
              .telemetry = telemetry_}),
      requests_(scope_, news_, limits_, ending_, options_, ins.wishes),
      wakeups_(scope_, ins.to_control, transport_.bells, news_, streams_),
      sampler_(ins.slots, scope_.ch, index, transport_.accepts),
      spin_(ins.cpus, ins.load),
      sock_news_(scope_.ch.sock_news(index)),
      call_news_(scope_.ch.call_news(index)) {
  batch_.reserve(scope_.most_slots() + scope_.ch.geometry().calls);
}

bool Worker::begin() {
  using Of = WorkerEvents::Of;
  const Bells& bells = transport_.bells;
  if (!events_.add(bells.wait_fd(), bells.wait_events(), Of::bell) ||
      !events_.add(ins_.to_worker[scope_.index]->bell(), EPOLLIN, Of::notes) ||
      (scope_.index == 0 && !events_.add(ins_.drop.get(), EPOLLIN, Of::drop))) {
    log_line("mwins", "worker %u cannot watch its doorbells: %s", scope_.index,
             std::strerror(errno));
    return false;
  }
  on_notes();
  return true;
}

void Worker::run() {
  if (begin())
    while (!stop_ && ins_.poisoned.load(std::memory_order_relaxed) == nullptr) turn(true);
  ins_.to_control.post(ControlNote(ControlNote::Kind::stopped));
}

void Worker::turn(bool may_sleep) {
  // One piece of news is not yet load: the look at both sets before the sleep is cheaper then than
  // a system call that finds nothing. Unless somebody takes our sleep for the end of all work.
  bool busy =
      turn_news() > (sock_news_.is_asked() ? 0 : 1) || calls_.has_late() || !asked_looks_.empty();
  if (!work_.empty()) {
    turn_local();
    busy = true;
  }
  busy |= telemetry_.turn(scope_.tick);
  busy |= sampler_.turn();
  if (busy || stalled_.is_retry_due() || !may_sleep ||
      ++turns_without_events_ > kTurnsWithoutEvents) {
    turn_events(0);
  } else if (!spin()) {
    sleep();
  }
  if (wakeups_.has_doubts()) wakeups_.settle_doubts();
  if (calls_.has_late() || !asked_looks_.empty()) see_closes();
  if (ins_.tick.load(std::memory_order_relaxed) != scope_.tick) turn_tick();
  if (stalled_.is_retry_due()) acceptor_.retry_stalled();
  if (!limits_.is_idle()) limits_.turn([this](SlotRef s) { ending_.cut_off(s); });
  sock_news_.end_turn();
}

void Worker::turn_tick() {
  scope_.tick = ins_.tick.load(std::memory_order_relaxed);
  ins_.stats[scope_.index]->beat.store(scope_.tick, std::memory_order_relaxed);
  transport_.memory.turn();
  placeholders_.close_buried();
  acceptor_.turn();
  wakeups_.beat();
  stalled_.retry();
}

void Worker::sleep() {
  if (placeholders_.has_many_buried() && !transport_.accepts.is_under_way())
    placeholders_.close_buried();
  const auto wait = [this] {
    spin_.observe([this] {
      if (turn_events(sleep_ms()) == 0) look_after_sleep();
    });
  };
  // What the turn so far has announced is rung for first.
  sleep_in(
      sock_news_, call_news_, [this] { news_.flush(); }, wait);
}

// The sleep ended by its time limit. Whoever added members since then is about to ring.
void Worker::look_after_sleep() {
  if (sock_news_.empty() && call_news_.empty()) return;
  if (turn_events(kPatienceMs) != 0) return;
  if (!sock_news_.empty() || !call_news_.empty()) wakeups_.repaired("news for the stack");
}

// True: there is or was something to do.
bool Worker::spin() {
  const bool found = spin_.until([this] {
    bool any = turn_events(0) > 0;
    sock_news_.watch(true);
    for (int look = 0; look < kLooksPerPoll && !any; ++look) {
      for (int p = 0; p < kPausesPerLook; ++p) __builtin_ia32_pause();
      any = !sock_news_.empty() || !call_news_.empty();
    }
    sock_news_.watch(false);
    return any;
  });
  // What the kernel tells, a close perhaps, may have come before the call that we saw.
  if (found) turn_events(0);
  return found;
}

int Worker::sleep_ms() const {
  // The only timed work: memory and descriptors to give back, listeners that wait for a free
  // descriptor, minimum rates, and the beats: ours for our sockets, and the heartbeat of the INS,
  // which stops if one worker hangs.
  const bool nothing = transport_.memory.is_idle() && !placeholders_.has_buried() &&
                       transport_.accepts.is_idle() && scope_.slots.open_count() == 0;
  constexpr int kIdleBeatMs = 2000;
  const int rest = stalled_.any() ? 100 : nothing ? kIdleBeatMs : 1000;
  return limits_.is_idle() ? rest : std::min(rest, limits_.wait_ms());
}

// Returns how many there were.
uint32_t Worker::turn_calls() {
  uint32_t calls = 0;
  call_news_.drain([&](uint32_t call) {
    ++calls;
    calls_.on_call(call);
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
    mw_call& cell = scope_.ch.call(call);
    return collect(call_news_, call, A::load_relaxed(cell.sent_at), kCall);
  });
  const size_t calls = batch_.size();
  sock_news_.drain([&](uint32_t i) {
    if (!scope_.is_ours(i)) return true;
    return collect(sock_news_, i, A::load_relaxed(scope_.ch.slot(i).sent_at), 0);
  });
  if (calls != 0 && batch_.size() - calls <= kFewSockets)
    for (size_t c = 0; c < calls; ++c) {
      const uint32_t slot = A::load_relaxed(scope_.ch.call(batch_[c].index & ~kCall).slot);
      for (size_t k = calls; k < batch_.size(); ++k)
        if (batch_[k].index == slot) batch_[c].age = std::max(batch_[c].age, batch_[k].age + 1);
    }
  sort_by_age(batch_.data(), static_cast<uint32_t>(batch_.size()));
  for (const OrderedMember& member : batch_) {
    if ((member.index & kCall) != 0)
      calls_.on_call(member.index & ~kCall);
    else
      on_sock_news(member.index);
  }
  auto members = static_cast<uint32_t>(batch_.size()) + later;
  // What was posted before a close comes before it.
  if (ending_.has_marked()) {
    members += turn_calls();
    ending_.close_marked();
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
  const int n = events_.wait(events, kEventsPerTurn, timeout_ms);
  for (int k = 0; k < n; ++k) {
    on_event(WorkerEvents::read(events[k]));
    if (k % kEventsPerRing == kEventsPerRing - 1) news_.flush();
  }
  news_.flush();
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
  calls_.retry_late();
}

void Worker::turn_local() {
  work_.turn(scope_.slots, [this](SlotRef s) {
    if (s->listener != nullptr)
      acceptor_.accept_some(s);
    else
      on_real(s, 0);
  });
}

void Worker::on_event(const WorkerEvents::Event& e) {
  using Of = WorkerEvents::Of;
  switch (e.of) {
    case Of::bell:
      return transport_.bells.heard();
    case Of::notes:
      return on_notes();
    case Of::drop:
      return openings_.on_drop();
    case Of::accepted_placeholder:
      return on_accepted_placeholder(e.index, e.gen, e.bits);
    case Of::placeholder:
    case Of::real:
      break;
  }
  const SlotRef s = scope_.slots.find(e.index);
  if (!s || s->gen != e.gen) return;
  if (e.of == Of::placeholder)
    on_placeholder(s, e.bits);
  else if (s->listener != nullptr)
    acceptor_.accept_some(s);
  else
    on_real(s, e.bits);
}

// The kernel has something to tell of a socket, or (0) work of it was left over.
void Worker::on_real(SlotRef s, uint32_t events) {
  if (s->fd < 0) return;
  if (s->kind == SockKind::dgram) return datagrams_.on_event(s, events);
  if ((s->flags & kLimited) != 0) limits_.arm(*s);
  if ((s->flags & kLingering) != 0)
    ending_.on_lingering(s, events);
  else
    streams_.on_event(s, events);
}

void Worker::on_placeholder(SlotRef s, uint32_t events) {
  if ((events & EPOLLIN) != 0 && Placeholders::drain(s->ph)) ending_.report_bypass(s);
  if ((events & EPOLLHUP) != 0) {
    const uint32_t gen = s->gen;
    serve_before_close();
    const SlotRef left = scope_.slots.find(s.index);
    if (left && left->gen == gen) ending_.last_close(left);
    return;
  }
  if ((events & EPOLLOUT) != 0 && s->listener != nullptr) acceptor_.accept_some(s);
}

void Worker::on_accepted_placeholder(uint32_t number, uint32_t gen, uint32_t events) {
  const int end = placeholders_.end_of(number, gen);
  if (end < 0) return;
  if ((events & EPOLLIN) != 0 && Placeholders::drain(end))
    placeholders_.each_served(number, [this](SlotRef s) {
      if (A::load_relaxed(scope_.ch.slot(s.index).closed) != s->gen) ending_.report_bypass(s);
    });
  if ((events & EPOLLHUP) == 0) return;
  serve_before_close();
  placeholders_.each_served(number, [this](SlotRef s) { ending_.last_close(s); });
  placeholders_.remove(number);
}

void Worker::on_notes() {
  for (WorkerNote& note : ins_.to_worker[scope_.index]->take()) on_note(note);
}

void Worker::on_note(WorkerNote& note) {
  using Kind = WorkerNote::Kind;
  switch (note.kind) {
    case Kind::group_open:
    case Kind::group_close:
      return transport_.bells.set_group(note.index, std::move(note.bell));
    case Kind::adopt:
      if (const SlotRef s = scope_.slots.find(note.index)) {
        acceptor_.start(s, s->backlog);
        events_.watch_placeholder(s.index, s->gen, s->ph);
      }
      return;
    case Kind::abandon:
      if (const SlotRef s = scope_.slots.find(note.index); s && s->gen == note.gen)
        ending_.abandon(s);
      return;
    case Kind::telemetry:
      sampler_.attach(note.telemetry);
      return telemetry_.attach(std::move(note.telemetry));
    case Kind::request: {
      ControlNote reply(ControlNote::Kind::reply);
      reply.reply = requests_.execute(note.request);
      return ins_.to_control.post(std::move(reply));
    }
    case Kind::lend: {
      ControlNote lent(ControlNote::Kind::lent);
      lent.option = note.option;
      lent.socket = scope_.slots.lend(lent.option);
      return ins_.to_control.post(std::move(lent));
    }
    case Kind::option_set:
      if (const SlotRef s = scope_.slots.find(note.option.slot);
          s && s->gen == note.option.gen && s->fd >= 0)
        options_.option_set(s, note.option.level, note.option.name);
      return;
    case Kind::look:
      asked_looks_.push_back(std::move(note));
      return;
    case Kind::looked:
      return calls_.looked(note.index);
    case Kind::reset_all:
      return ending_.cut_off_all();
    case Kind::stop:
      stop_ = true;
  }
}

void Worker::on_sock_news(uint32_t i) {
  const SlotRef s = scope_.slots.find(i);
  if (!s) return;
  if ((s->flags & kAccepted) != 0 && A::load_acquire(scope_.ch.slot(i).closed) == s->gen) {
    if (s->handed.load(std::memory_order_acquire)) ending_.mark(s);
    return;
  }
  // It has no bytes: somebody wants a token, to tell those who sleep in accept() of its end.
  if (s->listener != nullptr) return news_.announce(s, kNewsIn);
  uint32_t news = 0;
  if (s->kind == SockKind::stream) {
    if ((s->flags & kTxBlocked) == 0) news |= streams_.send(s);
    if ((s->flags & kRxWait) != 0) news |= streams_.receive(s);
  } else if ((s->flags & kRxWait) != 0) {
    news |= datagrams_.receive(s);
  }
  if (news != 0) news_.announce(s, news);
}

}  // namespace mw
