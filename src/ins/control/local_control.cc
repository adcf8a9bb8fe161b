#include "ins/control/local_control.h"

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/raw_syscall.h"
#include "ins/policy/options.h"
#include "ring/atomics.h"
#include "transport/local/listener_record.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr size_t kMaxQueued = 4096;
constexpr uint32_t kFeatures = kFeatureTelemetry | kFeatureNames | kFeatureFrontEnd;

enum : uint64_t {
  kTagListener = 1,
  kTagDriver,
  kTagNotes,
  kTagTimer,
  kTagSignals,
  kTagRequests,
  kTagFrontEnd,
  kTagLookup = uint64_t{1} << 32
};

bool is_eventfd_like(int fd) {
  // Anonymous inodes have no file type, unlike anything that could block us in write().
  struct stat st {};
  return raw_fstat(fd, st) == 0 && (st.st_mode & S_IFMT) == 0 &&
         ::fcntl(fd, F_SETFL, O_NONBLOCK | O_RDWR) == 0;
}

bool is_unix(int fd, int type) {
  int domain = 0;
  int got = 0;
  socklen_t len = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0) return false;
  len = sizeof got;
  return domain == AF_UNIX && ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &got, &len) == 0 && got == type;
}

}  // namespace

LocalControl::LocalControl(InsContext& ins, WorkerThreads& workers, Publisher& publisher,
                           Resolver& resolver, UniqueFd listener, UniqueFd signals,
                           UniqueFd front_end, uint32_t driver_uid)
    : ins_(ins),
      workers_(workers),
      core_(ins, workers, publisher, resolver, *this),
      resolver_(resolver),
      listener_(std::move(listener)),
      signals_(std::move(signals)),
      front_end_(std::move(front_end)),
      has_front_end_(front_end_),
      driver_uid_(driver_uid),
      in_{} {}

Status LocalControl::prepare() {
  epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  const itimerspec every{{1, 0}, {1, 0}};
  if (!epoll_ || !timer_ || ::timerfd_settime(timer_.get(), 0, &every, nullptr) < 0)
    return Error{Fault::sys, errno, "control loop"};
  const auto add = [this](int fd, uint64_t tag) {
    epoll_event e{};
    e.events = EPOLLIN;
    e.data.u64 = tag;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &e) == 0;
  };
  if (!add(listener_.get(), kTagListener) || !add(timer_.get(), kTagTimer) ||
      !add(ins_.to_control.bell(), kTagNotes) || (signals_ && !add(signals_.get(), kTagSignals)) ||
      (front_end_ && !add(front_end_.get(), kTagFrontEnd)))
    return Error{Fault::sys, errno, "control loop"};
  resolver_.attach(epoll_.get(), kTagLookup, &ins_.calls);
  return Ok{};
}

int LocalControl::serve() {
  on_tick();
  while (!stop_) {
    epoll_event events[16];
    const int n = ::epoll_wait(epoll_.get(), events, 16, resolver_.timeout_ms());
    for (int k = 0; k < n; ++k) {
      switch (events[k].data.u64) {
        case kTagListener:
          on_connect();
          break;
        case kTagDriver:
          if (driver_) on_driver(events[k].events);
          break;
        case kTagNotes:
          if (!core_.on_notes()) stop_ = true;
          break;
        case kTagTimer:
          on_tick();
          break;
        case kTagSignals:
          stop_ = true;
          break;
        case kTagRequests:
          on_requests();
          break;
        case kTagFrontEnd:
          forget_front_end();
          break;
        default:
          resolver_.on_event(static_cast<int>(events[k].data.u64 & 0xffffffff), events[k].events);
      }
    }
    if (n == 0) resolver_.on_timeout();
    if (const char* why = ins_.poisoned.load(); why != nullptr && !stop_) {
      log_line("mwins", "the application's side broke the protocol: %s; this INS ends", why);
      send(ControlSlot{ControlType::poisoned, 0, 0, 0});
      flush();
      stop_ = true;
    }
  }
  core_.tell_workers(WorkerNote::Kind::stop);
  return ins_.poisoned.load() != nullptr ? kExitPoisoned : 0;
}

