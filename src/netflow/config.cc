#include "netflow/config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <limits>
#include <optional>

#include "base/unique_fd.h"
#include "netflow/socket_address.h"
#include "netflow/toml_reader.h"

namespace mw::netflow {
namespace {

constexpr size_t kMaxFile = 1 << 20;
constexpr uint64_t kLeastRotation = 64 * 1024;

class Reader : private TomlReader {
 public:
  ConfigReading read(const std::string& text) {
    if (const auto root = parse(text)) {
      only(*root, "", {"network", "application", "netflow", "exports"});
      if (const toml::table* t = table(*root, "network")) network(*t);
      if (const toml::table* t = table(*root, "application")) application(*t);
      if (const toml::table* t = table(*root, "netflow")) netflow(*t);
      if (const toml::table* t = table(*root, "exports")) exports(*t);
    }
    out_.faults = take_faults();
    return std::move(out_);
  }

 private:
  void path(const toml::table& in, const char* name, std::string& out) {
    const auto v = value<std::string>(in, name, "a text");
    if (!v) return;
    out = *v;
    if (out.empty() || out[0] != '/')
      fault(*in.get(name), std::string(name) + " has to be an absolute path");
  }
  // Checked now, because a daemon that cannot read it later protects nothing.
  void readable(const toml::table& in, const char* name, std::string& out, bool secret) {
    path(in, name, out);
    if (out.empty() || out[0] != '/') return;
    struct stat st {};
    const char* why = nullptr;
    if (::stat(out.c_str(), &st) < 0)
      why = errno == ENOENT ? "does not exist" : "cannot be read";
    else if (!S_ISREG(st.st_mode))
      why = "is no file";
    else if (::access(out.c_str(), R_OK) < 0)
      why = "cannot be read";
    else if (secret && (st.st_mode & 077) != 0)
      why = "can be read by others than its owner (chmod 600)";
    if (why != nullptr) fault(*in.get(name), std::string(name) + ": " + out + " " + why);
  }
  std::optional<SocketAddress> address(const toml::table& in, const char* name, std::string& out) {
    const auto v = value<std::string>(in, name, "a text");
    if (!v) return std::nullopt;
    out = *v;
    auto parsed = parse_socket_address(out);
    if (!parsed)
      fault(*in.get(name), std::string(name) +
                               " has to be an address and a port, such as 127.0.0.1:4739 or "
                               "[::1]:4739 (names are not looked up)");
    return parsed;
  }

  void network(const toml::table& t) {
    only(t, "network.", {"egress", "to_host"});
    list(t, "egress", false, out_.config.network.egress);
    list(t, "to_host", true, out_.config.network.to_host);
  }
  // A text, or an array of texts (and of numbers).
  void list(const toml::table& in, const char* name, bool numbers, std::optional<ConfigText>& out) {
    const toml::node* const node = in.get(name);
    if (node == nullptr) return;
    std::string joined;
    bool is_right = true;
    const auto take = [&](const toml::node& one) {
      const auto text = one.value_exact<std::string>();
      const auto number = one.value_exact<int64_t>();
      if (!text && !(numbers && number)) {
        is_right = false;
        fault(one,
              std::string(name) + " has to be " +
                  (numbers ? "a port, a text or a list of those" : "a text or a list of texts"));
        return;
      }
      joined += (joined.empty() ? "" : ",") + (text ? *text : std::to_string(*number));
    };
    if (const toml::array* all = node->as_array()) {
      for (const toml::node& one : *all) take(one);
    } else {
      take(*node);
    }
    if (is_right) out = ConfigText{joined, node->source().begin.line, node->source().begin.column};
  }

  void application(const toml::table& t) {
    constexpr const char* kName = "allow_uncovered";
    only(t, "application.", {kName});
    const toml::node* const given = t.get(kName);
    if (given == nullptr) return;
    std::vector<std::string>& allowed = out_.config.application.allow_uncovered;
    if (const auto all = given->value_exact<bool>()) {
      if (*all) allowed = {"*"};
      return;
    }
    const toml::array* const list = given->as_array();
    if (list == nullptr)
      return fault(*given, "allow_uncovered has to be true, or a list of names and paths");
    for (const toml::node& entry : *list) {
      const auto program = entry.value_exact<std::string>();
      if (!program) {
        fault(entry, "allow_uncovered holds names and paths of programs");
      } else if (const char* why = fault_of_uncovered(*program)) {
        fault(entry, "allow_uncovered: " + *program + why);
      } else {
        allowed.push_back(*program);
      }
    }
  }

