// sampler.h - a worker's rounds of samples: how each of its sockets stands (docs/protocol.md 9).
//
// Nobody asking costs a load and a comparison for each turn of the worker. A round is made in
// slices between the worker's other work, so that no call waits long for it. A connection that
// has nothing under way is asked for its TCP_INFO every two seconds only, as nothing else of it can
// change meanwhile; one that is stuck every second.
//
// TRUST       The memory is the driver's, and only written; the number of the round that it wants
//             is read, and one that changes at will costs rounds and no more. Ring indexes of the
//             PVM are window-checked.
// THREADS     The worker's.
#pragma once

#include <memory>
#include <vector>

#include "ins/report/telemetry.h"
#include "ins/seams/accept_sink.h"
#include "ins/tables/slot_table.h"
#include "ring/channel.h"
#include "ring/sample_rows.h"

namespace mw {

class Sampler {
 public:
  Sampler(SlotTable& slots, const Channel& channel, uint32_t worker, const AcceptSink& accepts)
      : slots_(slots),
        ch_(channel),
        worker_(worker),
        workers_(channel.geometry().workers),
        accepts_(accepts) {}

  void attach(std::shared_ptr<TelemetryChannel> channel);

  // Once a turn: a slice of the round that is wanted, if one is. True: there is more of it.
  bool turn() {
    const uint32_t round = rows_.due();
    if (round == 0) [[likely]]
      return false;
    return slice(round);
  }

 private:
  // What the kernel said of a connection the last time that it was asked.
  struct Heard {
    uint32_t gen = 0;
    uint32_t state = 0;
    uint64_t bytes_in = 0;
    uint64_t bytes_out = 0;
    uint64_t at_ms = 0;
    uint32_t unsent = 0;  // in the ring
    // Before it is asked again, if the stack moves nothing: long if nothing was under way, shorter
    // if what is did not move since it was asked before; 0: in the next round.
    uint64_t rest_ms = 0;
    mw_sample_row row{};
  };

  bool slice(uint32_t round);
  void sample(SlotRef s, uint32_t round, uint64_t now_ms);
  static void name(const Sock& s, mw_sample_row& row);
  void fill_rings(SlotRef s, mw_sample_row& row) const;
  void fill_listener(const Sock& s, mw_sample_row& row) const;
  static bool fill_tcp(int fd, mw_sample_row& row);

  SlotTable& slots_;
  const Channel ch_;
  const uint32_t worker_;
  const uint32_t workers_;
  const AcceptSink& accepts_;
  std::shared_ptr<TelemetryChannel> channel_;
  SampleRowWriter rows_;
  std::vector<Heard> heard_;  // of our slots, in their order
  uint32_t round_ = 0;        // the one that at_ belongs to
  uint32_t at_ = 0;
};

}  // namespace mw
