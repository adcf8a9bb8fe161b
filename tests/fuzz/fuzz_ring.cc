// The index windows of a byte ring and the drain of a ready set, over memory that the fuzzer fills.
#include <cstdlib>
#include <vector>

#include "fuzz_input.h"
#include "ring/byte_ring.h"
#include "ring/ready_set.h"

namespace mw::fuzz {
namespace {

void try_ring(Input& in) {
  const uint32_t capacity = 1u << (12 + in.below(3));
  std::vector<std::byte> memory(capacity);  // exactly: one byte beyond is a report
  const RingBytes ring(memory.data(), capacity);
  uint32_t shared = in.number<uint32_t>();
  const uint32_t mine = in.number<uint32_t>();
  std::vector<std::byte> data(capacity);
  if (auto room = ring_room(capacity, mine, shared)) {
    require(*room <= capacity);
    ring.copy_in(mine, data.data(), *room);
  }
  if (auto ready = ring_ready(capacity, mine, shared)) {
    require(*ready <= capacity);
    ring.copy_out(mine, data.data(), *ready);
    iovec pieces[2];
    size_t sum = 0;
    for (int n = ring.pieces(mine, *ready, pieces); n > 0; --n) sum += pieces[n - 1].iov_len;
    require(sum == *ready);
  }
}

void try_set(Input& in) {
  const uint32_t bits = 1 + in.below(5000);
  mw_ready_set header{};
  header.sleepers = in.number<uint32_t>();
  header.rung = in.number<uint32_t>();
  header.top = in.number<uint64_t>();
  for (int i = 0; i < 8; ++i) header.mid[in.below(64)] = in.number<uint64_t>();
  std::vector<uint64_t> words((bits + 63) / 64);
  for (int i = 0; i < 8; ++i)
    words[in.below(static_cast<uint32_t>(words.size()))] = in.number<uint64_t>();
  ReadySet set(&header, words.data(), bits);
  const uint32_t refuse_after = in.below(100);
  uint32_t taken = 0;
  const bool all = set.drain([&](uint32_t i) {
    require(i < bits);
    return taken++ < refuse_after;
  });
  require(taken <= bits);
  require(all || taken == refuse_after + 1);
  const uint32_t member = in.below(bits);
  set.add(member);
  bool seen = false;
  set.drain([&](uint32_t i) {
    seen = seen || i == member;
    return true;
  });
  require(seen);
}

}  // namespace
}  // namespace mw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  while (!in.empty()) {
    mw::fuzz::try_ring(in);
    mw::fuzz::try_set(in);
  }
  return 0;
}
