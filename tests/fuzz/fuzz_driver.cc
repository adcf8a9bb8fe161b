// fuzz_driver.cc - the driver against an INS and processes that send anything, with regions that
// anybody writes to. The input is a list of steps.
//
// Linked twice (kernel.h): fuzz_driver, where no system call leaves the process, and
// fuzz_driver_fds, over the real sockets.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "driver/driver.h"
#include "driver/ins_telemetry.h"
#include "driver/sampling.h"
#include "fuzz_input.h"
#include "kernel.h"
#include "tests/support/driver_session.h"
#include "transport/local/mapping.h"
#include "transport/local/privileged.h"
#include "transport/local/session_fds.h"

namespace mw::fuzz {
namespace {

constexpr mw_geometry kGeometry{.slots = 16,
                                .rx_ring = 4096,
                                .tx_ring = 4096,
                                .groups = 3,
                                .workers = 2,
                                .calls = 9,
                                .reserved = {0, 0}};
constexpr int kSteps = 48;
constexpr uint32_t kShims = 4;
// Processes of kernel.h: the shims are the first ones.
constexpr uint32_t kInsPeer = 4;

// Calls of this scope are a peer's.
class As {
 public:
  explicit As(uint32_t peer) { kernel::act_as_peer(peer); }
  ~As() { kernel::act_as_driver(); }
  As(const As&) = delete;
  As& operator=(const As&) = delete;
};

// One driver with everything around it, for one input.
class World {
 public:
  World() : folder_(kernel::folder()) {
    auto registry = LocalRegistry::create(folder_ + "/r");
    require(static_cast<bool>(registry));
    registry_ = std::make_unique<LocalRegistry>(std::move(*registry));
    auto fds = make_session_fds("fuzz" + std::to_string(::getpid()), kGeometry);
    require(static_cast<bool>(fds));
    fds_ = std::move(*fds);
    auto memory = SessionMemory::open(fds_.channel.get(), fds_.session.get());
    require(static_cast<bool>(memory));
    memory_ = std::make_unique<SessionMemory>(std::move(*memory));
    require(memory_->channel().layout().rings <= kernel::kClearedBytes &&
            session_layout_of(kGeometry).bytes <= kernel::kClearedBytes);
    start();
  }

  void run(Input& in) {
    for (int steps = 0; steps < kSteps && !in.empty(); ++steps) step(in);
    kernel::limit_descriptors(0);
    settle();
    settle();
    require(driver_->attached() <= Processes::kMaxPerUser);
    if (telemetry_) end_telemetry();
  }

 private:
  void start() {
    driver_.reset();
    DriverOptions o = options_for(fds_);
    o.token = {};  // as in a request that does not say another one
    o.registry = folder_ + "/r";
    o.session = "fuzz";
    o.ready_fd = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    o.store_fds[0] = fds_.store_in.get();
    o.store_fds[1] = fds_.store_out.get();
    o.kill_lost_ins = kernel::peers_can_be_ended();
    auto d = Driver::make(o);
    require(static_cast<bool>(d));
    driver_ = std::move(*d);
  }
  void settle() {
    for (int i = 0; i < 2; ++i) require(static_cast<bool>(driver_->run_once(0)));
  }

  void step(Input& in) {
    switch (in.number<uint8_t>() % 24) {
      case 0:
        return new_ins(in);
      case 1:
        return greet(in);
      case 2:
        return send_raw(ins_, in);
      case 3:
        return send_listener(in);
      case 4:
        return send_slot_message(in);
      case 5:
        return attach(in);
      case 6:
        return send_raw(shim(in), in);
      case 7:
        return open_group(in);
      case 8:
        return scribble(in);
      case 9:
        return end_something(in);
      case 10:
        return send_placeholder(in);
      case 11:
        return ask_for_option(in);
      case 12:
        return lend(in);
      case 13:
        return show_instance(in);
      case 14:
        return fill_call(in);
      case 15:
        return watch(in);
      case 16:
        return end_process(in);
      case 17:
        kernel::pass_ms(in.number<uint16_t>());
        return settle();
      case 18:
        kernel::limit_descriptors(in.below(8));
        return settle();
      case 19:
        return write_record(in);
      case 20:
        return write_row(in);
      case 21:
        return reply(in);
      case 22:
        return introduce(in);
      default:
        return read_answers(in);
    }
  }

