#include "driver/address_blocks.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <utility>

#include "base/log.h"
#include "transport/local/fd_message.h"

namespace mw {

void AddressBlocks::ask(int netns, const BlockRequest& request, Done done) {
  UniqueFd own{::fcntl(netns, F_DUPFD_CLOEXEC, 3)};
  if (!own || jobs_.size() >= kMaxQueued) return done(own ? EBUSY : EMFILE);
  jobs_.push_back({std::move(own), request, std::move(done)});
  if (jobs_.size() == 1) start_next();
}

void AddressBlocks::start_next() {
  while (!jobs_.empty()) {
    const int fds[] = {jobs_.front().netns.get()};
    if (keeper_ >= 0 &&
        send_message(keeper_, bytes_of(jobs_.front().request), fds, MSG_DONTWAIT | MSG_NOSIGNAL))
      return;
    take_first()(EIO);
  }
}

AddressBlocks::Done AddressBlocks::take_first() {
  Done done = std::move(jobs_.front().done);
  jobs_.pop_front();
  return done;
}

bool AddressBlocks::on_answer() {
  BlockAnswer answer{};
  auto m = receive_message(keeper_, writable_bytes_of(answer), MSG_DONTWAIT);
  if (!m && m.error().fault == Fault::would_block) return true;
  const bool there = m && m->bytes == sizeof answer;
  if (!there) {
    log_line("mwcommsd",
             "NetFlow: the process that changes blocks is gone: none is changed any more");
    keeper_ = -1;
  } else if (answer.status != 0) {
    log_line("mwcommsd", "NetFlow: nft in the INS's namespace failed (status %d)", answer.status);
  }
  if (!jobs_.empty()) {
    const Done done = take_first();
    start_next();
    done(there ? answer.err : EIO);
  }
  return there;
}

}  // namespace mw
