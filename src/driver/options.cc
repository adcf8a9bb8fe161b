#include "driver/options.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "abi/mw_region.h"
#include "base/helper.h"
#include "netflow/config.h"
#include "transport/local/session_fds.h"

namespace mw {
namespace {

std::optional<int> parse_fd(std::string_view text) {
  int fd = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), fd);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (fd < 3 || ::fcntl(fd, F_GETFD) < 0) return std::nullopt;
  return fd;
}

std::optional<std::vector<int>> parse_fds(std::string_view text, size_t most) {
  std::vector<int> fds;
  for (;;) {
    const size_t comma = text.find(',');
    const auto fd = parse_fd(text.substr(0, comma));
    if (!fd || fds.size() == most) return std::nullopt;
    fds.push_back(*fd);
    if (comma == std::string_view::npos) return fds;
    text.remove_prefix(comma + 1);
  }
}

bool parse_token(std::string_view hex, std::array<uint8_t, 16>* token) {
  if (hex.size() != 2 * token->size()) return false;
  for (size_t i = 0; i < token->size(); ++i) {
    const char* at = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, (*token)[i], 16);
    if (error != std::errc{} || end != at + 2) return false;
  }
  return true;
}

bool assign_fd(std::string_view value, int* out) {
  const auto fd = parse_fd(value);
  if (fd) *out = *fd;
  return fd.has_value();
}

// Of a file that `mw run` has checked before; what stands behind it on the command line counts
// more.
bool take_config(const std::string& path, DriverOptions* o) {
  auto reading = netflow::read_config(path);
  if (!reading || !reading->faults.empty()) return false;
  const netflow::ListenConfig& c = reading->config.listen;
  o->netflow.address = c.address.empty() ? "none" : c.address;
  o->netflow.read_only = c.read_only;
  o->netflow.token_file = c.token_file;
  o->netflow.read_token_file = c.read_token_file;
  o->netflow.certificate_file = c.certificate_file;
  o->netflow.key_file = c.key_file;
  o->exports = reading->config.exports;
  return true;
}

bool assign_fds(std::string_view value, size_t most, std::vector<int>* out) {
  auto fds = parse_fds(value, most);
  if (fds) *out = std::move(*fds);
  return fds.has_value();
}

bool assign(std::string_view name, std::string_view value, DriverOptions* o) {
  if (name == "--registry" || name == "--session") {
    (name == "--registry" ? o->registry : o->session) = value;
    return !value.empty();
  }
  if (name == "--mark") return !value.empty();  // for whoever looks for us among the processes
  if (name == "--token" && value == "env") {    // a command line can be read by every user
    const char* token = std::getenv("MWCOMMS_TOKEN");
    return token != nullptr && parse_token(token, &o->token);
  }
  if (name == "--token") return parse_token(value, &o->token);
  if (name == "--channel-fd") return assign_fd(value, &o->channel_fd);
  if (name == "--session-fd") return assign_fd(value, &o->session_fd);
  if (name == "--attach-fd") return assign_fd(value, &o->attach_fd);
  if (name == "--placeholders-fd") return assign_fd(value, &o->placeholders_fd);
  if (name == "--drop-pvm-fd") return assign_fd(value, &o->drop_pvm_fd);
  if (name == "--drop-ins-fd") return assign_fd(value, &o->drop_ins_fd);
  if (name == "--ready-fd") return assign_fd(value, &o->ready_fd);
  if (name == "--config") return take_config(std::string(value), o);
  if (name == "--netflow") o->netflow.address = value;
  if (name == "--netflow-token-file") o->netflow.token_file = value;
  if (name == "--netflow-read-token-file") o->netflow.read_token_file = value;
  if (name == "--netflow-certificate") o->netflow.certificate_file = value;
  if (name == "--netflow-key") o->netflow.key_file = value;
  if (name == "--netflow-role") o->netflow.read_only = value == "read";
  if (name.starts_with("--netflow"))
    return !value.empty() && (name != "--netflow-role" || value == "read" || value == "act");
  if (name == "--front-end") {
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), o->front_end);
    return error == std::errc{} && end == value.data() + value.size() && o->front_end > 0 &&
           o->front_end <= INT32_MAX;
  }
  if (name == "--adopt-with") {
    o->adopt_with = value;
    return !value.empty() && value.front() == '/';
  }
  if (name == "--bell-fds") return assign_fds(value, MW_MAX_WORKERS, &o->bell_fds);
  if (name == "--kept-fds") return assign_fds(value, kMaxKeptFds, &o->kept_fds);
  if (name != "--store-fds") return false;
  auto fds = parse_fds(value, 2);
  if (!fds || fds->size() != 2) return false;
  o->store_fds[0] = (*fds)[0];
  o->store_fds[1] = (*fds)[1];
  return true;
}

}  // namespace

const char kDriverUsage[] =
    "usage: mwcommsd --registry DIR --session NAME --token HEX32|env --channel-fd N --session-fd "
    "N\n"
    "                --attach-fd N --placeholders-fd N --drop-pvm-fd N --drop-ins-fd N\n"
    "                --bell-fds N[,N..] --ready-fd N\n"
    "                [--store-fds N,N] [--config FILE] [--netflow ADDRESS:PORT|none] "
    "[--netflow-role act|read]\n"
    "                [--netflow-token-file F] [--netflow-read-token-file F]\n"
    "                [--netflow-certificate PEM --netflow-key PEM]\n"
    "                [--kept-fds N[,N..]] [--front-end PID [--adopt-with PROGRAM]] [--mark WORD]\n"
    "The driver of one session; `mw run` starts it.\n";

bool keep_own_descriptors(const DriverOptions& o) {
  std::vector<int> fds{o.channel_fd,      o.session_fd,   o.attach_fd,
                       o.placeholders_fd, o.drop_pvm_fd,  o.drop_ins_fd,
                       o.ready_fd,        o.store_fds[0], o.store_fds[1]};
  fds.insert(fds.end(), o.bell_fds.begin(), o.bell_fds.end());
  fds.insert(fds.end(), o.kept_fds.begin(), o.kept_fds.end());
  for (const int fd : fds) {
    if (fd >= 0) (void)::fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  return close_all_but(fds);
}

std::optional<DriverOptions> parse_driver_options(std::span<const char* const> args,
                                                  std::string* why) {
  DriverOptions o;
  o.netflow.address = "127.0.0.1:0";
  o.netflow.owner = ::geteuid();
  bool have_token = false;
  for (size_t i = 0; i < args.size(); i += 2) {
    *why = args[i];
    if (i + 1 == args.size() || !assign(args[i], args[i + 1], &o)) return std::nullopt;
    have_token = have_token || std::string_view(args[i]) == "--token";
  }
  if (o.netflow.address == "none")
    o.netflow.address.clear();
  else
    o.netflow.unix_path = o.registry + "/netflow.sock";
  *why = "an argument is missing";
  if (o.registry.empty() || o.session.empty() || !have_token || o.channel_fd < 0 ||
      o.session_fd < 0 || o.attach_fd < 0 || o.placeholders_fd < 0 || o.drop_pvm_fd < 0 ||
      o.drop_ins_fd < 0 || o.bell_fds.empty() || o.ready_fd < 0)
    return std::nullopt;
  return o;
}

}  // namespace mw
