// main.cc - mwins, the Isolated Network Stack: one session's socket calls, executed apart from it.
//
// Stages: acquire (registry, configuration), threads, give up privileges, serve.
#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/helper.h"
#include "base/log.h"
#include "base/sanitized.h"
#include "ins/control/local_control.h"
#include "ins/sandbox.h"

namespace mw {
namespace {

constexpr uint32_t kNobody = 65534;

struct Arguments {
  std::string registry;
  std::string names = "/etc";
  uint32_t id = 0;
  uint32_t workers = 1;
  uint32_t uid = kNobody;
  uint32_t gid = kNobody;
  int ready_fd = -1;
  std::string to_host;  // empty: 127.0.0.1 is the host's
  int front_end_fd = -1;
};

int usage() {
  std::fputs(
      "usage: mwins --registry DIR --id N [--workers N] [--uid N --gid N] [--ready-fd N] "
      "[--front-end-fd N]\n"
      "             [--names DIR] [--mark W] [--to-host PORT[/udp],..|none]\n",
      stderr);
  return 2;
}

bool number(const char* text, uint32_t least, uint32_t most, uint32_t& out) {
  const char* end = text + std::strlen(text);
  const auto got = std::from_chars(text, end, out);
  return got.ec == std::errc{} && got.ptr == end && out >= least && out <= most;
}

bool parse(int argc, char** argv, Arguments& out) {
  bool have_id = false;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    const std::string name = argv[i];
    const char* value = argv[i + 1];
    uint32_t n = 0;
    if (name == "--registry") {
      out.registry = value;
    } else if (name == "--names") {
      out.names = value;
    } else if (name == "--mark") {
      // For whoever looks for us among the processes.
    } else if (name == "--to-host") {
      out.to_host = value;
      if (!LoopbackHint().init(out.to_host)) return false;
    } else if (name == "--id") {
      if (!number(value, 0, UINT32_MAX, out.id)) return false;
      have_id = true;
    } else if (name == "--workers") {
      if (!number(value, 1, MW_MAX_WORKERS, out.workers)) return false;
    } else if (name == "--uid") {
      if (!number(value, 1, UINT32_MAX - 1, out.uid)) return false;
    } else if (name == "--gid") {
      if (!number(value, 1, UINT32_MAX - 1, out.gid)) return false;
    } else if (name == "--ready-fd") {
      if (!number(value, 0, INT32_MAX, n)) return false;
      out.ready_fd = static_cast<int>(n);
    } else if (name == "--front-end-fd") {
      if (!number(value, 0, INT32_MAX, n)) return false;
      out.front_end_fd = static_cast<int>(n);
    } else {
      return false;
    }
  }
  return have_id && !out.registry.empty();
}

int failed(const Error& e) {
  log_line("mwins", "%s: %s", e.where, std::strerror(e.err));
  return 1;
}

int run(const Arguments& args) {
  const uint32_t started_as = ::getuid();

  if (!close_all_but({args.ready_fd, args.front_end_fd}))
    return failed({Fault::sys, errno, "close_range"});
  UniqueFd front_end{args.front_end_fd};

  // Acquire what needs a file system and privileges.
  raise_descriptor_limit();
  auto publisher = Publisher::open(args.registry, args.id);
  if (!publisher) return failed(publisher.error());
  const OwnAddresses own = own_addresses();
  publisher->set("ip_addrs", own.text);
  Resolver resolver;
  if (const Status read = resolver.init(own, args.names); !read) return failed(read.error());
  sigset_t mask;
  ::sigemptyset(&mask);
  ::sigaddset(&mask, SIGTERM);
  ::sigaddset(&mask, SIGINT);
  ::sigprocmask(SIG_BLOCK, &mask, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  UniqueFd signals{::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK)};
  if (!signals) return failed({Fault::sys, errno, "signalfd"});
  auto listener = publisher->listen_channel();
  if (!listener) return failed(listener.error());

  InsContext ins;
  if (!args.to_host.empty()) ins.loopback_hint.init(args.to_host);
  ins.load.reset(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC));

  // Beyond this point: no files, no other uid's things.
  auto notes = drop_privileges(args.uid, args.gid);
  if (!notes) return failed(notes.error());
  WorkerThreads workers(args.workers);
  LocalControl control(ins, workers, *publisher, resolver, std::move(*listener), std::move(signals),
                       std::move(front_end), started_as);
  if (const Status prepared = control.prepare(); !prepared) return failed(prepared.error());

  // Beyond this point: no threads, no programs, only the system calls of the table.
  if (const Status filtered = filter_system_calls(); !filtered) return failed(filtered.error());
  log_line("mwins", "INS %u up: %u worker%s, uid %u%s", args.id, args.workers,
           args.workers == 1 ? "" : "s", started_as == 0 ? args.uid : started_as,
           notes->empty_root ? "" : ", no empty root (user namespaces are restricted)");
  if (args.ready_fd >= 0) {
    if (::write(args.ready_fd, "\n", 1) < 0) log_line("mwins", "nobody waits for us to be ready");
    ::close(args.ready_fd);
  }
  return control.serve();
}

}  // namespace
}  // namespace mw

#ifdef MW_SANITIZED
// Looking for leaks needs /proc, which is on the other side of the sandbox.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

int main(int argc, char** argv) {
  mw::Arguments args;
  if (!mw::parse(argc, argv, args)) return mw::usage();
  return mw::run(args);
}
