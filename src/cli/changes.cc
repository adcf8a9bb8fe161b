#include "cli/changes.h"

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/clock.h"
#include "netflow/address.h"

namespace mw {
namespace {

using namespace netflow;

enum class Form { number, seconds, rate };
// What a feature can be of.
constexpr unsigned kSocket = 1;
constexpr unsigned kAll = 2;
constexpr unsigned kPeer = 4;

struct Named {
  const char* name;
  Feature feature;
  unsigned of;
  Form form = Form::number;
};
constexpr Named kFeatures[] = {{"nonblock", Feature::nonblock, kSocket},
                               {"reuseaddr", Feature::reuseaddr, kSocket},
                               {"reuseport", Feature::reuseport, kSocket},
                               {"keepalive", Feature::keepalive, kSocket},
                               {"defer-accept", Feature::defer_accept, kSocket},
                               {"nodelay", Feature::nodelay, kSocket},
                               {"open", Feature::is_open, kSocket},
                               {"owner-running", Feature::owner_running, kSocket},
                               {"sndbuf", Feature::sndbuf, kSocket},
                               {"rcvbuf", Feature::rcvbuf, kSocket},
                               {"sndtimeo", Feature::sndtimeo, kSocket, Form::seconds},
                               {"rcvtimeo", Feature::rcvtimeo, kSocket, Form::seconds},
                               {"sndlowat", Feature::sndlowat, kSocket},
                               {"rcvlowat", Feature::rcvlowat, kSocket},
                               {"error", Feature::error, kSocket},
                               {"min-rate-in", Feature::min_rate_in, kSocket | kAll, Form::rate},
                               {"min-rate-out", Feature::min_rate_out, kSocket | kAll, Form::rate},
                               {"pause", Feature::pause, kSocket},
                               {"pacing", Feature::pacing, kSocket},
                               {"congestion", Feature::congestion, kAll},
                               {"delack-ticks", Feature::delack_ticks, kAll},
                               {"peer-cap", Feature::peer_cap, kAll | kPeer},
                               {"allow", Feature::allow, kPeer},
                               {"block", Feature::address_block, kPeer}};

const Named* find_feature(const std::string& name) {
  for (const Named& f : kFeatures)
    if (name == f.name) return &f;
  return nullptr;
}

const Named* find_feature(uint16_t code) {
  for (const Named& f : kFeatures)
    if (static_cast<uint16_t>(f.feature) == code) return &f;
  return nullptr;
}

std::string feature_names() {
  std::string all;
  for (const Named& f : kFeatures) all += (all.empty() ? "" : " ") + std::string(f.name);
  return all;
}

std::string shown(const Named* named, uint64_t value0, uint64_t value1) {
  const Form form = named == nullptr ? Form::number : named->form;
  if (form == Form::seconds)
    return number(static_cast<double>(value0) + static_cast<double>(value1) / 1e6);
  const std::string first = std::to_string(value0);
  return form == Form::rate ? first + "/" + std::to_string(value1) : first;
}

// A rate with its grace is no JSON number.
std::string json_value(const Named* named, uint64_t value0, uint64_t value1) {
  const std::string text = shown(named, value0, value1);
  return named != nullptr && named->form == Form::rate ? quoted(text) : text;
}

// "500/20": bytes a second and seconds of grace, which may be left out.
bool take_rate(const std::string& text, Request& r) {
  unsigned long long rate = 0;
  unsigned long long grace = 0;
  char rest = 0;
  const int taken = std::sscanf(text.c_str(), "%llu/%llu%c", &rate, &grace, &rest);
  const bool whole = taken == 2 || (taken == 1 && text.find('/') == std::string::npos &&
                                    text.find_first_not_of("0123456789") == std::string::npos);
  r.value0 = rate;
  r.value1 = grace;
  return whole && text[0] >= '0' && text[0] <= '9';
}

// Digits, with a sign where the value is a difference. A fraction of a second where it is a time.
bool take_number(const std::string& text, const Named& named, Request& r) {
  const bool negative = named.feature == Feature::delack_ticks && text.starts_with('-');
  const char* const end = text.data() + text.size();
  uint64_t whole = 0;
  const auto [at, wrong] = std::from_chars(text.data() + (negative ? 1 : 0), end, whole);
  if (wrong != std::errc() || whole > INT64_MAX) return false;
  r.value0 = negative ? ~whole + 1 : whole;
  if (at == end) return true;
  if (named.form != Form::seconds || *at != '.' || at + 1 == end) return false;
  uint64_t unit = 100'000;
  for (const char* c = at + 1; c < end; ++c, unit /= 10) {
    if (*c < '0' || *c > '9') return false;
    r.value1 += unit * static_cast<uint64_t>(*c - '0');
  }
  return true;
}

std::string not_a(const Named& named) {
  if (named.form == Form::rate) return "not RATE/GRACE: ";
  return named.form == Form::seconds ? "not a number of seconds: " : "not a whole number: ";
}

const char* state_name(uint16_t state) {
  constexpr const char* kNames[] = {"?", "in force", "expired", "undone", "socket gone", "done"};
  return kNames[state < std::size(kNames) ? state : 0];
}

// What a rule is about.
std::string about(const Rule& r) {
  if (r.socket != 0) return name_of(r.socket);
  return (r.flags & kRequestByPeer) != 0 ? to_string(r.peer.address) : "all";
}

std::string what(const Rule& r) {
  const Named* named = find_feature(r.name);
  char code[16];
  std::snprintf(code, sizeof code, "0x%04x", r.name);
  return named != nullptr ? named->name : code;
}

void print_table(const std::vector<Rule>& rules, double now) {
  std::printf("%6s %-12s %-14s %-12s %-24s %8s %6s %-20s %s\n", "Rule", "State", "Feature", "Value",
              "Of", "Left", "Hits", "By", "Reason");
  for (const Rule& r : rules) {
    std::string left = "-";
    if (r.state == kRuleInForce && r.until.seconds != 0) {
      char text[32];
      std::snprintf(text, sizeof text, "%.0fs", std::max(0.0, seconds(r.until) - now));
      left = text;
    }
    std::printf("%6u %-12s %-14s %-12s %-24s %8s %6u %-20s %s\n", r.id, state_name(r.state),
                what(r).c_str(), shown(find_feature(r.name), r.value0, r.value1).c_str(),
                about(r).c_str(), left.c_str(), r.hits, r.engine.c_str(), r.reason.c_str());
  }
}

void print_document(const std::vector<Rule>& rules) {
  std::string out = "[";
  for (const Rule& r : rules) out += (out.size() == 1 ? "\n" : ",\n") + json_of(r);
  std::printf("%s%s]\n", out.c_str(), rules.empty() ? "" : "\n");
}

}  // namespace

std::string text_of(const Rule& r, double now) {
  std::string out = "rule " + std::to_string(r.id) + ": " + what(r) + " " +
                    shown(find_feature(r.name), r.value0, r.value1) + " of " + about(r) + ", " +
                    state_name(r.state);
  if (r.state == kRuleInForce && r.until.seconds != 0) {
    char left[48];
    std::snprintf(left, sizeof left, " for %.0f s more", std::max(0.0, seconds(r.until) - now));
    out += left;
  }
  if (r.hits != 0) out += ", cut " + std::to_string(r.hits);
  out += ", made by " + r.engine;
  return r.reason.empty() ? out : out + ": " + r.reason;
}

std::string json_of(const Rule& r) {
  return "{\"rule\":" + std::to_string(r.id) + ",\"state\":" + quoted(state_name(r.state)) +
         ",\"feature\":" + quoted(what(r)) +
         ",\"value\":" + json_value(find_feature(r.name), r.value0, r.value1) +
         ",\"of\":" + quoted(about(r)) +
         ",\"peer\":" + (r.peer == Endpoint{} ? "null" : quoted(to_string(r.peer))) +
         ",\"since\":" + number(seconds(r.since)) +
         ",\"until\":" + (r.until.seconds == 0 ? "null" : number(seconds(r.until))) +
         ",\"hits\":" + std::to_string(r.hits) + ",\"by\":" + quoted(r.engine) +
         ",\"reason\":" + quoted(r.reason) + "}";
}

struct ChangeCommands::Asking {
  ExtendedRequest request;
  const Named* named = nullptr;
};

CLI::App* ChangeCommands::add_change(CLI::App& app, const char* name, const char* text) {
  CLI::App* sub = options_.add(app, name, text);
  sub->add_flag("--dry-run", dry_run_, "Check it and do nothing");
  return sub;
}

ChangeCommands::ChangeCommands(CLI::App& app) {
  close_ = add_change(app, "close", "Cut a connection: its peer and the application see a reset");
  get_ = options_.add(app, "get", "Read a feature of a socket, of a peer or of the whole stack");
  set_ = add_change(app, "set", "Set a feature of a socket, of a peer or of the whole stack");
  for (CLI::App* sub : {get_, set_}) {
    sub->add_option("target", target_, "A socket as `mw flows` shows it, an address, or all")
        ->required();
    sub->add_option("feature", feature_, "One of: " + feature_names())->required();
    sub->footer(
        "Features of all: congestion (144 reno, 146 cubic), delack-ticks (set: difference), "
        "min-rate-in, min-rate-out, peer-cap. Of an address: peer-cap, allow");
  }
  set_->add_option("value", value_,
                   "A number; for times, seconds; for a minimum rate, BYTES_A_SECOND/GRACE_SECONDS")
      ->required();
  block_ = add_change(app, "block", "Cut every connection with a peer and let it in no more");
  unblock_ = add_change(app, "unblock", "Let a peer in again");
  allow_ = add_change(app, "allow", "Let no rule touch a peer");
  allow_->add_flag("--off", off_, "Rules may touch it again");
  for (CLI::App* sub : {block_, unblock_, allow_})
    sub->add_option("address", target_, "The peer's IPv4 or IPv6 address")->required();
  pause_ = add_change(app, "pause", "Move no byte of a connection until it is resumed");
  resume_ = add_change(app, "resume", "Go on with a connection that is paused");
  for (CLI::App* sub : {close_, pause_, resume_})
    sub->add_option("socket", target_, "As `mw flows` shows it")->required();
  for (CLI::App* sub : {set_, block_, unblock_, allow_, pause_, resume_})
    sub->add_option("--ttl", ttl_, "How long it holds; else until it is undone")
        ->type_name("SECONDS");
  for (CLI::App* sub : {close_, set_, block_, unblock_, allow_, pause_, resume_})
    sub->add_option("--reason", reason_, "What `mw rules` says about it")->type_name("TEXT");
  rules_ = options_.add(app, "rules", "List what was changed: what is in force, and what ended");
  undo_ = add_change(app, "undo", "Put what a rule changed back to what it was");
  undo_->add_option("rule", rule_, "Its number, as `mw rules` shows it")->required();
}

const CLI::App* ChangeCommands::given_command() const {
  for (const CLI::App* sub :
       {close_, get_, set_, block_, unblock_, allow_, pause_, resume_, rules_, undo_})
    if (*sub) return sub;
  return nullptr;
}

int ChangeCommands::run() {
  return *rules_ ? list() : act();
}

int ChangeCommands::list() const {
  int exit = 0;
  auto engine = connect(options_, &exit);
  if (!engine) return exit;
  auto rules = engine->rules();
  if (!rules) return fail(options_.json, rules.error());
  if (options_.json)
    print_document(*rules);
  else
    print_table(*rules, static_cast<double>(realtime_ns()) / 1e9);
  return 0;
}

bool ChangeCommands::take_target(Asking& a, std::string* wrong) const {
  Request& r = a.request.request;
  const unsigned of = a.named->of;
  const auto socket = parse_socket(target_);
  const auto peer = parse_address(target_);
  if ((of & kAll) != 0 && target_ == "all") return true;
  if ((of & kSocket) != 0 && socket)
    name_socket(r, *socket);
  else if ((of & kPeer) != 0 && peer)
    name_peer(r, *peer);
  else if (of == kAll)
    *wrong = std::string(a.named->name) + " is a feature of all";
  else
    *wrong = std::string((of & kSocket) != 0 ? "not a socket as `mw flows` shows it: "
                                             : "not an address: ") +
             target_;
  return wrong->empty();
}

// What the command line asks for. Nothing: `wrong` says why not.
std::optional<ChangeCommands::Asking> ChangeCommands::asking(std::string* wrong) const {
  Asking a;
  Request& r = a.request.request;
  r.flags = *get_ ? 0 : kRequestWrite;
  a.request.ttl_s = ttl_;
  a.request.options = dry_run_ ? kDryRun : 0;
  a.request.reason = reason_;
  if (reason_.size() > kMaxReason || !is_plain_text(reason_)) {
    *wrong = "a reason is up to " + std::to_string(kMaxReason) + " bytes of plain text";
    return std::nullopt;
  }
  if (*undo_) {
    r.name = static_cast<uint16_t>(Feature::undo);
    r.value0 = rule_;
    return a;
  }
  std::string name = feature_;
  if (*close_) name = "open";
  if (*block_ || *unblock_) name = "block";
  if (*allow_) name = "allow";
  if (*pause_ || *resume_) name = "pause";
  a.named = find_feature(name);
  if (a.named == nullptr) {
    *wrong = "no feature " + name + "; there are: " + feature_names();
    return std::nullopt;
  }
  r.name = static_cast<uint16_t>(a.named->feature);
  if (*block_ || (*allow_ && !off_)) r.value0 = 1;
  if (*pause_) r.value0 = 3;
  const bool taken = !*set_ || (a.named->form == Form::rate ? take_rate(value_, r)
                                                            : take_number(value_, *a.named, r));
  if (!taken) *wrong = not_a(*a.named) + value_;
  if (!taken || !take_target(a, wrong)) return std::nullopt;
  return a;
}

int ChangeCommands::act() const {
  std::string wrong;
  const auto a = asking(&wrong);
  if (!a) return usage_fault(*given_command(), options_.json, wrong);
  int exit = 0;
  auto engine = connect(options_, &exit);
  if (!engine) return exit;
  // To close is a person's word, whatever the rules are.
  const bool plain = *get_ || (*close_ && !dry_run_ && reason_.empty());
  auto answer = plain ? engine->ask(a->request.request) : engine->ask(a->request);
  if (!answer) return fail(options_.json, answer.error());
  if (answer->status != 0) return refusal(options_.json, answer->status);
  const std::string value = shown(a->named, answer->value0, answer->value1);
  const bool tells_rule = !plain && !*undo_ && a->named->form == Form::number;
  const uint64_t rule = tells_rule ? answer->value1 : 0;
  if (options_.json)
    std::printf("{\"value\":%s%s%s}\n",
                json_value(a->named, answer->value0, answer->value1).c_str(),
                rule != 0 ? ",\"rule\":" : "", rule != 0 ? std::to_string(rule).c_str() : "");
  else if (*get_ || *set_)
    std::printf("%s\n", value.c_str());
  else if (rule != 0)
    std::printf("rule %" PRIu64 "\n", rule);
  return 0;
}

}  // namespace mw
