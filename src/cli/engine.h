// engine.h - what the commands that speak to a session's NetFlow interface share.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <optional>
#include <string>

#include "cli/exit_status.h"
#include "netflow/client.h"

namespace mw {

// How long a session may take to answer a command.
constexpr int kAnswerMs = 10'000;

// Options that every one of these commands has.
struct EngineOptions {
  std::string session;
  bool json = false;

  CLI::App* add(CLI::App& app, const char* name, const char* text);
};

// "1:104" (INS and number), "M5300010000000068" (a record's uid), or the whole identifier.
std::optional<netflow::SocketId> parse_socket(const std::string& text);
std::string name_of(int64_t socket);
// "nginx[12]", "-" if the process is not known.
std::string process_text(uint32_t pid, const netflow::CommandName& command);
// listen, tcp or udp.
const char* type_text(uint16_t type, bool listener);
double seconds(const netflow::Timestamp& t);
// As JSON has strings and numbers. Bytes that are no UTF-8 become U+FFFD.
std::string quoted(const std::string& text);
std::string number(double value);

// Each says what went wrong, in JSON too if that was wanted, and returns the exit status.
int fail(bool json, ExitStatus exit, const std::string& text);
// The command line is wrong: how the command is used, on standard error; and before it, why.
int print_usage(const CLI::App& command);
int usage_fault(const CLI::App& command, bool json, const std::string& text);
int fail(bool json, const Error& e);
int refusal(bool json, uint32_t status);

// The local socket of the session that is named, or of the only one; nothing: `why` says it.
std::optional<std::string> find_session(const std::string& wanted, std::string* why);
// A connection to the session that was named, or to the only one. Else `exit` is what to end with.
// `session`: its name.
std::optional<netflow::Client> connect(const EngineOptions& options, int* exit,
                                       std::string* session = nullptr);

}  // namespace mw