// ---- the driver ----

void LocalControl::on_connect() {
  UniqueFd fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  if (!fd) return;
  ucred who{};
  socklen_t len = sizeof who;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 ||
      (who.uid != 0 && who.uid != driver_uid_)) {
    log_line("mwins", "refused a driver of uid %u", who.uid);
    return;
  }
  // The newest one counts: its predecessor may have died without our noticing yet.
  driver_.reset();
  out_.clear();
  greeted_ = false;
  driver_waits_ = false;
  driver_ = std::move(fd);
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = kTagDriver;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, driver_.get(), &e) < 0)
    drop_driver("cannot watch it");
}

void LocalControl::drop_driver(const char* why) {
  if (why != nullptr) log_line("mwins", "driver: %s; connection closed", why);
  driver_.reset();
  out_.clear();
  greeted_ = false;
  driver_waits_ = false;
}

void LocalControl::on_driver(uint32_t events) {
  if ((events & EPOLLOUT) != 0) flush();
  for (int k = 0; driver_ && k < 64; ++k) {
    auto m = receive_message(driver_.get(), in_.bytes, MSG_DONTWAIT);
    if (!m) {
      switch (m.error().fault) {
        case Fault::would_block:
          return;
        case Fault::shutdown:
          return drop_driver(nullptr);  // it died or restarts
        default:
          return drop_driver(m.error().where);
      }
    }
    if (m->bytes < sizeof(ControlType) || !on_message(*m))
      return drop_driver("a message that cannot be");
  }
}

bool LocalControl::on_message(ReceivedMessage& m) {
  if (in_.type == ControlType::hello) return on_hello(m);
  if (!greeted_) return false;
  switch (in_.type) {
    case ControlType::replay: {
      if (m.bytes != sizeof(ControlListener) || m.fd_count != 1 ||
          in_.listener.option_count > kMaxReplayOptions || workers_.started())
        return false;
      const uint32_t status = replay(in_.listener, std::move(m.fds[0]));
      send(ControlSlot{ControlType::replayed, in_.listener.slot, in_.listener.gen, status});
      return true;
    }
    case ControlType::start:
      if (m.bytes != sizeof(ControlSlot)) return false;
      if (!workers_.started()) workers_.start(ins_);
      return true;
    case ControlType::group_open:
    case ControlType::group_close:
      if (m.bytes != sizeof(ControlSlot)) return false;
      return on_group(in_.slot, m);
    case ControlType::lend:
    case ControlType::option_set: {
      if (m.bytes != sizeof(ControlOption) || m.fd_count != 0 ||
          in_.option.slot >= ins_.channel.geometry().slots)
        return false;
      if (in_.type == ControlType::lend && !workers_.started()) {
        ControlOption lent = in_.option;
        const UniqueFd socket = ins_.slots.lend(lent);
        send(lent, socket.get());
        return true;
      }
      WorkerNote note(in_.type == ControlType::lend ? WorkerNote::Kind::lend
                                                    : WorkerNote::Kind::option_set);
      note.option = in_.option;
      ins_.to_worker[ins_.channel.worker_of(in_.option.slot)]->post(std::move(note));
      return true;
    }
    case ControlType::telemetry:
      return m.bytes == sizeof(ControlSlot) && on_telemetry(m);
    case ControlType::names:
      return m.bytes == sizeof(ControlSlot) && on_names(in_.slot, m);
    case ControlType::front_end:
      return m.bytes == sizeof(ControlSlot) && on_front_end(m);
    default:
      return false;
  }
}

bool LocalControl::on_hello(ReceivedMessage& m) {
  if (m.bytes != sizeof(ControlHello)) return false;
  const ControlHello hello = in_.hello;
  ControlHello ack = hello;
  ack.type = ControlType::hello_ack;
  ack.version = MW_PROTOCOL_VERSION;
  ack.features = hello.features & kFeatures;
  ack.status = 0;
  if (hello.version_min > MW_PROTOCOL_VERSION || hello.version < MW_PROTOCOL_MIN)
    ack.status = EPROTONOSUPPORT;
  else
    ack.status = adopt_session(hello, m);
  ack.first_gen = ins_.first_gen;
  send(ack);
  greeted_ = ack.status == 0;
  if (greeted_) core_.tell_listeners();
  return true;
}

