// names.h - what the host's files say about names, for the INS.
//
// PROBLEM     The C library reads resolv.conf, hosts and nsswitch.conf again when they change. An INS has
//             an empty root, and can read no file.
// PROMISE     The session's folder has a copy of each. The INS reads them when it starts; the driver
//             gives it those that change later. The copies follow the host's files, and nothing is polled.
// TRUST       Only the INS looks into the texts, and of resolv.conf resolver_for_ins() at the name
//             servers. Their size is bounded.
// INVARIANTS  A copy is replaced as a whole. A file that is gone, cannot be read or is too large leaves
//             its copy as it was, which is said once; one that was not there at the start is empty.
// THREADS     One.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/name_files.h"
#include "frontend/failure.h"
#include "frontend/file_watch.h"

namespace mw {

// The names of the servers behind systemd's stub.
inline constexpr const char* kUpstreamResolvConf = "/run/systemd/resolve/resolv.conf";

// How an INS looks names up.
struct InsResolver {
  std::string text;                       // its resolv.conf
  std::vector<std::string> name_servers;  // those of the text
  std::vector<std::string> stubs;         // that programs may ask, and stand for the first of those
};
// Pure, and the only place where it is decided: what an INS is told instead of the host's resolv.conf.
// `isolated`: it has a network of its own, from which systemd-resolved's stubs take nothing.
// `upstream`: kUpstreamResolvConf, empty if it is not there.
InsResolver resolver_for_ins(const std::string& resolv_conf, const std::string& upstream,
                             bool isolated);
// By the host's files now.
InsResolver current_resolver(bool isolated);

class Names {
 public:
  // Makes or completes the copies in the session's folder.
  static Outcome<std::unique_ptr<Names>> start(const std::string& session_folder, bool isolated);

  // The folder of the copies.
  static std::string folder(const std::string& session_folder);
  // Readable when on_event() is to be called; -1: the files are not followed, as was said.
  int fd() const { return watch_ ? watch_->fd() : -1; }
  void on_event();
  // Called with what resolv.conf says from now on, before the INS hears of it. False: it must not hear of it
  // yet; called again soon.
  std::function<bool(const InsResolver&)> on_resolver = [](const InsResolver&) { return true; };

 private:
  // Of a file of the host's.
  struct Source {
    std::string path;
    bool read_before = false;  // now or by an earlier front end
    bool complained = false;
  };

  Names(const std::string& session_folder, bool isolated);
  Outcome<Done> copy_all();
  Outcome<Done> copy(NameFile which);
  bool read(Source* source, std::string* text);
  std::string copy_path(NameFile which) const;
  void watch();

  const std::string folder_;
  const bool isolated_;
  std::unique_ptr<FileWatch> watch_;
  std::vector<Source> sources_;  // by NameFile
  Source upstream_{kUpstreamResolvConf};
  bool asks_stub_ = false;
  bool cannot_write_ = false;
};

}  // namespace mw
