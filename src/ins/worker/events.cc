#include "ins/worker/events.h"

namespace mw {
namespace {

constexpr uint32_t kRealEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI;
constexpr uint32_t kPlaceholderEvents = EPOLLIN | EPOLLRDHUP;

// epoll data: generation, then which end, then slot, or number if it is an accepted connection's
// placeholder. The doorbells stand where no generation is.
constexpr uint64_t kPlaceholderBit = uint64_t{1} << 31;
constexpr uint64_t kAcceptedBit = uint64_t{1} << 30;
constexpr uint32_t kIndexMask = 0x3fffffff;

}  // namespace

bool WorkerEvents::watch(uint32_t slot, int op, int fd, uint32_t bits, uint64_t tag) const {
  epoll_event e{};
  e.events = bits | EPOLLET;
  e.data.u64 = tag;
  return ::epoll_ctl(ins_.epolls[ins_.channel.worker_of(slot)].get(), op, fd, &e) == 0;
}

bool WorkerEvents::add(int fd, uint32_t bits, Of of) const {
  epoll_event e{};
  e.events = bits;
  e.data.u64 = static_cast<uint64_t>(of);
  return ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e) == 0;
}

void WorkerEvents::remove(int fd) const {
  ::epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
}

bool WorkerEvents::watch_real(SlotRef s) const {
  if ((s->flags & kRegistered) != 0) return true;
  if (!watch_real(s.index, s->gen, s->fd)) return false;
  s->flags |= kRegistered;
  return true;
}

bool WorkerEvents::watch_real(uint32_t slot, uint32_t gen, int fd) const {
  return watch(slot, EPOLL_CTL_ADD, fd, kRealEvents, uint64_t{gen} << 32 | slot);
}

bool WorkerEvents::watch_placeholder(uint32_t slot, uint32_t gen, int end) const {
  return watch(slot, EPOLL_CTL_ADD, end, kPlaceholderEvents,
               uint64_t{gen} << 32 | kPlaceholderBit | slot);
}

bool WorkerEvents::rewatch_placeholder(SlotRef s, uint32_t more) const {
  return watch(s.index, EPOLL_CTL_MOD, s->ph, kPlaceholderEvents | more,
               uint64_t{s->gen} << 32 | kPlaceholderBit | s.index);
}

bool WorkerEvents::watch_accepted_placeholder(uint32_t number, uint32_t gen, int end) const {
  return watch(number, EPOLL_CTL_ADD, end, kPlaceholderEvents,
               uint64_t{gen} << 32 | kPlaceholderBit | kAcceptedBit | number);
}

WorkerEvents::Event WorkerEvents::read(const epoll_event& e) {
  const uint64_t tag = e.data.u64;
  if (tag >> 32 == 0) return {static_cast<Of>(tag), e.events};
  const Of of = (tag & kAcceptedBit) != 0      ? Of::accepted_placeholder
                : (tag & kPlaceholderBit) != 0 ? Of::placeholder
                                               : Of::real;
  return {of, e.events, static_cast<uint32_t>(tag) & kIndexMask, static_cast<uint32_t>(tag >> 32)};
}

}  // namespace mw
