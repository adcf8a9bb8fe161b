#include "ins/worker/placeholders.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

namespace mw {
namespace {

using A = StdAtomics;

}  // namespace

Placeholders::Placeholders(const WorkerScope& scope, PlaceholderTable& table,
                           const WorkerEvents& events)
    : scope_(scope), table_(table), events_(events) {
  buried_.reserve(kMaxBuried);
}

uint32_t Placeholders::claim_of(SlotRef s) const {
  const uint64_t claim = A::load_acquire(scope_.ch.slot(s.index).claim);
  const auto low = static_cast<uint32_t>(claim);
  if (claim >> 32 != s->gen || low == 0 || low > scope_.ch.geometry().slots) return 0;
  return scope_.is_ours(low - 1) ? low : 0;
}

int Placeholders::end_of(SlotRef s) const {
  if ((s->flags & kAccepted) == 0) return s->ph;
  const uint32_t claim = claim_of(s);
  return claim == 0 ? -1 : table_.end(claim - 1);
}

void Placeholders::send_token(SlotRef s) const {
  // Among accept records a token has their size, or it would be glued to the next one.
  mw_accept_record token{};
  token.magic = MW_ACCEPT_MAGIC;
  // A full queue holds tokens enough to wake anybody.
  (void)!::send(end_of(s), &token, s->listener != nullptr ? sizeof token : 1,
                MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool Placeholders::drain(int end) {
  char bytes[256];
  bool any = false;
  while (::recv(end, bytes, sizeof bytes, MSG_DONTWAIT) > 0) any = true;
  return any;
}

void Placeholders::make(const Request& r, UniqueFd end, Answer& a) const {
  const int fd = end.get();
  auto number = table_.add(scope_.ch.worker_of(r.slot), std::move(end), {r.slot, r.gen});
  if (!number) return;
  if (!events_.watch_accepted_placeholder(*number, r.gen, fd)) {
    table_.remove(*number).reset();
    return;
  }
  const mw_new_socket out{*number, r.gen};
  std::memcpy(a.payload, &out, sizeof out);
  a.out_len = sizeof out;
  a.ret = 0;
  a.err = 0;
}

void Placeholders::keep(SlotRef s) const {
  if ((s->flags & kAccepted) == 0) return;
  const uint32_t claim = claim_of(s);
  s->flags &= ~kAccepted;
  if (claim == 0) return;
  s->ph = table_.remove(claim - 1).release();
  if (s->ph >= 0) events_.rewatch_placeholder(s);
}

void Placeholders::bury(int end) {
  buried_.push_back(end);
  if (buried_.size() >= kMaxBuried) close_buried();
}

void Placeholders::close_buried() {
  for (const int fd : buried_) ::close(fd);
  buried_.clear();
}

}  // namespace mw
