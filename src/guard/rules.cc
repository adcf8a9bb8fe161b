#include "guard/rules.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "guard/probe_target.h"
#include "netflow/address.h"
#include "netflow/toml_reader.h"

namespace mw::guard {
namespace {

constexpr uint32_t kMost = 1'000'000;

class Reader : private netflow::TomlReader {
 public:
  RulesReading read(const std::string& text) {
    if (const auto root = parse(text)) {
      only(*root, "",
           {"when", "allow", "shared", "sample_ms", "ttl_s", "ttl_max_s", "keep", "probe",
            "request", "answer", "unfinished", "closed_window", "crowd", "idle", "worker_time",
            "repeat", "mistakes"});
      general(*root);
      if (const toml::table* t = table(*root, "probe")) probe(*t);
      if (const toml::table* t = table(*root, "request")) rate(*t, "request.", out_.rules.request);
      if (const toml::table* t = table(*root, "answer")) rate(*t, "answer.", out_.rules.answer);
      evidence(*root);
    }
    out_.faults = take_faults();
    return std::move(out_);
  }

 private:
  void networks(const toml::table& t, const char* name, std::vector<Network>& out) {
    const toml::node* const node = t.get(name);
    if (node == nullptr) return;
    const toml::array* const list = node->as_array();
    if (list == nullptr) {
      fault(*node, std::string(name) + " has to be a list of addresses");
      return;
    }
    for (const toml::node& one : *list) {
      const auto text = one.value_exact<std::string>();
      if (const auto network = text ? parse_network(*text) : std::nullopt)
        out.push_back(*network);
      else
        fault(one, std::string(name) +
                       " has addresses like \"192.0.2.7\" or \"2001:db8::/32\" (names are not "
                       "looked up)");
    }
  }

