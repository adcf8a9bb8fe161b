// calls_events.cc - poll, select and epoll, and `await`, which waits for a state without judging
// it.
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "call.h"

namespace sockagent {
namespace {

// Without the NORM and BAND aliases, which few programs ask for; a script may name them.
constexpr unsigned kEveryBit = POLLIN | POLLPRI | POLLOUT | POLLRDHUP;

// mask=SIGNAL: everything but that one may come while the call sleeps.
sigset_t mask_of(const Call& call) {
  sigset_t mask;
  sigemptyset(&mask);
  if (call.has("mask")) sigaddset(&mask, static_cast<int>(call.option("mask", 0)));
  return mask;
}

// FD:EVENTS, or FD alone for every event.
std::vector<pollfd> parse_pollfds(const Call& call, std::size_t end) {
  std::vector<pollfd> list;
  for (std::size_t i = 0; i < end; ++i) {
    const std::string& word = call.text(i);
    const std::size_t colon = word.find(':');
    const unsigned events = colon == std::string::npos
                                ? kEveryBit
                                : static_cast<unsigned>(parse_number(word.substr(colon + 1)));
    list.push_back(
        {static_cast<int>(parse_number(word.substr(0, colon))), static_cast<short>(events), 0});
  }
  return list;
}

void print_pollfds(const std::vector<pollfd>& list, Reply& reply) {
  for (const pollfd& one : list) {
    reply.field(std::to_string(one.fd),
                describe_poll_bits(static_cast<unsigned short>(one.revents)));
  }
}

// poll FD:EVENTS... MILLISECONDS [timed=MILLISECONDS] [list=BAD]
void do_poll(const Call& call, Reply& reply) {
  std::vector<pollfd> list = parse_pollfds(call, call.size() - 1);
  const auto start = Clock::now();
  pollfd* const given = call.has("list") ? static_cast<pollfd*>(bad_pointer()) : list.data();
  const long result = reply.call(
      [&] { return ::poll(given, list.size(), static_cast<int>(call.number(call.size() - 1))); });
  note_time(call, reply, start);
  if (result >= 0) print_pollfds(list, reply);
}

void do_ppoll(const Call& call, Reply& reply) {
  std::vector<pollfd> list = parse_pollfds(call, call.size() - 1);
  const long milliseconds = call.number(call.size() - 1);
  const timespec limit{milliseconds / 1000, milliseconds % 1000 * 1000000};
  const sigset_t mask = mask_of(call);
  const auto start = Clock::now();
  const long result = reply.call([&] {
    return ::ppoll(list.data(), list.size(), milliseconds < 0 ? nullptr : &limit,
                   call.has("mask") ? &mask : nullptr);
  });
  note_time(call, reply, start);
  if (result >= 0) print_pollfds(list, reply);
}

// await FD EVENTS: looks with poll(..., 0) until all EVENTS are present, then prints every bit.
// What it waits for is not an expectation: the printed bits are what is compared.
void do_await(const Call& call, Reply& reply) {
  pollfd one{static_cast<int>(call.number(0)), static_cast<short>(call.option("events", kEveryBit)),
             0};
  const auto wanted = static_cast<short>(call.number(1));
  const auto unwanted = static_cast<short>(call.option("not", 0));
  const auto limit = Clock::now() + kPatience;
  do {
    if (::poll(&one, 1, 0) < 0) one.revents = 0;
    if ((one.revents & wanted) == wanted && (one.revents & unwanted) == 0) break;
    ::usleep(200);
  } while (Clock::now() < limit);
  reply.field("bits", describe_poll_bits(static_cast<unsigned short>(one.revents)));
}

struct Sets {
  fd_set sets[3];
  bool given[3] = {};
  int highest = -1;
  fd_set* at(int i) { return given[i] ? &sets[i] : nullptr; }
};

constexpr const char* kSetNames[3] = {"r", "w", "e"};

// r=FD,FD w=FD e=FD
Sets parse_sets(const Call& call) {
  Sets all;
  for (int i = 0; i < 3; ++i) {
    FD_ZERO(&all.sets[i]);
    const auto found = call.options.find(kSetNames[i]);
    if (found == call.options.end()) continue;
    all.given[i] = true;
    std::string_view list = found->second;
    while (!list.empty()) {
      const std::size_t comma = std::min(list.find(','), list.size());
      const int fd = static_cast<int>(parse_number(list.substr(0, comma)));
      if (fd < 0 || fd >= FD_SETSIZE) throw ScriptError("fd outside FD_SETSIZE");
      FD_SET(fd, &all.sets[i]);
      all.highest = std::max(all.highest, fd);
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
  }
  return all;
}

void print_sets(const Sets& all, Reply& reply) {
  for (int i = 0; i < 3; ++i) {
    if (!all.given[i]) continue;
    std::string list;
    for (int fd = 0; fd <= all.highest; ++fd) {
      if (FD_ISSET(fd, &all.sets[i])) list += (list.empty() ? "" : ",") + std::to_string(fd);
    }
    reply.field(kSetNames[i], list);
  }
}

// select MILLISECONDS [r=..] [w=..] [e=..] [nfds=N] [timed=MILLISECONDS]
void do_select(const Call& call, Reply& reply) {
  Sets all = parse_sets(call);
  const long milliseconds = call.number(0);
  timeval limit{milliseconds / 1000, milliseconds % 1000 * 1000};
  const int count = static_cast<int>(call.option("nfds", all.highest + 1));
  const auto start = Clock::now();
  const long result = reply.call([&] {
    return ::select(count, all.at(0), all.at(1), all.at(2), milliseconds < 0 ? nullptr : &limit);
  });
  note_time(call, reply, start);
  if (result >= 0) print_sets(all, reply);
}

void do_pselect(const Call& call, Reply& reply) {
  Sets all = parse_sets(call);
  const long milliseconds = call.number(0);
  const timespec limit{milliseconds / 1000, milliseconds % 1000 * 1000000};
  const sigset_t mask = mask_of(call);
  const long result = reply.call([&] {
    return ::pselect(all.highest + 1, all.at(0), all.at(1), all.at(2),
                     milliseconds < 0 ? nullptr : &limit, call.has("mask") ? &mask : nullptr);
  });
  if (result >= 0) print_sets(all, reply);
}

void do_epoll_create(const Call& call, Reply& reply) {
  reply.call([&] { return ::epoll_create1(static_cast<int>(call.number(0, 0))); });
}

// epoll_ctl EP OPERATION FD [EVENTS [DATA]] [event=NULL]; DATA defaults to the fd.
void do_epoll_ctl(const Call& call, Reply& reply) {
  epoll_event event{};
  event.events = static_cast<std::uint32_t>(call.number(3, 0));
  event.data.u64 = static_cast<std::uint64_t>(call.number(4, call.number(2)));
  reply.call([&] {
    return ::epoll_ctl(static_cast<int>(call.number(0)), static_cast<int>(call.number(1)),
                       static_cast<int>(call.number(2)), call.has("event") ? nullptr : &event);
  });
}

// The order of ready descriptors is the kernel's business: printed sorted.
void print_events(std::vector<epoll_event>& events, long count, Reply& reply) {
  events.resize(static_cast<std::size_t>(std::max(0L, count)));
  std::sort(events.begin(), events.end(),
            [](const epoll_event& a, const epoll_event& b) { return a.data.u64 < b.data.u64; });
  for (const epoll_event& event : events) {
    reply.field(std::to_string(event.data.u64), describe_poll_bits(event.events));
  }
}

// epoll_wait EP MAXIMUM MILLISECONDS [timed=MILLISECONDS] [mask=SIGNAL] [events=BAD]
void do_epoll_wait(const Call& call, Reply& reply) {
  const int maximum = static_cast<int>(call.number(1));
  std::vector<epoll_event> events(static_cast<std::size_t>(std::max(1, maximum)));
  epoll_event* const target =
      call.has("events") ? static_cast<epoll_event*>(bad_pointer()) : events.data();
  const sigset_t mask = mask_of(call);
  const auto start = Clock::now();
  const long result = reply.call([&] {
    return ::epoll_pwait(static_cast<int>(call.number(0)), target, maximum,
                         static_cast<int>(call.number(2)), call.has("mask") ? &mask : nullptr);
  });
  note_time(call, reply, start);
  print_events(events, result, reply);
}

// epoll_pwait2 EP MAXIMUM NANOSECONDS [timed=MILLISECONDS] [mask=SIGNAL] [limit=BAD]
void do_epoll_pwait2(const Call& call, Reply& reply) {
  const int maximum = static_cast<int>(call.number(1));
  std::vector<epoll_event> events(static_cast<std::size_t>(std::max(1, maximum)));
  const long nanoseconds = call.number(2);
  // One that is too large stays in its field: the kernel refuses it.
  const timespec limit{0, nanoseconds};
  const timespec* const until = call.has("limit") ? static_cast<timespec*>(bad_pointer())
                                : nanoseconds < 0 ? nullptr
                                                  : &limit;
  const sigset_t mask = mask_of(call);
  const auto start = Clock::now();
  const long result = reply.call([&] {
    return ::epoll_pwait2(static_cast<int>(call.number(0)), events.data(), maximum, until,
                          call.has("mask") ? &mask : nullptr);
  });
  note_time(call, reply, start);
  print_events(events, result, reply);
}

// epoll_gather EP DATA BITS: collects events until DATA has shown all BITS, since two changes may
// arrive in one event or in two; prints the union.
void do_epoll_gather(const Call& call, Reply& reply) {
  const auto data = static_cast<std::uint64_t>(call.number(1));
  const auto wanted = static_cast<std::uint32_t>(call.number(2));
  std::uint32_t seen = 0;
  const auto limit = Clock::now() + kPatience;
  while ((seen & wanted) != wanted && Clock::now() < limit) {
    epoll_event events[16];
    const int count = ::epoll_wait(static_cast<int>(call.number(0)), events, 16, 100);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.u64 == data) seen |= events[i].events;
    }
  }
  reply.field("union", describe_poll_bits(seen));
}

}  // namespace

void add_event_calls(Table& table) {
  table.insert({{"poll", do_poll},
                {"ppoll", do_ppoll},
                {"await", do_await},
                {"select", do_select},
                {"pselect", do_pselect},
                {"epoll_create", do_epoll_create},
                {"epoll_ctl", do_epoll_ctl},
                {"epoll_wait", do_epoll_wait},
                {"epoll_pwait2", do_epoll_pwait2},
                {"epoll_gather", do_epoll_gather}});
}

}  // namespace sockagent
