// worker.h - one event loop of the INS: it executes the calls about its slots and moves their
// bytes.
//
// The loop: take news from the PVM (call_news, sock_news), then events from the kernel (epoll), then
// what is left over from the last turn; sleep only after announcing it in both ready sets. The
// steady state allocates nothing: a request costs one recv and one send of the real socket.
//
// TRUST       Slots, calls and the indexes in them come from the PVM: find() and the window checks
//             of ring/ stand before every use. A violation poisons the channel and ends the loop.
// INVARIANTS  A slot's epoll events carry its generation: what was queued for a slot's earlier life
//             is dropped. The shared copies of our own indexes are written and never read.
// ORDERING    Publication (index, state, error: release), fence, look at watches and want:
//             announce().
// THREADS     run() is the worker's thread; everything else is called from it. Other threads send
//             notes.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <vector>

#include "ins/context.h"
#include "ins/sampler.h"
#include "ins/telemetry.h"
#include "ring/order.h"

namespace mw {

// How many connections may be accepted before the program takes them.
uint32_t accepted_ahead(uint32_t backlog);

class Worker {
 public:
  Worker(InsContext& ins, uint32_t index);
  ~Worker();
  // Serves until a stop note or until the channel is poisoned.
  void run();

  // The pieces of run(). False: the worker cannot work (logged).
  bool begin();
  // One round of everything; sleeps if there is nothing to do and it may.
  void turn(bool may_sleep);

 private:
  using Kind = ControlNote::Kind;
  static constexpr uint32_t kRealEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI;
  static constexpr uint32_t kPlaceholderEvents = EPOLLIN | EPOLLRDHUP;
  // What an announcement is about.
  static constexpr uint32_t kNewsIn = 1;   // input, state or error
  static constexpr uint32_t kNewsOut = 2;  // room in the send ring, state or error
  static constexpr uint32_t kNewsAll = kNewsIn | kNewsOut;
  static constexpr size_t kMaxDead = 512;  // placeholders that wait to be closed

  // worker.cc
  uint32_t turn_news();
  uint32_t turn_calls();
  int turn_events(int timeout_ms);
  void serve_before_close();
  void sleep();
  void see_closes();
  void turn_local();
  void on_event(const epoll_event& e);
  void on_placeholder(uint32_t i, Sock& s, uint32_t events);
  void on_notes();
  void on_sock_news(uint32_t i);
  bool spin();
  bool processors_free(int64_t now);
  int sleep_ms() const;
  void requeue(uint32_t i, Sock& s);
  void set_state(uint32_t i, Sock& s, uint32_t state);
  void publish_error(uint32_t i, Sock& s, int err);
  void datagram_refused(const Sock& s);
  void publish_failure(uint32_t i, Sock& s, int err, uint32_t state);
  void announce(uint32_t i, uint32_t news);
  void ring_groups();
  void fault(const Error& e) { ins_.poison(e.where); }
  bool watch(int fd, uint32_t events, uint32_t i, uint32_t gen, bool placeholder, int op);
  bool watch_placeholder(int end, uint32_t number, uint32_t gen);
  bool watch_real(uint32_t i, Sock& s);

  // beat.cc
  struct GroupDoubt {
    uint8_t beats = 0;      // in which its sleeper was seen to be kept waiting
    bool rung = false;      // by a beat
    bool given_up = false;  // that changed nothing
  };
  void repaired(const char* what);
  void look_after_sleep();
  void beat();
  void beat_of(uint32_t i, Sock& s);
  void beat_of_group(uint32_t g);
  void settle_doubts();

  // opening.cc
  void on_drop();
  bool take_drop();
  void init_shared_slot(uint32_t i, Sock& s);
  void new_socket(const Request& r, UniqueFd placeholder, Answer& a);
  void hand_over(uint32_t i, Sock& s, bool with_real);
  void give_up(uint32_t i, uint32_t gen);
  void abandon(uint32_t i, Sock& s);

  // closing.cc
  void close_marked();
  void last_close(uint32_t i, Sock& s);
  static void reset_at_close(int fd);
  static void note_end(Sock& s, uint8_t what);
  void note_close(Sock& s);
  void cut_off(uint32_t i, Sock& s);
  void reset_all();
  void abort_socket(uint32_t i, Sock& s);
  void reset_and_free(uint32_t i, Sock& s);
  void finish_close(uint32_t i, Sock& s);
  bool lingers_for_acks(Sock& s);
  void begin_lingering(Sock& s);
  void free_slot(uint32_t i, Sock& s);
  void bury(int placeholder);
  void close_dead();
  bool records_under_way() const;

