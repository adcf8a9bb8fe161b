#include "driver/driver.h"

#include <fcntl.h>
#include <sys/timerfd.h>

#include <csignal>
#include <cstring>

#include "base/log.h"
#include "base/name_files.h"
#include "base/pidfd.h"
#include "transport/local/namespace.h"

namespace mw {
namespace {

constexpr uint32_t kFeatures = kFeatureTelemetry | kFeatureNames | kFeatureFrontEnd;
constexpr int kRetryMs = 20;
constexpr int kRetries = 500;        // ten seconds from the last sign of life in its folder
constexpr int kGreetingTicks = 500;  // ten seconds for hello and replay
constexpr int kEndTicks = 50;        // a second for one that says that it ends
constexpr uint32_t kBypassReports = 100;
constexpr int kMessagesPerTurn = 64;

// What the store keeps about the INS that serves.
struct StoredIns {
  uint32_t id;
  uint32_t pid;
};

constexpr StoreKey kInsKey{StoreKind::ins, 0};

}  // namespace

Result<std::unique_ptr<Driver>> Driver::make(const DriverOptions& options) {
  auto poller = Poller::make();
  if (!poller) return poller.error();
  auto memory = SessionMemory::open(options.channel_fd, options.session_fd);
  if (!memory) return memory.error();
  if (options.bell_fds.size() != memory->geometry().workers)
    return Error{Fault::peer, 0, "the number of doorbells is not that of the workers"};
  auto registry = LocalRegistry::open(options.registry);
  if (!registry) return registry.error();
  std::unique_ptr<Driver> d{
      new Driver(options, std::move(*poller), std::move(*memory), std::move(*registry))};
  if (auto started = d->start(); !started) return started.error();
  return d;
}

Driver::Driver(const DriverOptions& options, Poller poller, SessionMemory memory,
               LocalRegistry registry)
    : options_(options),
      poller_(std::move(poller)),
      memory_(std::move(memory)),
      registry_(std::move(registry)),
      store_(options_.store_fds[0], options_.store_fds[1]),
      groups_(poller_, memory_, store_),
      listeners_(memory_.geometry().slots, store_),
      processes_(poller_, options_, memory_, groups_),
      privileged_(network_namespace_of(options_.attach_fd)),
      release_(memory_),
      front_end_(poller_, options_) {}

Status Driver::start() {
  retry_timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  if (!retry_timer_) return Error{Fault::sys, errno, "timerfd_create"};
  if (auto s = poller_.add(retry_timer_.get(), EPOLLIN, Source::retry_timer); !s) return s;
  if (auto s = poller_.add(registry_.event_fd(), EPOLLIN, Source::registry); !s) return s;
  if (auto s = registry_.watch("mw"); !s) return s;
  // A session without the folder has no front end that follows the files.
  if (auto s = registry_.watch(kNamesFolder); !s && s.error().fault != Fault::shutdown) return s;
  if (auto s = release_.open_timer(); !s) return s;
  if (auto s = poller_.add(release_.timer_fd(), EPOLLIN, Source::release_timer); !s) return s;
  if (auto s = restore(); !s) return s;
  processes_.on_violation = [this](const ProcessInfo& who, uint32_t epoch) {
    on_violation(who, epoch);
  };
  if (auto s = start_netflow(); !s) return s;
  processes_.on_process = [this](uint32_t pid, bool here) {
    if (netflow_) netflow_->process(pid, here);
  };
  processes_.on_option = [this](uint32_t id, const SocketOption& wanted, int proof) {
    const bool up = ins_ && ins_->phase() == InsLink::Phase::serving;
    const bool fits = wanted.slot < memory_.geometry().slots;
    const uint32_t refused = !up ? ENETDOWN : fits ? privileged_.ask(id, wanted, proof) : EBADF;
    if (refused != 0) processes_.answer_option(id, refused);
  };
  privileged_.on_ask = [this](const ControlOption& o) { send_to_ins(bytes_of(o), {}); };
  privileged_.on_answer = [this](uint32_t id, uint32_t status) {
    processes_.answer_option(id, status);
  };
  processes_.on_group_open = [this](uint32_t g) { tell_group(ControlType::group_open, g); };
  if (auto s = processes_.listen(); !s) return s;
  front_end_.on_successor = [this] { tell_front_end(); };
  if (auto s = front_end_.open(registry_); !s) return s;
  publish("id", options_.session);
  if (auto s = heartbeat_.open(registry_); !s) return s;
  if (auto s = poller_.add(heartbeat_.timer_fd(), EPOLLIN, Source::beat_timer); !s) return s;
  processes_.sweep_calls();
  look_for_ins();
  return Ok{};
}

// Picks up what an earlier driver of this session left.
Status Driver::restore() {
  const bool has_store = options_.store_fds[0] >= 0;
  auto found = store_.load();
  if (!found) return found.error();
  for (auto& [key, entry] : *found) {
    if (key.kind == StoreKind::group) groups_.restore(key.id, std::move(entry));
    if (key.kind == StoreKind::listener) listeners_.restore(key.id, std::move(entry));
    StoredIns ins{};
    if (key == kInsKey && entry.data.size() == sizeof ins && entry.fds.size() == 1) {
      std::memcpy(&ins, entry.data.data(), sizeof ins);
      survivor_ = ins.id;
      survivor_pid_ = ins.pid;
      survivor_death_ = std::move(entry.fds[0]);
    }
  }
  if (has_store) groups_.free_unknown();
  listeners_.drop_closed();
  if (survivor_ && !has_died(survivor_death_.get())) {
    return poller_.add(survivor_death_.get(), EPOLLIN, Source::ins_death, *survivor_);
  }
  // Died while no driver was there to see it; without a store whatever INS is there is taken for
  // the one that served, as it cannot be told.
  if (survivor_ || (has_store && memory_.state() == kSessionUp)) ins_is_gone();
  return Ok{};
}

Result<bool> Driver::run_once(int timeout_ms) {
  auto events = poller_.wait(timeout_ms);
  if (!events) return events.error();
  bool signalled = false;
  for (const Event& e : *events) {
    signalled = signalled || e.source == Source::signals;
    handle(e);
  }
  return signalled;
}

void Driver::handle(const Event& e) {
  switch (e.source) {
    case Source::signals:
      return;
    case Source::attach:
      return processes_.accept_new();
    case Source::placeholders:
      return processes_.accept_placeholders();
    case Source::placeholder:
      return processes_.on_placeholder(e.id);
    case Source::door_timer:
      return processes_.on_door_timer();
    case Source::process:
      release_.stir();
      return processes_.on_message(e.id, e.events);
    case Source::process_death:
      processes_.on_death(e.id);
      sweep_groups();
      return release_.stir();
    case Source::group:
      if (groups_.on_life_event(e.id, e.events)) tell_group(ControlType::group_close, e.id);
      return;
    case Source::registry:
      return on_registry();
    case Source::ins:
      return on_ins_events(e.id, e.events);
    case Source::ins_death:
      if ((ins_ && ins_->id() == e.id) || (survivor_ && *survivor_ == e.id)) ins_is_gone();
      return;
    case Source::retry_timer: {
      uint64_t expired = 0;
      (void)::read(retry_timer_.get(), &expired, sizeof expired);
      if (ins_ && ins_->phase() != InsLink::Phase::serving && --greeting_ticks_ == 0) {
        lose_ins("it did not answer in time");
        if (ins_ && ins_->ends_itself) kill_ins();
      }
      return look_for_ins();
    }
    case Source::beat_timer:
      return heartbeat_.on_time(!netflow_ || netflow_->has_turned());
    case Source::adopt:
      return front_end_.on_connect();
    case Source::front_end_death:
      return front_end_.on_death();
    case Source::adopter_death:
      return front_end_.on_adopter_end();
    case Source::adopt_timer:
      return front_end_.on_timer();
    case Source::release_timer:
      release_.on_timer();
      processes_.sweep_calls();
      sweep_groups();
      if (processes_.suspects()) release_.stir();
      return;
  }
}

// ---- finding an INS ----

void Driver::on_registry() {
  auto changes = registry_.changes();
  if (!changes) {
    log_line("mwcommsd", "cannot watch the registry: %s", changes.error().where);
    return;
  }
  // A sign of life in its folder: it may listen by now.
  for (const std::string& path : *changes) {
    if (path.empty()) tell_all_names();  // some changes were lost
    for (uint32_t k = 0; k < kNameFileCount; ++k)
      if (path == std::string(kNamesFolder) + "/" + kNameFiles[k]) tell_names(k);
    if (!path.starts_with("mw/")) continue;
    const auto id = parse_registry_number(path.substr(3, path.find('/', 3) - 3));
    const auto it = id ? candidates_.find(static_cast<uint32_t>(*id)) : candidates_.end();
    if (it != candidates_.end()) it->second.tries = 0;
  }
  look_for_ins();
}

void Driver::look_for_ins() {
  const bool waiting_for_death = ins_ && ins_->phase() == InsLink::Phase::lost;
  if (ins_)
    return arm_retry((!waiting_for_death || ins_->ends_itself) &&
                     ins_->phase() != InsLink::Phase::serving);
  auto ids = list_ins(registry_);
  if (!ids) {
    if (ids.error().fault != Fault::shutdown)
      log_line("mwcommsd", "cannot read the registry: %s", ids.error().where);
    return arm_retry(false);
  }
  std::erase_if(candidates_, [&](const auto& c) {
    return std::find(ids->begin(), ids->end(), c.first) == ids->end();
  });
  bool again = false;
  for (const uint32_t id : *ids) {
    if (survivor_ && id != *survivor_) continue;
    Candidate& c = candidates_[id];
    if (c.hopeless || c.tries > kRetries) continue;
    try_ins(id);
    if (ins_) return;
    again = again || (!c.hopeless && c.tries <= kRetries);
  }
  arm_retry(again);
  if (survivor_ && !again) {
    // It lives, but cannot be reached: nobody else gets the region before it is gone.
    log_line("mwcommsd", "INS %u does not answer any more: ending it", *survivor_);
    if (options_.kill_lost_ins) (void)signal_pidfd(survivor_death_.get(), SIGKILL);
  }
}

void Driver::try_ins(uint32_t id) {
  Candidate& c = candidates_[id];
  if (c.tries++ == 0) (void)registry_.watch(ins_path(id, ""));
  auto link = InsLink::connect(registry_, id, poller_);
  if (!link) {
    if (link.error().fault == Fault::would_block) return;
    c.hopeless = true;
    log_line("mwcommsd", "INS %u is of no use: %s (error %d)", id, link.error().where,
             link.error().err);
    return;
  }
  if (survivor_ && link->who().pid != survivor_pid_) {
    // Another one under the name of ours; ours is still alive and has the region.
    link->disconnect();
    c.hopeless = true;
    log_line("mwcommsd", "INS %u is not the process that it was: not used", id);
    return;
  }
  ins_.emplace(std::move(*link));
  greet(*ins_);
}

void Driver::greet(InsLink& ins) {
  // It gets the region with this message: whatever happens from here on, its death counts.
  const StoredIns stored{ins.id(), ins.who().pid};
  const int death[] = {ins.who().death.get()};
  if (death[0] >= 0) {
    if (auto put = store_.put(kInsKey, bytes_of(stored), death); !put)
      log_line("mwcommsd", "cannot remember the INS: %s", put.error().where);
  }
  ControlHello hello{};
  hello.type = ControlType::hello;
  hello.version = MW_PROTOCOL_VERSION;
  hello.version_min = MW_PROTOCOL_MIN;
  hello.features = kFeatures;
  hello.geometry = memory_.geometry();
  hello.first_gen = memory_.first_gen() != 0 ? memory_.first_gen() : memory_.next_first_gen();
  std::vector<int> fds{options_.channel_fd, options_.drop_ins_fd};
  fds.insert(fds.end(), options_.bell_fds.begin(), options_.bell_fds.end());
  greeting_ticks_ = kGreetingTicks;
  arm_retry(true);
  send_to_ins(bytes_of(hello), fds);
}

void Driver::arm_retry(bool on) {
  itimerspec t{};
  if (on) t.it_value.tv_nsec = t.it_interval.tv_nsec = kRetryMs * 1'000'000;
  (void)::timerfd_settime(retry_timer_.get(), 0, &t, nullptr);
}

// ---- talking to it ----

void Driver::send_to_ins(std::span<const std::byte> data, std::span<const int> fds) {
  if (!ins_ || ins_->phase() == InsLink::Phase::lost) return;
  if (auto sent = ins_->send(data, fds); !sent) lose_ins(sent.error().where);
}

void Driver::tell_group(ControlType type, uint32_t group) {
  // One that is only being greeted gets all groups before it starts.
  if (!ins_ || ins_->phase() != InsLink::Phase::serving) return;
  const ControlSlot s{type, group, 0, 0};
  if (type == ControlType::group_close) return send_to_ins(bytes_of(s), {});
  const int bell[] = {groups_.all().at(group).bell.get()};
  send_to_ins(bytes_of(s), bell);
}

// The INS reads the file itself: what stands there is for its sandbox.
void Driver::tell_names(uint32_t file) {
  if (!ins_ || ins_->phase() != InsLink::Phase::serving || (ins_->features & kFeatureNames) == 0)
    return;
  auto folder = registry_.open_folder(kNamesFolder);
  if (!folder) return;
  const UniqueFd text{::openat(folder->get(), kNameFiles[file],
                               O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!text) return;
  const ControlSlot message{ControlType::names, file, 0, 0};
  const int fds[] = {text.get()};
  send_to_ins(bytes_of(message), fds);
}

void Driver::tell_all_names() {
  for (uint32_t k = 0; k < kNameFileCount; ++k) tell_names(k);
}

// It ends by itself once both of us are dead.
void Driver::tell_front_end() {
  if (!ins_ || ins_->phase() != InsLink::Phase::serving ||
      (ins_->features & kFeatureFrontEnd) == 0 || front_end_.pidfd() < 0)
    return;
  const ControlSlot message{ControlType::front_end, 0, 0, 0};
  const int fds[] = {front_end_.pidfd()};
  send_to_ins(bytes_of(message), fds);
}

void Driver::sweep_groups() {
  for (const uint32_t group : groups_.sweep()) tell_group(ControlType::group_close, group);
}

void Driver::on_ins_events(uint32_t id, uint32_t events) {
  if (!ins_ || ins_->id() != id || ins_->phase() == InsLink::Phase::lost) return;
  if ((events & EPOLLOUT) != 0) {
    if (auto flushed = ins_->flush(); !flushed) return lose_ins(flushed.error().where);
  }
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    alignas(ControlListener) std::byte room[sizeof(ControlListener)];
    auto m = receive_message(ins_->control(), room, MSG_DONTWAIT);
    if (!m) {
      if (m.error().fault == Fault::would_block) return;
      return lose_ins(m.error().where);
    }
    if (!on_ins_message(*ins_, {room, m->bytes}, *m))
      return lose_ins("it sent a message that does not fit");
    if (!ins_ || ins_->phase() == InsLink::Phase::lost) return;
  }
}

bool Driver::on_ins_message(InsLink& ins, std::span<const std::byte> data, ReceivedMessage& m) {
  ControlType type{};
  if (data.size() < sizeof type) return false;
  std::memcpy(&type, data.data(), sizeof type);
  if (type == ControlType::hello_ack) return m.fd_count == 0 && on_hello_ack(ins, data);
  if (ins.phase() == InsLink::Phase::greeting) return false;
  if (type == ControlType::listener_up) return on_listener_up(data, m);
  release_.stir();
  if (type == ControlType::lent) return on_lent(data, m);
  ControlSlot s{};
  if (data.size() != sizeof s || m.fd_count != 0) return false;
  std::memcpy(&s, data.data(), sizeof s);
  return s.slot < memory_.geometry().slots && on_slot_message(ins, s);
}

bool Driver::on_lent(std::span<const std::byte> data, ReceivedMessage& m) {
  ControlOption o{};
  if (data.size() != sizeof o || m.fd_count > 1) return false;
  std::memcpy(&o, data.data(), sizeof o);
  if (!privileged_.on_lent(o, m.fd_count == 1 ? std::move(m.fds[0]) : UniqueFd{})) return false;
  if (ins_) serve_if_ready(*ins_);
  return true;
}

bool Driver::on_slot_message(InsLink& ins, const ControlSlot& s) {
  switch (s.type) {
    case ControlType::listener_down:
      listeners_.drop(s.slot, s.gen);
      privileged_.on_listener_down(s.slot);
      if (ins.awaiting_replay.erase(s.slot) == 1) serve_if_ready(ins);
      return true;
    case ControlType::replayed:
      if (ins.phase() != InsLink::Phase::replaying || ins.awaiting_replay.erase(s.slot) == 0)
        return false;
      if (s.status != 0)
        log_line("mwcommsd", "INS %u cannot listen for socket %u again: error %u; it stays silent",
                 ins.id(), s.slot, s.status);
      else
        privileged_.on_replayed(s.slot, s.gen);
      serve_if_ready(ins);
      return true;
    case ControlType::bypass:
      report_bypass(s);
      return true;
    case ControlType::poisoned:
      ins.ends_itself = true;
      log_line("mwcommsd", "%s ends itself: the application broke the protocol",
               ins.name().c_str());
      return true;
    default:
      return false;
  }
}

bool Driver::on_hello_ack(InsLink& ins, std::span<const std::byte> data) {
  ControlHello ack{};
  if (ins.phase() != InsLink::Phase::greeting || data.size() != sizeof ack) return false;
  std::memcpy(&ack, data.data(), sizeof ack);
  if (ack.status != 0) {
    log_line("mwcommsd", "INS %u does not agree: error %u, it speaks up to version %u", ins.id(),
             ack.status, ack.version);
    return false;
  }
  if (ack.version < MW_PROTOCOL_MIN || ack.version > MW_PROTOCOL_VERSION ||
      (ack.features & ~kFeatures) != 0)
    return false;
  ins.set_phase(InsLink::Phase::replaying);
  ins.features = ack.features;
  if (survivor_ || memory_.state() == kSessionUp) {
    // It goes on where it was, has its listeners, and announces them by itself.
    start_serving(ins);
    return true;
  }
  listeners_.drop_closed();
  for (const auto& [slot, listener] : listeners_.all()) ins.awaiting_replay.insert(slot);
  for (const auto& [slot, listener] : listeners_.all()) {
    ControlListener record = listener.record;
    record.type = ControlType::replay;
    const int end[] = {listener.end.get()};
    send_to_ins(bytes_of(record), end);
    if (ins.phase() == InsLink::Phase::lost) return true;
  }
  serve_if_ready(ins);
  return true;
}

bool Driver::on_listener_up(std::span<const std::byte> data, ReceivedMessage& m) {
  ControlListener record{};
  if (data.size() != sizeof record || m.fd_count != 1) return false;
  std::memcpy(&record, data.data(), sizeof record);
  return static_cast<bool>(listeners_.put(record, std::move(m.fds[0])));
}

// All listeners are there again, as they were.
void Driver::serve_if_ready(InsLink& ins) {
  if (ins.phase() == InsLink::Phase::replaying && ins.awaiting_replay.empty() &&
      !privileged_.waits_for_ins())
    start_serving(ins);
}

void Driver::start_serving(InsLink& ins) {
  ins.set_phase(InsLink::Phase::serving);
  for (const auto& [id, group] : groups_.all()) tell_group(ControlType::group_open, id);
  start_telemetry(ins);
  tell_all_names();  // they may have changed since it read them, or while there was no driver
  tell_front_end();
  if (ins.phase() != InsLink::Phase::serving) return;
  const bool again = memory_.state() == kSessionUp;
  if (!again) memory_.ins_begins(memory_.first_gen() != 0 ? memory_.first_gen() : 1);
  const ControlSlot go{ControlType::start, 0, 0, 0};
  send_to_ins(bytes_of(go), {});
  if (ins.phase() != InsLink::Phase::serving) return;
  if (!again) memory_.ins_up();
  if (survivor_) {
    poller_.remove(survivor_death_.get());
    survivor_death_.reset();
    survivor_.reset();
  }
  for (const auto& [id, c] : candidates_) registry_.unwatch(ins_path(id, ""));
  candidates_.clear();
  bypass_reports_ = 0;
  arm_retry(false);
  publish("state", "up");
  if (again) log_line("mwcommsd", "found %s again", ins.name().c_str());
  if (!said_ready_) {
    said_ready_ = true;
    if (::write(options_.ready_fd, "\n", 1) < 0)
      log_line("mwcommsd", "nobody waits for readiness: error %d", errno);
    ::close(options_.ready_fd);
  }
}

Status Driver::start_netflow() {
  netflow::ServerOptions o = options_.netflow;
  if (o.address.empty() && o.unix_path.empty() && !options_.exports.any()) return Ok{};
  auto service = NetflowService::start(o, options_.exports, memory_, options_.session_fd,
                                       options_.bell_fds, options_.blocks_keeper);
  if (!service) return service.error();
  netflow_ = std::move(*service);
  publish("netflow", netflow_->address());
  if (!netflow_->prometheus_address().empty())
    publish("prometheus", netflow_->prometheus_address());
  return Ok{};
}

void Driver::start_telemetry(InsLink& ins) {
  if (!netflow_ || (ins.features & kFeatureTelemetry) == 0) return;
  auto ends = netflow_->ins_up(ins.id(), ins.who().pid);
  if (!ends) {
    log_line("mwcommsd", "%s will not be monitored: %s (error %d)", ins.name().c_str(),
             ends.error().where, ends.error().err);
    return;
  }
  const ControlSlot message{ControlType::telemetry, 0, 0, 0};
  const int fds[] = {ends->memory.get(), ends->bell.get(), ends->requests.get()};
  send_to_ins(bytes_of(message), fds);
}

void Driver::report_bypass(const ControlSlot& s) {
  if (++bypass_reports_ > kBypassReports) return;
  log_line(
      "mwcommsd",
      "bypass: bytes that did not come through the channel, on socket %u; a raw system call or "
      "io_uring in one of: %s%s",
      s.slot, processes_.names().c_str(),
      bypass_reports_ == kBypassReports ? "; further reports are not shown" : "");
}

// ---- its end ----

void Driver::lose_ins(const char* why) {
  if (!ins_ || ins_->phase() == InsLink::Phase::lost) return;
  log_line("mwcommsd", "lost %s: %s", ins_->name().c_str(), why);
  if (ins_->phase() != InsLink::Phase::serving) candidates_[ins_->id()].hopeless = true;
  ins_->disconnect();
  const int death = ins_->who().death.get();
  if (death < 0 || has_died(death) || !options_.kill_lost_ins) return ins_is_gone();
  // ins_is_gone() follows when it is dead.
  if (!ins_->ends_itself) return kill_ins();
  greeting_ticks_ = kEndTicks;  // its exit status tells the front end why
  arm_retry(true);
}

void Driver::kill_ins() {
  const int death = ins_->who().death.get();
  if (!signal_pidfd(death, SIGKILL) && errno != ESRCH)
    log_line("mwcommsd", "cannot end %s: error %d; waiting for its end", ins_->name().c_str(),
             errno);
}

// The application's word is enough: an INS is replaced for much less. One that is hostile itself
// gains nothing but new INSs for its own session, no faster than the front end starts them.
void Driver::on_violation(const ProcessInfo& who, uint32_t epoch) {
  if (!ins_ || ins_->phase() != InsLink::Phase::serving || epoch != memory_.epoch()) return;
  lose_ins(("it broke the protocol, says " + describe(who)).c_str());
}

void Driver::end_session() {
  over_ = true;
  if (ins_) return;
  memory_.session_over();
  publish("state", "over");
}

void Driver::ins_is_gone() {
  if (ins_) {
    if (ins_->phase() != InsLink::Phase::lost)
      log_line("mwcommsd", "lost %s: it died", ins_->name().c_str());
    candidates_[ins_->id()].hopeless = true;
    ins_->disconnect();
    if (ins_->who().death) poller_.remove(ins_->who().death.get());
    ins_.reset();
  }
  if (survivor_) {
    candidates_[*survivor_].hopeless = true;
    if (survivor_death_) poller_.remove(survivor_death_.get());
    survivor_death_.reset();
    survivor_.reset();
  }
  memory_.ins_lost([this] { groups_.ring_all(); });
  privileged_.ins_gone();
  if (netflow_) netflow_->ins_gone();
  if (auto dropped = store_.drop(kInsKey); !dropped)
    log_line("mwcommsd", "cannot forget the INS: %s", dropped.error().where);
  processes_.sweep_calls();
  publish("state", "down");
  if (over_) return end_session();
  look_for_ins();
}

void Driver::publish(const char* name, const std::string& value) {
  auto written = registry_.write(std::string("mw/pvm/") + name, value);
  if (written || registry_complained_) return;
  registry_complained_ = true;  // what stands there is for people; nothing depends on it
  log_line("mwcommsd", "cannot write to the registry: %s (error %d)", written.error().where,
           written.error().err);
}

}  // namespace mw
