#include "driver/ins_telemetry.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include "transport/local/fd_message.h"

namespace mw {

Result<InsTelemetry::Ends> InsTelemetry::make(uint32_t id, uint32_t pid,
                                              const mw_geometry& geometry,
                                              const std::vector<int>& worker_bells,
                                              UniqueFd netns) {
  Ends ends;
  std::unique_ptr<InsTelemetry> t{new InsTelemetry(id, pid, geometry)};
  auto memory =
      make_sealed_memfd("mw-telemetry", mw_telemetry_bytes(geometry.workers, geometry.slots));
  if (!memory) return memory.error();
  auto mapping = map_sealed(memory->get());
  if (!mapping) return mapping.error();
  t->memory_ = std::move(*mapping);
  t->bell_ = UniqueFd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  int pair[2];
  if (!t->bell_ ||
      ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    return Error{Fault::sys, errno, "descriptors for telemetry"};
  t->requests_ = UniqueFd{pair[0]};
  ends.theirs.requests = UniqueFd{pair[1]};
  ends.theirs.bell = UniqueFd{::fcntl(t->bell_.get(), F_DUPFD_CLOEXEC, 3)};
  if (!ends.theirs.bell) return Error{Fault::sys, errno, "descriptors for telemetry"};
  for (const int bell : worker_bells) {
    t->worker_bells_.emplace_back(::fcntl(bell, F_DUPFD_CLOEXEC, 3));
    if (!t->worker_bells_.back()) return Error{Fault::sys, errno, "descriptors for telemetry"};
  }
  for (uint32_t w = 0; w < geometry.workers; ++w)
    t->rings_.push_back(telemetry_end<TelemetryReader>(t->memory_.base(), w));
  t->rows_ = SampleRowReader(t->memory_.base(), geometry.workers, geometry.slots);
  t->netns_ = std::move(netns);
  t->set_epoch(kFirstEpoch);
  t->flows_.forget(kFirstEpoch);
  ends.theirs.memory = std::move(*memory);
  ends.ours = std::move(t);
  return ends;
}

void InsTelemetry::set_epoch(uint32_t epoch) {
  for (TelemetryReader& ring : rings_) ring.set_epoch(epoch);
  ring_workers();
}

void InsTelemetry::want_round(uint32_t round) {
  rows_.want(round);
  ring_workers();
}

bool InsTelemetry::round_done(uint32_t round, int64_t now_ms) {
  for (uint32_t w = 0; w < rings_.size(); ++w)
    if (!rows_.is_done(w, round)) return false;
  alive_ms_ = now_ms;
  return true;
}

void InsTelemetry::ring_workers() {
  for (const UniqueFd& bell : worker_bells_) {
    const uint64_t one = 1;
    (void)!::write(bell.get(), &one, sizeof one);  // a full counter wakes as well
  }
}

void InsTelemetry::set_muted(bool muted) {
  for (TelemetryReader& ring : rings_) ring.set_muted(muted);
}

uint64_t InsTelemetry::newly_dropped() {
  uint64_t total = 0;
  for (const TelemetryReader& ring : rings_) total += ring.dropped();
  // A count that shrinks is a lie that costs nobody anything.
  const uint64_t fresh = total > dropped_ ? total - dropped_ : 0;
  dropped_ = total;
  return fresh;
}

bool InsTelemetry::prepare_sleep() {
  bool may = true;
  for (TelemetryReader& ring : rings_) may = ring.prepare_sleep() && may;
  if (!may) wake();
  return may;
}

void InsTelemetry::wake() {
  for (TelemetryReader& ring : rings_) ring.wake();
}

void InsTelemetry::ask(InsRequest request, Done done) {
  InsReply failed{};
  if (questions_.size() >= kMaxQuestions) {
    failed.status = EBUSY;
    return done(failed);
  }
  while (questions_.count(next_question_) != 0) ++next_question_;
  request.id = next_question_++;
  const Status sent = send_message(requests_.get(), bytes_of(request), {}, MSG_DONTWAIT);
  if (!sent) {
    failed.status = sent.error().fault == Fault::would_block ? EBUSY : ECONNRESET;
    return done(failed);
  }
  questions_.emplace(request.id, std::move(done));
}

Status InsTelemetry::on_replies() {
  for (;;) {
    InsReply reply{};
    auto m = receive_message(requests_.get(), writable_bytes_of(reply), MSG_DONTWAIT);
    if (!m && m.error().fault == Fault::would_block) return Ok{};
    if (!m) return m.error();
    const auto it = questions_.find(reply.id);
    if (m->bytes != sizeof reply || m->fd_count != 0 || it == questions_.end() ||
        reply.len > sizeof reply.value || reply.status > 4095)
      return Error{Fault::peer, 0, "an answer that does not fit"};
    const Done done = std::move(it->second);
    questions_.erase(it);
    done(reply);
  }
}

void InsTelemetry::fail_all(uint32_t err) {
  for (auto& [id, done] : std::exchange(questions_, {})) {
    InsReply failed{};
    failed.status = err;
    done(failed);
  }
}

}  // namespace mw