// The session that the hello describes becomes ours, or is the one that we have. Returns 0 or
// errno.
uint32_t LocalControl::adopt_session(const ControlHello& hello, ReceivedMessage& m) {
  const mw_geometry& g = hello.geometry;
  mw_layout layout{};
  if (mw_layout_of(&g, &layout) != 0 || g.workers != workers_.count() ||
      m.fd_count != 2 + size_t{g.workers})
    return EINVAL;
  if (core_.is_adopted())
    return std::memcmp(&g, &ins_.channel.geometry(), sizeof g) == 0 ? 0 : EINVAL;
  if (hello.first_gen == 0 || !is_unix(m.fds[1].get(), SOCK_SEQPACKET)) return EINVAL;
  for (uint32_t w = 0; w < g.workers; ++w)
    if (!is_eventfd_like(m.fds[2 + w].get())) return EINVAL;
  auto mapping = map_sealed(m.fds[0].get());
  if (!mapping) return EINVAL;
  auto channel = Channel::over(mapping->base(), mapping->bytes(), g);
  if (!channel) return EINVAL;
  if (const Status made = ins_.slots.init(g, hello.first_gen); !made) return ENOMEM;
  if (const Status made = ins_.placeholders.init(g); !made) return ENOMEM;
  ins_.mapping = std::move(*mapping);
  ins_.channel = *channel;
  ins_.channel_fd = std::move(m.fds[0]);
  ins_.drop = std::move(m.fds[1]);
  ins_.first_gen = hello.first_gen;
  ins_.calls.init(ins_.channel, ins_.call_done);
  for (uint32_t w = 0; w < g.workers; ++w) {
    // Nobody but this INS sleeps on these sets: what a predecessor left there is none of ours.
    ins_.channel.sock_news(w).forget_consumer();
    ins_.channel.call_news(w).forget_consumer();
    ins_.bells.push_back(std::move(m.fds[2 + w]));
    ins_.epolls.emplace_back(::epoll_create1(EPOLL_CLOEXEC));
    ins_.to_worker.push_back(std::make_unique<NoteQueue<WorkerNote>>());
    ins_.stats.push_back(std::make_unique<Stats>());
    if (!ins_.epolls.back() || ins_.to_worker.back()->bell() < 0) return EMFILE;
  }
  core_.on_adopted();
  return 0;
}

// Makes a listener of our predecessor again, in its slot. Returns 0 or the errno of the step that
// failed.
uint32_t LocalControl::replay(const ControlListener& l, UniqueFd placeholder) {
  const auto error = [] { return static_cast<uint32_t>(errno); };
  const mw_geometry& g = ins_.channel.geometry();
  if (!check_listener(l, g.slots) || !is_unix(placeholder.get(), SOCK_STREAM)) return EINVAL;
  UniqueFd real{::socket(l.domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, l.protocol)};
  if (!real) return error();
  auto log = std::make_unique<OptionLog>();
  LingerMode linger_mode = LingerMode::off;
  uint32_t rx_limit = 0;
  for (uint32_t k = 0; k < l.option_count; ++k) {
    const ReplayOption& o = l.options[k];
    if (::setsockopt(real.get(), o.level, o.name, o.value, o.len) < 0) return error();
    if (o.level == SOL_SOCKET && o.name == SO_LINGER && o.len >= sizeof(linger))
      linger_mode = linger_mode_of(o.value);
    if (o.level == SOL_SOCKET && o.name == SO_RCVBUF) rx_limit = granted_rcvbuf(real.get());
    log->options[log->count++] = o;
  }
  const bool hides_reuse = reuse_address(real.get());
  if (::bind(real.get(), reinterpret_cast<const sockaddr*>(l.local.bytes), l.local.len) < 0)
    return error();
  if (::listen(real.get(), l.backlog) < 0) return error();
  if (!ins_.slots.claim(l.slot, l.gen)) return EBUSY;
  Sock& s = *ins_.slots.at(l.slot);
  s.fd = real.release();
  s.ph = placeholder.release();
  s.kind = SockKind::stream;
  s.domain = static_cast<uint8_t>(l.domain);
  s.protocol = l.protocol;
  s.backlog = l.backlog;
  s.linger = linger_mode;
  s.rx_limit = rx_limit;
  if (hides_reuse) s.flags |= kHidesReuse;
  s.state = MW_ST_OPEN | MW_ST_LISTENING;
  s.made_ns = realtime_ns();
  s.options = std::move(log);
  // The application's side of the slot stays as it is: its processes never learn that there was a
  // change.
  mw_slot& shared = ins_.channel.slot(l.slot);
  s.error_seq = A::load_relaxed(shared.error_seq);
  s.tx_head = A::load_acquire(shared.tx_tail);
  s.rx_tail = A::load_acquire(shared.rx_head);
  A::store_relaxed(shared.tx_head, s.tx_head);
  A::store_relaxed(shared.rx_tail, s.rx_tail);
  A::store_relaxed(shared.gen, l.gen);
  A::store_release(shared.state, s.state);
  ins_.slots.publish(l.slot);
  ins_.to_worker[l.slot % g.workers]->post(WorkerNote(WorkerNote::Kind::adopt, l.slot));
  return 0;
}

