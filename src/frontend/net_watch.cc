#include "frontend/net_watch.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <utility>

#include "frontend/plan.h"
#include "frontend/process.h"

namespace mw {
namespace {

// Attribute 1 of a message about a table, a chain, a rule, a set or an object is the table's name.
constexpr uint16_t kTableName = NFTA_TABLE_NAME;
static_assert(kTableName == NFTA_CHAIN_TABLE && kTableName == NFTA_RULE_TABLE &&
              kTableName == NFTA_SET_TABLE && kTableName == NFTA_OBJ_TABLE);

UniqueFd subscribe(int family, unsigned group) {
  UniqueFd fd{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, family)};
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0 ||
      ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
    return {};
  return fd;
}

bool deletes(uint16_t type) {
  switch (NFNL_MSG_TYPE(type)) {
    case NFT_MSG_DELTABLE:
    case NFT_MSG_DELCHAIN:
    case NFT_MSG_DELRULE:
      return NFNL_SUBSYS_ID(type) == NFNL_SUBSYS_NFTABLES;
    default:
      return false;
  }
}

bool is_object(uint16_t type) {
  return NFNL_SUBSYS_ID(type) == NFNL_SUBSYS_NFTABLES && NFNL_MSG_TYPE(type) == NFT_MSG_NEWOBJ;
}

bool is_about(const nlmsghdr* message, const std::string& table) {
  std::string name;
  const auto find_name = [](const nlattr* attribute, void* found) {
    if (mnl_attr_get_type(attribute) == kTableName &&
        mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) == 0)
      *static_cast<std::string*>(found) = mnl_attr_get_str(attribute);
    return MNL_CB_OK;
  };
  (void)mnl_attr_parse(message, sizeof(nfgenmsg), find_name, &name);
  return name == table;
}

// Calls visit for each message that is there. False: the kernel had to leave some out.
template <class Visit>
bool each_message(int fd, Visit&& visit) {
  char room[32768];
  bool whole = true;
  for (;;) {
    const ssize_t n = ::recv(fd, room, sizeof room, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ENOBUFS) {
      whole = false;
      continue;
    }
    if (n <= 0) return whole;
    int left = static_cast<int>(n);
    for (const auto* m = reinterpret_cast<const nlmsghdr*>(room); mnl_nlmsg_ok(m, left);
         m = mnl_nlmsg_next(m, &left))
      visit(m);
  }
}

void set_timer(int fd, int milliseconds) {
  const itimerspec when{{0, 0}, {milliseconds / 1000, milliseconds % 1000 * 1'000'000L}};
  (void)::timerfd_settime(fd, 0, &when, nullptr);
}

// Other interfaces than loopback and the INSs' own, with their indexes: one that went may have come again
// under its name.
std::map<std::string, unsigned> host_links() {
  std::map<std::string, unsigned> out;
  for (const std::string& name : link_names())
    if (name != "lo" && name.compare(0, 3, kLinkPrefix) != 0)
      out[name] = ::if_nametoindex(name.c_str());
  return out;
}

}  // namespace

std::vector<std::string> link_names() {
  std::vector<std::string> out;
  struct if_nameindex* list = ::if_nameindex();
  if (list == nullptr) return out;
  for (const struct if_nameindex* i = list; i->if_index != 0; ++i) out.emplace_back(i->if_name);
  ::if_freenameindex(list);
  return out;
}

Outcome<NetWatch> NetWatch::open(const std::string& table) {
  NetWatch w;
  w.table_ = table;
  w.host_links_ = host_links();
  w.epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  w.rules_ = subscribe(NETLINK_NETFILTER, NFNLGRP_NFTABLES);
  w.links_ = subscribe(NETLINK_ROUTE, RTNLGRP_LINK);
  w.timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  w.refusals_timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  epoll_event e{};
  e.events = EPOLLIN;
  for (const UniqueFd* fd : {&w.rules_, &w.links_, &w.timer_, &w.refusals_timer_}) {
    if (*fd && ::epoll_ctl(w.epoll_.get(), EPOLL_CTL_ADD, fd->get(), &e) == 0) continue;
    return Failure{"watch the host's network", errno_text(errno), ""};
  }
  return w;
}

bool NetWatch::rules_changed() {
  bool ours = false;
  const bool whole = each_message(rules_.get(), [&](const nlmsghdr* m) {
    ours = ours || (deletes(m->nlmsg_type) && (is_about(m, table_) || is_about(m, kGuardTable)));
    // The only object there: it is told of when it is made, and when it is used up.
    refusals_ = refusals_ || (is_object(m->nlmsg_type) && is_about(m, table_));
  });
  refusals_ = refusals_ || !whole;
  return ours || !whole;
}

bool NetWatch::links_changed() {
  bool any = false;
  const bool whole = each_message(links_.get(), [&](const nlmsghdr*) { any = true; });
  if (!any && whole) return false;
  std::map<std::string, unsigned> now = host_links();
  now.swap(host_links_);
  return now != host_links_;
}

NetWatch::News NetWatch::take() {
  News news;
  uint64_t expired = 0;
  const bool due = ::read(timer_.get(), &expired, sizeof expired) == sizeof expired;
  news.rules = rules_changed() || due;
  news.links = links_changed();
  const bool told = ::read(refusals_timer_.get(), &expired, sizeof expired) == sizeof expired;
  news.refusals = std::exchange(refusals_, false) || told;
  return news;
}

void NetWatch::forget() {
  (void)rules_changed();
}

void NetWatch::look_again_in(int milliseconds) {
  set_timer(timer_.get(), milliseconds);
}

void NetWatch::tell_refusals_in(int milliseconds) {
  set_timer(refusals_timer_.get(), milliseconds);
}

}  // namespace mw
