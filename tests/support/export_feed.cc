// mw_export_feed - a test's way to an Exporter: observations of version 2 on stdin, exports
// as a configuration file says. Ends with its input, or with a wrong observation.
//
// usage: mw_export_feed CONFIG
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>

#include "netflow/config.h"
#include "netflow/exporter.h"

namespace {

bool read_whole(std::span<uint8_t> to) {
  size_t at = 0;
  while (at < to.size()) {
    const ssize_t n = ::read(STDIN_FILENO, to.data() + at, to.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace mw::netflow;
  if (argc < 2) return 2;
  auto reading = read_config(argv[1]);
  if (!reading || !reading->faults.empty()) return 2;
  auto exporter = Exporter::start(reading->config.exports, [] { return uint64_t{0}; });
  if (!exporter) {
    std::fprintf(stderr, "%s: %s\n", exporter.error().where, std::strerror(exporter.error().err));
    return 1;
  }
  std::printf("%s\n", (*exporter)->prometheus_address().c_str());
  std::fflush(stdout);
  uint8_t bytes[kExtendedObservationBytes];
  while (read_whole(bytes)) {
    auto observation = decode_extended_observation(bytes);
    if (!observation) return 1;
    const ExtendedObservation one[] = {*observation};
    (*exporter)->offer(one);
  }
  return 0;
}
