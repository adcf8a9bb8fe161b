#include "frontend/forwarding.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/process.h"
#include "frontend/session.h"

namespace mw {
namespace {

// Where the settings are.
struct Paths {
  explicit Paths(const std::string& sys)
      : conf4(sys + "/ipv4/conf/"),
        conf6(sys + "/ipv6/conf/"),
        global4(sys + "/ipv4/ip_forward"),
        global6(conf6 + "all/forwarding") {}
  std::string conf4;
  std::string conf6;
  std::string global4;
  std::string global6;
};

struct Change {
  std::string path;
  std::string before;
  std::string after;
};

std::string value_of(const std::string& path) {
  const std::string text = read_text(path);
  return text.substr(0, text.find('\n'));
}

Outcome<Done> set_value(const std::string& path, const std::string& value) {
  const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!fd || ::write(fd.get(), value.data(), value.size()) < 0) {
    return Failure{"set " + path + " to " + value, errno_text(errno),
                   "run as root outside of containers that lock /proc/sys, or set it yourself"};
  }
  return Done{};
}

bool is_ours(const std::string& link) {
  return link.compare(0, 3, kLinkPrefix) == 0;
}

// Interfaces other than loopback and the INSs' own.
std::vector<std::string> host_links(const std::string& conf) {
  std::vector<std::string> out;
  std::error_code error;
  for (std::filesystem::directory_iterator it(conf, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    if (name != "all" && name != "default" && name != "lo" && !is_ours(name)) out.push_back(name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Newer kernels (6.17) can forward IPv6 for single interfaces. On older ones the switch is global,
// and turning it on makes the host ignore router advertisements unless accept_ra says 2: say so
// first.
void plan_v6(const Paths& paths, std::vector<Change>* changes) {
  if (value_of(paths.global6) != "0") return;
  const bool single = !value_of(paths.conf6 + "all/force_forwarding").empty();
  for (const std::string& link : host_links(paths.conf6)) {
    const std::string setting = paths.conf6 + link + (single ? "/force_forwarding" : "/accept_ra");
    const std::string before = value_of(setting);
    if (single && before == "0") changes->push_back({setting, "0", "1"});
    if (!single && before == "1") changes->push_back({setting, "1", "2"});
  }
  if (!single) changes->push_back({paths.global6, "0", "1"});
}

void plan_v4(const Paths& paths, std::vector<Change>* changes) {
  if (value_of(paths.global4) != "0") return;
  for (const std::string& link : host_links(paths.conf4)) {
    const std::string setting = paths.conf4 + link + "/forwarding";
    if (value_of(setting) == "0") changes->push_back({setting, "0", "1"});
  }
}

// One record for each network namespace that plays the host: settings belong to a namespace.
std::string record_path(const std::string& base) {
  return base + "/forwarding-" + std::to_string(this_network());
}

std::vector<Change> load(const std::string& base) {
  std::vector<Change> out;
  std::istringstream in(read_text(record_path(base)));
  Change c;
  while (in >> c.path >> c.before >> c.after) out.push_back(c);
  return out;
}

std::string folder_below(const std::string& path, const std::string& conf) {
  if (path.compare(0, conf.size(), conf) != 0) return "";
  return path.substr(conf.size(), path.find('/', conf.size()) - conf.size());
}

GuardedLinks guarded_by(const Paths& paths, const std::vector<Change>& changes) {
  GuardedLinks out;
  for (const Change& c : changes) {
    const std::string v4 = folder_below(c.path, paths.conf4);
    const std::string v6 = folder_below(c.path, paths.conf6);
    if (!v4.empty()) out.v4.push_back(v4);
    if (c.path == paths.global6) {
      out.all_v6 = true;  // the switch opened every interface
      continue;
    }
    if (!v6.empty()) out.v6.push_back(v6);
  }
  return out;
}

}  // namespace

GuardedLinks guarded_links(const std::string& base, const std::string& sys) {
  return guarded_by(Paths(sys), load(base));
}

Outcome<Done> acquire_forwarding(const std::string& base, const std::string& link,
                                 const Guard& guard, const std::string& sys) {
  const Paths paths(sys);
  std::vector<Change> changes = load(base);
  std::vector<Change> missing;
  plan_v4(paths, &missing);
  plan_v6(paths, &missing);
  for (const Change& m : missing) {
    // An interface that has come back is recorded already.
    const bool known = std::any_of(changes.begin(), changes.end(),
                                   [&m](const Change& c) { return c.path == m.path; });
    if (!known) changes.push_back(m);
  }
  std::ostringstream text;
  for (const Change& c : changes) text << c.path << " " << c.before << " " << c.after << "\n";
  if (!changes.empty()) {
    if (auto saved = write_text_atomically(record_path(base), text.str()); !saved) {
      return saved.error();
    }
  }
  if (auto guarded = guard(guarded_by(paths, changes)); !guarded) return guarded.error();
  for (const Change& c : missing) {
    // An interface that has gone meanwhile needs nothing any more.
    if (::access(c.path.c_str(), F_OK) < 0 && errno == ENOENT) continue;
    if (auto set = set_value(c.path, c.after); !set) return set.error();
  }
  if (auto set = set_value(paths.conf4 + link + "/forwarding", "1"); !set) return set.error();
  const std::string single = paths.conf6 + link + "/force_forwarding";
  if (value_of(paths.global6) == "0" && !value_of(single).empty()) {
    if (auto set = set_value(single, "1"); !set) return set.error();
  }
  return Done{};
}

Outcome<Done> release_forwarding(const std::string& base, const std::string& sys) {
  const Paths paths(sys);
  std::vector<Change> changes = load(base);
  std::reverse(changes.begin(), changes.end());
  // Somebody turned forwarding on globally in the meantime: that is now his setting.
  const bool taken_over = value_of(paths.global4) == "1";
  for (const Change& c : changes) {
    const bool v4 = !folder_below(c.path, paths.conf4).empty();
    if ((v4 && taken_over) || value_of(c.path) != c.after) continue;
    if (auto set = set_value(c.path, c.before); !set) return set.error();
  }
  if (::unlink(record_path(base).c_str()) < 0 && errno != ENOENT) {
    return Failure{"remove " + record_path(base), errno_text(errno), ""};
  }
  return Done{};
}

}  // namespace mw
