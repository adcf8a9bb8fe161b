// mw - the command that users type: run a program behind an isolated network stack, list and clean
// sessions, say what keeps it from working.
#include <signal.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "base/hex.h"
#include "base/log.h"
#include "cli/changes.h"
#include "cli/check_config.h"
#include "cli/doctor.h"
#include "cli/engine.h"
#include "cli/exit_status.h"
#include "cli/flows.h"
#include "cli/guard.h"
#include "cli/sessions_json.h"
#include "cli/top.h"
#include "frontend/run.h"
#include "frontend/session.h"
#include "frontend/take_over.h"
#include "netflow/config.h"
#include "netflow/socket_address.h"
#include "transport/local/session_fds.h"

namespace {

using mw::Failure;
using mw::Outcome;

// Beside ourselves in a build tree, at fixed places relative to ourselves in an installation.
std::string find_program(const std::string& name, const char* build, const char* installed) {
  std::error_code error;
  const std::filesystem::path bin =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  const std::filesystem::path in_build = (bin / build / name).lexically_normal();
  if (std::filesystem::exists(in_build, error)) return in_build;
  return (bin / installed / name).lexically_normal();
}

mw::Programs programs() {
  std::error_code error;
  return {std::filesystem::read_symlink("/proc/self/exe", error),
          find_program("mwcommsd", ".", MW_LIBEXEC_FROM_BIN),
          find_program("mwins", ".", MW_LIBEXEC_FROM_BIN),
          find_program("libmwshim.so", "../lib", MW_LIB_FROM_BIN)};
}

std::string hex(const mw::SessionToken& token) {
  std::string text;
  for (const uint8_t byte : token) {
    const auto two = mw::hex_digits(byte);
    text.append(two.begin(), two.end());
  }
  return text;
}

// What the front end keeps, and how the driver is told about it.
Outcome<mw::SessionDescriptors> described(mw::SessionFds fds, const mw::SessionToken& token) {
  struct stat st {};
  if (::fstat(fds.session.get(), &st) < 0) {
    return Failure{"look at the session's memory", mw::errno_text(errno), ""};
  }
  mw::SessionDescriptors out;
  out.attach_name = fds.attach_name;
  out.memory = {st.st_ino, mw::kSessionMemoryName};
  out.token = hex(token);
  out.workers = static_cast<unsigned>(fds.bells.size());
  const auto pass = [&out](const char* option, const std::vector<mw::UniqueFd*>& list) {
    std::string numbers;
    for (mw::UniqueFd* fd : list) {
      numbers += (numbers.empty() ? "" : ",") + std::to_string(fd->get());
      out.owned.push_back(std::move(*fd));
    }
    if (!list.empty()) {
      out.driver_arguments.insert(out.driver_arguments.end(), {option, numbers});
    }
  };
  const auto each_of = [](std::vector<mw::UniqueFd>& list) {
    std::vector<mw::UniqueFd*> each;
    for (mw::UniqueFd& fd : list) each.push_back(&fd);
    return each;
  };
  pass("--channel-fd", {&fds.channel});
  pass("--session-fd", {&fds.session});
  pass("--attach-fd", {&fds.attach});
  pass("--placeholders-fd", {&fds.placeholders});
  pass("--drop-pvm-fd", {&fds.drop_pvm});
  pass("--drop-ins-fd", {&fds.drop_ins});
  pass("--store-fds", {&fds.store_in, &fds.store_out});
  pass("--bell-fds", each_of(fds.bells));
  pass("--kept-fds", each_of(fds.kept));
  return out;
}

Outcome<mw::SessionDescriptors> make_descriptors(const std::string& session, unsigned workers,
                                                 std::vector<mw::UniqueFd> kept) {
  mw_geometry geometry = mw::kDefaultGeometry;
  geometry.workers = workers;
  mw::SessionToken token;
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return Failure{"make the session's token", "getrandom: " + mw::errno_text(errno), ""};
  }
  if (kept.size() > mw::kMaxKeptFds) {
    return Failure{"publish so many ports",
                   "at most " + std::to_string(mw::kMaxKeptFds) + " can be held", "leave some out"};
  }
  // A limit of file sizes holds for shared memory too: an error, not a signal that kills.
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGXFSZ, &ignore, &before);
  // A soft limit of the address space is the application's; here all of the memory is mapped.
  rlimit space{};
  const bool limited = ::getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != space.rlim_max;
  const rlimit most{space.rlim_max, space.rlim_max};
  if (limited) (void)::setrlimit(RLIMIT_AS, &most);
  auto made = mw::make_session_fds(session, geometry);
  if (limited) (void)::setrlimit(RLIMIT_AS, &space);
  ::sigaction(SIGXFSZ, &before, nullptr);
  if (!made) {
    return Failure{"make the session's shared memory",
                   std::string(made.error().where) + ": " + mw::errno_text(made.error().err),
                   "free memory, or raise the limits of open files, file size and address space "
                   "(ulimit -n, -f, -v)"};
  }
  made->kept = std::move(kept);
  return described(std::move(*made), token);
}

