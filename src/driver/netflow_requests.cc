// netflow_requests.cc - every feature of the NetFlow interface: what it is in the kernel or in the
// session region, and how the value that is in force is read back.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>

#include "base/clock.h"
#include "base/log.h"
#include "base/pidfd.h"
#include "driver/netflow_service.h"
#include "driver/process_info.h"
#include "netflow/address.h"
#include "ring/atomics.h"

namespace mw {
namespace {

using A = StdAtomics;
using netflow::Feature;
using netflow::Request;

constexpr size_t kMaxBlocked = 65536;
constexpr size_t kFlowsAtOnce = 512;
// A tick of the delayed-acknowledgement timer: the stacks that these requests were made for had
// 100 a second.
constexpr int64_t kUsPerTick = 10'000;
// Linux 6.16; older headers do not name it.
constexpr int kTcpDelackMaxUs = 46;
constexpr int64_t kMaxTimeoutSeconds = 1'000'000'000;

InsRequest about(InsOp op, uint32_t slot, uint32_t gen) {
  InsRequest r{};
  r.op = op;
  r.slot = slot;
  r.gen = gen;
  return r;
}

InsRequest with_int(InsRequest r, int level, int name, bool write, int value) {
  r.level = level;
  r.name = name;
  r.write = write ? 1 : 0;
  r.len = sizeof value;
  std::memcpy(r.value, &value, sizeof value);
  return r;
}

int int_of(const InsReply& reply) {
  int value = 0;
  if (reply.len >= sizeof value) std::memcpy(&value, reply.value, sizeof value);
  return value;
}

}  // namespace

// Features that are an option of the real socket.
struct NetflowService::OptionFeature {
  Feature feature;
  int level;
  int name;
  enum class Kind { boolean, number } kind;
};

void NetflowService::answer(const Asked& a, uint32_t err, uint64_t value0, uint64_t value1) {
  answer(a, {err, err == 0 ? value0 : 0, err == 0 ? value1 : 0});
}

void NetflowService::answer(const Asked& a, const Outcome& outcome) {
  if (a.then) return a.then(outcome);
  server_->respond(a.engine, {a.request.id, outcome.err, outcome.value0, outcome.value1});
}

void NetflowService::on_request(EngineId engine, const netflow::Asking& asking) {
  const Request& r = asking.request.request;
  // What an engine was answered or shown before counts: nothing of it may still be in the rings.
  if (ins_ && epoch_ != 0) drain();
  const Asked a{engine, r, nullptr};
  if (r.name == static_cast<uint16_t>(Feature::undo))
    return on_undo(a, (asking.request.options & netflow::kDryRun) != 0);
  const bool change = asking.extended || (r.name & netflow::kFeatureMitigation) != 0;
  if (r.write() && change) return on_change(engine, asking);
  execute(a);
}

void NetflowService::execute(const Asked& a) {
  const Request& r = a.request;
  switch (static_cast<Feature>(r.name)) {
    case Feature::congestion:
      return on_congestion(a);
    case Feature::delack_ticks:
      return on_delack(a);
    case Feature::address_block:
      return on_address_block(a);
    case Feature::allow:
      return on_allow(a);
    case Feature::peer_cap:
      return on_peer_cap(a);
    case Feature::rules:
      return on_rules(a);
    case Feature::min_rate_in:
    case Feature::min_rate_out:
      if ((r.flags & ~netflow::kRequestWrite) == 0) return on_default_rate(a);
      break;
    case Feature::pause:
    case Feature::pacing:
      break;
    case Feature::list:
      if (r.flags != 0) return answer(a, r.write() ? EOPNOTSUPP : EINVAL);
      if (!on_list(a, true)) defer(a);
      return;
    case Feature::nonblock:
    case Feature::reuseaddr:
    case Feature::reuseport:
    case Feature::keepalive:
    case Feature::defer_accept:
    case Feature::nodelay:
    case Feature::is_open:
    case Feature::owner_running:
    case Feature::sndbuf:
    case Feature::rcvbuf:
    case Feature::sndtimeo:
    case Feature::rcvtimeo:
    case Feature::sndlowat:
    case Feature::rcvlowat:
    case Feature::error:
      break;
    default:
      return answer(a, EINVAL);
  }
  if ((r.flags & netflow::kRequestBySocket) == 0 || (r.flags & netflow::kRequestByPeer) != 0)
    return answer(a, EINVAL);
  const bool read_only = r.name == static_cast<uint16_t>(Feature::nonblock) ||
                         r.name == static_cast<uint16_t>(Feature::error);
  if (read_only && r.write()) return answer(a, EOPNOTSUPP);
  if (!on_socket_request(a, true)) defer(a);
}

void NetflowService::defer(const Asked& a) {
  if (deferred_.size() >= kMaxDeferred) return answer(a, EBUSY);
  deferred_.push_back({a, epoch_since_ms_ + kIntroductionMs});
}

// Sockets that were there before the first engine came may not be known yet.
bool NetflowService::may_be_introduced() const {
  return epoch_ != 0 && !ins_->flows().complete() &&
         monotonic_ms() < epoch_since_ms_ + kIntroductionMs;
}

// False: the socket may be introduced yet; only if `may_wait`.
bool NetflowService::on_socket_request(const Asked& a, bool may_wait) {
  static constexpr OptionFeature kOptions[] = {
      {Feature::reuseaddr, SOL_SOCKET, SO_REUSEADDR, OptionFeature::Kind::boolean},
      {Feature::reuseport, SOL_SOCKET, SO_REUSEPORT, OptionFeature::Kind::boolean},
      {Feature::keepalive, SOL_SOCKET, SO_KEEPALIVE, OptionFeature::Kind::boolean},
      {Feature::defer_accept, IPPROTO_TCP, TCP_DEFER_ACCEPT, OptionFeature::Kind::number},
      {Feature::nodelay, IPPROTO_TCP, TCP_NODELAY, OptionFeature::Kind::boolean},
      {Feature::sndbuf, SOL_SOCKET, SO_SNDBUF, OptionFeature::Kind::number},
      {Feature::rcvbuf, SOL_SOCKET, SO_RCVBUF, OptionFeature::Kind::number},
      {Feature::sndlowat, SOL_SOCKET, SO_SNDLOWAT, OptionFeature::Kind::number},
      {Feature::rcvlowat, SOL_SOCKET, SO_RCVLOWAT, OptionFeature::Kind::number},
  };
  const auto id = netflow::socket_of(a.request);
  uint32_t slot = 0;
  const bool ours = id && ins_ && id->ins == ins_->flows().ins();
  if (!ours || ins_->flows().find(id->number, &slot) == nullptr) {
    if (ours && may_wait && may_be_introduced()) return false;
    answer(a, EBADF);
    return true;
  }
  for (const OptionFeature& f : kOptions) {
    if (a.request.name != static_cast<uint16_t>(f.feature)) continue;
    on_option(a, f, slot, id->number);
    return true;
  }
  switch (static_cast<Feature>(a.request.name)) {
    case Feature::is_open: {
      if (!a.request.write()) {
        answer(a, 0, 1);
      } else if (a.request.value0 != 0) {
        answer(a, EINVAL);
      } else {
        ins_->ask(about(InsOp::close, slot, id->number),
                  [this, a](const InsReply& reply) { answer(a, reply.status); });
      }
      return true;
    }
    case Feature::owner_running:
      on_owner(a, slot, id->number);
      return true;
    case Feature::min_rate_in:
    case Feature::min_rate_out:
    case Feature::pause:
    case Feature::pacing:
      on_limit(a, slot, id->number);
      return true;
    default:
      on_session_value(a, slot, id->number);
      return true;
  }
}

void NetflowService::on_option(const Asked& a, const OptionFeature& f, uint32_t slot,
                               uint32_t number) {
  const bool write = a.request.write();
  const bool boolean = f.kind == OptionFeature::Kind::boolean;
  if (write && a.request.value0 > (boolean ? 1u : static_cast<uint64_t>(INT32_MAX)))
    return answer(a, EINVAL);
  const auto r = with_int(about(InsOp::option, slot, number), f.level, f.name, write,
                          static_cast<int>(a.request.value0));
  const Feature feature = f.feature;
  ins_->ask(r, [this, a, slot, number, write, boolean, feature](const InsReply& reply) {
    const auto value = static_cast<uint32_t>(int_of(reply));
    const uint64_t shown = boolean ? (value != 0 ? 1u : 0u) : value;
    SessionSlot& mine = memory_.session().slot(slot);
    const bool shims = feature == Feature::sndbuf || feature == Feature::rcvlowat;
    if (!write || !shims || reply.status != 0 || A::load_acquire(mine.gen) != number || !ins_)
      return answer(a, reply.status, shown);
    // The shim does its part of these: the send ring is the application's part of its send buffer
    // (half of the kernel's number is overhead), and it waits for as many bytes as the mark says.
    if (feature == Feature::sndbuf)
      A::store_relaxed(mine.sndbuf, value / 2);
    else
      A::store_relaxed(mine.rcvlowat, value);
    ins_->ask(about(InsOp::look_again, slot, number),
              [this, a, shown](const InsReply& looked) { answer(a, looked.status, shown); });
  });
}

// Values that the shim keeps, because it does the waiting itself.
void NetflowService::on_session_value(const Asked& a, uint32_t slot, uint32_t number) {
  SessionSlot& mine = memory_.session().slot(slot);
  const Request& r = a.request;
  // The application may not have taken it yet.
  if (A::load_acquire(mine.gen) != number) return answer(a, r.write() ? EAGAIN : EBADF);
  switch (static_cast<Feature>(r.name)) {
    case Feature::nonblock:
      return answer(a, 0, (A::load_relaxed(mine.flags) & kSlotNonblock) != 0 ? 1 : 0);
    case Feature::error: {
      const mw_slot& shared = memory_.channel().slot(slot);
      auto& seq = const_cast<uint32_t&>(shared.error_seq);
      auto& error = const_cast<int32_t&>(shared.error);
      const bool pending = A::load_acquire(seq) != A::load_relaxed(mine.error_taken);
      const int err = pending ? A::load_relaxed(error) : 0;
      return answer(a, 0, err > 0 && err < 4096 ? static_cast<uint64_t>(err) : 0);
    }
    default: {
      int64_t& us =
          static_cast<Feature>(r.name) == Feature::rcvtimeo ? mine.rcvtimeo_us : mine.sndtimeo_us;
      if (!r.write()) break;
      if (r.value0 > static_cast<uint64_t>(kMaxTimeoutSeconds) || r.value1 >= 1'000'000)
        return answer(a, EDOM);
      A::store_relaxed(us, static_cast<int64_t>(r.value0 * 1'000'000 + r.value1));
    }
  }
  const auto report = [this, a, &mine](uint32_t status) {
    const int64_t us = A::load_relaxed(static_cast<Feature>(a.request.name) == Feature::rcvtimeo
                                           ? mine.rcvtimeo_us
                                           : mine.sndtimeo_us);
    const auto shown = static_cast<uint64_t>(std::max<int64_t>(us, 0));  // as the kernel shows it
    answer(a, status, shown / 1'000'000, shown % 1'000'000);
  };
  if (!r.write()) return report(0);
  // Whoever is blocked already looks again, now.
  ins_->ask(about(InsOp::look_again, slot, number),
            [report](const InsReply& reply) { report(reply.status); });
}

void NetflowService::on_owner(const Asked& a, uint32_t slot, uint32_t number) {
  SessionSlot& mine = memory_.session().slot(slot);
  if (A::load_acquire(mine.gen) != number) return answer(a, EAGAIN);
  const uint32_t owner = A::load_relaxed(mine.owner);
  const UniqueFd process = process_of_session(owner);
  const bool lives = process && !has_died(process.get());
  if (!a.request.write()) return answer(a, 0, lives ? 1 : 0);
  if (a.request.value0 != 0) return answer(a, EINVAL);
  if (!lives) return answer(a, ESRCH);
  if (!signal_pidfd(process.get(), SIGINT)) return answer(a, static_cast<uint32_t>(errno));
  answer(a, 0, has_died(process.get()) ? 0 : 1);
}

// The pidfd of a process that has the session's region mapped. None: it is no such process.
UniqueFd NetflowService::process_of_session(uint32_t pid) const {
  UniqueFd process = pid == 0 ? UniqueFd{} : open_pidfd(static_cast<pid_t>(pid));
  struct stat region {};
  if (!process || ::fstat(session_fd_, &region) < 0) return UniqueFd{};
  const std::string inode = " " + std::to_string(region.st_ino) + " ";
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("/memfd:mw-session") != std::string::npos &&
        line.find(inode) != std::string::npos)
      return process;
  return UniqueFd{};
}

