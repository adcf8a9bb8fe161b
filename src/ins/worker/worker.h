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
#include "ins/report/sampler.h"
#include "ins/report/telemetry.h"
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
  void on_placeholder(SlotRef s, uint32_t events);
  void on_notes();
  void on_sock_news(uint32_t i);
  bool spin();
  bool processors_free(int64_t now);
  int sleep_ms() const;
  void requeue(SlotRef s);
  void set_state(SlotRef s, uint32_t state);
  void publish_error(SlotRef s, int err);
  void datagram_refused(const Sock& s);
  void publish_failure(SlotRef s, int err, uint32_t state);
  void announce(SlotRef s, uint32_t news);
  void ring_groups();
  void fault(const Error& e) { ins_.poison(e.where); }
  bool watch(int fd, uint32_t events, uint32_t i, uint32_t gen, bool placeholder, int op);
  bool watch_placeholder(int end, uint32_t number, uint32_t gen);
  bool watch_real(SlotRef s);

  // beat.cc
  struct GroupDoubt {
    uint8_t beats = 0;      // in which its sleeper was seen to be kept waiting
    bool rung = false;      // by a beat
    bool given_up = false;  // that changed nothing
  };
  void repaired(const char* what);
  void look_after_sleep();
  void beat();
  void beat_of(SlotRef s);
  void beat_of_group(uint32_t g);
  void settle_doubts();

  // opening.cc
  void on_drop();
  bool take_drop();
  void init_shared_slot(SlotRef s);
  void new_socket(const Request& r, UniqueFd placeholder, Answer& a);
  void hand_over(SlotRef s, bool with_real);
  void give_up(uint32_t i, uint32_t gen);
  void abandon(SlotRef s);

  // closing.cc
  void close_marked();
  void last_close(SlotRef s);
  static void reset_at_close(int fd);
  static void note_end(Sock& s, uint8_t what);
  void note_close(Sock& s);
  void cut_off(SlotRef s);
  void reset_all();
  void abort_socket(SlotRef s);
  void reset_and_free(SlotRef s);
  void finish_close(SlotRef s);
  bool lingers_for_acks(Sock& s);
  void begin_lingering(Sock& s);
  void free_slot(SlotRef s);
  void bury(int placeholder);
  void close_dead();
  bool records_under_way() const;

  // memory.cc
  void touch(SlotRef s);
  void release_idle_memory();
  void punch(uint64_t offset, uint64_t bytes);

  // stream.cc
  void on_stream_event(SlotRef s, uint32_t events);
  uint32_t stream_rx(SlotRef s);
  static int take_reset(Sock& s);
  uint32_t stream_tx(SlotRef s, int flags = 0, bool even_held = false);
  bool has_unsent(SlotRef s) const;
  void stream_send_failed(SlotRef s, int err, uint32_t tail);
  void finish_connect(SlotRef s);
  void on_urgent(SlotRef s);
  void look_for_mark(SlotRef s);
  uint32_t end_state(Sock& s);
  uint32_t tell_end(SlotRef s);
  void publish_last_error(SlotRef s, int err, bool closed);
  bool rx_wait_for_room(SlotRef s, uint32_t need);
  uint32_t end_bits(const Sock& s) const;
  uint32_t rx_limit(const Sock& s) const;

  // dgram.cc
  void on_dgram_event(SlotRef s, uint32_t events);
  uint32_t dgram_rx(SlotRef s);
  void dgram_option_set(SlotRef s, int level, int name);
  void error_entry_taken(SlotRef s, msghdr& taken);
  void dgram_errors(SlotRef s);
  void dgram_send(SlotRef s, const Request& r, Answer& a);

  // listener.cc
  void on_listener_event(SlotRef s);
  void accept_some(SlotRef s);
  bool accept_one(SlotRef s, Answer* answer = nullptr);
  void tell_of_one(SlotRef s);
  void look_later(uint32_t listener, ListenerState& l);
  static void share_out(Sock& s, uint32_t ahead);
  void count_ahead(Sock& s);
  static uint32_t most_ahead(const ListenerState& l);
  static bool is_slow(const ListenerState& l);
  void watch_takes(SlotRef s, bool on);
  bool room_ahead(SlotRef s);
  void nobody_waits(SlotRef s);
  void listener_started(SlotRef s, int backlog);
  void announce_listener(SlotRef s);
  struct NewPlaceholder {
    uint32_t number;
    UniqueFd theirs;
  };
  Result<NewPlaceholder> make_placeholder(uint32_t slot, uint32_t gen, bool nonblock);
  void hand_over_accepted(SlotRef c, int number);
  void note_bare(uint32_t listener, ListenerState& l, uint32_t slot, uint32_t gen);
  bool is_waiting(uint32_t slot, uint32_t gen) const;
  bool revoke(uint32_t slot, uint32_t gen);
  void revoke_all(ListenerState& l);
  void look_for_missing();
  bool look_for_missing(SlotRef s);
  void retry_stalled();
  void stall(SlotRef s);

  // placeholders.cc
  int placeholder_of(SlotRef s) const;
  uint32_t claim_of(SlotRef s) const;
  void on_accepted_placeholder(uint32_t number, uint32_t gen, uint32_t events);
  template <class Visit>
  void each_served(uint32_t number, Visit&& visit);
  bool new_placeholder(const Request& r, UniqueFd end, Answer& a);
  void keep_placeholder(SlotRef s);
  static bool drain_placeholder(int end);
  void report_bypass(SlotRef s);

  // request.cc
  void on_request(const InsRequest& r);
  void answer_option(SlotRef s, const InsRequest& r, InsReply& reply);
  void option_of_all(const InsRequest& r, InsReply& reply);
  void cut_peer(const InsRequest& r, InsReply& reply);
  template <class Visit>
  void each_socket(Visit&& visit) {
    const uint32_t end = ins_.slots.used_end(index_);
    for (uint32_t i = index_; i < end; i += ch_.geometry().workers) {
      const SlotRef s = ins_.slots.find(i);
      if (s && s->fd >= 0) visit(s);
    }
  }

  // limits.cc
  static bool is_paused(const Sock& s, uint32_t direction) {
    return (s.flags & kLimited) != 0 && (s.limits->paused & direction) != 0;
  }
  Limits& limits_of(SlotRef s);
  void drop_limits(Sock& s);
  bool admit(SlotRef s, const mw_addr& peer);
  void arm(Sock& s);
  void limits_received(Sock& s, uint32_t moved, bool waited);
  void limits_before_send(Sock& s);
  void limits_turn();
  void limit_due(SlotRef s, int64_t now);
  void cut(SlotRef s, uint32_t why);
  void min_rate(SlotRef s, const InsRequest& r, InsReply& reply);
  void set_min_rate(SlotRef s, bool out, const MinRate& rule);
  void pause(SlotRef s, const InsRequest& r, InsReply& reply);
  void set_paused(SlotRef s, uint32_t bits);
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
  void execute(SlotRef s, const Request& r, Answer& a);
  void call_bind(SlotRef s, const Request& r, Answer& a);
  void call_listen(SlotRef s, const Request& r, Answer& a);
  void call_connect(SlotRef s, const Request& r, Answer& a);
  void note_connect(SlotRef s, bool established, bool dissolved);
  void dissolved(SlotRef s);
  void call_shutdown(SlotRef s, const Request& r, Answer& a);
  void call_getsockopt(Sock& s, const Request& r, Answer& a);
  void call_setsockopt(SlotRef s, const Request& r, Answer& a);
  void option_set(SlotRef s, int level, int name);
  void call_name(Sock& s, bool peer, Answer& a);
  void call_closed(SlotRef s, Answer& a);
  void call_accept(SlotRef s, Answer& a);
  static void call_gifconf(Sock& s, const Request& r, Answer& a);
  static void call_ethtool(Sock& s, const Request& r, Answer& a);
  void call_ioctl(SlotRef s, const Request& r, Answer& a);
  void call_sendmsg(SlotRef s, const Request& r, Answer& a);
  void call_recvmsg(SlotRef s, const Request& r, Answer& a);

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