  UniqueFd& shim(Input& in) { return shims_[in.below(kShims)]; }

  // ---- the INS ----

  void new_ins(Input& in) {
    const uint32_t id = 1 + in.below(3);
    const As ins(kInsPeer);
    if (!registry_->write(ins_path(id, "ins_dom_id"), "x")) return;
    auto folder = registry_->open_folder(ins_path(id, ""));
    if (!folder) return;
    const int type = in.below(8) == 0 ? SOCK_STREAM : SOCK_SEQPACKET;
    UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    const std::string path = "/proc/self/fd/" + std::to_string(folder->get()) + "/channel";
    std::memcpy(a.sun_path, path.c_str(), path.size() + 1);
    (void)::unlink(path.c_str());
    if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) < 0) return;
    if (::listen(fd.get(), 4) < 0) return;
    (void)registry_->write(ins_path(id, "heartbeat"), "1");
    listener_ = std::move(fd);
    kernel::act_as_driver();
    settle();
    ins_ = UniqueFd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  }
  void greet(Input& in) {
    ControlHello hello{};
    if (!receive_message(ins_.get(), writable_bytes_of(hello), MSG_DONTWAIT)) return;
    hello.type = ControlType::hello_ack;
    if (in.below(8) == 0) in.take(writable_bytes_of(hello));
    (void)send_message(ins_.get(), bytes_of(hello), {}, MSG_DONTWAIT);
    settle();
  }
  // Up to three descriptors of kinds that a peer might try, or more than a message may have.
  std::vector<UniqueFd> some_fds(Input& in) {
    std::vector<UniqueFd> fds;
    uint32_t count = in.below(16);
    count = count == 15 ? kMaxMessageFds : count % 4;
    for (; count > 0; --count) {
      int pair[2] = {-1, -1};
      switch (in.below(5)) {
        case 0:
          fds.emplace_back(::eventfd(0, EFD_CLOEXEC));
          continue;
        case 1:
          fds.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
          continue;
        case 2:
          (void)!::pipe2(pair, O_CLOEXEC);
          break;
        case 3:
          (void)!::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
          break;
        default:
          (void)!::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
          break;
      }
      kept_.emplace_back(pair[0]);
      fds.emplace_back(pair[1]);
    }
    return fds;
  }
  void send(const UniqueFd& to, std::span<const std::byte> data, const std::vector<UniqueFd>& fds) {
    std::array<int, kMaxMessageFds> raw{};
    size_t n = 0;
    for (const UniqueFd& fd : fds) raw[n++] = fd.get();
    if (to) (void)send_message(to.get(), data, {raw.data(), n}, MSG_DONTWAIT);
    settle();
  }
  void send_raw(const UniqueFd& to, Input& in) {
    static std::byte data[2048];
    const std::span<std::byte> piece{data, in.below(sizeof data)};
    in.take(piece);
    send(to, piece, some_fds(in));
  }
  void send_listener(Input& in) {
    ControlListener l{};
    l.type = ControlType::listener_up;
    l.slot = in.below(kGeometry.slots + 2);
    l.gen = in.number<uint8_t>();
    l.domain = in.below(4) == 0 ? in.number<int32_t>() : AF_INET;
    l.socket_type = in.below(8) == 0 ? in.number<int32_t>() : SOCK_STREAM;
    l.protocol = in.below(8) == 0 ? in.number<int32_t>() : 0;
    l.option_count = in.below(4) == 0 ? in.below(kMaxReplayOptions + 2) : in.below(3);
    const auto family = static_cast<sa_family_t>(l.domain);
    std::memcpy(l.local.bytes, &family, sizeof family);
    l.local.len = in.below(4) == 0 ? in.below(sizeof l.local.bytes + 2) : 16;
    for (uint32_t i = 0; i < std::min(l.option_count, 2u); ++i) {
      l.options[i] = {SOL_SOCKET, SO_REUSEADDR, 4, {}};
      if (in.below(4) == 0) l.options[i].name = in.number<int8_t>();
      if (in.below(4) == 0) l.options[i].len = in.below(sizeof(ReplayOption::value) + 2);
    }
    if (in.below(4) == 0) return send(ins_, bytes_of(l), some_fds(in));
    int pair[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return;
    kept_.emplace_back(pair[0]);
    std::vector<UniqueFd> fds;
    fds.emplace_back(pair[1]);
    send(ins_, bytes_of(l), fds);
  }
  void send_slot_message(Input& in) {
    const ControlSlot s{ControlType{in.below(19)}, in.below(kGeometry.slots + 2),
                        in.number<uint8_t>(), in.number<uint8_t>()};
    send(ins_, bytes_of(s), {});
  }
  void lend(Input& in) {
    const ControlOption o{ControlType::lent, in.below(kGeometry.slots), in.below(4), SOL_SOCKET,
                          option_of(in),     in.below(3) == 0 ? 1u : 0};
    std::vector<UniqueFd> fds;
    if (in.below(4) != 0)
      fds.emplace_back(
          ::socket(in.below(4) == 0 ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    send(ins_, bytes_of(o), fds);
  }

  // ---- the application's processes ----

  // Connects a peer's process to a socket of the session.
  UniqueFd connect_to(const std::string& name, int type, uint32_t peer) {
    const As process(peer);
    UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::memcpy(a.sun_path + 1, name.data(), name.size());
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&a), size) < 0) fd.reset();
    return fd;
  }
  void attach(Input& in) {
    const uint32_t i = in.below(kShims);
    if (in.below(8) == 0) {
      char name[15];
      in.take(std::as_writable_bytes(std::span(name)));
      kernel::name_peer(i, name, sizeof name);
    }
    UniqueFd fd = connect_to(fds_.attach_name, SOCK_SEQPACKET, i);
    if (!fd) return;
    if (in.below(8) == 0) {  // one that says nothing
      kept_.push_back(std::move(fd));
      return settle();
    }
    shims_[i] = std::move(fd);
    AttachRequest r{AttachType::attach, in.number<uint8_t>(), {}, 0, {}};
    if (in.below(4) == 0) in.take(std::as_writable_bytes(std::span(r.token)));
    if (in.below(4) == 3) {
      r.type = AttachType::violation;
      r.epoch = in.number<uint8_t>();
    }
    send(shims_[i], bytes_of(r), {});
  }
  void open_group(Input& in) {
    const AttachRequest r{AttachType::group_open, MW_PROTOCOL_VERSION, {}, 0, {}};
    UniqueFd& to = shim(in);
    if (in.below(4) == 0) return send(to, bytes_of(r), some_fds(in));
    int pipe[2];
    if (::pipe2(pipe, O_CLOEXEC) < 0) return;
    kept_.emplace_back(pipe[0]);
    std::vector<UniqueFd> fds;
    fds.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    fds.emplace_back(pipe[1]);
    auto memory = make_sealed_memfd("t", 4096);
    if (memory) fds.push_back(std::move(*memory));
    send(to, bytes_of(r), fds);
  }
  // An epoll instance with the doorbell of a group in it, or something else.
  void show_instance(Input& in) {
    AttachRequest r{AttachType::group_find, MW_PROTOCOL_VERSION, {}, 0, {}};
    if (in.below(2) == 0) r.type = AttachType::group_keep;
    UniqueFd& to = shim(in);
    if (in.below(4) == 0) return send(to, bytes_of(r), some_fds(in));
    UniqueFd instance{::epoll_create1(EPOLL_CLOEXEC)};
    UniqueFd bell{::eventfd(0, EFD_CLOEXEC)};
    const uint32_t group = in.below(kGeometry.groups + 1);
    for (uint32_t n = 1 + in.below(2); n > 0; --n) {
      epoll_event e{};
      e.data.u64 = in.below(4) == 0
                       ? in.number<uint64_t>()
                       : bell_data(group, memory_->group_serial(group % kGeometry.groups));
      (void)::epoll_ctl(instance.get(), EPOLL_CTL_ADD, bell.get(), &e);
      kept_.push_back(std::move(bell));
      bell = UniqueFd{::eventfd(0, EFD_CLOEXEC)};
    }
    std::vector<UniqueFd> fds;
    fds.emplace_back(::fcntl(instance.get(), F_DUPFD_CLOEXEC, 3));
    if (in.below(2) == 0) kept_.push_back(std::move(instance));
    send(to, bytes_of(r), fds);
  }
  static int option_of(Input& in) {
    static constexpr int kOptions[] = {SO_MARK,        SO_PRIORITY,     SO_RCVBUFFORCE,
                                       SO_SNDBUFFORCE, SO_BINDTODEVICE, SO_REUSEADDR};
    return kOptions[in.below(std::size(kOptions))];
  }
  void ask_for_option(Input& in) {
    AttachRequest r{AttachType::option, MW_PROTOCOL_VERSION, {}, 0, {}};
    const int name = option_of(in);
    r.option = {in.below(kGeometry.slots + 1), in.below(4), {SOL_SOCKET, name, 4, {}}};
    if (in.below(8) == 0) r.option.option.len = in.number<uint32_t>();
    if (in.below(8) == 0) r.option.option.level = IPPROTO_TCP;
    UniqueFd& to = shim(in);
    if (in.below(8) == 0) return send(to, bytes_of(r), some_fds(in));
    // No socket is raw here: the real kernel would want a right for it.
    const int type = type_of_proof(SOL_SOCKET, name) == SOCK_DGRAM ? SOCK_DGRAM : SOCK_STREAM;
    std::vector<UniqueFd> fds;
    fds.emplace_back(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
    send(to, bytes_of(r), fds);
  }
  void send_placeholder(Input& in) {
    const uint32_t i = in.below(kShims);
    UniqueFd fd = connect_to(fds_.attach_name + kPlaceholderSuffix, SOCK_STREAM, i);
    if (!fd) return;
    PlaceholderRequest r{MW_PROTOCOL_VERSION, {}, {MW_DROP_MAGIC, in.below(10), in.below(8)}};
    if (in.below(4) == 0) in.take(writable_bytes_of(r));
    if (in.below(8) != 0)
      (void)send_message(fd.get(),
                         bytes_of(r).first(in.below(8) == 0 ? in.below(sizeof r) : sizeof r), {},
                         MSG_DONTWAIT);
    if (in.below(2) == 0) kept_.push_back(std::move(fd));
    settle();
  }
  void introduce(Input& in) {
    AttachRequest r{AttachType::introduce, MW_PROTOCOL_VERSION, {}, 0, {}};
    UniqueFd& to = shim(in);
    if (in.below(4) == 0) return send(to, bytes_of(r), some_fds(in));
    int pair[2] = {-1, -1};
    {
      const As process(in.below(kShims));
      if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) return;
    }
    std::vector<UniqueFd> fds;
    fds.emplace_back(pair[1]);
    UniqueFd other{pair[0]};
    send(to, bytes_of(r), fds);
    shim(in) = std::move(other);
  }
  // A peer that reads, so that what waits for it is sent.
  void read_answers(Input& in) {
    static std::byte room[2048];
    const UniqueFd& from = in.below(2) == 0 ? ins_ : shim(in);
    for (uint32_t n = 1 + in.below(40); n > 0 && from; --n)
      if (!receive_message(from.get(), room, MSG_DONTWAIT)) break;
    settle();
  }

