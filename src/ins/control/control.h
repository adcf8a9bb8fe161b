// control.h - the control thread: the driver's connection, publication, name lookups, the end.
//
// TRUST       The driver is checked by SO_PEERCRED, and every message and descriptor of it by kind,
//             size and range. One that does not fit ends the connection, with one log line; the
//             workers go on.
// INVARIANTS  The driver's death disturbs nobody: messages to it wait in a bounded queue or are
//             dropped with the connection, and a driver that connects anew is told all listeners
//             again. Where the front end is dead as well nobody would replace or end us: with neither
//             of them for kLongestAlone the INS resets its connections and ends.
// THREADS     Everything here runs in the control thread; workers are reached by notes.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/exit_codes.h"
#include "ins/control/publish.h"
#include "ins/control/resolve.h"
#include "ins/worker/context.h"
#include "transport/local/fd_message.h"

namespace mw {

// The workers' threads, made before the sandbox closes and set to work by start().
class WorkerThreads {
 public:
  explicit WorkerThreads(uint32_t count);
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;
  // Stops them if they run. Whoever started them has sent the stop notes.
  ~WorkerThreads();
  void start(InsContext& ins);
  uint32_t count() const { return count_; }
  bool started() const { return ins_ != nullptr; }

 private:
  void run(uint32_t index);
  const uint32_t count_;
  std::mutex lock_;
  std::condition_variable changed_;
  InsContext* ins_ = nullptr;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

class Control {
 public:
  // With the beat in which the loss is seen, and the one in which this is over: less than ten seconds.
  static constexpr std::chrono::milliseconds kLongestAlone{8500};

  Control(InsContext& ins, WorkerThreads& workers, Publisher& publisher, Resolver& resolver,
          UniqueFd listener, UniqueFd signals, UniqueFd front_end, uint32_t driver_uid);
  // Makes what serve() needs. Errors: sys.
  Status prepare();
  // Serves until a signal, or until nobody is left (0), or until the session is poisoned
  // (kExitPoisoned).
  int serve();

 private:
  struct Outgoing {
    std::vector<std::byte> bytes;
    UniqueFd fd;
  };
  struct Listener {
    std::unique_ptr<ControlListener> up;
    UniqueFd placeholder;
  };
  void on_connect();
  void on_driver(uint32_t events);
  bool on_message(ReceivedMessage& m);
  bool on_hello(ReceivedMessage& m);
  uint32_t adopt_session(const ControlHello& hello, ReceivedMessage& m);
  uint32_t replay(const ControlListener& l, UniqueFd placeholder);
  bool on_group(const ControlSlot& c, ReceivedMessage& m);
  bool on_names(const ControlSlot& c, ReceivedMessage& m);
  bool on_front_end(ReceivedMessage& m);
  bool watch_front_end(UniqueFd pidfd);
  void forget_front_end();
  void look_who_is_left();
  bool on_telemetry(ReceivedMessage& m);
  void on_requests();
  void ask_workers(const InsRequest& r);
  void on_reply(const InsReply& reply);
  void on_notes();
  void on_tick();
  void publish_repairs();
  void publish_listeners();
  template <class T>
  void send(const T& message, int fd = -1);
  void flush();
  void drop_driver(const char* why);

  InsContext& ins_;
  WorkerThreads& workers_;
  Publisher& publisher_;
  Resolver& resolver_;
  UniqueFd listener_;
  UniqueFd signals_;
  UniqueFd epoll_;
  UniqueFd timer_;
  UniqueFd driver_;
  UniqueFd front_end_;                                   // a pidfd; none: it has died
  bool has_front_end_;                                   // it once was told
  std::chrono::steady_clock::time_point alone_since_{};  // 0: not alone
  uint32_t driver_uid_;
  bool adopted_ = false;  // the region is ours
  bool greeted_ = false;  // this driver said hello
  bool stop_ = false;
  bool driver_waits_ = false;  // EPOLLOUT is watched
  std::deque<Outgoing> out_;
  std::map<uint32_t, Listener> listeners_;
  // The driver's questions about sockets, and how many workers still owe an answer to each.
  struct Pending {
    InsOp op{};
    uint32_t left = 0;
    uint32_t cut = 0;  // cut_peer: by all workers that answered
    InsReply reply{};
  };
  UniqueFd requests_;
  std::map<uint32_t, Pending> pending_;
  union {
    ControlType type;
    ControlHello hello;
    ControlSlot slot;
    ControlListener listener;
    ControlOption option;
    std::byte bytes[sizeof(ControlListener)];
  } in_;
};

}  // namespace mw
