#include "frontend/conntrack.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "base/unique_fd.h"
#include "frontend/process.h"

namespace mw {
namespace {

constexpr size_t kRoom = 65536;

// An address as bytes: 4 or 16 of them.
using Address = std::string;

// One direction of a flow.
struct Tuple {
  Address from, to;
  uint8_t protocol = 0;
  uint16_t to_port = 0;
};

struct Flow {
  Tuple original, reply;
  const nlattr* original_attribute = nullptr;
  const nlattr* id = nullptr;
  const nlattr* zone = nullptr;
};

Address bytes_of(const nlattr* attribute) {
  return {static_cast<const char*>(mnl_attr_get_payload(attribute)),
          mnl_attr_get_payload_len(attribute)};
}

template <class Visit>
void each_nested(const nlattr* parent, Visit&& visit) {
  const auto call = [](const nlattr* attribute, void* data) {
    (*static_cast<Visit*>(data))(attribute);
    return MNL_CB_OK;
  };
  (void)mnl_attr_parse_nested(parent, call, &visit);
}

void read_addresses(const nlattr* parent, Tuple* out) {
  each_nested(parent, [out](const nlattr* a) {
    const uint16_t type = mnl_attr_get_type(a);
    if (type == CTA_IP_V4_SRC || type == CTA_IP_V6_SRC) out->from = bytes_of(a);
    if (type == CTA_IP_V4_DST || type == CTA_IP_V6_DST) out->to = bytes_of(a);
  });
}

void read_protocol(const nlattr* parent, Tuple* out) {
  each_nested(parent, [out](const nlattr* a) {
    if (mnl_attr_get_type(a) == CTA_PROTO_NUM && mnl_attr_get_payload_len(a) >= 1)
      out->protocol = mnl_attr_get_u8(a);
    if (mnl_attr_get_type(a) == CTA_PROTO_DST_PORT && mnl_attr_get_payload_len(a) >= 2)
      out->to_port = ntohs(mnl_attr_get_u16(a));
  });
}

Tuple tuple_of(const nlattr* parent) {
  Tuple out;
  each_nested(parent, [&out](const nlattr* a) {
    if (mnl_attr_get_type(a) == CTA_TUPLE_IP) read_addresses(a, &out);
    if (mnl_attr_get_type(a) == CTA_TUPLE_PROTO) read_protocol(a, &out);
  });
  return out;
}

Flow flow_of(const nlmsghdr* message) {
  Flow flow;
  const auto visit = [](const nlattr* a, void* data) {
    Flow* out = static_cast<Flow*>(data);
    switch (mnl_attr_get_type(a)) {
      case CTA_TUPLE_ORIG:
        out->original = tuple_of(a);
        out->original_attribute = a;
        break;
      case CTA_TUPLE_REPLY:
        out->reply = tuple_of(a);
        break;
      case CTA_ID:
        out->id = a;
        break;
      case CTA_ZONE:
        out->zone = a;
        break;
      default:
        break;
    }
    return MNL_CB_OK;
  };
  (void)mnl_attr_parse(message, sizeof(nfgenmsg), visit, &flow);
  return flow;
}

Address address_of(const std::string& text) {
  char bytes[16];
  if (::inet_pton(AF_INET, text.c_str(), bytes) == 1) return {bytes, 4};
  if (::inet_pton(AF_INET6, text.c_str(), bytes) == 1) return {bytes, 16};
  return {};
}

std::set<Address> own_addresses() {
  std::set<Address> out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) < 0) return out;
  for (const ifaddrs* a = list; a != nullptr; a = a->ifa_next) {
    if (a->ifa_addr == nullptr) continue;
    const auto* in = reinterpret_cast<const sockaddr_in*>(a->ifa_addr);
    const auto* in6 = reinterpret_cast<const sockaddr_in6*>(a->ifa_addr);
    if (a->ifa_addr->sa_family == AF_INET)
      out.insert({reinterpret_cast<const char*>(&in->sin_addr), sizeof in->sin_addr});
    if (a->ifa_addr->sa_family == AF_INET6)
      out.insert({reinterpret_cast<const char*>(&in6->sin6_addr), sizeof in6->sin6_addr});
  }
  ::freeifaddrs(list);
  return out;
}

// Which flows are to be forgotten.
class Judge {
 public:
  Judge(const std::vector<Publish>& published, const AddressPlan& plan)
      : published_(published),
        ins_{address_of(plan.ins4), address_of(plan.ins6)},
        own_(own_addresses()) {
    ins_.erase(Address());
  }