bool LocalControl::on_group(const ControlSlot& c, ReceivedMessage& m) {
  const bool open = c.type == ControlType::group_open;
  if (c.slot >= ins_.channel.geometry().groups || m.fd_count != (open ? 1u : 0u)) return false;
  // A doorbell comes from the application: a wrong one costs the application its wake-ups and no
  // more.
  if (open && !is_eventfd_like(m.fds[0].get())) {
    log_line("mwins", "group %u: its doorbell is no eventfd", c.slot);
    return true;
  }
  for (const auto& queue : ins_.to_worker) {
    UniqueFd bell{open ? ::fcntl(m.fds[0].get(), F_DUPFD_CLOEXEC, 0) : -1};
    queue->post(WorkerNote(open ? WorkerNote::Kind::group_open : WorkerNote::Kind::group_close,
                           c.slot, std::move(bell)));
  }
  return true;
}

// Lookups that are under way end as they began.
bool LocalControl::on_names(const ControlSlot& c, ReceivedMessage& m) {
  struct stat st {};
  if (c.slot >= kNameFileCount || m.fd_count != 1 || raw_fstat(m.fds[0].get(), st) < 0 ||
      !S_ISREG(st.st_mode))
    return false;
  std::string text(std::min(static_cast<size_t>(st.st_size), kMaxNameFileBytes), '\0');
  const ssize_t n = ::pread(m.fds[0].get(), text.data(), text.size(), 0);
  const NameFile which{c.slot};
  if (n < 0) {
    log_line("mwins", "cannot read the new %s: %s", kNameFiles[c.slot], std::strerror(errno));
    return true;
  }
  text.resize(static_cast<size_t>(n));
  if (const Status taken = resolver_.update(which, text); !taken)
    log_line("mwins", "the new %s is not heeded: %s", kNameFiles[c.slot], taken.error().where);
  return true;
}

// ---- whether anybody is left ----

bool LocalControl::on_front_end(ReceivedMessage& m) {
  return m.fd_count == 1 && watch_front_end(std::move(m.fds[0]));
}

// The driver has the same open file: our epoll set would go on with it.
void LocalControl::forget_front_end() {
  if (front_end_) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, front_end_.get(), nullptr);
  front_end_.reset();
}

bool LocalControl::watch_front_end(UniqueFd pidfd) {
  forget_front_end();
  has_front_end_ = true;
  front_end_ = std::move(pidfd);
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = kTagFrontEnd;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, front_end_.get(), &e) == 0;
}

void LocalControl::look_who_is_left() {
  const auto now = std::chrono::steady_clock::now();
  if (driver_ || front_end_ || !has_front_end_) {
    alone_since_ = {};
    return;
  }
  if (alone_since_ == std::chrono::steady_clock::time_point{}) alone_since_ = now;
  if (now - alone_since_ < kLongestAlone) return;
  log_line("mwins", "mwcommsd and mw run are gone, and no others came: this INS ends");
  resolver_.give_up();
  core_.tell_workers(WorkerNote::Kind::reset_all);
  stop_ = true;
}

