// stock.h - placeholders of connections that this process has closed, kept for those that it
// accepts.
//
// A connection that nobody else can have is closed by a word in its slot, and its placeholder stays
// here under a hidden descriptor. An accept record that comes without a placeholder then takes it.
// So no descriptor travels between INS and application in the steady state (docs/decisions/0013).
//
// INVARIANTS  What is in stock is this process's alone: what it had before it forked is not used
//             any more. A placeholder that serves a connection is not in stock, and has no hidden
//             descriptor.
// THREADS     Any, and signal handlers: there is no lock.
#pragma once

#include <cstdint>

namespace mw::shim {

struct Stocked {
  int fd = -1;          // hidden
  uint32_t number = 0;  // of its other end; counts through the stacks, as those of sockets do
  bool nonblocking = false;
  bool may_have_tokens = false;
  uint32_t then = 0;       // descriptor_copies() when it was known to be ours alone
  uint32_t first_gen = 0;  // of the INS that has its other end
};

// Owns s.fd from here on.
void stock_put(const Stocked& s);
// One that fits the worker of this socket. False: there is none.
bool stock_take(uint32_t number, Stocked& out);
// Whether it still is this process's alone, and its other end there.
bool stock_is_usable(const Stocked& s);
uint32_t stock_size();
// Gives all descriptors back.
void stock_clear();
// In the child: closes what is the parent's.
void stock_after_fork();

}  // namespace mw::shim