  bool operator()(const Flow& flow) const {
    const Tuple& t = flow.original;
    if (ins_.count(t.from) + ins_.count(t.to) + ins_.count(flow.reply.from) != 0) return true;
    if (own_.count(t.to) == 0) return false;
    return std::any_of(published_.begin(), published_.end(), [&t](const Publish& p) {
      const int protocol = p.protocol == Protocol::udp ? IPPROTO_UDP : IPPROTO_TCP;
      if (t.protocol != protocol || t.to_port != p.port) return false;
      return is_every_address(p.host) ? leads_from(p, t.to.size() == sizeof(in6_addr))
                                      : address_of(p.host) == t.to;
    });
  }

 private:
  const std::vector<Publish>& published_;
  std::set<Address> ins_;
  const std::set<Address> own_;
};

class Conntrack {
 public:
  bool open() {
    fd_ = UniqueFd{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)};
    const timeval patience{5, 0};
    return fd_ && ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0;
  }

  // The deletion of each flow of this family that is to be forgotten, ready to be sent.
  bool collect(uint8_t family, const Judge& is_due, std::vector<std::string>* deletions) {
    char room[MNL_NLMSG_HDRLEN + 64] = {};
    nlmsghdr* ask = begin(room, IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, family);
    return send(ask) && receive([&](const nlmsghdr* m) {
             const Flow flow = flow_of(m);
             if (flow.original_attribute != nullptr && is_due(flow))
               deletions->push_back(deletion(flow, family));
           });
  }

  // One that has ended meanwhile is forgotten too.
  bool carry_out(std::string* deletion) {
    auto* m = reinterpret_cast<nlmsghdr*>(deletion->data());
    m->nlmsg_seq = ++sequence_;
    return send(m) && (receive([](const nlmsghdr*) {}) || errno == ENOENT);
  }

 private:
  nlmsghdr* begin(char* room, uint8_t what, int flags, uint8_t family) {
    nlmsghdr* m = mnl_nlmsg_put_header(room);
    m->nlmsg_type = static_cast<uint16_t>(NFNL_SUBSYS_CTNETLINK << 8 | what);
    m->nlmsg_flags = static_cast<uint16_t>(flags);
    m->nlmsg_seq = ++sequence_;
    auto* head = static_cast<nfgenmsg*>(mnl_nlmsg_put_extra_header(m, sizeof(nfgenmsg)));
    head->nfgen_family = family;
    head->version = NFNETLINK_V0;
    return m;
  }

  std::string deletion(const Flow& flow, uint8_t family) {
    alignas(nlmsghdr) char room[1024] = {};
    nlmsghdr* m = begin(room, IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, family);
    for (const nlattr* a : {flow.original_attribute, flow.id, flow.zone}) {
      if (a != nullptr && m->nlmsg_len + a->nla_len + MNL_ALIGNTO < sizeof room)
        mnl_attr_put(m, a->nla_type, mnl_attr_get_payload_len(a), mnl_attr_get_payload(a));
    }
    return {room, m->nlmsg_len};
  }

  bool send(const nlmsghdr* m) {
    return ::send(fd_.get(), m, m->nlmsg_len, 0) == static_cast<ssize_t>(m->nlmsg_len);
  }

  // Up to the end of the answer. False: errno says what the kernel said.
  template <class Visit>
  bool receive(Visit&& visit) {
    const uint32_t asked = sequence_;  // visit() may begin other messages
    std::vector<char> room(kRoom);
    for (;;) {
      const ssize_t n = ::recv(fd_.get(), room.data(), room.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      int left = static_cast<int>(n);
      for (const auto* m = reinterpret_cast<const nlmsghdr*>(room.data()); mnl_nlmsg_ok(m, left);
           m = mnl_nlmsg_next(m, &left)) {
        if (m->nlmsg_seq != asked) continue;
        if (m->nlmsg_type == NLMSG_DONE) return true;
        if (m->nlmsg_type == NLMSG_ERROR) {
          errno = -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(m))->error;
          return errno == 0;
        }
        visit(m);
      }
    }
  }

  UniqueFd fd_;
  uint32_t sequence_ = 0;
};

}  // namespace

Outcome<Done> forget_flows(const std::vector<Publish>& published, const AddressPlan& plan) {
  const auto failed = [] {
    return Failure{"have old flows forgotten", errno_text(errno),
                   "clients that sent before may have to use another port"};
  };
  const Judge is_due(published, plan);
  Conntrack kernel;
  if (!kernel.open()) return failed();
  std::vector<std::string> deletions;
  for (const uint8_t family : {uint8_t{AF_INET}, uint8_t{AF_INET6}})
    if (!kernel.collect(family, is_due, &deletions)) return failed();
  for (std::string& one : deletions) {
    if (!kernel.carry_out(&one)) return failed();
  }
  return Done{};
}

}  // namespace mw
