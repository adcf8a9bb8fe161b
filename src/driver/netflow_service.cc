#include "driver/netflow_service.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"

namespace mw {
namespace {

constexpr const char* kWho = "mwcommsd";
constexpr uint64_t kTagNotes = 1;
constexpr uint64_t kTagServer = 2;
constexpr uint64_t kTagTelemetry = 3;
constexpr uint64_t kTagReplies = 4;

// How often the rings are read while there is something in them.
constexpr int64_t kDrainMs = 4;
constexpr uint32_t kObservationsPerBatch = 512;
constexpr int64_t kRetryMs = 10;

// The network namespace of a process, if it is another one than ours and we may enter it.
UniqueFd foreign_netns(uint32_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/ns/net";
  UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat theirs {};
  struct stat ours {};
  if (!fd || ::fstat(fd.get(), &theirs) < 0 || ::stat("/proc/self/ns/net", &ours) < 0 ||
      theirs.st_ino == ours.st_ino)
    return UniqueFd{};
  return fd;
}

// True: the batch is full.
template <size_t N>
bool append(std::shared_ptr<netflow::Batch>& batch, const netflow::ExtendedObservation& o) {
  if (batch == nullptr) {
    batch = std::make_shared<netflow::Batch>();
    batch->each = N;
    batch->bytes.reserve(kObservationsPerBatch * N);
  }
  const size_t at = batch->bytes.size();
  batch->bytes.resize(at + N);
  netflow::encode(o, std::span<uint8_t, N>(batch->bytes.data() + at, N));
  return ++batch->messages == kObservationsPerBatch;
}

}  // namespace

Result<std::unique_ptr<NetflowService>> NetflowService::start(const netflow::ServerOptions& options,
                                                              const netflow::ExportOptions& exports,
                                                              SessionMemory& memory, int session_fd,
                                                              std::vector<int> worker_bells,
                                                              int blocks_keeper) {
  auto server = netflow::Server::make(options);
  if (!server) return server.error();
  std::unique_ptr<NetflowService> s{new NetflowService(std::move(*server), memory, session_fd,
                                                       std::move(worker_bells), blocks_keeper)};
  s->epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  s->notes_bell_ = UniqueFd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!s->epoll_ || !s->notes_bell_ || !s->watch(s->notes_bell_.get(), kTagNotes) ||
      !s->watch(s->server_->event_fd(), kTagServer) ||
      (blocks_keeper >= 0 && !s->watch(blocks_keeper, kTagBlocks)))
    return Error{Fault::sys, errno, "descriptors for NetFlow"};
  if (exports.any()) {
    auto exporter = netflow::Exporter::start(exports, [&memory] { return memory.repairs(); });
    if (!exporter) return exporter.error();
    s->exporter_ = std::move(*exporter);
    s->prometheus_address_ = s->exporter_->prometheus_address();
  }
  NetflowService* const self = s.get();
  s->thread_ = std::thread([self] { self->run(); });
  return s;
}

NetflowService::NetflowService(std::unique_ptr<netflow::Server> server, SessionMemory& memory,
                               int session_fd, std::vector<int> worker_bells, int blocks_keeper)
    : memory_(memory),
      session_fd_(session_fd),
      worker_bells_(std::move(worker_bells)),
      server_(std::move(server)),
      address_(server_->address()),
      blocks_keeper_(blocks_keeper),
      blocks_(blocks_keeper),
      sampling_(memory,
                [this](uint32_t pid) { return static_cast<bool>(process_of_session(pid)); }) {
  server_->on_request = [this](EngineId engine, const netflow::Asking& asking) {
    on_request(engine, asking);
  };
  server_->on_listening = [this] { follow_engines(); };
  sampling_.is_allowed = [this](const netflow::Address& peer) {
    return !allowed_.empty() && allowed_.count(key_of(peer)) != 0;
  };
  server_->on_gone = [this](EngineId engine) { rules_.connection_gone(engine); };
}

NetflowService::~NetflowService() {
  if (!thread_.joinable()) return;
  stop_ = true;
  const uint64_t one = 1;
  (void)!::write(notes_bell_.get(), &one, sizeof one);
  thread_.join();
}

// ---- the driver's thread ----

void NetflowService::post(Note note) {
  {
    const std::lock_guard hold(lock_);
    notes_.push_back(std::move(note));
  }
  const uint64_t one = 1;
  (void)!::write(notes_bell_.get(), &one, sizeof one);  // a full counter wakes as well
}

Result<InsTelemetry::TheirEnds> NetflowService::ins_up(uint32_t id, uint32_t pid) {
  auto ends = InsTelemetry::make(id, pid, memory_.geometry(), worker_bells_, foreign_netns(pid));
  if (!ends) return ends.error();
  post({Note::Kind::ins_up, std::move(ends->ours)});
  return std::move(ends->theirs);
}