// ---- the whole INS ----

void NetflowService::on_congestion(const Asked& a) {
  if (!ins_) return answer(a, ENETDOWN);
  InsRequest r = about(InsOp::all_option, 0, 0);
  r.level = IPPROTO_TCP;
  r.name = TCP_CONGESTION;
  r.write = a.request.write() ? 1 : 0;
  const char* name = "";
  if (a.request.write()) {
    switch (a.request.value0) {
      case netflow::kCongestionReno:
      case netflow::kCongestionNewReno:
        name = "reno";
        break;
      case netflow::kCongestionCubic:
        name = "cubic";
        break;
      default:
        return answer(a, EINVAL);
    }
  }
  r.len = static_cast<uint32_t>(std::strlen(name));
  std::memcpy(r.value, name, r.len);
  ins_->ask(r, [this, a, r](const InsReply& reply) {
    const std::string_view got(reinterpret_cast<const char*>(reply.value),
                               ::strnlen(reinterpret_cast<const char*>(reply.value), reply.len));
    if (reply.status == 0 && r.write != 0) wish(r);
    answer(a, reply.status,
           got == "reno"    ? netflow::kCongestionReno
           : got == "cubic" ? netflow::kCongestionCubic
                            : 0);
  });
}

void NetflowService::on_delack(const Asked& a) {
  if (!ins_) return answer(a, ENETDOWN);
  const auto base = about(InsOp::all_option, 0, 0);
  const auto difference = static_cast<int64_t>(a.request.value0);
  const auto ticks = [](int us) { return static_cast<uint64_t>(us / kUsPerTick); };
  const auto read = with_int(base, IPPROTO_TCP, kTcpDelackMaxUs, false, 0);
  ins_->ask(read, [this, a, base, difference, ticks](const InsReply& now) {
    if (now.status != 0 || !a.request.write()) return answer(a, now.status, ticks(int_of(now)));
    if (!ins_) return answer(a, ENETDOWN);
    // The kernel rounds up to its own ticks; whole ones of ours come back as they were.
    const int64_t us =
        (static_cast<int64_t>(ticks(int_of(now))) + std::clamp<int64_t>(difference, -1000, 1000)) *
        kUsPerTick;
    if (us < 1) return answer(a, EINVAL);
    const auto set = with_int(base, IPPROTO_TCP, kTcpDelackMaxUs, true, static_cast<int>(us));
    ins_->ask(set, [this, a, set, ticks](const InsReply& then) {
      if (then.status == 0) wish(set);
      answer(a, then.status, ticks(int_of(then)));
    });
  });
}

