// The NetFlow interface alone, fed as fast as wanted: writes the telemetry of one connection's
// sends at a given rate into the rings of mwcommsd's own service, which serves engines on a socket.
// What an application and a stack can make on a small machine does not reach its limits.
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "base/clock.h"
#include "driver/netflow_service.h"
#include "ring/telemetry_ring.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

constexpr mw_geometry kGeometry{64, 4096, 4096, 4, 1, 4, {0, 0}};
constexpr uint32_t kGen = 1;
constexpr uint64_t kTurnNs = 1'000'000;

template <class T>
T must(Result<T> r, const char* what) {
  if (r) return std::move(*r);
  std::fprintf(stderr, "netflow_source: %s\n", what);
  std::exit(1);
}

mw_telemetry_record who() {
  mw_telemetry_record r{};
  r.kind = MW_TEL_WHO;
  r.gen = kGen;
  r.now = realtime_ns();
  r.u.who.local = {AF_INET, 80, {192, 0, 2, 1}};
  r.u.who.remote = {AF_INET, 4711, {192, 0, 2, 9}};
  return r;
}

uint64_t monotonic_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t{};
  ::clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

bool asked_to_end() {
  pollfd in{STDIN_FILENO, POLLIN, 0};
  return ::poll(&in, 1, 0) != 0;
}

// Until standard input ends. Returns how many records there was no room for.
uint64_t feed(TelemetryWriter& writer, int bell, uint64_t rate) {
  mw_telemetry_record r{};
  r.kind = MW_TEL_SEND;
  r.gen = kGen;
  r.u.event.conn = MW_CONN_INBOUND | MW_CONN_ESTABLISHED;
  uint32_t introduced = 0;
  uint64_t refused = 0;
  uint64_t next = monotonic_ns();
  while (!asked_to_end()) {
    const uint32_t epoch = writer.epoch();
    if (epoch != 0 && epoch != introduced && writer.push(who())) introduced = epoch;
    for (uint64_t n = 0; epoch != 0 && n < rate * kTurnNs / 1'000'000'000; ++n) {
      r.now = realtime_ns();
      r.u.event.bytes_out += 100;
      refused += writer.push(r) ? 0 : 1;
    }
    if (writer.unannounced() && writer.need_ring()) {
      const uint64_t one = 1;
      if (::write(bell, &one, sizeof one) < 0) std::abort();
    }
    next += kTurnNs;
    const timespec until{static_cast<time_t>(next / 1'000'000'000),
                         static_cast<long>(next % 1'000'000'000)};
    while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }
  return refused;
}

int run(const char* socket, uint64_t rate) {
  SessionFds fds =
      must(make_session_fds("source" + std::to_string(::getpid()), kGeometry), "no session");
  SessionMemory memory =
      must(SessionMemory::open(fds.channel.get(), fds.session.get()), "no session memory");
  std::vector<int> bells;
  for (const UniqueFd& bell : fds.bells) bells.push_back(bell.get());
  netflow::ServerOptions options;
  options.unix_path = socket;
  auto service = must(NetflowService::start(options, {}, memory, fds.session.get(), bells),
                      "the NetFlow service does not start");
  const InsTelemetry::TheirEnds ends =
      must(service->ins_up(1, static_cast<uint32_t>(::getpid())), "no telemetry");
  Mapping mapped = must(map_sealed(ends.memory.get()), "the rings cannot be mapped");
  auto writer = telemetry_end<TelemetryWriter>(mapped.base(), 0);
  std::printf("serving\n");
  std::fflush(stdout);
  const uint64_t refused = feed(writer, ends.bell.get(), rate);
  // Of the whole process less the source's own: what the service took.
  const uint64_t used =
      monotonic_ns(CLOCK_PROCESS_CPUTIME_ID) - monotonic_ns(CLOCK_THREAD_CPUTIME_ID);
  std::printf("%llu %llu\n", static_cast<unsigned long long>(refused),
              static_cast<unsigned long long>(used));
  return 0;
}

}  // namespace
}  // namespace mw

int main(int argc, char** argv) {
  const long rate = argc == 3 ? std::atol(argv[2]) : 0;
  if (rate < 1000) {
    std::fprintf(stderr, "usage: netflow_source SOCKET RECORDS-PER-SECOND\n");
    return 2;
  }
  return mw::run(argv[1], static_cast<uint64_t>(rate));
}