Outcome<mw::SessionDescriptors> ask_for_descriptors(const std::string& folder) {
  auto taken = mw::take_over(folder);
  if (!taken) {
    std::string cause = taken.error().where;
    if (taken.error().err != 0) cause += ": " + mw::errno_text(taken.error().err);
    return Failure{"ask its mwcommsd", cause, ""};
  }
  return described(std::move(taken->fds), taken->token);
}

// Was JSON asked for? Also of a command line that cannot be read.
bool wants_json(const CLI::App& command, const std::vector<std::string>& words) {
  if (command.get_parent() != nullptr && command.get_option_no_throw("--json") == nullptr)
    return false;
  return std::any_of(words.begin(), words.end(), [](const std::string& word) {
    const bool flags =
        word.size() > 1 && word[0] == '-' && word.find_first_not_of("bjw", 1) == std::string::npos;
    return word == "--json" || (flags && word.find('j') != std::string::npos);
  });
}

int usage_error(const CLI::App& command, const std::string& text,
                const std::vector<std::string>& words = {}) {
  return mw::usage_fault(command, wants_json(command, words), text);
}

struct RunArguments {
  std::vector<std::string> publish, egress, to_host;
  std::string net;
  unsigned stacks = 1;
  unsigned workers = 1;
  bool verbose = false;
  std::string uncovered;
  std::string config, netflow, netflow_role, token_file, read_token_file, certificate, key;
};

