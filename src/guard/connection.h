// connection.h - one accepted connection as its samples tell: whose turn it is, since when, what
// moved in it, and what the peer holds by it.
//
// A turn is *in* while the application waits for the peer: from the accept, later from the first
// byte after the application has sent, until the application sends. It is *out* while the peer has
// not acknowledged all that was sent to it.
//
// A connection is *productive* for a short time after it got something done: its peer asked and
// took the whole answer, or the application sent by itself and the peer took it (an event stream),
// or bytes have moved at the least rate for a while. What was done is never worth more than the
// seconds below: an attacker has to go on working on each of its connections, one after the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "guard/rules.h"
#include "netflow/wire.h"

namespace mw::guard {

// A turn, or a direction of it: since when, and how much of it came since.
struct Turn {
  int64_t since_ns = 0;
  uint64_t bytes = 0;  // of the whole connection as it began
  // The last moment before which enough moved: at least the least rate since the one before.
  int64_t moved_ns = 0;
  uint64_t moved_bytes = 0;
};

// What a whole answer is worth, and at most so much for many.
inline constexpr int64_t kAnswerIsWorthNs = 2'000'000'000;
inline constexpr int64_t kAnswersAreWorthNs = 5'000'000'000;
// Bytes that moved well are worth as long as they have done so, at most this.
inline constexpr int64_t kMovingIsWorthNs = 10'000'000'000;
// An application that sends by itself keeps the connection on purpose, at least for so long.
inline constexpr int64_t kPushIsWorthNs = 60'000'000'000;

class Connection {
 public:
  // `now_ns` of the first sample; the turn begins as long ago as the sample can prove.
  Connection(const netflow::Sample& first, int64_t now_ns, const Rules& rules);
  // The next sample. Gives how many answers the peer took since the one before.
  uint32_t update(const netflow::Sample& next, int64_t now_ns, const Rules& rules);
  // Time in which nobody looked, or the stack stood still: it counts against no peer.
  void excuse(int64_t ns);

  const netflow::Sample& sample() const { return sample_; }
  int64_t seen_ns() const { return seen_ns_; }
  bool inbound_stream() const;

  bool in_turn() const { return in_open_; }
  bool out_turn() const { return out_open_; }
  // What it is at began so long ago: the turn, or, between requests, the connection.
  int64_t unchanged_ns(int64_t now_ns) const;
  double in_seconds(int64_t now_ns) const { return seconds(now_ns, in_.since_ns); }
  double out_seconds(int64_t now_ns) const { return seconds(now_ns, out_.since_ns); }
  uint64_t in_bytes() const { return received(sample_) - in_.bytes; }
  uint64_t out_bytes() const { return sample_.bytes_acked - out_.bytes; }

  // The application has read all that came and waits for more, for certain: a thread of it waits on
  // this socket, or nothing came at all, or the peer was still adding pieces a moment ago and no
  // thread ever waited (one that did, and no longer does, is at work on what came).
  bool server_waits(int64_t now_ns) const;
  // The application has not taken what came: whatever is late is its own doing.
  bool server_is_behind() const { return sample_.unread > 0; }
  bool window_is_closed(const Rules& rules) const;
  double window_seconds(int64_t now_ns) const {
    return closed_ns_ == 0 ? 0 : seconds(now_ns, closed_ns_);
  }
  // Losses or a long way: what is late may be the network's doing.
  bool link_is_bad() const;
  // Nothing is heard from the peer, not even an acknowledgement of what is sent again.
  bool peer_is_gone() const;
  // It holds something of the server and has not moved for so long.
  bool still(int64_t now_ns, uint32_t ms, const Rules& rules) const;
  // It keeps a good rate, and has for a second at least.
  bool moves_well(int64_t now_ns, const Rules& rules) const;
  // Between requests: nothing is under way.
  bool idle(int64_t now_ns, int64_t for_ns) const;
  int64_t idle_ns(int64_t now_ns) const;
  uint32_t answers() const { return answers_; }
  bool productive(int64_t now_ns) const { return now_ns < productive_until_ns_; }
  // The application sent something that nobody had asked for, lately: an event, a message.
  bool pushed(int64_t now_ns) const { return now_ns < pushed_until_ns_; }
  // The peer has neither sent nor taken anything for so long, though it is its turn.
  bool silent(int64_t now_ns, int64_t for_ns) const;
  // All that is late is the application's doing: it has not taken or not answered what came.
  bool server_is_at_it(int64_t now_ns) const {
    return server_is_behind() || (in_open_ && !out_open_ && !server_waits(now_ns));
  }

  // What was decided about it last, so that nothing is decided twice.
  int64_t judged_ns = 0;
  // When it was counted as one that was cut, and when it was told that it may not be.
  int64_t counted_ns = 0;
  int64_t held_back_ns = 0;

 private:
  static double seconds(int64_t now_ns, int64_t since_ns) {
    return static_cast<double>(now_ns - since_ns) / 1e9;
  }
  static uint64_t received(const netflow::Sample& s);
  static bool pending(const netflow::Sample& s);
  void update_in(const netflow::Sample& next, bool app_sent, int64_t now_ns, const Rules& rules);
  bool update_out(const netflow::Sample& next, bool app_sent, int64_t now_ns, const Rules& rules);
  void credit(const netflow::Sample& next, bool taken, int64_t now_ns, const Rules& rules);
  void worth_until(int64_t when_ns) {
    productive_until_ns_ = std::max(productive_until_ns_, when_ns);
  }

  netflow::Sample sample_;
  int64_t seen_ns_;
  bool in_open_ = false;
  bool out_open_ = false;
  Turn in_;
  Turn out_;
  int64_t closed_ns_ = 0;  // since when the window is closed and nothing moves
  uint32_t pieces_ = 0;    // that came in this turn, as far as samples can tell them apart
  int64_t piece_ns_ = 0;   // the last of them
  int64_t longest_gap_ns_ = 0;
  uint64_t retrans_before_ = 0;
  uint32_t answers_ = 0;
  uint64_t asked_ = 0;    // bytes that had come when the last answer was taken
  bool pushing_ = false;  // what is being sent was not asked for
  int64_t productive_until_ns_ = 0;
  int64_t pushed_until_ns_ = 0;
};

}  // namespace mw::guard