  void general(const toml::table& t) {
    Rules& r = out_.rules;
    if (const auto when = value<std::string>(t, "when", "\"degraded\" or \"always\"")) {
      r.always = *when == "always";
      if (*when != "always" && *when != "degraded")
        fault(*t.get("when"), "when has to be \"degraded\" or \"always\"");
    }
    networks(t, "allow", r.allow);
    networks(t, "shared", r.shared);
    number(t, "sample_ms", 50, 60'000, r.sample_ms);
    number(t, "ttl_s", 1, 86'400, r.ttl_s);
    number(t, "ttl_max_s", 1, 86'400, r.ttl_max_s);
    number(t, "keep", 1, kMost, r.keep);
    if (r.ttl_max_s < r.ttl_s)
      fault(t.get("ttl_max_s") != nullptr ? *t.get("ttl_max_s") : *t.get("ttl_s"),
            "ttl_max_s has to be at least ttl_s");
  }

  void probe(const toml::table& t) {
    ProbeRules& p = out_.rules.probe;
    only(t, "probe.",
         {"target", "interval_ms", "pressed_interval_ms", "slow_ms", "timeout_ms", "bad_in_a_row",
          "recovered_s"});
    if (const auto target = value<std::string>(t, "target", "a text")) {
      p.target = *target;
      if (*target != "auto" && *target != "none" && !parse_target(*target))
        fault(*t.get("target"),
              "target has to be auto, none, an address and a port such as 192.0.2.1:80, or "
              "http://192.0.2.1/path");
    }
    number(t, "interval_ms", 20, 60'000, p.interval_ms);
    number(t, "pressed_interval_ms", 20, 60'000, p.pressed_interval_ms);
    number(t, "slow_ms", 1, 60'000, p.slow_ms);
    number(t, "timeout_ms", 1, 60'000, p.timeout_ms);
    number(t, "bad_in_a_row", 1, 100, p.bad_in_a_row);
    number(t, "recovered_s", 1, 3600, p.recovered_s);
    if (p.timeout_ms < p.slow_ms) fault(t, "probe.timeout_ms has to be at least probe.slow_ms");
  }

  void rate(const toml::table& t, const std::string& where, RateRules& r) {
    only(t, where, {"min_rate", "grace_s", "grace_denied_s"});
    number(t, "min_rate", 0, kMost, r.min_rate);
    number(t, "grace_s", 1, 3600, r.grace_s);
    number(t, "grace_denied_s", 1, 3600, r.grace_denied_s);
  }

  struct Member {
    const char* name;
    uint64_t least;
    uint64_t most;
    uint32_t& out;
  };
  void numbers(const toml::table& root, const char* name, const std::vector<Member>& members) {
    const toml::table* const t = table(root, name);
    if (t == nullptr) return;
    std::vector<std::string_view> names;
    for (const Member& m : members) names.push_back(m.name);
    only(*t, std::string(name) + ".", names);
    for (const Member& m : members)
      number(*t, m.name, static_cast<uint32_t>(m.least), static_cast<uint32_t>(m.most), m.out);
  }

  void evidence(const toml::table& root) {
    Rules& r = out_.rules;
    numbers(root, "unfinished",
            {{"after_s", 0, 3600, r.unfinished_s}, {"piece", 0, kMost, r.unfinished_piece}});
    numbers(root, "closed_window",
            {{"window", 0, kMost, r.window_bytes},
             {"after_s", 0, 3600, r.window_s},
             {"after_denied_s", 0, 3600, r.window_denied_s},
             {"after_progress_s", 0, 3600, r.window_progress_s}});
    numbers(root, "crowd",
            {{"connections", 0, kMost, r.crowd_connections},
             {"still_ms", 50, 60'000, r.crowd_still_ms},
             {"progress_percent", 0, 100, r.crowd_progress_percent}});
    numbers(root, "idle",
            {{"connections", 0, kMost, r.idle_connections},
             {"share_percent", 0, 100, r.idle_share_percent}});
    numbers(root, "worker_time",
            {{"after_s", 0, kMost, r.worker_s},
             {"share_percent", 0, 100, r.worker_share_percent},
             {"min_rate", 0, kMost, r.worker_min_rate}});
    numbers(root, "repeat", {{"cuts", 0, kMost, r.repeat_cuts}});
    numbers(root, "mistakes",
            {{"doubtful_per_minute", 0, kMost, r.doubtful_per_minute},
             {"blocks_per_minute", 0, kMost, r.blocks_per_minute},
             {"most_share_percent", 0, 100, r.most_share_percent}});
  }

  RulesReading out_;
};

}  // namespace

bool Network::holds(const netflow::Address& asked) const {
  const netflow::Address a = netflow::unmapped(asked);
  if (a.af != address.af) return false;
  for (uint32_t bit = 0; bit < bits; bit += 8) {
    const uint32_t in_byte = std::min(8u, bits - bit);
    const auto mask = static_cast<uint8_t>(0xff00u >> in_byte);
    if (((a.bytes[bit / 8] ^ address.bytes[bit / 8]) & mask) != 0) return false;
  }
  return true;
}

std::optional<Network> parse_network(const std::string& text) {
  const size_t slash = text.find('/');
  const auto address = netflow::parse_address(text.substr(0, slash));
  if (!address) return std::nullopt;
  Network n{*address, address->af == 6 ? 128u : 32u};
  if (slash == std::string::npos) return n;
  uint32_t bits = 0;
  const char* const end = text.data() + text.size();
  const auto [at, wrong] = std::from_chars(text.data() + slash + 1, end, bits);
  if (wrong != std::errc() || at != end || bits > n.bits) return std::nullopt;
  n.bits = bits;
  return n;
}

bool any_holds(const std::vector<Network>& networks, const netflow::Address& a) {
  return std::any_of(networks.begin(), networks.end(),
                     [&](const Network& n) { return n.holds(a); });
}

RulesReading parse_rules(const std::string& text) {
  return Reader().read(text);
}

Result<RulesReading> read_rules(const std::string& path) {
  auto text = netflow::read_text_file(path);
  if (!text) return text.error();
  return parse_rules(*text);
}

}  // namespace mw::guard
