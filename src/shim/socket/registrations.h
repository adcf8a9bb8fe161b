// registrations.h - what a program has registered in an epoll instance: descriptor, events, data.
//
// PURPOSE     The data are pointers, as a rule, and whoever waits follows them. In the kernel nobody
//             changes them who does not have the instance. The session region is every process's,
//             also of one that has given up its privileges, so they stand in memory of the instance's
//             own, which those have who have the instance: by fork its descriptor is inherited, by
//             exec and SCM_RIGHTS the driver gives it to whoever shows the instance.
// TRUST       What the session region says of a registration holds only if this memory agrees.
//             Another process that has the instance may write here, as it may call epoll_ctl().
// INVARIANTS  A record is written under its slot's watch_lock. It is void unless its generation is
//             the socket's. No mapping is inherited by fork: the child makes its own when it uses
//             the instance.
// THREADS     Any, and signal handlers. Memory that a thread is in stays mapped until it leaves.
#pragma once

#include "abi/mw_region.h"
#include "shim/process/pieces.h"

namespace mw::shim {

struct Registration {
  uint32_t gen;  // of the socket; 0: none
  int32_t fd;
  uint32_t events;  // as given
  uint32_t fired;   // EPOLLONESHOT: it was reported, and is silent until EPOLL_CTL_MOD
  uint64_t data;
};

// All bytes zero: not open.
class Registrations {
 public:
  // Makes such memory for a session of so many sockets. Returns its descriptor or -errno.
  static int make_memory(uint32_t slots);
  // Takes over the descriptor in any case. Errors: peer (not such memory), sys.
  Status open(int fd, uint32_t slots);
  void close();
  // For a program that is about to forbid itself to map memory.
  void map_all();
  // In the child.
  void after_fork();

 private:
  friend class InRegistrations;
  static constexpr uint32_t kOpen = 0x80000000u;

  Pieces pieces_;
  int fd_ = -1;
  uint32_t slots_ = 0;
  uint32_t users_ = 0;  // threads that are in it, and kOpen
};

// The calling thread is in the memory of an instance.
class InRegistrations {
 public:
  explicit InRegistrations(Registrations& of);
  ~InRegistrations();
  InRegistrations(const InRegistrations&) = delete;
  InRegistrations& operator=(const InRegistrations&) = delete;
  // False: this process does not have the instance any more.
  explicit operator bool() const { return open_; }
  // The record for the registration that stands at `i` in the session region. Null: no memory.
  Registration* at(uint32_t slot, uint32_t i) const;
  // Voids the records of a socket.
  void forget(uint32_t slot, uint32_t gen) const;

 private:
  Registrations& all_;
  const bool open_;
};

// Those of a group. Requires: this process has made or found it.
Registrations& registrations_of(uint32_t group);
// Makes room for them. False: no memory.
bool have_registrations();
// Voids the records of a socket in all instances of this process.
void forget_registrations(uint32_t slot, uint32_t gen);
void registrations_after_fork();
void map_registrations();

// Whether the record is of this socket and descriptor.
bool is_record_of(const Registration& r, uint32_t gen, int fd);

}  // namespace mw::shim
