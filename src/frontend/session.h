// session.h - the registry folder of a session and the record of all that was made for it, so that
// whoever comes next can remove what a crash left behind.
//
// INVARIANTS  The record is written before the first thing that it names is made, and removed after
//             the last one is gone. A record whose owner is dead may be cleaned up by anyone; one
//             whose owner lives belongs to that owner alone. Making and removing happen under the
//             base folder's lock.
#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "frontend/failure.h"
#include "frontend/plan.h"
#include "frontend/process.h"
#include "frontend/reach.h"

namespace mw {

// The inode number of our network namespace.
uint64_t this_network();

// Where sessions live: /run/mwcomms for root; otherwise $XDG_RUNTIME_DIR/mwcomms, /run/user/UID/mwcomms
// or, for who has neither, a folder /tmp/mwcomms-UID-RANDOM that belongs to him. `make`: the latter, if
// there is none.
std::string default_base(bool make = false);

// Of a thing that a front end was making when it died: it is ours if it is there.
constexpr uint64_t kBeingMade = UINT64_MAX;

struct SessionRecord {
  std::string name;
  ProcId owner;        // mw run
  ProcId application;  // the command itself; its descendants are found by their environment
  ProcId driver;
  ProcId ins;
  unsigned ins_id = 0;
  bool isolated = false;
  uint64_t host_net = 0;  // the namespace in which mw run runs and the network was made
  AddressPlan plan;       // isolated only
  // What build_network() has made, so that nothing else of the same name is ever removed: the inode of
  // the namespace, the index of the interface, the handle of the table. 0: not made; kBeingMade.
  uint64_t netns_inode = 0;
  uint64_t link_index = 0;
  uint64_t table_handle = 0;
  // What its table guards, for other bases too: they may end before it does.
  GuardedLinks guarded;
  std::vector<Publish> published;
  Reach reach;       // isolated only
  std::string mark;  // "MWCOMMS_SESSION=NAME:" as it stands in the application's environment
  MemoryId memory;   // that all its attached processes map
  std::string command;
  std::vector<std::string>
      driver_options;  // what the user has mwcommsd started with, one line each

  std::string netns() const { return "mw-" + name; }
  std::string table() const;
};

std::string encode(const SessionRecord& record);
// Errors: text that encode() cannot have made.
Outcome<SessionRecord> decode(const std::string& name, const std::string& text);

// The base folder, private to its owner, locked as long as this object lives; and with it, for root, the
// making of networks in this network namespace, whatever base asks for it.
class BaseLock {
 public:
  // Not `wait`: fails at once if somebody else has the folder.
  static Outcome<BaseLock> acquire(const std::string& base, bool wait = true);

 private:
  BaseLock(UniqueFd folder, UniqueFd network)
      : folder_(std::move(folder)), network_(std::move(network)) {}
  UniqueFd folder_;
  UniqueFd network_;
};

// Errors: the base folder exists and belongs to, or can be written by, somebody else.
Outcome<Done> check_base(const std::string& base);

std::string session_folder(const std::string& base, const std::string& name);
Outcome<Done> make_session_folder(const std::string& base, const SessionRecord& record);
Outcome<Done> save(const std::string& base, const SessionRecord& record);
Outcome<Done> remove_session_folder(const std::string& base, const std::string& name);
std::vector<SessionRecord> list_sessions(const std::string& base);

// What an INS (`who`: its id) or the driver ("pvm") has published under this name, without the end of the
// line; empty if there is nothing that can be read. An INS's folder is its own: nothing in it is
// followed or waited for.
std::string published(const std::string& base, const std::string& name, const std::string& who,
                      const std::string& value);
// How many lost wake-ups the session's stacks have repaired, as INS `id` says; 0 if it says nothing.
uint64_t repairs_of(const std::string& base, const std::string& name, unsigned id);
// Before the registry of an INS is removed: repairs are kept, a line each, in the base folder's file
// "repairs". They are faults of this program, to be reported.
void keep_repairs(const std::string& base, const std::string& name, unsigned id);

enum class SessionState : uint8_t {
  running,   // its front end (mw run, or mw adopt) lives
  orphaned,  // it is dead, the application still runs: nobody replaces a dead INS until another
             // front end adopts the session, nothing else changes
  dead       // leftovers
};
SessionState state_of(const SessionRecord& record);

// The processes of the application, wherever they were reparented to.
std::vector<pid_t> processes_of(const SessionRecord& record);

}  // namespace mw
