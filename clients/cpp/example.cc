// Closes connections that sent less than a kilobyte in ten seconds. usage: mw_client_example SOCKET
// [SECONDS], where SOCKET is a session's, /run/mwcomms/SESSION/netflow.sock.
#include <iostream>
#include <string>

#include "netflow/client.h"

using namespace mw::netflow;  // NOLINT: all that stands here is of it

int main(int argc, char** argv) {
  const uint64_t grace_ms = argc > 2 ? std::stoul(argv[2]) * 1000 : 10'000;
  auto engine = Client::connect(argc > 1 ? argv[1] : "", 5000);
  if (!engine) return 1;
  // Samples tell of silent sockets too; each request is answered.
  if (!engine->ask(write_request(Feature::monitor_off))) return 1;
  if (!engine->ask(write_request(Feature::sampling, 250))) return 1;
  while (auto round = engine->next_round(-1))
    for (const Sample& one : round->samples) {
      const bool accepted = (one.flags & (kSampleInbound | kSampleListener)) == kSampleInbound;
      const bool young = one.age == kNever || one.age <= grace_ms;
      if (!accepted || young || one.bytes_in >= 1000) continue;
      auto answer = engine->ask(write_request(Feature::is_open, *decode_socket(one.socket)));
      if (answer && answer->status == 0) std::cout << "closed " << one.socket << std::endl;
    }
}
