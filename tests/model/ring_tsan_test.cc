// Both ends of a channel as two threads over one mapping, so that ThreadSanitizer sees every
// access: bytes both ways through the rings of one socket, ready sets and doorbells for the
// sleepers, as the two processes do it. Indexes start just below 2^32.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "ring/channel.h"

namespace mw {
namespace {

using A = StdAtomics;

constexpr mw_geometry kGeometry{.slots = 4096,
                                .rx_ring = 4096,
                                .tx_ring = 4096,
                                .groups = 1,
                                .workers = 1,
                                .calls = 1,
                                .reserved = {0, 0}};
constexpr uint32_t kTotal = 300000;

struct Memory {
  Memory() {
    mw_layout l{};
    if (mw_layout_of(&kGeometry, &l) != 0) std::abort();
    bytes = l.bytes;
    base = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    channel = *Channel::over(base, bytes, kGeometry);
  }
  ~Memory() { ::munmap(base, bytes); }
  uint64_t bytes = 0;
  std::byte* base = nullptr;
  Channel channel;
};

// One end of one direction each way: writes `out`, reads `in`, sleeps on its set when neither
// moves.
class End {
 public:
  End(uint32_t& out_tail, uint32_t& out_head, RingBytes out, uint32_t& in_tail, uint32_t& in_head,
      RingBytes in, ReadySet mine, int my_bell, ReadySet theirs, int their_bell)
      : out_tail_(out_tail),
        out_head_(out_head),
        out_(out),
        in_tail_(in_tail),
        in_head_(in_head),
        in_(in),
        mine_(mine),
        theirs_(theirs),
        my_bell_(my_bell),
        their_bell_(their_bell) {}

  // True if all bytes came as they were sent.
  bool run(uint32_t slot) {
    bool right = true;
    while (sent_ < kTotal || got_ < kTotal) {
      const bool wrote = write_some();
      const bool got = read_some(&right);
      if (wrote || got) {
        if (theirs_.add(slot)) ring(their_bell_);
        continue;
      }
      if (!mine_.drain([](uint32_t) { return true; }) || work_is_there()) continue;
      if (!mine_.prepare_sleep()) continue;
      pollfd p{my_bell_, POLLIN, 0};
      ::poll(&p, 1, -1);
      uint64_t n = 0;
      if (::read(my_bell_, &n, sizeof n) < 0) right = false;
      mine_.wake();
    }
    return right;
  }

 private:
  static uint8_t byte_at(uint32_t n) { return static_cast<uint8_t>(n * 31 >> 3); }
  static void ring(int bell) {
    const uint64_t one = 1;
    if (::write(bell, &one, sizeof one) < 0) std::abort();
  }
  bool work_is_there() {
    return (sent_<kTotal&& * ring_room(out_.capacity(), tail_, out_head_)> 0) ||
           (got_<kTotal&& * ring_ready(in_.capacity(), head_, in_tail_)> 0);
  }
  bool write_some() {
    uint8_t chunk[700];
    const uint32_t n = std::min<uint32_t>(
        {*ring_room(out_.capacity(), tail_, out_head_), kTotal - sent_, uint32_t{sizeof chunk}});
    if (n == 0) return false;
    for (uint32_t i = 0; i < n; ++i) chunk[i] = byte_at(sent_++);
    out_.copy_in(tail_, chunk, n);
    A::store_release(out_tail_, tail_ += n);
    return true;
  }
  bool read_some(bool* right) {
    uint8_t chunk[900];
    const uint32_t n =
        std::min<uint32_t>(*ring_ready(in_.capacity(), head_, in_tail_), uint32_t{sizeof chunk});
    if (n == 0) return false;
    in_.copy_out(head_, chunk, n);
    for (uint32_t i = 0; i < n; ++i) *right = *right && chunk[i] == byte_at(got_++);
    A::store_release(in_head_, head_ += n);
    return true;
  }

  uint32_t& out_tail_;
  uint32_t& out_head_;
  RingBytes out_;
  uint32_t& in_tail_;
  uint32_t& in_head_;
  RingBytes in_;
  ReadySet mine_, theirs_;
  int my_bell_, their_bell_;
  uint32_t tail_ = MW_INDEX_START, head_ = MW_INDEX_START, sent_ = 0, got_ = 0;
};

TEST(RingTsan, CarriesBytesBothWaysBetweenSleepers) {
  Memory m;
  const Channel& c = m.channel;
  constexpr uint32_t kSlot = 4095;
  mw_slot& s = c.slot(kSlot);
  s.tx_tail = s.tx_head = s.rx_tail = s.rx_head = MW_INDEX_START;
  const UniqueFd ins_bell{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const UniqueFd pvm_bell{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  End pvm(s.tx_tail, s.tx_head, c.tx(kSlot), s.rx_tail, s.rx_head, c.rx(kSlot), c.group_news(0),
          pvm_bell.get(), c.sock_news(0), ins_bell.get());
  End ins(s.rx_tail, s.rx_head, c.rx(kSlot), s.tx_tail, s.tx_head, c.tx(kSlot), c.sock_news(0),
          ins_bell.get(), c.group_news(0), pvm_bell.get());
  bool ins_right = false;
  std::thread other([&] { ins_right = ins.run(kSlot); });
  const bool pvm_right = pvm.run(kSlot);
  other.join();
  EXPECT_TRUE(pvm_right);
  EXPECT_TRUE(ins_right);
}

TEST(RingTsan, PublishesWhatTheNewsIsAbout) {
  Memory m;
  ReadySet set = m.channel.sock_news(0);
  // Plain memory on purpose: the set alone has to order it.
  std::vector<uint32_t> news(4096);
  std::thread adder([&] {
    for (uint32_t i = 0; i < news.size(); ++i) {
      news[i] = i + 1;
      set.add(i);
    }
  });
  size_t taken = 0;
  bool right = true;
  while (taken < news.size()) {
    set.drain([&](uint32_t i) {
      right = right && news[i] == i + 1;
      ++taken;
      return true;
    });
  }
  adder.join();
  EXPECT_TRUE(right);
}

}  // namespace
}  // namespace mw
