#include "ins/worker.h"

#include <linux/falloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "base/clock.h"
#include "base/log.h"
#include "base/received_fds.h"
#include "ring/atomics.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr int kEventsPerTurn = 128;
// News that a sleeper is woken for together: it should find more than one answer to give, but start
// before we are through with all of them.
constexpr int kEventsPerRing = 16;
constexpr int kDropsPerTurn = 64;
constexpr int kTurnsWithoutEvents = 4;
constexpr size_t kDeadBatch = 16;
constexpr size_t kMaxDead = 512;
constexpr uint32_t kIdleTicks = 2;
// spin(): sleeps shorter than this would have been better spent awake; how the spin grows towards
// it; how long an answer about the other processors holds.
constexpr int64_t kLongestSpinNs = 100'000;
constexpr int64_t kFirstSpinNs = 10'000;
constexpr int64_t kLoadHoldsNs = 250'000;
constexpr int kPausesPerLook = 16;
constexpr int kLooksPerPoll = 4;
// After its last close a socket that the peer does not drain is given up by the kernel.
constexpr unsigned kLingerTimeoutMs = 60'000;

// epoll data: generation, then which end, then slot, or number if it is an accepted connection's
// placeholder. The tags stand where no generation is.
constexpr uint64_t kPlaceholderBit = uint64_t{1} << 31;
constexpr uint64_t kAcceptedBit = uint64_t{1} << 30;
constexpr uint64_t kTagBell = 1;
constexpr uint64_t kTagNotes = 2;
constexpr uint64_t kTagDrop = 3;
constexpr uint32_t kSlotMask = 0x3fffffff;

bool is_stream_placeholder(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t len = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX) return false;
  len = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
}

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

void CallTable::init(const Channel& channel) {
  channel_ = channel;
  const uint32_t calls = channel.geometry().calls;
  last_ = std::make_unique<std::atomic<uint32_t>[]>(calls);
  for (uint32_t i = 0; i < calls; ++i)
    last_[i].store(A::load_relaxed(channel.call(i).done_seq), std::memory_order_relaxed);
}

Result<bool> CallTable::begin(uint32_t call, Request& out, uint32_t seq) {
  mw_call& cell = channel_.call(call);
  const Status copied = copy_request(cell, out);
  if (seq != 0 && out.seq != seq) return false;
  if (last_[call].exchange(out.seq, std::memory_order_relaxed) == out.seq) return false;
  if (!copied) return copied.error();
  return true;
}

