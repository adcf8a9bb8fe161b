// poller.h - the driver's event loop: epoll with a typed reference on each descriptor.
//
// INVARIANTS  Ids are never reused for another object of the same source soon, so an event that was
//             already fetched for something that is gone meanwhile finds nothing.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mw {

enum class Source : uint32_t {
  signals,
  attach,         // the listening socket
  placeholders,   // the listening socket for those of processes that are out of descriptors
  placeholder,    // id: one that has not said whose it is
  door_timer,     // of those two listening sockets
  process,        // id: attachment
  process_death,  // id: attachment
  group,          // id: group; its life pipe
  registry,
  ins,        // id: INS; its control connection
  ins_death,  // id: INS
  retry_timer,
  beat_timer,
  release_timer,
  adopt,            // a front end wants to adopt the session
  front_end_death,  // of the one that has it
  adopter_death,    // of the one that we started
  adopt_timer,
};

struct Event {
  Source source;
  uint32_t id;
  uint32_t events;
};

class Poller {
 public:
  static Result<Poller> make() {
    Poller p;
    p.epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
    if (!p.epoll_) return Error{Fault::sys, errno, "epoll_create1"};
    return p;
  }

  Status add(int fd, uint32_t events, Source source, uint32_t id = 0) {
    return control(EPOLL_CTL_ADD, fd, events, source, id);
  }
  Status modify(int fd, uint32_t events, Source source, uint32_t id = 0) {
    return control(EPOLL_CTL_MOD, fd, events, source, id);
  }
  // Needed before a descriptor is closed whose file others keep open.
  void remove(int fd) { (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

  // Errors: sys. An interruption is no events.
  Result<std::vector<Event>> wait(int timeout_ms) {
    epoll_event raw[64];
    const int n = ::epoll_wait(epoll_.get(), raw, 64, timeout_ms);
    if (n < 0 && errno != EINTR) return Error{Fault::sys, errno, "epoll_wait"};
    std::vector<Event> out;
    for (int i = 0; i < n; ++i) {
      const uint64_t ref = raw[i].data.u64;
      out.push_back({static_cast<Source>(ref >> 32), static_cast<uint32_t>(ref), raw[i].events});
    }
    return out;
  }

 private:
  Status control(int op, int fd, uint32_t events, Source source, uint32_t id) {
    epoll_event e{};
    e.events = events;
    e.data.u64 = static_cast<uint64_t>(source) << 32 | id;
    if (::epoll_ctl(epoll_.get(), op, fd, &e) < 0) return Error{Fault::sys, errno, "epoll_ctl"};
    return Ok{};
  }

  UniqueFd epoll_;
};

}  // namespace mw
