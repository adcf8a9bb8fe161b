#include "ins/control/resolv_conf.h"

#include <arpa/inet.h>
#include <strings.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <sstream>

namespace mw {
namespace {

bool same(const std::string& a, const char* b) {
  return ::strcasecmp(a.c_str(), b) == 0;
}

NameService service_of(const std::string& name) {
  NameService s;
  if (name == "files") s.kind = NameService::Kind::files;
  // systemd's stub asks the same servers in the end.
  if (name == "dns" || name == "resolve") s.kind = NameService::Kind::dns;
  return s;
}

std::optional<NameStatus> status_of(const std::string& word) {
  if (same(word, "success")) return NameStatus::success;
  if (same(word, "notfound")) return NameStatus::not_found;
  if (same(word, "unavail")) return NameStatus::unavailable;
  if (same(word, "tryagain")) return NameStatus::try_again;
  return std::nullopt;
}

// "[!]STATUS=ACTION"
void apply_action(std::string word, NameService& to) {
  const bool other = !word.empty() && word.front() == '!';
  if (other) word.erase(0, 1);
  const size_t equals = word.find('=');
  if (equals == std::string::npos) return;
  const auto status = status_of(word.substr(0, equals));
  if (!status) return;
  const bool ends = same(word.substr(equals + 1), "return");
  for (size_t i = 0; i < to.ends.size(); ++i)
    if ((i == static_cast<size_t>(*status)) != other) to.ends[i] = ends;
}

std::vector<NameService> parse_services(const std::string& line) {
  std::vector<NameService> out;
  for (size_t at = 0; at < line.size();) {
    at = line.find_first_not_of(" \t\r", at);
    if (at == std::string::npos) break;
    if (line[at] == '[') {
      const size_t end = std::min(line.find(']', at), line.size());
      std::istringstream words(line.substr(at + 1, end - at - 1));
      for (std::string word; !out.empty() && words >> word;) apply_action(word, out.back());
      at = std::min(end + 1, line.size());
    } else {
      const size_t end = std::min(line.find_first_of(" \t\r[", at), line.size());
      out.push_back(service_of(line.substr(at, end - at)));
      at = end;
    }
  }
  return out;
}

// "NAME:NUMBER": the number, at most `most`.
bool read_number(const std::string& word, const char* name, int most, int& to) {
  const std::string prefix = std::string(name) + ":";
  if (word.compare(0, prefix.size(), prefix) != 0) return false;
  to = std::clamp(std::atoi(word.c_str() + prefix.size()), 0, most);
  return true;
}

void apply_options(const std::string& text, ResolvConf& to) {
  constexpr int kMostDots = 15;
  constexpr int kLongest = 30;
  constexpr int kMostAttempts = 5;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (read_number(word, "timeout", kLongest, to.timeout) ||
        read_number(word, "attempts", kMostAttempts, to.attempts) ||
        read_number(word, "ndots", kMostDots, to.ndots))
      continue;
    to.rotate = to.rotate || word == "rotate";
    to.edns0 = to.edns0 || word == "edns0";
    to.use_vc = to.use_vc || word == "use-vc";
    to.no_tld_query = to.no_tld_query || word == "no-tld-query";
  }
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

// The address of a server; one with a zone is not asked.
std::optional<NameServer> server_of(const std::vector<std::string>& words) {
  if (words.empty()) return std::nullopt;
  NameServer s;
  if (::inet_aton(words[0].c_str(), &s.v4) == 1) return s;
  s.family = AF_INET6;
  if (::inet_pton(AF_INET6, words[0].c_str(), &s.v6) == 1) return s;
  return std::nullopt;
}

}  // namespace

std::vector<NameService> parse_nsswitch(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    line = line.substr(0, line.find('#'));
    const size_t begin = line.find_first_not_of(" \t");
    const size_t colon = line.find(':');
    if (begin == std::string::npos || colon == std::string::npos || colon < begin) continue;
    std::string key = line.substr(begin, colon - begin);
    key.erase(key.find_last_not_of(" \t") + 1);
    if (key == "hosts") return parse_services(line.substr(colon + 1));
  }
  return parse_services("files dns");
}

ResolvConf parse_resolv_conf(const std::string& text, const char* res_options,
                             const char* localdomain, const std::string& host) {
  ResolvConf out;
  if (const size_t dot = host.find('.'); dot != std::string::npos && dot + 1 < host.size())
    out.search = {host.substr(dot + 1)};
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t end = std::min(line.find_first_of(" \t"), line.size());
    const std::string key = line.substr(0, end);
    const std::string rest = line.substr(end);
    if (key == "options") apply_options(rest, out);
    if (key == "nameserver" && out.servers.size() < kMaxNameServers)
      if (const auto server = server_of(words_of(rest))) out.servers.push_back(*server);
    if (key != "search" && key != "domain") continue;
    std::vector<std::string> domains = words_of(rest);
    if (domains.empty()) continue;
    if (key == "domain") domains.resize(1);
    out.search = std::move(domains);
  }
  if (out.servers.empty()) out.servers.push_back({AF_INET, {htonl(INADDR_LOOPBACK)}, {}});
  if (localdomain != nullptr) out.search = words_of(localdomain);
  if (res_options != nullptr) apply_options(res_options, out);
  return out;
}

SearchNames search_names(const std::string& name, int ndots, bool no_tld_query,
                         const std::vector<std::string>& domains) {
  SearchNames out;
  bool asked = false;  // as it stands, be it because the list says so
  const auto as_it_stands = [&] {
    asked = true;
    out.as_it_stands = out.names.size();
    out.names.push_back(name);
  };
  const bool rooted = !name.empty() && name.back() == '.';
  const auto dots = std::count(name.begin(), name.end(), '.');
  if (rooted || dots >= ndots) as_it_stands();
  if (rooted) return out;
  for (const std::string& domain : domains) {
    asked = asked || domain == ".";
    out.names.push_back(domain == "." ? name : name + "." + domain);
  }
  if (!asked && (dots != 0 || !no_tld_query || domains.empty())) as_it_stands();
  return out;
}

}  // namespace mw