void CallTable::answer(uint32_t call, uint32_t seq, const Answer& a) {
  mw_call& cell = channel_.call(call);
  if (a.out_len != 0) std::memcpy(cell.payload, a.payload, a.out_len);
  A::store_relaxed(cell.ret, a.ret);
  A::store_relaxed(cell.err, a.err);
  A::store_relaxed(cell.out_len, a.out_len);
  A::store_release(cell.done_seq, seq);
  A::fence();
  if (A::load_relaxed(cell.waiting) != 0)
    ::syscall(SYS_futex, &cell.done_seq, 1 /* FUTEX_WAKE, between processes */, INT_MAX, nullptr,
              nullptr, 0);
}

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
      group_bells_(ch_.geometry().groups, -1) {
  const auto own_slots = ch_.geometry().slots / ch_.geometry().workers + 1;
  // Reserved, not touched: the steady state must not allocate, and unused memory costs nothing.
  local_.reserve(own_slots);
  local_next_.reserve(own_slots);
  rings_due_.reserve(ch_.geometry().groups + kEventsPerRing * MW_MAX_WATCHES);
  warm_.reserve(own_slots);
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

bool Worker::watch_real(uint32_t i, Sock& s) {
  if ((s.flags & kRegistered) != 0) return true;
  if (!watch(s.fd, kRealEvents, i, s.gen, false, EPOLL_CTL_ADD)) return false;
  s.flags |= kRegistered;
  return true;
}

// Hands a new socket, filled in, to its worker. From here on it is that worker's.
void Worker::hand_over(uint32_t i, Sock& s, bool with_real) {
  const uint32_t gen = s.gen;
  const int fd = s.fd;
  const int ph = s.ph;
  if (with_real) s.flags |= kRegistered;
  ins_.slots.publish(i);
  if ((ph < 0 || watch(ph, kPlaceholderEvents, i, gen, true, EPOLL_CTL_ADD)) &&
      (!with_real || watch(fd, kRealEvents, i, gen, false, EPOLL_CTL_ADD)))
    return;
  log_line("mwins", "no memory to watch a new socket");
  give_up(i, gen);
}

// Has the socket's own worker abandon it.
void Worker::give_up(uint32_t i, uint32_t gen) {
  WorkerNote note(WorkerNote::Kind::abandon, i);
  note.gen = gen;
  ins_.to_worker[ch_.worker_of(i)]->post(std::move(note));
}

void Worker::abandon(uint32_t i, Sock& s) {
  // An accepted one that the application has by now stays until it closes it.
  if ((s.flags & kAccepted) != 0 && !revoke(i, s.gen)) return abort_socket(i, s);
  if (s.ph >= 0) ::close(s.ph);  // its other end lives: it has to see this one go
  s.ph = -1;
  reset_and_free(i, s);
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
  // a system call that finds nothing.
  bool busy = turn_news() > 1;
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
  const uint32_t tick = ins_.tick.load(std::memory_order_relaxed);
  if (tick != tick_) {
    tick_ = tick;
    release_idle_memory();
    close_dead();
    look_for_missing();
    retry_now_ = true;
  }
  if (retry_now_) retry_stalled();
  if (!wheel_.empty()) limits_turn();
}

void Worker::sleep() {
  if (dead_.size() >= kDeadBatch && !records_under_way()) close_dead();
  if (!sock_news_.prepare_sleep()) return;
  if (call_news_.prepare_sleep()) {
    const int64_t from = may_spin_ ? monotonic_ns() : 0;
    turn_events(sleep_ms());
    if (may_spin_) {
      const bool was_short = monotonic_ns() - from < kLongestSpinNs;
      spin_ns_ = was_short ? std::clamp(2 * spin_ns_, kFirstSpinNs, kLongestSpinNs) : spin_ns_ / 2;
    }
    call_news_.wake();
  }
  sock_news_.wake();
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
  // descriptor, and minimum rates.
  const int rest = !stalled_.empty()                                    ? 100
                   : warm_.empty() && dead_.empty() && handing_.empty() ? -1
                                                                        : 1000;
  if (wheel_.empty()) return rest;
  const int due = wheel_.wait_ms(monotonic_ns());
  return rest < 0 ? due : std::min(rest, due);
}

// Returns how many members there were.
uint32_t Worker::turn_news() {
  uint32_t members = 0;
  sock_news_.drain([&](uint32_t i) {
    ++members;
    if (i % ch_.geometry().workers == index_) on_sock_news(i);
    return true;
  });
  call_news_.drain([&](uint32_t call) {
    ++members;
    on_call(call);
    return true;
  });
  close_marked();
  return members;
}

// Calls that nobody waits for came before the close.
void Worker::close_marked() {
  for (const uint32_t i : closing_) {
    Sock* s = ins_.slots.find(i);
    if (s != nullptr && A::load_relaxed(ch_.slot(i).closed) == s->gen) last_close(i, *s);
  }
  closing_.clear();
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

void Worker::turn_local() {
  std::swap(local_, local_next_);
  local_.clear();
  for (const uint32_t i : local_next_) {
    Sock* s = ins_.slots.find(i);
    if (s == nullptr || (s->flags & kQueued) == 0) continue;
    s->flags &= ~kQueued;
    if (s->listener != nullptr)
      accept_some(i, *s);
    else if (s->kind == SockKind::stream)
      on_stream_event(i, *s, 0);
    else
      on_dgram_event(i, *s, 0);
  }
}

void Worker::requeue(uint32_t i, Sock& s) {
  if ((s.flags & kQueued) != 0) return;
  s.flags |= kQueued;
  local_.push_back(i);
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
  Sock* s = ins_.slots.find(i);
  if (s == nullptr || s->gen != gen) return;
  if ((tag & kPlaceholderBit) != 0)
    on_placeholder(i, *s, e.events);
  else if (s->listener != nullptr)
    on_listener_event(i, *s);
  else if (s->kind == SockKind::stream)
    on_stream_event(i, *s, e.events);
  else
    on_dgram_event(i, *s, e.events);
}

void Worker::on_placeholder(uint32_t i, Sock& s, uint32_t events) {
  if ((events & EPOLLIN) != 0 && drain_placeholder(s.ph)) report_bypass(i, s);
  if ((events & EPOLLHUP) != 0) {
    last_close(i, s);
    return;
  }
  if ((events & EPOLLOUT) != 0 && s.listener != nullptr) accept_some(i, s);
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
        Sock* s = ins_.slots.find(note.index);
        if (s == nullptr) break;
        listener_started(note.index, *s, s->backlog);
        watch(s->ph, kPlaceholderEvents, note.index, s->gen, true, EPOLL_CTL_ADD);
        break;
      }
      case WorkerNote::Kind::abandon: {
        Sock* s = ins_.slots.find(note.index);
        if (s == nullptr || s->gen != note.gen) break;
        abandon(note.index, *s);
        break;
      }
      case WorkerNote::Kind::telemetry:
        sampler_.attach(note.telemetry);
        telemetry_.attach(std::move(note.telemetry));
        break;
      case WorkerNote::Kind::request:
        on_request(note.request);
        break;
      case WorkerNote::Kind::stop:
        stop_ = true;
        break;
    }
  }
}

