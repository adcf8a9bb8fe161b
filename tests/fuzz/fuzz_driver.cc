// The driver against an INS and processes that send anything, over the real sockets, with regions
// that anybody writes to. The input is a list of steps.
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "driver/driver.h"
#include "fuzz_input.h"
#include "tests/support/driver_session.h"
#include "transport/local/mapping.h"
#include "transport/local/session_fds.h"

namespace mw::fuzz {
namespace {

constexpr mw_geometry kGeometry{.slots = 200,
                                .rx_ring = 4096,
                                .tx_ring = 4096,
                                .groups = 3,
                                .workers = 2,
                                .calls = 9,
                                .reserved = {0, 0}};

// One driver with everything around it, for one input.
class World {
 public:
  World() {
    char name[] = "/dev/shm/mw-fuzz-XXXXXX";  // a disk would be most of the time
    require(::mkdtemp(name) != nullptr);
    folder_ = name;
    auto registry = LocalRegistry::create(folder_ + "/r");
    require(static_cast<bool>(registry));
    registry_ = std::make_unique<LocalRegistry>(std::move(*registry));
    static unsigned worlds = 0;
    auto fds = make_session_fds(
        "fuzz" + std::to_string(::getpid()) + "-" + std::to_string(++worlds), kGeometry);
    require(static_cast<bool>(fds));
    fds_ = std::move(*fds);
    int pair[2];
    require(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    store_[0] = UniqueFd{pair[0]};
    store_[1] = UniqueFd{pair[1]};
    auto memory = SessionMemory::open(fds_.channel.get(), fds_.session.get());
    require(static_cast<bool>(memory));
    memory_ = std::make_unique<SessionMemory>(std::move(*memory));
    start();
  }
  ~World() {
    driver_.reset();
    std::filesystem::remove_all(folder_);
  }

  void run(Input& in) {
    for (int steps = 0; steps < 64 && !in.empty(); ++steps) step(in);
    settle();
  }

 private:
  void start() {
    driver_.reset();
    DriverOptions o = options_for(fds_);
    o.token = {};  // as in a request that does not say another one
    o.registry = folder_ + "/r";
    o.session = "fuzz";
    o.ready_fd = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    o.store_fds[0] = store_[0].get();
    o.store_fds[1] = store_[1].get();
    o.kill_lost_ins = false;
    auto d = Driver::make(o);
    require(static_cast<bool>(d));
    driver_ = std::move(*d);
  }
  void settle() {
    for (int i = 0; i < 4; ++i) require(static_cast<bool>(driver_->run_once(0)));
  }

  void step(Input& in) {
    switch (in.number<uint8_t>() % 10) {
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
        return send_raw(shim_, in);
      case 7:
        return open_group(in);
      case 8:
        return scribble(in);
      default:
        return end_something(in);
    }
  }

  void new_ins(Input& in) {
    const uint32_t id = 1 + in.below(3);
    if (!registry_->write(ins_path(id, "ins_dom_id"), "x")) return;
    auto folder = registry_->open_folder(ins_path(id, ""));
    if (!folder) return;
    UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    const std::string path = "/proc/self/fd/" + std::to_string(folder->get()) + "/channel";
    std::memcpy(a.sun_path, path.c_str(), path.size() + 1);
    (void)::unlink(path.c_str());
    if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) < 0) return;
    if (::listen(fd.get(), 4) < 0) return;
    (void)registry_->write(ins_path(id, "heartbeat"), "1");
    listener_ = std::move(fd);
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
  // Up to three descriptors of kinds that a peer might try.
  std::vector<UniqueFd> some_fds(Input& in) {
    std::vector<UniqueFd> fds;
    for (uint32_t n = in.below(4); n > 0; --n) {
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
    std::vector<int> raw;
    for (const UniqueFd& fd : fds) raw.push_back(fd.get());
    if (to) (void)send_message(to.get(), data, raw, MSG_DONTWAIT);
    settle();
  }
  void send_raw(const UniqueFd& to, Input& in) {
    std::byte data[2048];
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
    l.option_count = in.below(kMaxReplayOptions + 2);
    l.local.len = in.below(sizeof l.local.bytes + 2);
    l.options[in.below(kMaxReplayOptions)].len = in.below(sizeof(ReplayOption::value) + 2);
    send(ins_, bytes_of(l), some_fds(in));
  }
  void send_slot_message(Input& in) {
    const ControlSlot s{ControlType{in.below(14)}, in.below(kGeometry.slots + 2),
                        in.number<uint8_t>(), in.number<uint8_t>()};
    send(ins_, bytes_of(s), {});
  }
  void attach(Input& in) {
    UniqueFd fd{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::memcpy(a.sun_path + 1, fds_.attach_name.data(), fds_.attach_name.size());
    const auto size =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + fds_.attach_name.size());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&a), size) < 0) return;
    shim_ = std::move(fd);
    AttachRequest r{AttachType::attach, in.number<uint8_t>(), {}, 0, {}};
    if (in.below(4) == 0) in.take(std::as_writable_bytes(std::span(r.token)));
    if (in.below(4) == 3) {
      r.type = AttachType::violation;
      r.epoch = in.number<uint8_t>();
    }
    send(shim_, bytes_of(r), {});
  }
  void open_group(Input& in) {
    const AttachRequest r{AttachType::group_open, MW_PROTOCOL_VERSION, {}, 0, {}};
    if (in.below(2) == 0) return send(shim_, bytes_of(r), some_fds(in));
    int pipe[2];
    if (::pipe2(pipe, O_CLOEXEC) < 0) return;
    kept_.emplace_back(pipe[0]);
    std::vector<UniqueFd> fds;
    fds.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    fds.emplace_back(pipe[1]);
    fds.push_back(std::move(*make_sealed_memfd("t", 4096)));
    send(shim_, bytes_of(r), fds);
  }
  void scribble(Input& in) {
    const bool session = in.below(2) == 0;
    std::byte* base = session ? memory_->session().base() : memory_->channel().base();
    const uint64_t size =
        session ? session_layout_of(kGeometry).bytes : memory_->channel().layout().bytes;
    // Where it matters: headers, sets, cells and slots lie in front of the rings.
    const uint64_t end = session ? size : memory_->channel().layout().rings;
    const uint64_t at = in.number<uint32_t>() % end;
    const uint64_t n = std::min<uint64_t>(in.below(256), end - at);
    in.take({base + at, static_cast<size_t>(n)});
    PageRelease release(*memory_);
    release.turn();
    release.turn();
  }
  void end_something(Input& in) {
    switch (in.below(6)) {
      case 0:
        ins_.reset();
        break;
      case 1:
        shim_.reset();
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
      default:
        start();
        break;
    }
    settle();
  }

  std::string folder_;
  std::unique_ptr<LocalRegistry> registry_;
  SessionFds fds_;
  UniqueFd store_[2];
  std::unique_ptr<SessionMemory> memory_;
  std::unique_ptr<Driver> driver_;
  UniqueFd listener_, ins_, shim_;
  std::vector<UniqueFd> kept_;
};

}  // namespace
}  // namespace mw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  mw::fuzz::World world;
  world.run(in);
  return 0;
}
