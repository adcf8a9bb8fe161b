#include "ins/tables/slot_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "abi/mw_telemetry.h"

namespace mw {

LingerMode linger_mode_of(const void* value) {
  linger l{};
  std::memcpy(&l, value, sizeof l);
  if (l.l_onoff == 0) return LingerMode::off;
  return l.l_linger == 0 ? LingerMode::reset : LingerMode::wait;
}

void note_end(Sock& s, uint8_t what) {
  constexpr uint8_t kBothFins = MW_CONN_PEER_FIN | MW_CONN_OUR_FIN;
  const bool over = (s.conn & (MW_CONN_PEER_RST | MW_CONN_OUR_RST)) != 0 ||
                    (s.conn & kBothFins) == kBothFins || (s.state & MW_ST_CLOSED) != 0;
  if ((s.conn & MW_CONN_ESTABLISHED) != 0 && !over) s.conn |= what;
}

UniqueFd SlotTable::lend(ControlOption& option) {
  const SlotRef s = find(option.slot);
  option.type = ControlType::lent;
  option.status = ECONNRESET;
  if (!s || s->gen != option.gen || s->fd < 0) return UniqueFd{};
  UniqueFd copy{::fcntl(s->fd, F_DUPFD_CLOEXEC, 0)};
  option.status = copy ? 0 : static_cast<uint32_t>(errno);
  return copy;
}

SlotTable::~SlotTable() {
  if (socks_ == nullptr) return;
  // Slots that were never used were never constructed, and looking at them would make them
  // resident; only listeners that were made again may stand beyond the fresh ones, and they are few
  // and low.
  for (uint32_t w = 0; w < workers_; ++w) {
    for (uint32_t i = w; i < used_end(w); i += workers_) {
      Sock& s = socks_[i];
      if (s.gen == 0) continue;
      if (s.fd >= 0) ::close(s.fd);
      if (s.ph >= 0) ::close(s.ph);
      s.~Sock();
    }
  }
  ::munmap(socks_, bytes_);
}

Status SlotTable::init(const mw_geometry& geometry, uint32_t first_gen) {
  slots_ = geometry.slots;
  workers_ = geometry.workers;
  bytes_ = uint64_t{slots_} * sizeof(Sock);
  void* p = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return Error{Fault::sys, errno, "mmap of the slot table"};
  socks_ = static_cast<Sock*>(p);
  parts_ = std::make_unique<Part[]>(workers_);
  for (uint32_t w = 0; w < workers_; ++w) parts_[w].fresh = w;
  gen_.store(first_gen, std::memory_order_relaxed);
  return Ok{};
}

uint32_t SlotTable::next_gen() {
  for (;;) {
    const uint32_t g = gen_.fetch_add(1, std::memory_order_relaxed);
    if (g != 0) return g;
  }
}

Result<SlotRef> SlotTable::allocate(uint32_t worker) {
  Part& part = parts_[worker];
  uint32_t slot = 0;
  {
    const std::lock_guard hold(part.lock);
    if (part.free != 0) {
      slot = part.free - 1;
      part.free = socks_[slot].next_free;
    } else {
      // Listeners that were made again stand among the slots that were never used.
      while (part.fresh < slots_ && socks_[part.fresh].gen != 0) part.fresh += workers_;
      if (part.fresh >= slots_) return Error{Fault::limit, 0, "no free slot"};
      slot = part.fresh;
      part.fresh += workers_;
      new (&socks_[slot]) Sock;
    }
    socks_[slot].gen = next_gen();
    socks_[slot].in_use = true;
  }
  open_.fetch_add(1, std::memory_order_relaxed);
  return at(slot);
}

Status SlotTable::claim(uint32_t slot, uint32_t gen) {
  if (slot >= slots_ || gen == 0) return Error{Fault::limit, 0, "no such slot"};
  Part& part = parts_[slot % workers_];
  const std::lock_guard hold(part.lock);
  if (slot < part.fresh || socks_[slot].gen != 0) return Error{Fault::limit, 0, "slot in use"};
  new (&socks_[slot]) Sock;
  socks_[slot].gen = gen;
  part.claimed_end = std::max(part.claimed_end, slot + 1);
  socks_[slot].in_use = true;
  open_.fetch_add(1, std::memory_order_relaxed);
  return Ok{};
}

void SlotTable::release(uint32_t slot) {
  Sock& s = socks_[slot];
  s.live.store(0, std::memory_order_release);
  s.listener.reset();
  s.options.reset();
  s.limits.reset();
  Part& part = parts_[slot % workers_];
  const std::lock_guard hold(part.lock);
  s.in_use = false;
  s.next_free = part.free;
  part.free = slot + 1;
  open_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace mw