void Worker::on_drop() {
  for (int k = 0; k < kDropsPerTurn; ++k)
    if (!take_drop()) return;
}

// One new socket from the drop socket. False: there is none, or no more is to be taken now.
bool Worker::take_drop() {
  mw_drop_record record{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)];
  iovec iov{&record, sizeof record};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(ins_.drop.get(), &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return errno == EINTR;
  if (n == 0) {  // nobody is left who could send one
    ::epoll_ctl(epoll_, EPOLL_CTL_DEL, ins_.drop.get(), nullptr);
    return false;
  }
  UniqueFd placeholder;
  uint32_t fds = 0;
  each_passed_fd(m, [&](int fd) {
    placeholder.reset(fd);
    ++fds;
  });
  // A descriptor that we have no room for arrives as a truncated message, like a lie.
  const bool no_room = fds == 0 && (m.msg_flags & MSG_CTRUNC) != 0;
  if (n != sizeof record || record.magic != MW_DROP_MAGIC || record.call >= ch_.geometry().calls ||
      (fds != 1 && !no_room)) {
    fault({Fault::peer, 0, "a new socket's record that cannot be"});
    return false;
  }
  auto begun = ins_.calls.begin(record.call, request_, record.seq);
  if (!begun) {
    fault(begun.error());
    return false;
  }
  // Else it was answered by now: the driver sends the record of a process that died once more.
  const bool bare = request_.op == MW_OP_PLACEHOLDER;
  if (!*begun || (request_.op != MW_OP_SOCKET && !bare)) return true;
  answer_.ret = -1;
  answer_.err = ENFILE;
  answer_.out_len = 0;
  if (!no_room && !is_stream_placeholder(placeholder.get())) {
    fault({Fault::peer, 0, "a placeholder that is none"});
    return false;
  }
  if (!no_room && bare && !new_placeholder(request_, std::move(placeholder), answer_)) return false;
  if (!no_room && !bare) new_socket(request_, std::move(placeholder), answer_);
  ins_.calls.answer(record.call, request_.seq, answer_);
  return true;
}

// What the PVM reads of it.
static uint32_t published_state(const Sock& s) {
  return s.state | (s.linger == LingerMode::reset ? MW_ST_RESET : 0);
}

