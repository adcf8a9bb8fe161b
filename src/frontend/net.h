// net.h - the isolated network of one session: namespace, veth pair, addresses, routes, published
// ports.
//
// INVARIANTS  All names derive from the SessionRecord, so build_network() and remove_network() need
//             not run in the same process. remove_network() succeeds on whatever part exists, also
//             on none, and removes nothing but what build_network() has made: other bases may have
//             things of the same names. Of the host's packet filter only tables of our own are
//             touched, in one transaction each way.
// THREADS     Call under BaseLock, from a single-threaded process.
#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/session.h"

namespace mw {

// A free slot for a new session, given those that exist; with addresses if it is to be isolated.
Outcome<AddressPlan> plan_network(const std::vector<SessionRecord>& sessions, bool isolated);

// Errors: one of these sessions publishes one of the ports.
Outcome<Done> check_ports(const std::vector<Publish>& published,
                          const std::vector<SessionRecord>& sessions);
// Claims the published ports on the host's own stack, bound but never listening, so that no other
// program takes them and a connection that no rule redirects is refused. Errors: a port is in use.
Outcome<std::vector<UniqueFd>> reserve_ports(const std::vector<Publish>& published);

// The names of sessions that stand for something in this network namespace.
Outcome<std::vector<std::string>> names_in_use();

// Builds everything and returns the namespace. What is made is written down in the record, and that
// saved, before and after each step. On failure it removes what it had made.
Outcome<UniqueFd> build_network(const std::string& base, SessionRecord& record);
Outcome<Done> remove_network(const SessionRecord& record);
// What `ip -batch` does in a namespace with kInsInterface to give it the INS's addresses and routes.
std::string ins_addresses(const AddressPlan& plan);
// Gives a new namespace those settings of the host that a server expects as tuned.
Outcome<Done> take_over_settings(int netns);
// What of the host's own rules keeps packets from this INS, or it from what it is led to, as sentences
// with the commands that help.
std::vector<std::string> obstacles(const SessionRecord& record);
// Whether the session's table is the one that it made.
bool has_rules(const SessionRecord& record);
// Puts the session's rules in force, in place of whatever is left of them, and has new interfaces of the
// host forwarded and guarded.
Outcome<Done> restore_rules(const std::string& base, SessionRecord& record);
// The same for the rules in its own network namespace that lead to the host's loopback.
Outcome<Done> restore_passages(const SessionRecord& record, int netns);
// What the session's table says about refused packets, as nft prints it (refusals.h). From then on the
// kernel tells of the next one.
Outcome<std::string> read_refusals(const SessionRecord& record);
// The namespace that was built for it earlier.
Outcome<UniqueFd> open_network(const SessionRecord& record);

// Ends all processes of a session's application: TERM, and after a while KILL.
Outcome<Done> end_application(const SessionRecord& record);
// Ends drivers and INSs of a session that its record does not name: its front end was killed after
// it had started them and before it could write that down.
void end_unknown_helpers(const SessionRecord& record);

// Ends a session whose owner is gone: its INS and driver, its network, its folder. Call under
// BaseLock.
Outcome<Done> bury(const std::string& base, const SessionRecord& record);
// Buries every dead session and restores the forwarding settings if no isolated one remains. One that
// cannot be buried, for want of rights perhaps, hinders neither the others nor a start.
struct Swept {
  std::vector<std::string> buried;  // names
  std::vector<Failure> failures;
};
// `ending`: a session of our own that is over, whatever its record says.
Swept sweep(const std::string& base, const SessionRecord* ending = nullptr);

}  // namespace mw
