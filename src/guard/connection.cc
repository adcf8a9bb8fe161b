#include "guard/connection.h"

#include <algorithm>

namespace mw::guard {

using netflow::kNever;
using netflow::Sample;

namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMs;
constexpr uint32_t kLongWayUs = 250'000;
constexpr uint32_t kGoneMs = 5'000;
// A peer that adds pieces is taken to be still at it for this many times its longest pause.
constexpr int64_t kPauses = 3;
constexpr int64_t kShortestPause = 5 * kSecond;
constexpr uint32_t kOldMs = 60'000;
// What an application sends so long after it sent last, it sends by itself: no second part of an
// answer.
constexpr uint32_t kPushPauseMs = 1'000;

bool tcp(const Sample& s) {
  return (s.flags & netflow::kSampleTcp) != 0;
}

int64_t ago(int64_t now_ns, uint32_t ms) {
  return now_ns - (ms == kNever ? 0 : int64_t{ms} * kMs);
}

void move(Turn& t, uint64_t bytes, int64_t now_ns, uint32_t rate) {
  const double needed = static_cast<double>(rate) * static_cast<double>(now_ns - t.moved_ns) / 1e9;
  if (bytes <= t.moved_bytes || static_cast<double>(bytes - t.moved_bytes) < needed) return;
  t.moved_ns = now_ns;
  t.moved_bytes = bytes;
}

}  // namespace

Connection::Connection(const Sample& first, int64_t now_ns, const Rules& rules)
    : sample_(first), seen_ns_(now_ns), retrans_before_(first.total_retrans) {
  const bool sent = first.first_out != kNever;
  in_open_ = !sent || (first.last_in != kNever && first.last_in < first.last_out);
  if (in_open_) {
    // The kernel knows when data came last, whoever has read it.
    const uint32_t came = tcp(first) && received(first) > 0 ? first.last_data_recv : first.last_in;
    in_ = {ago(now_ns, sent ? first.last_in : first.age), 0, 0, received(first)};
    if (sent) in_.bytes = received(first);
    in_.moved_ns = received(first) == 0 ? in_.since_ns : std::max(in_.since_ns, ago(now_ns, came));
    pieces_ = received(first) > 0 ? 1 : 0;
    piece_ns_ = in_.moved_ns;
  }
  out_open_ = pending(first);
  // How much the peer took of it before is not known: the turn begins now.
  if (out_open_) out_ = {now_ns, first.bytes_acked, now_ns, first.bytes_acked};
  if (out_open_ && window_is_closed(rules)) closed_ns_ = now_ns;
  // It was asked and answered before anybody looked. A greeting alone is no answer; of one that
  // asks again, only its age tells that it did not just begin with an answer to hide behind.
  const bool past = !in_open_ || (first.age != kNever && first.age >= kOldMs);
  if (sent && past && !out_open_ && received(first) > 0) {
    answers_ = 1;
    asked_ = received(first);
    const int64_t answered_ns = ago(now_ns, first.last_out);
    if (now_ns - answered_ns < kAnswerIsWorthNs) worth_until(answered_ns + kAnswerIsWorthNs);
  }
}

uint64_t Connection::received(const Sample& s) {
  return tcp(s) ? s.bytes_received : s.bytes_in + s.unread;
}

bool Connection::pending(const Sample& s) {
  return s.unsent > 0 || (tcp(s) && (s.notsent > 0 || s.unacked > 0));
}

bool Connection::inbound_stream() const {
  return sample_.type == 1 && (sample_.flags & netflow::kSampleInbound) != 0 &&
         (sample_.flags & netflow::kSampleListener) == 0;
}

uint32_t Connection::update(const Sample& next, int64_t now_ns, const Rules& rules) {
  const bool app_sent = next.bytes_out > sample_.bytes_out;
  if (next.unread > 0) {  // not taken yet: the peer's time stands still
    const int64_t passed = now_ns - seen_ns_;
    in_.since_ns += passed;
    in_.moved_ns += passed;
  }
  update_in(next, app_sent, now_ns, rules);
  const bool taken = update_out(next, app_sent, now_ns, rules);
  credit(next, taken, now_ns, rules);
  sample_ = next;
  seen_ns_ = now_ns;
  answers_ += taken ? 1 : 0;
  return taken ? 1 : 0;
}

void Connection::update_in(const Sample& next, bool app_sent, int64_t now_ns, const Rules& rules) {
  const uint64_t before = received(sample_);
  const uint64_t bytes = received(next);
  if (app_sent) {
    in_open_ = false;
    pieces_ = 0;
    longest_gap_ns_ = 0;
  }
  if (bytes == before) return;
  const bool answered_already =
      app_sent && (next.last_in == kNever || next.last_in >= next.last_out) && next.unread == 0;
  if (answered_already) return;
  if (!in_open_) {
    in_open_ = true;
    in_ = {now_ns, before, now_ns, bytes};
    pieces_ = 0;
  }
  if (++pieces_ > 1) longest_gap_ns_ = std::max(longest_gap_ns_, now_ns - piece_ns_);
  piece_ns_ = now_ns;
  move(in_, bytes, now_ns, rules.request.min_rate);
}