CLI::App* add_run(CLI::App* app, RunArguments* args) {
  CLI::App* run = app->add_subcommand("run", "Run a command with its network in an isolated stack");
  run->add_option("-p,--publish", args->publish,
                  "Publish a port of the INS on the host; may be given several times")
      ->type_name("[HOST:]PORT[:INSPORT][/udp]")
      ->expected(1)
      ->take_all()
      ->trigger_on_parse(false);
  run->add_option("--net", args->net,
                  "isolated: own network namespace (default as root); host: the host's network")
      ->type_name("MODE")
      ->check(CLI::IsMember({"isolated", "host"}));
  const auto list_option = [run](const char* name, std::vector<std::string>& to, const char* help) {
    return run->add_option(name, to, help)->expected(1)->take_all()->trigger_on_parse(false);
  };
  list_option(
      "--egress", args->egress,
      "What the INS may reach by itself: any (but the host's own services, other sessions and "
      "metadata addresses), none, or a list of dns and networks")
      ->type_name("POLICY");
  list_option("--to-host", args->to_host,
              "Ports of the host's 127.0.0.1 that the program reaches under 127.0.0.1")
      ->type_name("PORT[/udp],...");
  run->add_option("--ins", args->stacks, "Number of network stacks (this version: 1)")
      ->type_name("N");
  run->add_option("--workers", args->workers, "Worker threads of the INS")
      ->type_name("W")
      ->check(CLI::Range(1, 16));
  run->add_option("--config", args->config,
                  "NetFlow listener and exports, see mwcomms.toml(5); the options that follow here "
                  "count more")
      ->type_name("FILE");
  run->add_option("--netflow", args->netflow,
                  "Where engines connect besides the session's local socket (default: a free port "
                  "of 127.0.0.1); none: nowhere")
      ->type_name("ADDRESS:PORT");
  run->add_option("--netflow-role", args->netflow_role, "What engines may do at most")
      ->check(CLI::IsMember({"act", "read"}));
  run->add_option("--netflow-token-file", args->token_file, "Token of engines that may act")
      ->check(CLI::ExistingFile);
  run->add_option("--netflow-read-token-file", args->read_token_file,
                  "Token of engines that may look")
      ->check(CLI::ExistingFile);
  run->add_option("--netflow-certificate", args->certificate, "For TLS, with a token")
      ->check(CLI::ExistingFile);
  run->add_option("--netflow-key", args->key, "For TLS, with a token")->check(CLI::ExistingFile);
  run->add_flag(
         "--allow-uncovered", args->uncovered,
         "Let programs run that the shim does not reach (static, Go, setuid, ...), uncovered: "
         "all of them, or with =LIST those of a list of names and paths with commas between")
      ->join(',');
  run->add_flag("-v,--verbose", args->verbose, "Say what runs where");
  run->prefix_command();
  run->footer(
      "mw run [-p [HOST:]PORT[:INSPORT][/udp]]... [--egress any|none|dns,CIDR,...] "
      "[--to-host PORT[/udp],...]\n"
      "       [--net isolated|host] [--workers W] [--allow-uncovered[=NAME|PATH,...]] [-v] "
      "-- CMD...\n"
      "The exit status is CMD's; 128+N if signal N killed it; 125 if mw failed, 126 if CMD cannot "
      "be\n"
      "run or covered, 127 if it was not found.");
  return run;
}

std::string joined(const std::vector<std::string>& lists) {
  std::string out;
  for (const std::string& list : lists) out += (&list == &lists.front() ? "" : ",") + list;
  return out;
}

// What the session may reach, by the file and by the options, which count more. The failure of an option.
Outcome<mw::Done> take_reach(const RunArguments& args, const mw::SessionConfig& config,
                             mw::Reach* reach) {
  if (config.egress) reach->egress = *config.egress;
  if (config.to_host) reach->to_host = *config.to_host;
  if (!args.egress.empty()) {
    auto egress = mw::parse_egress(joined(args.egress));
    if (!egress) return egress.error();
    reach->egress = *egress;
  }
  if (!args.to_host.empty()) {
    auto ports = mw::parse_to_host(joined(args.to_host));
    if (!ports) return ports.error();
    reach->to_host = *ports;
  }
  return mw::Done{};
}

// What --allow-uncovered says, or else the configuration file, as the shim takes it.
Outcome<std::string> uncovered_programs(const RunArguments& args, const mw::SessionConfig& config) {
  std::vector<std::string> programs = config.uncovered;
  if (!args.uncovered.empty()) {
    programs.clear();
    // A flag of CLI11 that has no value is "true".
    std::istringstream list(args.uncovered);
    for (std::string one; std::getline(list, one, ',');)
      programs.push_back(one == "true" ? "*" : one);
  }
  std::string text;
  for (const std::string& program : programs) {
    if (const char* why = mw::netflow::fault_of_uncovered(program))
      return Failure{"take --allow-uncovered", program + why, "write names, and absolute paths"};
    text += (text.empty() ? "" : ",") + program;
  }
  if (text.size() > mw::kMaxUncovered)
    return Failure{"take so many programs of --allow-uncovered", "they are too long together", ""};
  return text;
}

