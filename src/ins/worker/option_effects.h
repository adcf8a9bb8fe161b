// option_effects.h - what an option of the real socket changes in our own handling of it.
#pragma once

#include "ins/worker/datagrams.h"
#include "ins/worker/stream_pump.h"

namespace mw {

class OptionEffects {
 public:
  OptionEffects(StreamPump& streams, Datagrams& datagrams)
      : streams_(streams), datagrams_(datagrams) {}

  // It was set, by the application or for the driver.
  void option_set(SlotRef s, int level, int name) {
    if (s->kind == SockKind::dgram)
      datagrams_.option_set(s, level, name);
    else
      streams_.option_set(s, level, name);
  }

 private:
  StreamPump& streams_;
  Datagrams& datagrams_;
};

}  // namespace mw
