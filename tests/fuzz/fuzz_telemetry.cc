// fuzz_telemetry.cc - the driver's reader of telemetry, fed with a ring that a hostile INS writes.
//
// Input: for each step a byte that says whether the driver reads or the INS writes; then what it
// writes: the tail, or bytes anywhere in the ring's first records.
#include <cstring>
#include <vector>

#include "driver/flow_table.h"
#include "fuzz_input.h"
#include "ring/telemetry_ring.h"

namespace mw {
namespace {

using fuzz::Input;
using fuzz::require;

constexpr uint32_t kRecords = 64;
constexpr uint32_t kSlots = 8;

void run(Input& in) {
  mw_telemetry_header header{};
  std::vector<mw_telemetry_record> records(kRecords);
  TelemetryReader reader(&header, records.data(), kRecords, MW_TELEMETRY_START);
  FlowTable table(kSlots, 2, 7);
  table.forget(1);
  uint32_t tail = MW_TELEMETRY_START;
  const auto observed = [&](const netflow::Observation& o) {
    std::array<uint8_t, netflow::kObservationBytes> bytes;
    encode(o, bytes);
    require(static_cast<bool>(netflow::decode_observation(bytes)));
    if (o.kind == netflow::ObservationKind::close)
      require(o.extra == static_cast<uint64_t>(o.socket));
  };
  for (int steps = 0; steps < 256 && !in.empty(); ++steps) {
    const uint8_t what = in.number<uint8_t>();
    if (what < 64) {
      header.tail = what < 8 ? in.number<uint32_t>() : tail;
    } else if (what < 192) {
      // A record that may be: small numbers, so that records are about each other.
      mw_telemetry_record& r = records[tail++ % kRecords];
      in.take(std::as_writable_bytes(std::span(&r, 1)));
      r.kind %= 20;
      r.slot %= kSlots + 1;
      r.gen %= 16;
      r.extra %= 16;
      if (r.kind == MW_TEL_WHO) {
        r.u.who.local.family = what % 2 == 0 ? 2 : 10;
        r.u.who.remote.family = what % 3 == 0 ? 2 : r.u.who.remote.family;
      }
    } else {
      bool sound = true;
      auto n = reader.drain(kRecords, [&](const mw_telemetry_record& r) {
        sound = sound && table.take(r, observed);
      });
      require(table.size() <= kSlots);
      if (!n || !sound) break;  // the driver takes nothing more from it
    }
  }
  table.close_all(1, observed);
  require(table.size() == 0);
}

}  // namespace
}  // namespace mw

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  mw::run(in);
  return 0;
}