  // ---- memory that both write to ----

  void fill_call(Input& in) {
    const uint32_t i = in.below(kGeometry.calls);
    mw_call& call = memory_->channel().call(i);
    static constexpr uint32_t kOps[] = {MW_OP_SOCKET, MW_OP_RESOLVE, MW_OP_SENDMSG, MW_OP_CLOSED};
    call.op = in.below(4) == 0 ? in.number<uint32_t>() : kOps[in.below(4)];
    call.slot = in.below(kGeometry.slots + 1);
    call.seq = in.below(4);
    call.done_seq = in.below(4);
    memory_->session().call(i) = {
        in.below(4) == 0 ? in.number<uint16_t>() : kernel::pid_of(in.below(kernel::kPeers)),
        in.below(4)};
  }
  void watch(Input& in) {
    const uint32_t slot = in.below(kGeometry.slots);
    SessionWatches watches = memory_->session().watches(slot);
    memory_->session().slot(slot).watch_end = in.number<uint8_t>();
    memory_->session().slot(slot).gen = 1 + in.below(4);
    watches[in.below(MW_MAX_WATCHES)].group = in.below(kGeometry.groups + 2);
    mw_slot& s = memory_->channel().slot(slot);
    s.watches[in.below(MW_MAX_WATCHES / 4)] = in.number<uint64_t>();
    s.gen = in.number<uint32_t>();
    s.tx_head = memory_->session().slot(slot).tx_tail + in.below(2);
  }
  void scribble(Input& in) {
    const bool session = in.below(2) == 0;
    std::byte* base = session ? memory_->session().base() : memory_->channel().base();
    // Where it matters: headers, sets, cells and slots lie in front of the rings.
    const uint64_t end =
        session ? session_layout_of(kGeometry).bytes : memory_->channel().layout().rings;
    const uint64_t at = in.number<uint32_t>() % end;
    const uint64_t n = std::min<uint64_t>(in.below(256), end - at);
    in.take({base + at, static_cast<size_t>(n)});
    PageRelease release(*memory_);
    release.turn();
    release.turn();
  }

