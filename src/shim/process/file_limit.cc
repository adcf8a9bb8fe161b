#include "shim/process/file_limit.h"

namespace mw::shim {

FileLimit::FileLimit(Raise raise) {
  if (raise == Raise::unless_copying && momentary_.is_late()) return;
  const int saved = errno;
  if (::getrlimit(RLIMIT_NOFILE, &was_) == 0 && was_.rlim_cur < was_.rlim_max) {
    const rlimit most{was_.rlim_max, was_.rlim_max};
    raised_ = ::setrlimit(RLIMIT_NOFILE, &most) == 0;
  }
  errno = saved;
}

FileLimit::~FileLimit() {
  const int saved = errno;
  if (raised_) ::setrlimit(RLIMIT_NOFILE, &was_);
  errno = saved;
}

}  // namespace mw::shim