  // memory.cc
  void touch(uint32_t i, Sock& s);
  void release_idle_memory();
  void punch(uint64_t offset, uint64_t bytes);

  // stream.cc
  void on_stream_event(uint32_t i, Sock& s, uint32_t events);
  uint32_t stream_rx(uint32_t i, Sock& s);
  static int take_reset(Sock& s);
  uint32_t stream_tx(uint32_t i, Sock& s, int flags = 0, bool even_held = false);
  bool has_unsent(uint32_t i, const Sock& s) const;
  void stream_send_failed(uint32_t i, Sock& s, int err, uint32_t tail);
  void finish_connect(uint32_t i, Sock& s);
  void on_urgent(uint32_t i, Sock& s);
  void look_for_mark(uint32_t i, Sock& s);
  uint32_t end_state(Sock& s);
  uint32_t tell_end(uint32_t i, Sock& s);
  void publish_last_error(uint32_t i, Sock& s, int err, bool closed);
  bool rx_wait_for_room(uint32_t i, Sock& s, uint32_t need);
  uint32_t end_bits(const Sock& s) const;
  uint32_t rx_limit(const Sock& s) const;

  // dgram.cc
  void on_dgram_event(uint32_t i, Sock& s, uint32_t events);
  uint32_t dgram_rx(uint32_t i, Sock& s);
  void dgram_option_set(uint32_t i, Sock& s, int level, int name);
  void error_entry_taken(uint32_t i, Sock& s, msghdr& taken);
  void dgram_errors(uint32_t i, Sock& s);
  void dgram_send(uint32_t i, Sock& s, const Request& r, Answer& a);

  // listener.cc
  void on_listener_event(uint32_t i, Sock& s);
  void accept_some(uint32_t i, Sock& s);
  bool accept_one(uint32_t i, Sock& s, Answer* answer = nullptr);
  void tell_of_one(uint32_t i, Sock& s);
  void look_later(uint32_t listener, ListenerState& l);
  static void share_out(Sock& s, uint32_t ahead);
  void count_ahead(Sock& s);
  static uint32_t most_ahead(const ListenerState& l);
  static bool is_slow(const ListenerState& l);
  void watch_takes(uint32_t i, Sock& s, bool on);
  bool room_ahead(uint32_t i, Sock& s);
  void nobody_waits(uint32_t i, Sock& s);
  void listener_started(uint32_t i, Sock& s, int backlog);
  void announce_listener(uint32_t i, Sock& s);
  struct NewPlaceholder {
    uint32_t number;
    UniqueFd theirs;
  };
  Result<NewPlaceholder> make_placeholder(uint32_t slot, uint32_t gen, bool nonblock);
  void hand_over_accepted(uint32_t n, Sock& c, int number);
  void note_bare(uint32_t listener, ListenerState& l, uint32_t slot, uint32_t gen);
  bool is_waiting(uint32_t slot, uint32_t gen) const;
  bool revoke(uint32_t slot, uint32_t gen);
  void revoke_all(ListenerState& l);
  void look_for_missing();
  bool look_for_missing(uint32_t i, Sock& s);
  void retry_stalled();
  void stall(uint32_t i, Sock& s);

  // placeholders.cc
  int placeholder_of(uint32_t i, const Sock& s) const;
  uint32_t claim_of(uint32_t i, const Sock& s) const;
  void on_accepted_placeholder(uint32_t number, uint32_t gen, uint32_t events);
  template <class Visit>
  void each_served(uint32_t number, Visit&& visit);
  bool new_placeholder(const Request& r, UniqueFd end, Answer& a);
  void keep_placeholder(uint32_t i, Sock& s);
  static bool drain_placeholder(int end);
  void report_bypass(uint32_t i, Sock& s);

  // request.cc
  void on_request(const InsRequest& r);
  void answer_option(uint32_t i, Sock& s, const InsRequest& r, InsReply& reply);
  void option_of_all(const InsRequest& r, InsReply& reply);
  void cut_peer(const InsRequest& r, InsReply& reply);
  template <class Visit>
  void each_socket(Visit&& visit) {
    const uint32_t end = ins_.slots.used_end(index_);
    for (uint32_t i = index_; i < end; i += ch_.geometry().workers) {
      Sock* s = ins_.slots.find(i);
      if (s != nullptr && s->fd >= 0) visit(i, *s);
    }
  }