// True if the peer has taken all of an answer.
bool Connection::update_out(const Sample& next, bool app_sent, int64_t now_ns, const Rules& rules) {
  const bool was_open = out_open_;
  out_open_ = pending(next);
  if (!out_open_) {
    closed_ns_ = 0;
    return was_open || app_sent;
  }
  if (!was_open) {
    out_ = {now_ns, sample_.bytes_acked, now_ns, next.bytes_acked};
    retrans_before_ = next.total_retrans;
  }
  const int64_t moved = out_.moved_ns;
  move(out_, next.bytes_acked, now_ns, rules.answer.min_rate);
  const bool closed = tcp(next) && next.snd_wnd < rules.window_bytes;
  if (!closed || out_.moved_ns != moved)
    closed_ns_ = closed ? now_ns : 0;
  else if (closed_ns_ == 0)
    closed_ns_ = now_ns;
  return false;
}

// Called before `next` takes the place of sample_.
void Connection::credit(const Sample& next, bool taken, int64_t now_ns, const Rules& rules) {
  const bool asked = received(next) > asked_;
  if (next.bytes_out > sample_.bytes_out && !asked && sample_.last_out != kNever)
    pushing_ = sample_.last_out + (now_ns - seen_ns_) / kMs >= kPushPauseMs;
  if (taken && asked) {
    const int64_t begin = std::max(productive_until_ns_, now_ns);
    worth_until(std::min(begin + kAnswerIsWorthNs, now_ns + kAnswersAreWorthNs));
    asked_ = received(next);
  } else if (taken && pushing_) {
    worth_until(now_ns + kAnswersAreWorthNs);
    pushed_until_ns_ = now_ns + kPushIsWorthNs;
  }
  if (taken) pushing_ = false;
  if (moves_well(now_ns, rules)) {
    const int64_t since_ns = out_open_ ? out_.since_ns : in_.since_ns;
    worth_until(now_ns + std::min(now_ns - since_ns, kMovingIsWorthNs));
  }
}

void Connection::excuse(int64_t ns) {
  for (int64_t* t : {&in_.since_ns, &in_.moved_ns, &out_.since_ns, &out_.moved_ns, &piece_ns_,
                     &productive_until_ns_, &pushed_until_ns_})
    *t += ns;
  if (closed_ns_ != 0) closed_ns_ += ns;
}

bool Connection::server_waits(int64_t now_ns) const {
  if (server_is_behind()) return false;
  if (sample_.waiting_threads > 0 || received(sample_) == 0) return true;
  if (sample_.worker_us > 0) return false;
  const int64_t patience = std::max(kShortestPause, kPauses * longest_gap_ns_);
  return pieces_ > 1 && now_ns - piece_ns_ <= patience;
}

bool Connection::window_is_closed(const Rules& rules) const {
  return tcp(sample_) && sample_.snd_wnd < rules.window_bytes;
}

bool Connection::link_is_bad() const {
  return tcp(sample_) &&
         (sample_.rtt_us > kLongWayUs || sample_.total_retrans > retrans_before_ + 1 ||
          // A closed window is probed with growing pauses too; that says nothing about the way.
          (sample_.backoff > 0 && sample_.snd_wnd > 0 && sample_.unacked > 0));
}

bool Connection::peer_is_gone() const {
  return tcp(sample_) && sample_.unacked > 0 && sample_.backoff > 0 &&
         sample_.last_ack_recv > kGoneMs;
}

bool Connection::still(int64_t now_ns, uint32_t ms, const Rules& rules) const {
  // Rounds come a little early or late; for that nobody waits for the next one.
  const int64_t long_ago = now_ns - int64_t{ms} * kMs + std::min(ms, rules.sample_ms) * kMs / 10;
  if (out_open_) return window_is_closed(rules) && !peer_is_gone() && out_.moved_ns <= long_ago;
  return in_open_ && in_.moved_ns <= long_ago && server_waits(now_ns);
}

int64_t Connection::unchanged_ns(int64_t now_ns) const {
  if (out_open_) return now_ns - out_.since_ns;
  if (in_open_) return now_ns - in_.since_ns;
  return int64_t{sample_.age} * kMs + (now_ns - seen_ns_);
}

bool Connection::silent(int64_t now_ns, int64_t for_ns) const {
  return now_ns - (out_open_ ? out_.moved_ns : piece_ns_) >= for_ns;
}

bool Connection::moves_well(int64_t now_ns, const Rules& rules) const {
  const int64_t lately = now_ns - int64_t{rules.crowd_still_ms} * kMs;
  if (out_open_) return now_ns - out_.since_ns >= kSecond && out_.moved_ns > lately;
  return in_open_ && now_ns - in_.since_ns >= kSecond && in_.moved_ns > lately;
}

int64_t Connection::idle_ns(int64_t now_ns) const {
  const uint32_t last = std::min({sample_.last_in, sample_.last_out, sample_.age});
  return (last == kNever ? 0 : int64_t{last} * kMs) + (now_ns - seen_ns_);
}

bool Connection::idle(int64_t now_ns, int64_t for_ns) const {
  return !in_open_ && !out_open_ && sample_.first_out != kNever && !server_is_behind() &&
         idle_ns(now_ns) >= for_ns;
}

}  // namespace mw::guard