void NetflowService::ins_gone() {
  post({Note::Kind::ins_gone, nullptr});
}

bool NetflowService::has_turned() {
  const uint32_t turns = turns_.load(std::memory_order_relaxed);
  const bool turned = turns != turns_seen_;
  turns_seen_ = turns;
  const uint64_t one = 1;
  (void)!::write(notes_bell_.get(), &one, sizeof one);
  return turned;
}

// ---- its own ----

bool NetflowService::watch(int fd, uint64_t tag) {
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = tag;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &e) == 0;
}

void NetflowService::run() {
  while (!stop_) {
    epoll_event events[16];
    const int n = ::epoll_wait(epoll_.get(), events, 16, timeout_ms(monotonic_ms()));
    for (int k = 0; k < n; ++k) {
      switch (events[k].data.u64) {
        case kTagNotes:
          on_notes();
          break;
        case kTagServer:
          server_->handle_events();
          break;
        case kTagTelemetry: {
          uint64_t rings = 0;
          if (!ins_) break;
          (void)!::read(ins_->bell(), &rings, sizeof rings);
          ins_->wake();
          if (!reading_) next_drain_ms_ = 0;
          reading_ = true;
          break;
        }
        case kTagReplies:
          if (!ins_) break;
          if (const Status sound = ins_->on_replies(); !sound) {
            if (sound.error().fault == Fault::shutdown)
              end_ins();
            else
              drop_ins(sound.error().where);
          }
          break;
        case kTagBlocks:
          if (!blocks_.on_answer())
            (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, blocks_keeper_, nullptr);
      }
    }
    turns_.fetch_add(1, std::memory_order_relaxed);
    follow_engines();
    if (ins_ && reading_ && monotonic_ms() >= next_drain_ms_) drain();
    if (!deferred_.empty()) retry_deferred();
    end_due_rules();
    follow_rounds();
  }
}

// Asks the INS for the rounds that engines are due for, and sends those that it has finished.
void NetflowService::follow_rounds() {
  const int64_t now = monotonic_ms();
  if (round_since_ms_ == 0) {
    const auto due = server_->round_due_ms();
    if (!due || *due > now) return;
    round_since_ms_ = now;
    // One that is late goes on with the round that it has.
    if (row_round_ == last_row_round_) {
      if (++row_round_ == 0) ++row_round_;
      if (ins_) ins_->want_round(row_round_);
    }
  }
  const bool done = !ins_ || ins_->round_done(row_round_, now);
  if (!done && now - round_since_ms_ < kRoundPatienceMs) return;
  // What an engine was told of a socket comes before its sample.
  if (ins_ && epoch_ != 0) drain();
  // What a stack that is late has not written yet is shown as it was.
  const auto samples =
      sampling_.collect(ins_.get(), row_round_, done ? row_round_ : last_row_round_);
  if (done) last_row_round_ = row_round_;
  server_->send_round(samples, end_of_round(samples, now), now);
  round_since_ms_ = 0;
}

netflow::Round NetflowService::end_of_round(const netflow::SampledBatches& samples, int64_t now) {
  netflow::Round r;
  r.now_ns = realtime_ns();
  r.mono_ns = static_cast<uint64_t>(monotonic_ns());
  r.round = ++round_;
  for (const netflow::Batch& b : samples)
    (b.each == netflow::kSampleBytes ? r.sockets : r.processes) += b.messages;
  r.slots = memory_.geometry().slots;
  r.ins_restarts = std::max(memory_.epoch(), 1u) - 1;
  if (!ins_) return r;
  r.ins = ins_->id();
  r.ins_pid = ins_->pid();
  if (ins_->alive_ms() != 0) r.heartbeat = static_cast<uint32_t>(now - ins_->alive_ms());
  r.telemetry_dropped = ins_->dropped();
  if (const auto use = sampling_.use_of_ins(ins_->pid())) {
    r.ins_rss_bytes = use->rss_bytes;
    r.ins_cpu_us = use->cpu_us;
    r.ins_fds = use->fds;
  }
  return r;
}

int NetflowService::timeout_ms(int64_t now) const {
  int64_t next = INT64_MAX;
  if (!deferred_.empty()) next = now + kRetryMs;
  if (ins_ && reading_) next = std::min(next, next_drain_ms_);
  if (ins_) next = std::min(next, rules_.next_due_ms().value_or(INT64_MAX));
  if (round_since_ms_ != 0)
    next = std::min(next, round_since_ms_ + kRoundPatienceMs);
  else if (const auto due = server_->round_due_ms())
    next = std::min(next, *due);
  if (next == INT64_MAX) return -1;
  return static_cast<int>(std::clamp<int64_t>(next - now, 0, INT32_MAX));
}

