// local_transport.h - the one place that says how a worker reaches its PVM: here, on one host.
//
// The parts of a worker know the interfaces of ins/seams only. Another way to a PVM is another class
// like this one, with the same members.
#pragma once

#include "ins/worker/local_accept_sink.h"
#include "ins/worker/local_bells.h"
#include "ins/worker/local_ring_memory.h"

namespace mw {

struct LocalTransport {
  LocalTransport(const WorkerScope& scope, InsContext& ins, const WorkerEvents& events)
      : bells(ins.bells, scope.index, scope.ch.geometry().groups),
        accepts(scope, ins.placeholders, events),
        memory(scope, ins.channel_fd) {}

  LocalBells bells;
  LocalAcceptSink accepts;
  LocalRingMemory memory;
};

}  // namespace mw