void NetflowService::on_address_block(const Asked& a) {
  const Request& r = a.request;
  if (!r.write()) return answer(a, EOPNOTSUPP);
  const auto peer = netflow::peer_of(r);
  if ((r.flags & netflow::kRequestByPeer) == 0 || (r.flags & netflow::kRequestBySocket) != 0 ||
      !peer || r.value0 > 1)
    return answer(a, EINVAL);
  if (!ins_) return answer(a, ENETDOWN);
  if (r.value0 == 1 && blocked_.size() >= kMaxBlocked) return answer(a, ENOSPC);
  change_block(*peer, r.value0 == 1, [this, a](const Outcome& o) { answer(a, o); });
}

// The INS cuts the connections that there are, and refuses the peer's; in a namespace of its own
// nftables keep the peer's packets from it.
void NetflowService::change_block(const netflow::Address& peer, bool block, const Then& then) {
  const PeerKey key = key_of(peer);
  const auto in_the_ins = [this, then, key, block](uint32_t err) {
    if (err != 0) return then({err, 0, 0});
    if (block)
      blocked_.insert(key);
    else
      blocked_.erase(key);
    if (!ins_) return then({0, block ? 1u : 0u, 0});  // the next one will be told
    ins_->ask(about_peer(InsOp::cut_peer, key, block), [then, block](const InsReply& reply) {
      Outcome o{reply.status, block ? 1u : 0u, 0};
      if (reply.len == sizeof o.cut) std::memcpy(&o.cut, reply.value, sizeof o.cut);
      then(o);
    });
  };
  if (ins_->netns() < 0) return in_the_ins(0);
  blocks_.change(ins_->netns(), netflow::unmapped(peer), block, in_the_ins);
}

