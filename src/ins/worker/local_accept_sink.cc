#include "ins/worker/local_accept_sink.h"

#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"
#include "ring/atomics.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

using A = StdAtomics;

uint32_t cost_of_a_record() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return 0;
  const UniqueFd a{pair[0]};
  const UniqueFd b{pair[1]};
  const mw_accept_record record{};
  const int fds[] = {b.get()};
  int queued = 0;
  if (!send_message(a.get(), bytes_of(record), fds, MSG_DONTWAIT)) return 0;
  if (::ioctl(a.get(), TIOCOUTQ, &queued) < 0 || queued <= 0) return 0;
  return static_cast<uint32_t>(queued);
}

// Bytes in the listener's queue. False: nobody can say.
bool bytes_queued(const Sock& listener, uint32_t& bytes) {
  int n = 0;
  if (::ioctl(listener.ph, TIOCOUTQ, &n) < 0) return false;
  bytes = static_cast<uint32_t>(std::max(n, 0));
  return true;
}

}  // namespace

LocalAcceptSink::LocalAcceptSink(const WorkerScope& scope, PlaceholderTable& table,
                                 const WorkerEvents& events)
    : scope_(scope), table_(table), events_(events), record_cost_(cost_of_a_record()) {}

void LocalAcceptSink::room(SlotRef listener, uint32_t records) {
  // The kernel doubles it: in use may be four times the half of the bound when EPOLLOUT is raised.
  const int bytes = static_cast<int>(records * record_cost_);
  if (bytes > 0) ::setsockopt(listener->ph, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

void LocalAcceptSink::watch_taking(SlotRef listener, bool on) {
  ListenerState& l = *listener->listener;
  if (on != l.armed && events_.rewatch_placeholder(listener, on ? uint32_t{EPOLLOUT} : 0))
    l.armed = on;
}

uint32_t LocalAcceptSink::waiting(SlotRef listener) const {
  uint32_t bytes = 0;
  if (record_cost_ == 0 || !bytes_queued(*listener, bytes)) return 0;
  // To the nearest: the kernel raises EPOLLOUT while the last byte of a record that was taken still
  // counts, and does not raise it again.
  return (bytes + record_cost_ / 2) / record_cost_;
}

uint32_t LocalAcceptSink::queued(const Sock& listener) const {
  uint32_t bytes = 0;
  if (record_cost_ == 0 || listener.ph < 0 || !bytes_queued(listener, bytes)) return 0;
  return (bytes + record_cost_ - 1) / record_cost_;
}

bool LocalAcceptSink::is_under_way() const {
  // None was handed over yet: the slot is another worker's.
  if (!scope_.is_ours(handed_by_)) return false;
  const SlotRef s = scope_.slots.find(handed_by_);
  uint32_t bytes = 0;
  return s && s->listener != nullptr && bytes_queued(*s, bytes) && bytes != 0;
}

Result<AcceptSink::Offer> LocalAcceptSink::prepare(SlotRef listener, SlotRef c, bool asked) {
  const uint32_t wish = A::load_relaxed(scope_.ch.slot(listener.index).accept_flags);
  Offer offer;
  offer.bare = asked || (wish & MW_ACCEPT_BARE) != 0;
  offer.nonblock = (wish & MW_ACCEPT_NONBLOCK) != 0;
  if (offer.bare) return offer;
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (offer.nonblock ? SOCK_NONBLOCK : 0), 0,
                   pair) < 0)
    return Error{Fault::sys, errno, "placeholder"};
  offer.theirs = UniqueFd{pair[1]};
  auto number = table_.add(scope_.ch.worker_of(c.index), UniqueFd{pair[0]}, {c.index, c->gen});
  if (!number) return number.error();
  offer.number = *number;
  return offer;
}

void LocalAcceptSink::give_back(Offer& offer) {
  if (!offer.bare) table_.remove(offer.number).reset();
}

void LocalAcceptSink::fill(const Offer& offer, mw_accept_record& record) const {
  record.flags = offer.bare ? MW_ACCEPT_BARE
                            : (offer.nonblock ? MW_ACCEPT_NONBLOCK : 0) |
                                  (offer.number + 1) << MW_ACCEPT_PLACEHOLDER_SHIFT;
}

Status LocalAcceptSink::send(SlotRef listener, const mw_accept_record& record, const Offer& offer) {
  const int fds[] = {offer.theirs.get()};
  return send_message(listener->ph, bytes_of(record), {fds, offer.bare ? size_t{0} : size_t{1}},
                      MSG_DONTWAIT);
}

