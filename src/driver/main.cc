// mwcommsd - the driver of one session.
#include <sys/resource.h>
#include <sys/signalfd.h>

#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "driver/driver.h"
#include "driver/keepers.h"
#include "driver/options.h"
#include "driver/privileges.h"

namespace {

mw::UniqueFd take_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, SIGUSR1);
  if (sigprocmask(SIG_BLOCK, &set, nullptr) < 0) return mw::UniqueFd{};
  std::signal(SIGPIPE, SIG_IGN);
  return mw::UniqueFd{::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)};
}

// Two descriptors for each process of the application, three for each group, one for each listener.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

int fail(const mw::Error& e) {
  mw::log_line("mwcommsd", "%s%s%s", e.where, e.err != 0 ? ": " : "",
               e.err != 0 ? std::strerror(e.err) : "");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::fputs(mw::kDriverUsage, stdout);
    return 0;
  }
  std::string why;
  auto options = mw::parse_driver_options(
      {const_cast<const char* const*>(argv) + 1, static_cast<size_t>(argc > 0 ? argc - 1 : 0)},
      &why);
  if (!options) {
    std::fprintf(stderr, "mwcommsd: %s\n%s", why.c_str(), mw::kDriverUsage);
    return 2;
  }
  raise_descriptor_limit();
  if (!mw::keep_own_descriptors(*options)) return fail({mw::Fault::sys, errno, "close_range"});
  auto keepers = mw::Keepers::start(*options, argc, argv);
  if (!keepers) return fail(keepers.error());
  options->front_end_keeper = keepers->front_end.get();
  options->blocks_keeper = keepers->blocks.get();
  if (auto given_up = mw::give_up_privileges(); !given_up) return fail(given_up.error());
  const mw::UniqueFd signals = take_signals();
  auto driver = mw::Driver::make(*options);
  if (!driver) return fail(driver.error());
  if (auto added = (*driver)->poller().add(signals.get(), EPOLLIN, mw::Source::signals); !added)
    return fail(added.error());
  for (;;) {
    auto signalled = (*driver)->run_once(-1);
    if (!signalled) return fail(signalled.error());
    signalfd_siginfo info{};
    while (*signalled && ::read(signals.get(), &info, sizeof info) == sizeof info) {
      if (info.ssi_signo != SIGUSR1) return 0;  // the session goes on: the next driver finds it
      (*driver)->end_session();                 // no INS will be started for it any more
    }
  }
}