// ---- telemetry ----

bool LocalControl::on_telemetry(ReceivedMessage& m) {
  if (m.fd_count != 3 || !is_eventfd_like(m.fds[1].get()) ||
      !is_unix(m.fds[2].get(), SOCK_SEQPACKET))
    return false;
  auto memory = map_sealed(m.fds[0].get());
  const uint32_t workers = ins_.channel.geometry().workers;
  if (!memory || memory->bytes() < mw_telemetry_bytes(workers, ins_.channel.geometry().slots))
    return false;
  auto channel = std::make_shared<TelemetryChannel>();
  channel->memory = std::move(*memory);
  channel->bell = std::move(m.fds[1]);
  for (const auto& queue : ins_.to_worker) {
    WorkerNote note(WorkerNote::Kind::telemetry);
    note.telemetry = channel;
    queue->post(std::move(note));
  }
  // A driver that was started anew asks through a socket of its own.
  requests_ = std::move(m.fds[2]);
  core_.forget_questions();
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = kTagRequests;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, requests_.get(), &e) == 0;
}

void LocalControl::on_requests() {
  for (int k = 0; requests_ && k < 64; ++k) {
    InsRequest r{};
    auto m = receive_message(requests_.get(), writable_bytes_of(r), MSG_DONTWAIT);
    if (!m && m.error().fault == Fault::would_block) return;
    const bool fits = m && m->bytes == sizeof r && m->fd_count == 0 && core_.ask(r);
    if (!fits) return requests_.reset();
  }
}

void LocalControl::reply(const InsReply& reply) {
  // The driver reads all the time and has a bounded number of questions.
  if (requests_ && !send_message(requests_.get(), bytes_of(reply), {}, MSG_DONTWAIT))
    requests_.reset();
}

// ---- what the driver is told ----

template <class T>
void LocalControl::send(const T& message, int fd) {
  if (!driver_) return;
  if (out_.size() >= kMaxQueued) return drop_driver("does not read");
  Outgoing o;
  const auto bytes = bytes_of(message);
  o.bytes.assign(bytes.begin(), bytes.end());
  if (fd >= 0) o.fd = UniqueFd{::fcntl(fd, F_DUPFD_CLOEXEC, 0)};
  out_.push_back(std::move(o));
  flush();
}

void LocalControl::flush() {
  while (driver_ && !out_.empty()) {
    const Outgoing& o = out_.front();
    const int fd = o.fd.get();
    const Status sent =
        send_message(driver_.get(), o.bytes, {&fd, fd >= 0 ? size_t{1} : 0}, MSG_DONTWAIT);
    if (!sent && sent.error().fault == Fault::would_block) break;
    if (!sent)
      return drop_driver(sent.error().fault == Fault::shutdown ? nullptr : sent.error().where);
    out_.pop_front();
  }
  const bool wait = driver_ && !out_.empty();
  if (!driver_ || wait == driver_waits_) return;
  driver_waits_ = wait;
  epoll_event e{};
  e.events = EPOLLIN | (wait ? EPOLLOUT : 0u);
  e.data.u64 = kTagDriver;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, driver_.get(), &e);
}

void LocalControl::listener_up(const ControlListener& l, int placeholder) {
  send(l, placeholder);
}

void LocalControl::listener_down(uint32_t slot, uint32_t gen) {
  send(ControlSlot{ControlType::listener_down, slot, gen, 0});
}

void LocalControl::bypass(uint32_t slot, uint32_t gen) {
  send(ControlSlot{ControlType::bypass, slot, gen, 0});
}

void LocalControl::lent(const ControlOption& option, int socket) {
  send(option, socket);
}

void LocalControl::on_tick() {
  uint64_t expirations = 0;
  (void)!::read(timer_.get(), &expirations, sizeof expirations);
  core_.on_tick();
  look_who_is_left();
}

}  // namespace mw