void Worker::init_shared_slot(uint32_t i, Sock& s) {
  s.rx_tail = MW_INDEX_START;
  s.tx_head = MW_INDEX_START;
  s.bytes_in = 0;
  s.bytes_out = 0;
  s.told = 0;
  s.made_ns = realtime_ns();
  s.sampled = {};
  s.sampled.made_ms = coarse_monotonic_ms();
  mw_slot& shared = ch_.slot(i);
  A::store_relaxed(shared.tx_tail, MW_INDEX_START);
  A::store_relaxed(shared.rx_head, MW_INDEX_START);
  A::store_relaxed(shared.want, 0u);
  A::store_relaxed(shared.accept_flags, 0u);
  A::store_relaxed(shared.watches, uint64_t{0});
  A::store_relaxed(shared.closed, 0u);
  A::store_relaxed(shared.claim, uint64_t{s.gen} << 32 | MW_CLAIM_NOBODY);
  A::store_relaxed(shared.rx_tail, MW_INDEX_START);
  A::store_relaxed(shared.tx_head, MW_INDEX_START);
  A::store_relaxed(shared.error, 0);
  A::store_relaxed(shared.error_seq, 0u);
  A::store_relaxed(shared.oob_mark, 0u);
  A::store_relaxed(shared.rx_limit, rx_limit(s));
  A::store_relaxed(shared.state, published_state(s));
  A::store_release(shared.gen, s.gen);
}

void Worker::new_socket(const Request& r, UniqueFd placeholder, Answer& a) {
  const auto failed = [&a](int err) {
    a.ret = -1;
    a.err = err;
  };
  const int domain = r.arg[0];
  const int type = r.arg[1] & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (domain != AF_INET && domain != AF_INET6) return failed(EAFNOSUPPORT);
  if (type != SOCK_STREAM && type != SOCK_DGRAM)
    return failed(type == SOCK_RAW ? EPERM : ESOCKTNOSUPPORT);
  UniqueFd real{::socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, r.arg[2])};
  // Our limit of descriptors is not the application's.
  if (!real) return failed(errno == EMFILE ? ENFILE : errno);
  auto slot = ins_.slots.allocate(spread_);
  if (!slot) return failed(ENFILE);
  const uint32_t i = *slot;
  spread_ = (spread_ + 1) % ch_.geometry().workers;
  Sock& s = ins_.slots.at(i);
  s.fd = real.release();
  s.ph = placeholder.release();
  s.kind = type == SOCK_STREAM ? SockKind::stream : SockKind::dgram;
  s.domain = static_cast<uint8_t>(domain);
  s.protocol = r.arg[2];
  s.state = MW_ST_OPEN;
  if (s.kind == SockKind::stream && ins_.wishes.any()) ins_.wishes.apply_to(s.fd);
  init_shared_slot(i, s);
  const mw_new_socket out{i, s.gen};
  std::memcpy(a.payload, &out, sizeof out);
  a.out_len = sizeof out;
  a.ret = 0;
  a.err = 0;
  telemetry_.event(MW_TEL_CREATE, i, s);
  // A datagram socket may receive as soon as it sends; a stream only after connect() or listen().
  hand_over(i, s, s.kind == SockKind::dgram);
}

void Worker::on_sock_news(uint32_t i) {
  Sock* s = ins_.slots.find(i);
  if (s == nullptr) return;
  if ((s->flags & kAccepted) != 0 && A::load_acquire(ch_.slot(i).closed) == s->gen) {
    closing_.push_back(i);
    return;
  }
  // It has no bytes: somebody wants a token, to tell those who sleep in accept() of its end.
  if (s->listener != nullptr) return announce(i, kNewsIn);
  uint32_t news = 0;
  if (s->kind == SockKind::stream) {
    if ((s->flags & kTxBlocked) == 0) news |= stream_tx(i, *s);
    if ((s->flags & kRxWait) != 0) news |= stream_rx(i, *s);
  } else if ((s->flags & kRxWait) != 0) {
    news |= dgram_rx(i, *s);
  }
  if (news != 0) announce(i, news);
}

void Worker::set_state(uint32_t i, Sock& s, uint32_t state) {
  s.state = state;
  A::store_release(ch_.slot(i).state, published_state(s));
}