  // ---- telemetry, as the driver's other thread uses it ----

  void begin_telemetry() {
    const std::vector<int> bells{fds_.bells[0].get(), fds_.bells[1].get()};
    auto ends = InsTelemetry::make(1, kernel::pid_of(kInsPeer), kGeometry, bells, UniqueFd{});
    if (!ends) return;
    auto map = map_sealed(ends->theirs.memory.get());
    if (!map) return;
    telemetry_ = std::move(ends->ours);
    requests_ = std::move(ends->theirs.requests);
    telemetry_map_ = std::move(*map);
    for (uint32_t w = 0; w < kGeometry.workers; ++w) {
      kernel::wrote(&ring(w), sizeof ring(w));
      tails_[w] = MW_TELEMETRY_START;
    }
    kernel::wrote(&row(0), sizeof(mw_sample_row) * kGeometry.slots);
    sampling_ = std::make_unique<Sampling>(*memory_, [](uint32_t pid) { return pid % 2 == 0; });
    telemetry_->want_round(1);
  }
  void end_telemetry() {
    telemetry_->fail_all(ECONNRESET);
    telemetry_->flows().close_all(1, [](const Seen&) {});
    require(telemetry_->flows().size() == 0);
    require(open_questions_ == 0);
    telemetry_.reset();
    requests_.reset();
    telemetry_map_ = Mapping{};
  }
  // False: there is none, for want of descriptors.
  bool have_telemetry() {
    if (!telemetry_) begin_telemetry();
    return telemetry_ != nullptr;
  }
  mw_telemetry_header& ring(uint32_t w) {
    return *reinterpret_cast<mw_telemetry_header*>(telemetry_map_.base() + MW_TELEMETRY_STRIDE * w);
  }
  mw_sample_row& row(uint32_t slot) {
    return reinterpret_cast<mw_sample_row*>(telemetry_map_.base() +
                                            MW_TELEMETRY_STRIDE * kGeometry.workers)[slot];
  }
  void write_record(Input& in) {
    if (!have_telemetry()) return;
    const uint32_t w = in.below(kGeometry.workers);
    for (uint32_t n = in.below(4); n > 0; --n) {
      auto* records =
          reinterpret_cast<mw_telemetry_record*>(reinterpret_cast<std::byte*>(&ring(w)) + MW_PAGE);
      mw_telemetry_record& r = records[tails_[w]++ % MW_TELEMETRY_RECORDS];
      kernel::wrote(&r, sizeof r);
      in.take(writable_bytes_of(r));
      // Small numbers, so that records are about each other.
      r.kind %= 20;
      r.slot %= kGeometry.slots + 1;
      r.gen %= 16;
      r.extra %= 16;
      if (r.kind == MW_TEL_WHO && in.below(8) != 0)
        r.u.who.local.family = r.u.who.remote.family = AF_INET;
    }
    ring(w).tail = in.below(16) == 0 ? in.number<uint32_t>() : tails_[w];
    ring(w).dropped = in.number<uint8_t>();
    auto read = telemetry_->drain([this](Seen& o) {
      std::array<uint8_t, netflow::kObservationBytes> bytes;
      encode(static_cast<const netflow::Observation&>(o), bytes);
      require(static_cast<bool>(netflow::decode_observation(bytes)));
      sampling_->add_holder(o);
    });
    require(telemetry_->flows().size() <= kGeometry.slots);
    (void)telemetry_->newly_dropped();
    // The driver takes nothing more from an INS that lies.
    if (!read) return end_telemetry();
    (void)telemetry_->prepare_sleep();
  }
  void write_row(Input& in) {
    if (!have_telemetry()) return;
    mw_sample_row& r = row(in.below(kGeometry.slots));
    in.take(writable_bytes_of(r));
    r.round = in.below(4);
    r.gen %= 16;
    if (in.below(8) != 0) r.seq &= ~1u;
    ring(in.below(kGeometry.workers)).rows_end =
        in.below(4) == 0 ? in.number<uint32_t>() : kGeometry.slots;
    for (uint32_t w = 0; w < kGeometry.workers; ++w) ring(w).round_done = in.below(3);
    SessionSlot& mine = memory_->session().slot(in.below(kGeometry.slots));
    mine.gen = in.below(16);
    mine.waiter = kernel::pid_of(in.below(kernel::kPeers));
    mine.waits = in.number<uint64_t>();
    (void)telemetry_->round_done(1, 1);
    const netflow::SampledBatches batches = sampling_->collect(telemetry_.get(), 1, in.below(4));
    for (const netflow::Batch& b : batches) require(b.bytes.size() == b.messages * b.each);
  }
  void reply(Input& in) {
    if (!have_telemetry()) return;
    for (uint32_t n = in.below(3); n > 0; --n) {
      ++open_questions_;
      telemetry_->ask({}, [this](const InsReply& r) {
        --open_questions_;
        require(r.len <= sizeof r.value && r.status <= 4095);
      });
    }
    InsRequest asked{};
    (void)receive_message(requests_.get(), writable_bytes_of(asked), MSG_DONTWAIT);
    InsReply r{};
    if (in.below(4) == 0) in.take(writable_bytes_of(r));
    if (in.below(4) != 0) r.id = asked.id;
    const size_t bytes = in.below(8) == 0 ? in.below(sizeof r + 1) : sizeof r;
    (void)send_message(requests_.get(), bytes_of(r).first(bytes), {}, MSG_DONTWAIT);
    if (!telemetry_->on_replies()) end_telemetry();
  }