void NetflowService::on_notes() {
  uint64_t count = 0;
  (void)!::read(notes_bell_.get(), &count, sizeof count);
  std::vector<Note> notes;
  {
    const std::lock_guard hold(lock_);
    notes.swap(notes_);
  }
  for (Note& note : notes) {
    switch (note.kind) {
      case Note::Kind::ins_up:
        adopt_ins(std::move(note.ins));
        break;
      case Note::Kind::ins_gone:
        end_ins();
        break;
    }
  }
}

void NetflowService::adopt_ins(std::unique_ptr<InsTelemetry> ins) {
  end_ins();
  ins_ = std::move(ins);
  if (!watch(ins_->bell(), kTagTelemetry) || !watch(ins_->requests(), kTagReplies)) {
    drop_ins("its telemetry cannot be watched");
    return;
  }
  epoch_ = InsTelemetry::kFirstEpoch;
  last_epoch_ = std::max(last_epoch_, epoch_);
  epoch_since_ms_ = monotonic_ms();
  muted_ = false;
  reading_ = true;
  next_drain_ms_ = 0;
  if (round_since_ms_ != 0)
    ins_->want_round(row_round_);
  else
    last_row_round_ = row_round_;
  forget_predecessors_rules();
  renew_wishes();
  follow_engines();
}

// What it wrote before its end is told, or a connection that began just before would never have
// been.
void NetflowService::end_ins() {
  if (ins_ && epoch_ != 0) drain();
  if (ins_) drop_ins(nullptr);
}

// Its sockets are gone, or nothing that it says about them is believed any more.
void NetflowService::drop_ins(const char* why) {
  if (why != nullptr)
    log_line(kWho, "NetFlow: nothing more is taken from INS %u: %s", ins_->id(), why);
  const std::unique_ptr<InsTelemetry> gone = std::move(ins_);
  gone->fail_all(ECONNRESET);
  gone->flows().close_all(realtime_ns(), [this](const Seen& o) { put(o); });
  send_batch();
  if (exporter_) exporter_->end_all();
  reading_ = false;
  epoch_ = 0;
}

// Turns the INS's reports on and off as engines come, go and fall behind.
void NetflowService::follow_engines() {
  if (!ins_) return;
  const bool wanted = server_->engines() != 0 || exporter_ || rules_.about_sockets();
  if (wanted != (epoch_ != 0)) {
    if (wanted && ++last_epoch_ == 0) ++last_epoch_;
    epoch_ = wanted ? last_epoch_ : 0;
    epoch_since_ms_ = monotonic_ms();
    muted_ = false;
    ins_->flows().forget(epoch_);
    (void)ins_->newly_dropped();
    ins_->set_muted(false);
    // Before the INS may report, so that it finds a sleeper.
    reading_ = wanted && !ins_->prepare_sleep();
    ins_->set_epoch(epoch_);
  }
  if (epoch_ == 0) return;
  const bool mute = !exporter_ && !server_->anyone_keeps_up();
  if (mute == muted_) return;
  muted_ = mute;
  ins_->set_muted(mute);
}

void NetflowService::drain() {
  auto records = ins_->drain([this](const Seen& o) { put(o); });
  send_batch();
  if (!records) return drop_ins(records.error().where);
  if (const uint64_t lost = ins_->newly_dropped(); lost != 0) {
    server_->count_missed(lost);
    if (exporter_) exporter_->count_missed(lost);
  }
  next_drain_ms_ = monotonic_ms() + kDrainMs;
  if (*records == 0) reading_ = !ins_->prepare_sleep();
}

void NetflowService::put(Seen o) {
  if (o.kind == netflow::ObservationKind::close) on_closed(o);
  // Nobody would get it: it is not made.
  const bool extended = server_->anyone_wants(2);
  if (extended || exporter_) sampling_.add_holder(o);
  if (exporter_) exported_.push_back(o);
  bool full = exported_.size() == kObservationsPerBatch;
  if (extended) full |= append<netflow::kExtendedObservationBytes>(extended_batch_, o);
  // Version 1 knows calls only.
  if (o.kind != netflow::ObservationKind::none && server_->anyone_wants(1))
    full |= append<netflow::kObservationBytes>(batch_, o);
  if (full) send_batch();
}

void NetflowService::send_batch() {
  if (!exported_.empty()) exporter_->offer(exported_);
  exported_.clear();
  if (batch_ != nullptr) server_->broadcast(batch_);
  if (extended_batch_ != nullptr) server_->broadcast(extended_batch_);
  batch_.reset();
  extended_batch_.reset();
}

void NetflowService::retry_deferred() {
  const int64_t now = monotonic_ms();
  for (const Deferred& d : std::exchange(deferred_, {})) {
    const bool may_wait = now < d.until_ms;
    const bool list = d.asked.request.name == static_cast<uint16_t>(netflow::Feature::list);
    const bool done = list ? on_list(d.asked, may_wait) : on_socket_request(d.asked, may_wait);
    if (!done) deferred_.push_back(d);
  }
}

}  // namespace mw