int run_command(const CLI::App& run, const RunArguments& args, std::vector<std::string> command) {
  mw::RunRequest request;
  const bool root = ::geteuid() == 0;
  if (args.stacks != 1) {
    return usage_error(run, "--ins: this version runs one INS a session; leave it out or say 1");
  }
  if (command.empty()) return usage_error(run, "no command given");
  for (const std::string& text : args.publish) {
    auto publish = mw::parse_publish(text);
    if (!publish) return usage_error(run, publish.error().text());
    request.published.push_back(*publish);
  }
  request.net = (args.net.empty() ? root : args.net == "isolated") ? mw::NetMode::isolated
                                                                   : mw::NetMode::host;
  request.why_net = !args.net.empty() ? "--net " + args.net + " was given"
                    : root            ? "it is the default for root"
                           : "only root can make network namespaces (default without root)";
  if (request.net == mw::NetMode::isolated && !root) {
    return usage_error(run, "--net isolated needs root; leave it out to use the host's network");
  }
  if (request.net == mw::NetMode::host && !request.published.empty()) {
    return usage_error(run,
                       "-p needs --net isolated: on the host's network the ports of the INS are "
                       "the host's own");
  }
  mw::SessionConfig config;
  if (!args.config.empty()) {
    auto reading = mw::read_session_config(args.config);
    if (!reading) {
      mw::report_unreadable(args.config, reading.error(), false);
      return mw::print_usage(run);
    }
    config = std::move(*reading);
    if (mw::report_faults(args.config, config.faults, false) != mw::ExitStatus::ok)
      return mw::print_usage(run);
  }
  if (request.net == mw::NetMode::host) {
    if (!args.egress.empty() || config.egress)
      return usage_error(
          run,
          "--egress needs --net isolated: on the host's network nothing tells the "
          "packets of the INS from those of other programs, so it reaches what they do");
    if (!args.to_host.empty() || config.to_host)
      return usage_error(run,
                         "--to-host needs --net isolated: on the host's network 127.0.0.1 is the "
                         "host's own already");
  }
  if (auto taken = take_reach(args, config, &request.reach); !taken)
    return usage_error(run, taken.error().text());
  if (!args.netflow.empty() && args.netflow != "none") {
    const auto address = mw::netflow::parse_socket_address(args.netflow);
    if (!address || address->family() == AF_UNIX)
      return usage_error(run, "--netflow: not ADDRESS:PORT, and not none: " + args.netflow);
  }
  auto uncovered = uncovered_programs(args, config);
  if (!uncovered) return usage_error(run, uncovered.error().text());
  request.uncovered = *uncovered;
  request.command = std::move(command);
  request.workers = args.workers;
  request.verbose = args.verbose;
  for (const auto& [option, value, is_file] :
       {std::tuple{"--config", &args.config, true}, std::tuple{"--netflow", &args.netflow, false},
        std::tuple{"--netflow-role", &args.netflow_role, false},
        std::tuple{"--netflow-token-file", &args.token_file, true},
        std::tuple{"--netflow-read-token-file", &args.read_token_file, true},
        std::tuple{"--netflow-certificate", &args.certificate, true},
        std::tuple{"--netflow-key", &args.key, true}}) {
    if (value->empty()) continue;
    request.driver_options.insert(
        request.driver_options.end(),
        {option, is_file ? std::filesystem::absolute(*value).string() : *value});
  }
  request.base = mw::default_base(true);
  request.programs = programs();
  request.descriptors = make_descriptors;
  return mw::run_session(request);
}

int doctor_command(const std::vector<std::string>& command, bool json) {
  const mw::Examination examination = mw::examine(programs(), command);
  json ? mw::print_examination_json(examination) : mw::print_examination(examination);
  return static_cast<int>(examination.status());
}

int ps_command(const std::string& only, bool json) {
  const std::string base = mw::default_base();
  return json ? static_cast<int>(mw::print_sessions_json(base, only))
              : mw::print_sessions(base, only);
}

int clean_command(const std::string& session, bool json) {
  std::vector<std::string> removed;
  const int status = mw::clean_sessions(mw::default_base(), session, &removed);
  if (status != 0) return status;
  std::string list;
  for (const std::string& name : removed) {
    if (!json) std::printf("removed %s\n", name.c_str());
    list += (list.empty() ? "" : ", ") + mw::quoted(name);
  }
  if (json) std::printf("{\"schema\": 1, \"removed\": [%s]}\n", list.c_str());
  return 0;
}