  // ---- ends ----

  void end_process(Input& in) {
    const uint32_t peer = in.below(kernel::kPeers);
    if (peer < kShims && in.below(2) == 0) shims_[peer].reset();
    if (peer == kInsPeer && in.below(2) == 0) ins_.reset();
    kernel::end_peer(peer);
    settle();
  }
  void end_something(Input& in) {
    switch (in.below(7)) {
      case 0:
        ins_.reset();
        break;
      case 1:
        shim(in).reset();
        break;
      case 2:
        kept_.clear();
        break;
      case 3:
        (void)registry_->remove(ins_path(1 + in.below(3), ""));
        break;
      case 4:
        listener_.reset();
        break;
      case 5:
        driver_->end_session();
        break;
      default:
        kernel::limit_descriptors(0);
        start();
        break;
    }
    settle();
  }

  const std::string folder_;
  std::unique_ptr<LocalRegistry> registry_;
  SessionFds fds_;
  std::unique_ptr<SessionMemory> memory_;
  std::unique_ptr<Driver> driver_;
  UniqueFd listener_, ins_;
  std::array<UniqueFd, kShims> shims_;
  std::vector<UniqueFd> kept_;
  std::unique_ptr<InsTelemetry> telemetry_;
  std::unique_ptr<Sampling> sampling_;
  Mapping telemetry_map_;
  UniqueFd requests_;
  uint32_t tails_[kGeometry.workers] = {};
  int open_questions_ = 0;
};

}  // namespace
}  // namespace mw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  mw::fuzz::kernel::begin();
  {
    mw::fuzz::World world;
    world.run(in);
  }
  mw::fuzz::kernel::end();
  return 0;
}

extern "C" uint64_t mw_fuzz_outcome() {
  return mw::fuzz::kernel::outcome();
}