  void netflow(const toml::table& t) {
    ListenConfig& c = out_.config.listen;
    only(t, "netflow.",
         {"listen", "role", "token_file", "read_token_file", "certificate_file", "key_file"});
    if (const auto role = value<std::string>(t, "role", "\"act\" or \"read\"")) {
      c.read_only = *role == "read";
      if (*role != "read" && *role != "act")
        fault(*t.get("role"), "role has to be \"act\" or \"read\"");
    }
    readable(t, "token_file", c.token_file, true);
    readable(t, "read_token_file", c.read_token_file, true);
    readable(t, "certificate_file", c.certificate_file, false);
    readable(t, "key_file", c.key_file, true);
    const bool token = !c.token_file.empty() || !c.read_token_file.empty();
    const bool tls = !c.certificate_file.empty() && !c.key_file.empty();
    if (token && !tls)
      fault(t, "a token is shown through TLS: certificate_file and key_file are missing");
    if (!token && (!c.certificate_file.empty() || !c.key_file.empty()))
      fault(t, "TLS is for those who have a token: token_file or read_token_file is missing");
    const toml::node* const listen = t.get("listen");
    if (listen != nullptr && listen->value_exact<std::string>() == "none") {
      c.address.clear();
      return;
    }
    const auto where = address(t, "listen", c.address);
    if (!where) return;
    if (where->family() == AF_UNIX)
      fault(*listen, "listen has to be an address and a port; the unix socket is always there");
    else if (!where->is_loopback() && !(token && tls))
      fault(*listen, c.address +
                         " is reached from elsewhere: that needs token_file or read_token_file, "
                         "certificate_file and key_file");
  }

  void exports(const toml::table& t) {
    ExportOptions& e = out_.config.exports;
    only(t, "exports.",
         {"active_timeout_s", "idle_timeout_s", "ipfix", "prometheus", "json_lines"});
    number(t, "active_timeout_s", 1, 86400, e.timeouts.active_s);
    number(t, "idle_timeout_s", 1, 86400, e.timeouts.idle_s);
    if (const toml::table* i = table(t, "ipfix")) ipfix(*i, e.ipfix);
    if (const toml::table* p = table(t, "prometheus")) prometheus(*p, e.prometheus);
    if (const toml::table* j = table(t, "json_lines")) json_lines(*j, e.json_lines);
  }

  void ipfix(const toml::table& t, IpfixOptions& o) {
    only(t, "exports.ipfix.", {"collector", "transport", "domain", "template_interval_s"});
    const auto where = address(t, "collector", o.collector);
    if (t.get("collector") == nullptr) fault(t, "exports.ipfix needs a collector");
    if (where && where->family() == AF_UNIX)
      fault(*t.get("collector"), "collector has to be an address and a port");
    if (const auto transport = value<std::string>(t, "transport", "\"udp\" or \"tcp\"")) {
      o.tcp = *transport == "tcp";
      if (*transport != "tcp" && *transport != "udp")
        fault(*t.get("transport"), "transport has to be \"udp\" or \"tcp\"");
    }
    number(t, "domain", 0, std::numeric_limits<uint32_t>::max(), o.domain);
    number(t, "template_interval_s", 1, 3600, o.template_s);
  }

  void prometheus(const toml::table& t, PrometheusOptions& o) {
    only(t, "exports.prometheus.", {"listen"});
    const auto where = address(t, "listen", o.listen);
    if (t.get("listen") == nullptr) fault(t, "exports.prometheus needs listen");
    if (where && where->family() != AF_UNIX && !where->is_loopback())
      fault(*t.get("listen"),
            o.listen + " is reached from elsewhere: listen on loopback, or on unix:/PATH");
  }

  void json_lines(const toml::table& t, JsonLinesOptions& o) {
    only(t, "exports.json_lines.", {"file", "rotate_bytes", "keep"});
    path(t, "file", o.file);
    if (t.get("file") == nullptr) fault(t, "exports.json_lines needs a file");
    number(t, "rotate_bytes", kLeastRotation, uint64_t{1} << 40,
           [&o](uint64_t v) { o.rotate_bytes = v; });
    number(t, "keep", 0, 1000, o.keep);
    const size_t slash = o.file.rfind('/');
    const std::string folder = slash == std::string::npos ? "" : o.file.substr(0, slash + 1);
    if (!folder.empty() && ::access(folder.c_str(), F_OK) < 0)
      fault(*t.get("file"), "the folder " + folder + " does not exist");
  }

  ConfigReading out_;
};

}  // namespace

ConfigReading parse_config(const std::string& text) {
  return Reader().read(text);
}

const char* fault_of_uncovered(const std::string& program) {
  if (program.empty()) return "an empty name is no program's";
  // The list goes from program to program as one text.
  if (program.find(',') != std::string::npos) return " has a comma in it";
  if (program[0] != '/' && program.find('/') != std::string::npos)
    return " has to be a name or an absolute path";
  return nullptr;
}

Result<std::string> read_text_file(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) return Error{Fault::sys, errno, "opening the configuration file"};
  std::string text;
  char part[4096];
  for (;;) {
    const ssize_t n = ::read(fd.get(), part, sizeof part);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error{Fault::sys, errno, "reading the configuration file"};
    if (n == 0) return text;
    text.append(part, static_cast<size_t>(n));
    if (text.size() > kMaxFile) return Error{Fault::sys, EFBIG, "reading the configuration file"};
  }
}

Result<ConfigReading> read_config(const std::string& path) {
  auto text = read_text_file(path);
  if (!text) return text.error();
  return parse_config(*text);
}

}  // namespace mw::netflow
