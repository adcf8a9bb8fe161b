#include "driver/session_state.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>

namespace mw {
namespace {

// Far more sockets than an INS makes in its life on most days; next_first_gen() looks closer.
constexpr uint32_t kGenerationStride = 1u << 24;
// What an INS claims beyond this is not believed: it would use up the numbers of all its
// successors.
constexpr uint32_t kMostGenerations = 1u << 28;

// Calls visit(first, last) for each range of items of a table that overlaps memory in use.
template <class Visit>
void each_used_range(int fd, uint64_t table, uint64_t item, uint32_t count, Visit&& visit) {
  const auto end = static_cast<off_t>(table + item * count);
  for (auto at = static_cast<off_t>(table); at < end;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 || data >= end) return;  // ENXIO: only a hole is left
    off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0 || hole > end) hole = end;
    const uint64_t from = static_cast<uint64_t>(data) - table;
    const uint64_t to = static_cast<uint64_t>(hole) - table;
    visit(static_cast<uint32_t>(from / item), static_cast<uint32_t>((to + item - 1) / item));
    at = hole;
  }
}

// For a set that nobody takes from at the moment.
void reset(ReadySet set) {
  set.forget_consumer();
  (void)set.drain([](uint32_t) { return true; });
}

}  // namespace

void wake_all(uint32_t& word) {
  (void)::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

Result<SessionMemory> SessionMemory::open(int channel_fd, int session_fd) {
  SessionMemory m;
  auto channel = map_sealed(channel_fd);
  if (!channel) return channel.error();
  auto session = map_sealed(session_fd);
  if (!session) return session.error();
  if (channel->bytes() < sizeof(mw_region_header) || session->bytes() < sizeof(SessionHeader))
    return Error{Fault::peer, 0, "a region is too small"};
  mw_region_header header{};
  std::memcpy(&header, channel->base(), sizeof header);
  if (header.magic != MW_MAGIC || header.version != MW_PROTOCOL_VERSION)
    return Error{Fault::peer, 0, "the channel is of another kind or version"};
  SessionHeader session_header{};
  std::memcpy(&session_header, session->base(), sizeof session_header);
  if (session_header.magic != kSessionMagic ||
      std::memcmp(&session_header.geometry, &header.geometry, sizeof(mw_geometry)) != 0)
    return Error{Fault::peer, 0, "the session's memory does not belong to the channel"};
  auto c = Channel::over(channel->base(), channel->bytes(), header.geometry);
  if (!c) return c.error();
  if (session->bytes() < session_layout_of(header.geometry).bytes)
    return Error{Fault::peer, 0, "the session's memory is too small"};
  m.channel_map_ = std::move(*channel);
  m.session_map_ = std::move(*session);
  m.channel_ = *c;
  m.session_ = SessionRegion(m.session_map_.base(), m.channel_.geometry());
  m.channel_fd_ = channel_fd;
  m.session_fd_ = session_fd;
  return m;
}

void SessionMemory::each_touched_slot(const std::function<void(uint32_t, mw_slot&)>& visit) {
  each_used_range(channel_fd_, channel_.layout().slots, sizeof(mw_slot), geometry().slots,
                  [&](uint32_t first, uint32_t last) {
                    for (uint32_t i = first; i < last; ++i) visit(i, channel_.slot(i));
                  });
}

void SessionMemory::each_touched_session_slot(
    const std::function<void(uint32_t, SessionSlot&)>& visit) {
  each_used_range(session_fd_, session_layout_of(geometry()).slots, sizeof(SessionSlot),
                  geometry().slots, [&](uint32_t first, uint32_t last) {
                    for (uint32_t i = first; i < last; ++i) visit(i, session_.slot(i));
                  });
}

uint32_t SessionMemory::state() {
  return StdAtomics::load_acquire(session_.header().state);
}
uint32_t SessionMemory::epoch() {
  return StdAtomics::load_acquire(session_.header().epoch);
}
uint32_t SessionMemory::first_gen() {
  return StdAtomics::load_acquire(session_.header().first_gen);
}

uint32_t SessionMemory::next_first_gen() {
  const uint32_t now = first_gen();
  if (now == 0) return 1;
  // An INS that made more sockets than the stride has used generations of its successor's range.
  uint32_t used = kGenerationStride - 1;
  each_touched_slot([&](uint32_t, mw_slot& slot) {
    const uint32_t ahead = StdAtomics::load_relaxed(slot.gen) - now;
    if (ahead < kMostGenerations) used = std::max(used, ahead);
  });
  const uint32_t next = now + used + 1;
  return next == 0 ? 1 : next;
}

void SessionMemory::publish_state(uint32_t state) {
  StdAtomics::exchange(session_.header().state, state);
  wake_all(session_.header().state);
}

void SessionMemory::ins_begins(uint32_t first_gen) {
  StdAtomics::store_release(session_.header().first_gen, first_gen);
  StdAtomics::fetch_add(session_.header().epoch, 1u);
}

void SessionMemory::answer_pending_calls() {
  for (uint32_t i = 0; i < geometry().calls; ++i) {
    mw_call& call = channel_.call(i);
    const uint32_t seq = StdAtomics::load_acquire(call.seq);
    if (seq == StdAtomics::load_acquire(call.done_seq)) continue;
    StdAtomics::store_relaxed(call.ret, -1);
    StdAtomics::store_relaxed(call.err, ECONNRESET);
    StdAtomics::store_relaxed(call.out_len, 0u);
    StdAtomics::store_release(call.done_seq, seq);
    wake_all(call.done_seq);
  }
}

void SessionMemory::ins_lost(const std::function<void()>& ring_all) {
  const uint32_t successor = next_first_gen();
  StdAtomics::store_release(session_.header().first_gen, successor);
  publish_state(kSessionDown);
  for (uint32_t w = 0; w < geometry().workers; ++w) {
    reset(channel_.sock_news(w));
    reset(channel_.call_news(w));
  }
  answer_pending_calls();
  each_touched_session_slot([&](uint32_t i, SessionSlot&) {
    for (SessionWatch& watch : session_.watches(i)) {
      const uint32_t group = StdAtomics::load_acquire(watch.group);
      if (group != 0 && group <= geometry().groups) channel_.group_news(group - 1).put_back(i);
    }
  });
  ring_all();
}

bool SessionMemory::group_in_use(uint32_t group) {
  return StdAtomics::load_acquire(session_.group(group).in_use) != 0;
}
void SessionMemory::set_group_in_use(uint32_t group, bool in_use) {
  StdAtomics::store_release(session_.group(group).in_use, in_use ? 1u : 0u);
}

uint16_t SessionMemory::group_serial(uint32_t group) {
  return StdAtomics::load_acquire(session_.group(group).serial);
}

void SessionMemory::clear_group(uint32_t group) {
  // Processes that share a socket with the dead ones may hold its locks; an entry of a dead group
  // is changed by nobody but us, so a compare-and-exchange is enough.
  each_touched_session_slot([&](uint32_t i, SessionSlot&) {
    for (SessionWatch& watch : session_.watches(i)) {
      uint32_t expected = group + 1;
      std::atomic_ref(watch.group).compare_exchange_strong(expected, 0u);
    }
  });
  each_touched_slot([&](uint32_t, mw_slot& slot) {
    for (uint64_t& word : slot.watches) {
      std::atomic_ref watches(word);
      uint64_t old = watches.load();
      for (;;) {
        uint64_t cleaned = old;
        for (unsigned shift = 0; shift < 64; shift += 16) {
          if ((old >> shift & 0xffff) == group + 1) cleaned &= ~(uint64_t{0xffff} << shift);
        }
        if (cleaned == old || watches.compare_exchange_weak(old, cleaned)) break;
      }
    }
  });
  const uint64_t at = channel_.layout().group_news + channel_.layout().group_news_stride * group;
  reset(channel_.group_news(group));
  (void)punch_channel(at, channel_.layout().group_news_stride);
}

bool SessionMemory::punch_channel(uint64_t at, uint64_t bytes) {
  return ::fallocate(channel_fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(at), static_cast<off_t>(bytes)) == 0;
}

SessionMemory::DeadCalls SessionMemory::free_dead_calls(const IsGone& is_gone) {
  DeadCalls out;
  for (uint32_t i = 0; i < geometry().calls; ++i) {
    SessionCall& owner = session_.call(i);
    uint32_t pid = StdAtomics::load_acquire(owner.pid);
    if (pid == 0 || !is_gone(i, pid, StdAtomics::load_relaxed(owner.seq))) continue;
    mw_call& call = channel_.call(i);
    const uint32_t seq = StdAtomics::load_acquire(call.seq);
    if (seq != StdAtomics::load_acquire(call.done_seq)) {
      // Lookups may be under way for long and would be answered twice. All others are answered in
      // the turn in which they are read.
      const uint32_t op = StdAtomics::load_relaxed(call.op);
      if (mw_is_lookup(op)) continue;
      if (op == MW_OP_SOCKET) {
        out.sockets.push_back({MW_DROP_MAGIC, i, seq});
        continue;
      }
      const uint32_t worker = channel_.worker_of(StdAtomics::load_relaxed(call.slot));
      if (channel_.call_news(worker).add(i)) out.rings |= 1u << worker;
      continue;
    }
    // It may have died between its own note of the number and the request.
    StdAtomics::store_relaxed(owner.seq, seq);
    std::atomic_ref(owner.pid).compare_exchange_strong(pid, 0u);
  }
  return out;
}

}  // namespace mw
