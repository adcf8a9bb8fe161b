#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>

#include "ring/channel.h"
#include "transport/local/fd_message.h"
#include "transport/local/listener_record.h"
#include "transport/local/mapping.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

TEST(Mapping, RefusesMemoryThatCanStillShrink) {
  UniqueFd fd{::memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  EXPECT_EQ(map_sealed(fd.get()).error().fault, Fault::peer);
  auto sealed = make_sealed_memfd("t", 8192);
  ASSERT_TRUE(sealed);
  EXPECT_LT(::ftruncate(sealed->get(), 0), 0);
  auto map = map_sealed(sealed->get());
  ASSERT_TRUE(map);
  EXPECT_EQ(map->bytes(), 8192u);
}

TEST(FdMessage, CarriesDescriptorsAndReportsTheEnd) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  UniqueFd a{pair[0]}, b{pair[1]};
  auto memory = make_sealed_memfd("t", 4096);
  const int fds[] = {memory->get(), b.get()};
  const uint32_t word = 42;
  ASSERT_TRUE(send_message(a.get(), bytes_of(word), fds, 0));
  uint32_t got = 0;
  auto m = receive_message(b.get(), writable_bytes_of(got), 0);
  ASSERT_TRUE(m);
  EXPECT_EQ(got, 42u);
  EXPECT_EQ(m->fd_count, 2u);
  EXPECT_TRUE(map_sealed(m->fds[0].get()));
  EXPECT_EQ(receive_message(b.get(), writable_bytes_of(got), MSG_DONTWAIT).error().fault,
            Fault::would_block);
  ASSERT_TRUE(send_message(a.get(), std::as_bytes(std::span("longer than four")), {}, 0));
  EXPECT_EQ(receive_message(b.get(), writable_bytes_of(got), 0).error().fault, Fault::peer);
  a.reset();
  EXPECT_EQ(receive_message(b.get(), writable_bytes_of(got), 0).error().fault, Fault::shutdown);
  EXPECT_EQ(send_message(b.get(), bytes_of(word), {}, 0).error().fault, Fault::shutdown);
}

TEST(SessionFds, HaveAWellFormedRegion) {
  auto s = make_session_fds("test-" + std::to_string(::getpid()), kDefaultGeometry);
  ASSERT_TRUE(s);
  auto map = map_sealed(s->channel.get());
  ASSERT_TRUE(map);
  auto c = Channel::over(map->base(), map->bytes(), kDefaultGeometry);
  ASSERT_TRUE(c);
  EXPECT_EQ(c->header().magic, MW_MAGIC);
  EXPECT_EQ(c->header().bytes, map->bytes());
  EXPECT_EQ(s->bells.size(), 1u);
}

ControlListener some_listener() {
  ControlListener l{};
  l.slot = 3;
  l.gen = 1;
  l.domain = AF_INET;
  l.socket_type = SOCK_STREAM;
  const sa_family_t family = AF_INET;
  std::memcpy(l.local.bytes, &family, sizeof family);
  l.local.len = sizeof(sockaddr_in);
  l.option_count = 1;
  l.options[0] = {SOL_SOCKET, SO_REUSEADDR, 4, {1}};
  return l;
}

TEST(ListenerRecord, WhatAnApplicationCanMakeIsReplayed) {
  EXPECT_TRUE(check_listener(some_listener(), 8));
  ControlListener l = some_listener();
  l.protocol = IPPROTO_TCP;
  l.option_count = 0;
  EXPECT_TRUE(check_listener(l, 8));
}

TEST(ListenerRecord, NothingElseIs) {
  using Change = void (*)(ControlListener&);
  const Change changes[] = {
      [](ControlListener& l) { l.slot = 8; },
      [](ControlListener& l) { l.gen = 0; },
      [](ControlListener& l) { l.domain = AF_UNIX; },
      [](ControlListener& l) { l.domain = AF_INET6; },  // its address is IPv4's
      [](ControlListener& l) { l.socket_type = SOCK_DGRAM; },
      [](ControlListener& l) { l.socket_type = SOCK_RAW; },
      [](ControlListener& l) { l.socket_type = SOCK_STREAM | SOCK_NONBLOCK; },
      [](ControlListener& l) { l.protocol = IPPROTO_SCTP; },
      [](ControlListener& l) { l.protocol = -1; },
      [](ControlListener& l) { l.local.len = 0; },
      [](ControlListener& l) { l.local.len = 28; },
      [](ControlListener& l) { l.local.len = UINT32_MAX; },
      [](ControlListener& l) { l.local.bytes[0] = AF_UNIX; },
      [](ControlListener& l) { l.option_count = kMaxReplayOptions + 1; },
      [](ControlListener& l) { l.option_count = UINT32_MAX; },
      [](ControlListener& l) { l.options[0].len = sizeof l.options[0].value + 1; },
      [](ControlListener& l) { l.options[0].name = SO_ATTACH_BPF; },
      [](ControlListener& l) {
        l.options[0] = {IPPROTO_TCP, TCP_REPAIR, 4, {1}};
      },
      [](ControlListener& l) {
        l.options[0] = {IPPROTO_TCP, TCP_ULP, 4, {'t', 'l', 's'}};
      },
  };
  for (size_t k = 0; k < std::size(changes); ++k) {
    ControlListener l = some_listener();
    changes[k](l);
    EXPECT_FALSE(check_listener(l, 8)) << "change " << k;
  }
}

}  // namespace
}  // namespace mw