int adopt_command(const std::string& session) {
  return mw::adopt_session({session, mw::default_base(), programs(), ask_for_descriptors});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == mw::kTakeOver)
    return mw::take_over_and_exec({argv + 2, argv + argc});
  CLI::App app{"MwComms: programs behind isolated network stacks", "mw"};
  app.require_subcommand(1);
  RunArguments args;
  CLI::App* run = add_run(&app, &args);
  CLI::App* ps = app.add_subcommand("ps", "List sessions: what runs where");
  std::string only;
  ps->add_option("session", only, "Only this one");
  bool json = false;
  ps->add_flag("-j,--json", json, "One JSON document");
  CLI::App* doctor =
      app.add_subcommand("doctor", "Would mw run work here, and could it cover this program?");
  doctor->add_flag("-j,--json", json, "One JSON document");
  doctor->prefix_command();
  doctor->footer("mw doctor [--json] [--] [PROGRAM [ARG]...]");
  CLI::App* check =
      app.add_subcommand("check-config", "Is this configuration file right, all of it?");
  std::string file;
  check->add_option("file", file, "See mwcomms.toml(5)")->required();
  check->add_flag("-j,--json", json, "One JSON document");
  CLI::App* adopt =
      app.add_subcommand("adopt", "Go on with a session that runs without its mw run");
  std::string orphan;
  adopt->add_option("session", orphan, "Its name, as mw ps shows it")->required();
  CLI::App* clean = app.add_subcommand("clean", "Remove what dead sessions left behind");
  std::string ended;
  clean->add_option("session", ended, "End this one too, if it runs without its mw run");
  const mw::FlowCommands flows(app);
  mw::ChangeCommands changes(app);
  const mw::SampleCommands samples(app);
  const mw::GuardCommand guard(app);
  CLI::App* version = app.add_subcommand("version", "Print the version");
  for (CLI::App* sub : {clean, version}) sub->add_flag("-j,--json", json, "One JSON document");

  // What stands behind the first "--" is the command's, whatever it looks like.
  const std::vector<std::string> words(argv + 1, argv + argc);
  const auto dashes = std::find(words.begin(), words.end(), "--");
  std::vector<std::string> ours(words.begin(), dashes);
  try {
    std::vector<std::string> reversed(ours.rbegin(), ours.rend());
    app.parse(reversed);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    return usage_error(chosen.empty() ? app : *chosen[0], error.what(), ours);
  }
  // CLI11 takes that for the option without a list, which allows everything.
  if (*run && std::find(ours.begin(), ours.end(), "--allow-uncovered=") != ours.end())
    return usage_error(*run, "--allow-uncovered=: no program is named", ours);
  for (const CLI::App* takes_command : {run, doctor}) {
    if (!*takes_command) continue;
    std::vector<std::string> command = takes_command->remaining();
    if (!command.empty() && command[0][0] == '-') {
      return usage_error(*takes_command, "unknown option " + command[0], ours);
    }
    const auto rest = command.empty() && dashes != words.end() ? dashes + 1 : dashes;
    command.insert(command.end(), rest, words.end());
    return *run ? run_command(*run, args, command) : doctor_command(command, json);
  }
  if (dashes != words.end()) return usage_error(app, "only run and doctor take a command", ours);
  if (*ps) return ps_command(only, json);
  if (*check) return static_cast<int>(mw::check_config(file, json));
  if (*adopt) return adopt_command(orphan);
  if (*clean) return clean_command(ended, json);
  if (flows.given()) return flows.run();
  if (changes.given()) return changes.run();
  if (samples.given()) return samples.run();
  if (guard.given()) return guard.run();
  if (*version)
    std::puts(json ? R"({"schema": 1, "version": ")" MW_VERSION R"("})" : "mw " MW_VERSION);
  return 0;
}