// One flow message for each socket that is open, then the answer with their number.
// False: not all are known yet; only if `may_wait`.
bool NetflowService::on_list(const Asked& a, bool may_wait) {
  if (!ins_) {
    answer(a, 0, 0);
    return true;
  }
  if (may_wait && may_be_introduced()) return false;
  struct Owner {
    bool ours;
    uint32_t uid;
    netflow::CommandName command;
  };
  std::map<uint32_t, Owner> owners;
  std::vector<uint8_t> part;
  bool room = true;
  ins_->flows().each([&](uint32_t slot, const Flow& flow) {
    netflow::Flow f;
    f.sequence = ++flow_sequence_;
    f.socket = netflow::encode({ins_->flows().ins(), flow.gen});
    f.type = (flow.bits & MW_TEL_WHO_DATAGRAM) != 0 ? 2 : 1;
    f.flags = wire_flags(flow);
    f.session_start = netflow::timestamp_of(flow.made_ns);
    f.last = netflow::timestamp_of(flow.last_ns);
    f.local = flow.local;
    f.remote = flow.remote;
    f.bytes_in = flow.bytes_in;
    f.bytes_out = flow.bytes_out;
    SessionSlot& mine = memory_.session().slot(slot);
    const uint32_t pid = A::load_acquire(mine.gen) == flow.gen ? A::load_relaxed(mine.owner) : 0;
    auto [it, fresh] = owners.try_emplace(pid);
    Owner& owner = it->second;
    if (fresh) {
      owner.ours = static_cast<bool>(process_of_session(pid));
      owner.command = netflow::command_name(command_of(pid));
      struct stat st {};
      if (::stat(("/proc/" + std::to_string(pid)).c_str(), &st) == 0) owner.uid = st.st_uid;
    }
    if (owner.ours) {
      f.pid = pid;
      f.uid = owner.uid;
      f.command = owner.command;
    }
    const size_t at = part.size();
    part.resize(at + netflow::kFlowBytes);
    encode(f, std::span<uint8_t, netflow::kFlowBytes>(part.data() + at, netflow::kFlowBytes));
    if (part.size() < kFlowsAtOnce * netflow::kFlowBytes) return;
    room = room && server_->send_part(a.engine, std::exchange(part, {}));
  });
  if (!part.empty()) room = room && server_->send_part(a.engine, std::move(part));
  answer(a, room ? 0 : ENOBUFS, ins_->flows().size());
  return true;
}

// What holds for every socket of this INS will hold for those of the next one.
void NetflowService::wish(const InsRequest& request) {
  std::erase_if(wishes_, [&](const InsRequest& w) {
    return w.level == request.level && w.name == request.name;
  });
  wishes_.push_back(request);
}

void NetflowService::renew_wishes() {
  const auto renewed = [](const InsReply& reply) {
    if (reply.status != 0)
      log_line("mwcommsd", "NetFlow: what engines wished of every socket does not hold: error %u",
               reply.status);
  };
  for (const InsRequest& w : wishes_) ins_->ask(w, renewed);
  // The allow list first: it beats the blocks.
  renew_rules();
  for (const auto& key : blocked_) ins_->ask(about_peer(InsOp::cut_peer, key, true), renewed);
}

}  // namespace mw
