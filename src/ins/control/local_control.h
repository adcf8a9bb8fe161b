// local_control.h - the control thread of an INS on one host: the driver's connection, the session
// that it hands over, and the end.
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
#include <deque>
#include <memory>
#include <vector>

#include "base/exit_codes.h"
#include "ins/control/control_core.h"
#include "transport/local/fd_message.h"

namespace mw {

class LocalControl final : private DriverLink {
 public:
  // With the beat in which the loss is seen, and the one in which this is over: less than ten seconds.
  static constexpr std::chrono::milliseconds kLongestAlone{8500};

  LocalControl(InsContext& ins, WorkerThreads& workers, Publisher& publisher, Resolver& resolver,
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
  void listener_up(const ControlListener& l, int placeholder) override;
  void listener_down(uint32_t slot, uint32_t gen) override;
  void bypass(uint32_t slot, uint32_t gen) override;
  void lent(const ControlOption& option, int socket) override;
  void reply(const InsReply& reply) override;

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
  void on_tick();
  template <class T>
  void send(const T& message, int fd = -1);
  void flush();
  void drop_driver(const char* why);

  InsContext& ins_;
  WorkerThreads& workers_;
  ControlCore core_;
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
  bool greeted_ = false;  // this driver said hello
  bool stop_ = false;
  bool driver_waits_ = false;  // EPOLLOUT is watched
  std::deque<Outgoing> out_;
  // The driver's questions about sockets.
  UniqueFd requests_;
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
