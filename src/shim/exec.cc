#include "shim/exec.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim/memory.h"
#include "shim/process.h"

namespace mw::shim {
namespace {

constexpr const char kPreload[] = "LD_PRELOAD=";
constexpr const char kSession[] = "MWCOMMS_SESSION=";

template <size_t N>
const char* value_of(const char* entry, const char (&name)[N]) {
  return strncmp(entry, name, N - 1) == 0 ? entry + N - 1 : nullptr;
}

// Writes `LD_PRELOAD=OURS[:THEIRS]` to `to`; returns the end of it.
char* write_preload(char* to, const char* theirs) {
  to = ::stpcpy(::stpcpy(to, kPreload), own_library());
  if (*theirs != 0) to = ::stpcpy(::stpcpy(to, ":"), theirs);
  return to + 1;
}

size_t preload_bytes(const char* theirs) {
  return sizeof kPreload + strlen(own_library()) + 1 + strlen(theirs);
}

bool is_readable(char* const* env) {
  for (size_t n = 0; env != nullptr; ++n) {
    if (!is_buffer(env + n, sizeof *env)) return false;
    if (env[n] == nullptr) break;
    if (!is_buffer(env[n], 1)) return false;
  }
  return true;
}

bool is_complete() {
  return own_library() != nullptr && session_setting() != nullptr;
}

}  // namespace

PreloadWord find_own_library(const char* list) {
  constexpr const char kName[] = "libmwshim.so";
  constexpr size_t kLength = sizeof kName - 1;
  while (*list != 0) {
    const size_t n = strcspn(list, ": ");
    const bool is_named = n >= kLength && strncmp(list + n - kLength, kName, kLength) == 0;
    if (is_named && (n == kLength || list[n - kLength - 1] == '/')) return {list, n};
    list += n;
    list += strspn(list, ": ");
  }
  return {list, 0};
}

size_t environment_room(char* const* env) {
  if (!is_complete() || !is_readable(env)) return 0;
  size_t bytes = 3 * sizeof(char*) + preload_bytes("");
  for (size_t n = 0; env != nullptr && env[n] != nullptr; ++n) {
    bytes += sizeof(char*);
    if (const char* list = value_of(env[n], kPreload)) bytes += preload_bytes(list);
  }
  return bytes;
}

char* const* environment_with_us(char* const* env, void* room) {
  if (!is_complete() || !is_readable(env)) return env;
  size_t count = 0;
  while (env != nullptr && env[count] != nullptr) ++count;
  auto** const out = static_cast<char**>(room);
  char* text = reinterpret_cast<char*>(out + count + 3);
  size_t n = 0;
  bool has_preload = false;
  bool has_session = false;
  for (size_t i = 0; i < count; ++i) {
    out[n] = env[i];
    if (const char* list = value_of(env[i], kPreload)) {
      has_preload = true;
      if (find_own_library(list).length == 0) {
        out[n] = text;
        text = write_preload(text, list);
      }
    }
    if (value_of(env[i], kSession) != nullptr) has_session = true;
    ++n;
  }
  if (!has_preload) {
    out[n++] = text;
    write_preload(text, "");
  }
  if (!has_session) out[n++] = const_cast<char*>(session_setting());
  out[n] = nullptr;
  return out;
}

void keep_own_environment() {
  if (!is_complete()) return;
  const char* list = ::getenv("LD_PRELOAD");
  if (list == nullptr) list = "";
  if (find_own_library(list).length == 0) {
    if (auto* text = static_cast<char*>(::malloc(preload_bytes(list)))) {
      write_preload(text, list);
      ::setenv("LD_PRELOAD", text + sizeof kPreload - 1, 1);
      ::free(text);
    }
  }
  if (::getenv("MWCOMMS_SESSION") == nullptr)
    ::setenv("MWCOMMS_SESSION", value_of(session_setting(), kSession), 1);
}

}  // namespace mw::shim
