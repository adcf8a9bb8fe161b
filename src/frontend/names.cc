#include "frontend/names.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/log.h"
#include "base/unique_fd.h"
#include "frontend/process.h"
#include "frontend/reach.h"

namespace mw {
namespace {

constexpr int kAgainMs = 1000;
constexpr int kSoonMs = 200;

// 0 and the text, or the errno of what is wrong with it; EFBIG: it is longer than is taken.
int read_bounded(const std::string& path, std::string* text) {
  // Not to wait for whoever writes into a pipe.
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!fd) return errno;
  text->clear();
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return 0;
    if (text->size() + static_cast<size_t>(n) > kMaxNameFileBytes) return EFBIG;
    text->append(buffer, static_cast<size_t>(n));
  }
}

// systemd-resolved's, which take nothing that comes from another interface than loopback.
bool is_stub(const std::string& server) {
  return server == "127.0.0.53" || server == "127.0.0.54";
}
bool is_here(const std::string& server) {
  return is_loopback4(server) || server == "::1";
}
bool asks_stub(const std::vector<std::string>& servers) {
  return std::all_of(servers.begin(), servers.end(), is_here) &&
         std::any_of(servers.begin(), servers.end(), is_stub);
}

}  // namespace

InsResolver resolver_for_ins(const std::string& resolv_conf, const std::string& upstream,
                             bool isolated) {
  InsResolver out{resolv_conf, parse_name_servers(resolv_conf), {}};
  if (!isolated || !asks_stub(out.name_servers)) return out;
  std::vector<std::string> behind = parse_name_servers(upstream);
  if (std::all_of(behind.begin(), behind.end(), is_here)) return out;
  std::copy_if(out.name_servers.begin(), out.name_servers.end(), std::back_inserter(out.stubs),
               is_stub);
  out.name_servers = std::move(behind);
  out.text = upstream;
  return out;
}

InsResolver current_resolver(bool isolated) {
  std::string text;
  std::string upstream;
  if (read_bounded("/etc/resolv.conf", &text) != 0) text.clear();
  if (read_bounded(kUpstreamResolvConf, &upstream) != 0) upstream.clear();
  return resolver_for_ins(text, upstream, isolated);
}

Names::Names(const std::string& session_folder, bool isolated)
    : folder_(folder(session_folder)), isolated_(isolated) {
  for (uint32_t k = 0; k < kNameFileCount; ++k) {
    Source source{std::string("/etc/") + kNameFiles[k]};
    source.read_before = ::access(copy_path(NameFile{k}).c_str(), F_OK) == 0;
    sources_.push_back(std::move(source));
  }
}

std::string Names::folder(const std::string& session_folder) {
  return session_folder + "/" + kNamesFolder;
}

std::string Names::copy_path(NameFile which) const {
  return folder_ + "/" + kNameFiles[static_cast<uint32_t>(which)];
}

Outcome<std::unique_ptr<Names>> Names::start(const std::string& session_folder, bool isolated) {
  std::unique_ptr<Names> names(new Names(session_folder, isolated));
  if (::mkdir(names->folder_.c_str(), 0700) < 0 && errno != EEXIST)
    return Failure{"make " + names->folder_, errno_text(errno), kWriteRemedy};
  if (auto watch = FileWatch::open())
    names->watch_ = std::make_unique<FileWatch>(std::move(*watch));
  else
    log_line("mw", "changes of /etc/resolv.conf and /etc/hosts will not be followed: %s",
             watch.error().text().c_str());
  names->watch();
  if (auto done = names->copy_all(); !done) return done.error();
  return names;
}

void Names::watch() {
  if (!watch_) return;
  std::vector<std::string> paths;
  for (const Source& source : sources_) paths.push_back(source.path);
  if (asks_stub_) paths.emplace_back(upstream_.path);
  watch_->watch(paths);
}

void Names::on_event() {
  if (!watch_->take()) return;
  watch();
  auto done = copy_all();
  if (!done) {
    if (!cannot_write_) log_line("mw", "%s", done.error().text().c_str());
    watch_->look_again_in(kAgainMs);
  }
  cannot_write_ = !done;
}

Outcome<Done> Names::copy_all() {
  for (uint32_t k = 0; k < kNameFileCount; ++k)
    if (auto done = copy(NameFile{k}); !done) return done;
  return Done{};
}

// False: what the copy says stays.
bool Names::read(Source* source, std::string* text) {
  const int error = read_bounded(source->path, text);
  if (error == 0) {
    if (source->complained) log_line("mw", "%s is followed again", source->path.c_str());
    source->complained = false;
    source->read_before = true;
    return true;
  }
  text->clear();
  // The C library does without as well.
  if (error == ENOENT && !source->read_before) return true;
  if (!source->complained) {
    const std::string why =
        error == EFBIG ? "it has more than " + std::to_string(kMaxNameFileBytes >> 20) + " MiB"
                       : errno_text(error);
    log_line("mw", "cannot read %s: %s; %s", source->path.c_str(), why.c_str(),
             source->read_before ? "what it said before holds" : "names are looked up without it");
  }
  source->complained = true;
  return !source->read_before;
}

Outcome<Done> Names::copy(NameFile which) {
  std::string text;
  if (!read(&sources_[static_cast<uint32_t>(which)], &text)) return Done{};
  if (which == NameFile::resolv_conf) {
    std::string upstream;
    const bool asks = isolated_ && asks_stub(parse_name_servers(text));
    if (asks != std::exchange(asks_stub_, asks)) watch();
    if (asks && !read(&upstream_, &upstream)) return Done{};
    InsResolver resolver = resolver_for_ins(text, upstream, isolated_);
    if (!on_resolver(resolver)) {
      if (watch_) watch_->look_again_in(kSoonMs);
      return Done{};
    }
    text = std::move(resolver.text);
  }
  const std::string path = copy_path(which);
  std::string before;
  if (read_bounded(path, &before) == 0 && before == text) return Done{};
  return write_text_atomically(path, text);
}

}  // namespace mw