void LocalAcceptSink::sent(SlotRef listener, SlotRef c, const Offer& offer) {
  ++listener->listener->sent;
  if (offer.bare)
    note_bare(listener, c);
  else
    handed_by_ = listener.index;
}

bool LocalAcceptSink::handed(uint32_t gen, const Offer& offer) {
  if (offer.bare) return true;
  // Not before its worker can find the socket: the end of the placeholder is told once.
  if (events_.watch_accepted_placeholder(offer.number, gen, table_.end(offer.number))) return true;
  log_line("mwins", "no memory to watch a new connection");
  table_.remove(offer.number).reset();
  return false;
}

Status LocalAcceptSink::tell_of_one(SlotRef listener) {
  ListenerState& l = *listener->listener;
  mw_accept_record record{};
  record.magic = MW_ACCEPT_MAGIC;
  record.slot = listener.index;
  record.gen = listener->gen;
  record.flags = MW_ACCEPT_BARE | MW_ACCEPT_ASK;
  if (Status sent = send_message(listener->ph, bytes_of(record), {}, MSG_DONTWAIT); !sent)
    return sent;
  l.told = true;
  l.told_at = scope_.tick;
  look_later(listener);
  return Ok{};
}

void LocalAcceptSink::note_bare(SlotRef listener, SlotRef c) {
  constexpr size_t kLookAgain = 128;
  ListenerState& l = *listener->listener;
  if (l.bare.size() >= kLookAgain)
    std::erase_if(l.bare, [this](const BareRecord& b) { return !is_waiting(b.slot, b.gen); });
  l.bare.push_back({c.index, c->gen, l.sent, 0});
  look_later(listener);
}

void LocalAcceptSink::look_later(SlotRef listener) {
  ListenerState& l = *listener->listener;
  if (l.handing) return;
  l.handing = true;
  handing_.push_back(listener.index);
}

bool LocalAcceptSink::is_waiting(uint32_t slot, uint32_t gen) const {
  return A::load_relaxed(scope_.ch.slot(slot).claim) == mw_claim(gen, MW_CLAIM_NOBODY);
}

bool LocalAcceptSink::revoke(uint32_t slot, uint32_t gen) {
  const uint64_t revoked = mw_claim(gen, MW_CLAIM_REVOKED);
  uint64_t claim = mw_claim(gen, MW_CLAIM_NOBODY);
  return std::atomic_ref(scope_.ch.slot(slot).claim).compare_exchange_strong(claim, revoked) ||
         claim == revoked;
}

void LocalAcceptSink::on_listener_end(ListenerState& l) {
  for (const BareRecord& b : l.bare)
    if (is_waiting(b.slot, b.gen) && revoke(b.slot, b.gen)) scope_.give_up(b.slot, b.gen);
  l.bare.clear();
}

void LocalAcceptSink::turn(std::vector<uint32_t>& unasked) {
  std::erase_if(handing_, [&](uint32_t i) {
    const SlotRef s = scope_.slots.find(i);
    return !s || s->listener == nullptr || !look_for_missing(s, unasked);
  });
}

// Revokes what has been missing since the last look. False: no bare record is left, nor one that
// tells of a connection.
bool LocalAcceptSink::look_for_missing(SlotRef listener, std::vector<uint32_t>& unasked) {
  ListenerState& l = *listener->listener;
  uint32_t bytes = 0;
  if (record_cost_ == 0 || !bytes_queued(*listener, bytes)) return true;
  const uint32_t in_queue = (bytes + record_cost_ - 1) / record_cost_;
  std::erase_if(l.bare, [&](BareRecord& b) {
    if (!is_waiting(b.slot, b.gen)) return true;
    if (l.sent - b.number < in_queue) return false;
    if (b.missing_since == 0) b.missing_since = scope_.tick;
    if (scope_.tick == b.missing_since || !revoke(b.slot, b.gen)) return false;
    scope_.give_up(b.slot, b.gen);
    return true;
  });
  if (l.told && in_queue == 0 && scope_.tick - l.told_at > 1) {
    // Whoever took it has not asked, and is dead.
    l.told = false;
    unasked.push_back(listener.index);
  }
  l.handing = !l.bare.empty() || l.told;
  return l.handing;
}

}  // namespace mw