  // limits.cc
  static bool is_paused(const Sock& s, uint32_t direction) {
    return (s.flags & kLimited) != 0 && (s.limits->paused & direction) != 0;
  }
  Limits& limits_of(uint32_t i, Sock& s);
  void drop_limits(Sock& s);
  bool admit(uint32_t i, Sock& s, const mw_addr& peer);
  void arm(Sock& s);
  void limits_received(Sock& s, uint32_t moved, bool waited);
  void limits_before_send(Sock& s);
  void limits_turn();
  void limit_due(uint32_t i, Sock& s, int64_t now);
  void cut(uint32_t i, Sock& s, uint32_t why);
  void min_rate(uint32_t i, Sock* s, const InsRequest& r, InsReply& reply);
  void set_min_rate(uint32_t i, Sock& s, bool out, const MinRate& rule);
  void pause(uint32_t i, Sock* s, const InsRequest& r, InsReply& reply);
  void set_paused(uint32_t i, Sock& s, uint32_t bits);
  static PeerAddress peer_named(const InsRequest& r);
  void allow(const InsRequest& r);
  void peer_cap(const InsRequest& r);
  void count_peers();
  void forget_limits();

  // calls.cc
  void on_call(uint32_t call);
  void serve(uint32_t call, bool again);
  void set_aside(uint32_t call);
  void retry_late();
  void execute(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_bind(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_listen(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_connect(uint32_t i, Sock& s, const Request& r, Answer& a);
  void note_connect(uint32_t i, Sock& s, bool established, bool dissolved);
  void dissolved(uint32_t i, Sock& s);
  void call_shutdown(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_getsockopt(Sock& s, const Request& r, Answer& a);
  void call_setsockopt(uint32_t i, Sock& s, const Request& r, Answer& a);
  void option_set(uint32_t i, Sock& s, int level, int name);
  void call_name(Sock& s, bool peer, Answer& a);
  void call_closed(uint32_t i, Sock& s, Answer& a);
  void call_accept(uint32_t i, Sock& s, Answer& a);
  static void call_gifconf(Sock& s, const Request& r, Answer& a);
  static void call_ethtool(Sock& s, const Request& r, Answer& a);
  void call_ioctl(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_sendmsg(uint32_t i, Sock& s, const Request& r, Answer& a);
  void call_recvmsg(uint32_t i, Sock& s, const Request& r, Answer& a);

  InsContext& ins_;
  const uint32_t index_;
  const Channel ch_;
  ReadySet sock_news_;
  ReadySet call_news_;
  const int epoll_;
  Stats& stats_;
  Telemetry telemetry_;
  TimerWheel wheel_;  // deadlines of minimum rates
  bool stop_ = false;
  uint32_t tick_ = 0;
  const bool may_spin_;
  int turns_without_events_ = 0;
  int64_t spin_ns_ = 0;       // how long the next spin may last
  int64_t load_read_at_ = 0;  // when processors_free() looked last
  bool processors_free_ = false;
  uint32_t spread_ = 0;       // the worker that gets the next new socket
  uint32_t record_cost_ = 0;  // what one accept record weighs in SIOCOUTQ
  Sampler sampler_;
  bool retry_now_ = false;  // a slot or descriptor came free while listeners were stalled
  uint32_t beat_slot_;      // where the next beat begins
  std::vector<int> group_bells_;
  std::vector<GroupDoubt> group_doubts_;
  std::vector<uint32_t> doubted_;
  std::vector<uint32_t> rings_due_;   // groups whose sleeper waits for the end of the batch
  std::vector<OrderedMember> batch_;  // calls and slots with news, in their order
  std::vector<uint32_t> local_;       // slots with work left
  std::vector<uint32_t> local_next_;
  std::vector<uint32_t> warm_;     // slots whose rings may have memory to give back
  std::vector<int> dead_;          // placeholders to close
  std::vector<uint32_t> closing_;  // connections that were closed, after their last calls
  std::vector<uint32_t> handing_;  // listeners with bare records
  uint32_t handed_by_ = 0;         // the listener whose record was sent last
  std::vector<uint32_t> stalled_;  // listeners out of descriptors or slots
  // Calls that found an address taken, until all closes before them are seen.
  struct LateCall {
    uint32_t call;
    uint32_t looks_due;  // other workers that have not looked yet
    std::unique_ptr<Request> request;
  };
  std::vector<LateCall> late_;
  std::vector<WorkerNote> asked_looks_;
  std::vector<uint8_t> scratch_;  // one datagram whose control messages precede it
  Request request_;
  Answer answer_;
};

}  // namespace mw
