#include "shim/calls/loopback_order.h"

#include <netinet/in.h>
#include <sched.h>

#include <atomic>
#include <cstring>
#include <iterator>

#include "base/clock.h"
#include "shim/calls/socket_calls.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

// The turn under way may have looked before we sent; the next one executes it and takes what the
// kernel delivered of it.
constexpr uint32_t kTurnsThatSettle = 2;
// For an INS that does not run: stopped, or others have the processors.
constexpr int64_t kLongestSettleNs = 100'000'000;
// Whoever yields is not always the one to give way; whoever sleeps is.
constexpr int64_t kYieldingNs = 100'000;
constexpr int64_t kPauseNs = 50'000;

// The last few ports that this process listened on, in network order.
uint16_t listening_ports[16];
uint32_t listening_count = 0;

bool is_listening_port(uint16_t port) {
  for (uint16_t& p : listening_ports)
    if (port != 0 && A::load_relaxed(p) == port) return true;
  return false;
}

// True if `to` is an address of the INS itself: a reverse proxy connects to others at the port that
// it listens on.
bool is_own_address(const Sock& s, const sockaddr* to, socklen_t len) {
  sockaddr_storage local{};
  socklen_t local_len = sizeof local;
  if (sock_name(s, false, reinterpret_cast<sockaddr*>(&local), &local_len) < 0) return false;
  if (to->sa_family == AF_INET) {
    sockaddr_in there{};
    sockaddr_in here{};
    std::memcpy(&there, to, sizeof there);
    std::memcpy(&here, &local, sizeof here);
    return there.sin_addr.s_addr == here.sin_addr.s_addr || there.sin_addr.s_addr == INADDR_ANY ||
           ntohl(there.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (to->sa_family != AF_INET6 || len < sizeof(sockaddr_in6)) return false;
  sockaddr_in6 there{};
  sockaddr_in6 here{};
  std::memcpy(&there, to, sizeof there);
  std::memcpy(&here, &local, sizeof here);
  return std::memcmp(&there.sin6_addr, &here.sin6_addr, sizeof here.sin6_addr) == 0 ||
         IN6_IS_ADDR_UNSPECIFIED(&there.sin6_addr);
}

}  // namespace

void note_listening_port(uint16_t port) {
  const uint32_t at = std::atomic_ref(listening_count).fetch_add(1) % std::size(listening_ports);
  A::store_relaxed(listening_ports[at], port);
}

void note_connection(const Sock& s, const sockaddr* to, socklen_t len) {
  if (process.talks_to_itself || len < sizeof(sockaddr_in)) return;
  sockaddr_in at{};  // the port stands at the same place in both families
  std::memcpy(&at, to, sizeof at);
  if (!is_listening_port(at.sin_port) || !is_own_address(s, to, len)) return;
  process.talks_to_itself = true;
  process.unsettled = true;
  for (const Stack& stack : stacks)
    for (uint32_t w = 0; w < stack.geometry().workers; ++w) stack.sock_news(w).ask();
}

namespace {

// Waits until this INS has done what it was told, at most until kLongestSettleNs after `from`.
void settle_with(const Stack& stack, int64_t from) {
  const uint32_t workers = stack.geometry().workers;
  uint32_t begun[MW_MAX_WORKERS];
  // Waits until `settled` holds for each worker. False: no more of it.
  const auto all = [&](auto&& settled) {
    for (uint32_t w = 0; w < workers; ++w)
      while (!settled(stack.sock_news(w), w)) {
        const int64_t waited = monotonic_ns() - from;
        if (waited > kLongestSettleNs || process.confined || !stack.is_up()) return false;
        const timespec pause{0, kPauseNs};
        if (waited < kYieldingNs)
          ::sched_yield();
        else
          ::nanosleep(&pause, nullptr);
      }
    return true;
  };
  for (uint32_t w = 0; w < workers; ++w) begun[w] = stack.sock_news(w).turns();
  bool more = all([&](ReadySet news, uint32_t w) {
    return (stack.call_news(w).empty() && news.consumer_rests()) ||
           news.turns() - begun[w] >= kTurnsThatSettle;
  });
  if (workers == 1) return;
  // What one worker sent may wake another one, who still says that he sleeps. And the turn that we
  // see the end of may have looked before.
  for (uint32_t turn = 0; turn < kTurnsThatSettle && more; ++turn) {
    for (uint32_t w = 0; w < workers; ++w) {
      begun[w] = stack.sock_news(w).turns();
      stack.ring(w);
    }
    more = all([&](ReadySet news, uint32_t w) { return news.turns() != begun[w]; });
  }
}

}  // namespace

void settle_slowly() {
  process.unsettled = false;
  const int64_t from = monotonic_ns();
  for (const Stack& stack : stacks) settle_with(stack, from);
}

}  // namespace mw::shim
