#include "shim/exec.h"

#include <string.h>

#include "shim/process.h"

namespace mw::shim {
namespace {

bool is_entry(const char* entry, const char* name, size_t n) {
  return strncmp(entry, name, n) == 0 && entry[n] == '=';
}

}  // namespace

size_t environment_room(char* const* env) {
  size_t n = 0;
  while (env != nullptr && env[n] != nullptr) ++n;
  return n + 3;
}

char* const* environment_with_us(char* const* env, char** out) {
  const char* preload = preload_setting();
  const char* session = session_setting();
  if (preload == nullptr || session == nullptr) return env;
  size_t n = 0;
  bool has_preload = false;
  bool has_session = false;
  for (size_t i = 0; env != nullptr && env[i] != nullptr; ++i) {
    out[n] = env[i];
    if (is_entry(env[i], "LD_PRELOAD", 10)) {
      has_preload = true;
      // One that lost us (a wrapper that sets its own) gets ours back; ours may name others too.
      if (strstr(env[i], "libmwshim") == nullptr) out[n] = const_cast<char*>(preload);
    }
    if (is_entry(env[i], "MWCOMMS_SESSION", 15)) has_session = true;
    ++n;
  }
  if (!has_preload) out[n++] = const_cast<char*>(preload);
  if (!has_session) out[n++] = const_cast<char*>(session);
  out[n] = nullptr;
  return out;
}

}  // namespace mw::shim