void Worker::publish_error(uint32_t i, Sock& s, int err) {
  mw_slot& shared = ch_.slot(i);
  A::store_relaxed(shared.error, err);
  A::store_release(shared.error_seq, ++s.error_seq);
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

void Worker::announce(uint32_t i, uint32_t news) {
  A::fence();
  mw_slot& shared = ch_.slot(i);
  const uint32_t want = A::load_relaxed(shared.want);
  bool out = (news & kNewsOut) != 0;
  if ((news & kNewsIn) != 0 || (want & MW_WANT_OUT_EVENT) != 0) {
    if (out && (want & MW_WANT_OUT_EVENT) != 0) A::fetch_and(shared.want, ~MW_WANT_OUT_EVENT);
    uint64_t watches = A::load_relaxed(shared.watches);
    for (; watches != 0; watches >>= 16) {
      const uint32_t group = static_cast<uint32_t>(watches & 0xffff);
      if (group == 0 || group > ch_.geometry().groups) continue;
      if (ch_.group_news(group - 1).add(i)) rings_due_.push_back(group - 1);
    }
  }
  const uint32_t tokens =
      ((news & kNewsIn) != 0 ? MW_WANT_TOKEN_IN : 0) | (out ? MW_WANT_TOKEN_OUT : 0);
  if ((want & tokens) == 0) return;
  if ((A::fetch_and(shared.want, ~tokens) & tokens) == 0) return;
  const Sock& s = ins_.slots.at(i);
  // Among accept records a token has their size, or it would be glued to the next one.
  mw_accept_record token{};
  token.magic = MW_ACCEPT_MAGIC;
  // A full queue holds tokens enough to wake anybody.
  (void)!::send(placeholder_of(i, s), &token, s.listener != nullptr ? sizeof token : 1,
                MSG_DONTWAIT | MSG_NOSIGNAL);
}

// ---- closing ----

void Worker::last_close(uint32_t i, Sock& s) {
  if (s.listener != nullptr) {
    ins_.to_control.post(ControlNote(Kind::listener_down, i, s.gen));
    revoke_all(*s.listener);
    return free_slot(i, s);
  }
  if (s.kind == SockKind::dgram) return free_slot(i, s);
  if ((s.flags & kLingering) != 0) return;
  // Still in the queue when its listener was closed: the kernel resets such a connection.
  if ((s.flags & kAccepted) != 0 && claim_of(i, s) == 0) return reset_and_free(i, s);
  // A pause ends with the socket: what was written leaves, and nobody reads any more.
  if ((s.flags & kLimited) != 0) s.limits->paused = 0;
  if ((s.flags & kTxBlocked) == 0) stream_tx(i, s);
  mw_slot& shared = ch_.slot(i);
  auto room = ring_room(ch_.geometry().rx_ring, s.rx_tail, shared.rx_head);
  auto left = ring_ready(ch_.geometry().tx_ring, s.tx_head, shared.tx_tail);
  if (!room) return fault(room.error());
  if (!left) return fault(left.error());
  if (*room != ch_.geometry().rx_ring)
    return reset_and_free(i, s);  // unread bytes, as in the kernel
  if (*left == 0 || (s.state & MW_ST_CONNECTED) == 0 || s.linger == LingerMode::reset)
    return finish_close(i, s);
  // The kernel's own unread bytes make its close() reset; with bytes of ours still to go, look.
  int unread = 0;
  if (::ioctl(s.fd, FIONREAD, &unread) == 0 && unread > 0) return reset_and_free(i, s);
  s.flags |= kLingering;
  if ((s.flags & kUserTimeout) == 0)
    ::setsockopt(s.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kLingerTimeoutMs, sizeof kLingerTimeoutMs);
}

void Worker::reset_at_close(int fd) {
  const linger now{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

// Closes the connection now and with a reset; the slot and its placeholder stay.
void Worker::abort_socket(uint32_t i, Sock& s) {
  if (s.listener != nullptr || s.fd < 0) return;
  reset_at_close(s.fd);
  telemetry_.event(MW_TEL_CLOSE, i, s);
  ::close(s.fd);
  s.fd = -1;
  drop_limits(s);
  s.flags |= kReadDone;
  publish_error(i, s, ECONNRESET);
  set_state(
      i, s,
      (s.state & ~MW_ST_CONNECTING) | MW_ST_CLOSED | MW_ST_RCV_SHUT | MW_ST_SND_SHUT | MW_ST_EOF);
  announce(i, kNewsAll);
}

void Worker::reset_and_free(uint32_t i, Sock& s) {
  if (s.fd >= 0) reset_at_close(s.fd);
  free_slot(i, s);
}

void Worker::finish_close(uint32_t i, Sock& s) {
  if (s.fd >= 0 && s.linger == LingerMode::wait) {
    // The kernel would wait in our close(). The application's close() has long returned.
    const linger off{0, 0};
    ::setsockopt(s.fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
  }
  free_slot(i, s);
}

void Worker::free_slot(uint32_t i, Sock& s) {
  if (s.fd >= 0) {
    telemetry_.event(MW_TEL_CLOSE, i, s);
    ::close(s.fd);
  }
  drop_limits(s);
  if (s.ph >= 0) bury(s.ph);
  s.fd = -1;
  s.ph = -1;
  // How far the send ring was used decides how much of it may be resident.
  s.tx_high = s.tx_head - MW_INDEX_START;
  A::store_relaxed(ch_.slot(i).state, MW_ST_CLOSED);
  const uint32_t keep = s.flags & kWarm;
  s.flags = keep;
  s.error_seq = 0;
  s.oob_mark = 0;
  s.rcvlowat = 1;
  s.rx_limit = 0;
  s.backlog = 0;
  s.linger = LingerMode::off;
  if (s.tx_high > MW_PAGE && keep == 0) {
    s.flags |= kWarm;
    warm_.push_back(i);
  }
  s.last_tick = tick_;
  ins_.slots.release(i);
  if (!stalled_.empty()) retry_now_ = true;
}

// Closes a placeholder whose other end is gone, some time. While any AF_UNIX descriptor travels in
// a message (an accept record that waits, say) the kernel answers each close() of such a socket
// with a run of its garbage collector in another thread; so we wait until none of ours does.
void Worker::bury(int placeholder) {
  dead_.push_back(placeholder);
  if (dead_.size() >= kMaxDead) close_dead();
}

bool Worker::records_under_way() const {
  Sock* s = ins_.slots.find(handed_by_);
  int queued = 0;
  return s != nullptr && s->listener != nullptr && ::ioctl(s->ph, TIOCOUTQ, &queued) == 0 &&
         queued != 0;
}

void Worker::close_dead() {
  for (const int fd : dead_) ::close(fd);
  dead_.clear();
}

// ---- memory ----

void Worker::touch(uint32_t i, Sock& s) {
  s.last_tick = tick_;
  s.rx_touched = 1;
  if ((s.flags & kWarm) != 0) return;
  s.flags |= kWarm;
  warm_.push_back(i);
}

void Worker::punch(uint64_t offset, uint64_t bytes) {
  // A failure costs memory and nothing else.
  (void)!::fallocate(ins_.channel_fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

// Gives back the ring memory of slots that were idle for a while. Only the INS writes a receive
// ring, so an empty one can lose its pages at any time; a send ring only after its socket is gone.
void Worker::release_idle_memory() {
  const mw_geometry& g = ch_.geometry();
  for (size_t k = 0; k < warm_.size();) {
    const uint32_t i = warm_[k];
    Sock& s = ins_.slots.at(i);
    const bool live = s.live.load(std::memory_order_relaxed) != 0;
    bool keep = tick_ - s.last_tick < kIdleTicks;
    if (!keep && live) {
      auto room = ring_room(g.rx_ring, s.rx_tail, ch_.slot(i).rx_head);
      keep = !room || *room != g.rx_ring;
    }
    if (keep) {
      ++k;
      continue;
    }
    const uint64_t ring = ch_.layout().rings + ch_.layout().ring_stride * i;
    if (live) {
      if (s.rx_touched != 0) punch(ring, g.rx_ring);
      s.rx_touched = 0;
      s.flags &= ~kWarm;
    } else {
      bool freed = false;
      ins_.slots.if_free(i, [&] {
        if (s.rx_touched != 0) punch(ring, g.rx_ring);
        if (s.tx_high > MW_PAGE) punch(ring + g.rx_ring, g.tx_ring);
        s.rx_touched = 0;
        s.tx_high = 0;
        s.flags &= ~kWarm;
        freed = true;
      });
      if (!freed) {  // taken again while we looked
        ++k;
        continue;
      }
    }
    warm_[k] = warm_.back();
    warm_.pop_back();
  }
}

}  // namespace mw
