#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "coverage/coverage.h"

namespace mw {
namespace {

struct Sentence {
  const char* is;
  const char* because;
};

const char* last_part(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

Sentence sentence_of(Coverage c) {
  switch (c) {
    case Coverage::static_program:
      return {"is statically linked",
              "it enters the kernel without libc, so libmwshim.so never sees its sockets"};
    case Coverage::go_program:
      return {
          "is a Go program",
          "its runtime makes system calls without libc, so libmwshim.so never sees its sockets"};
    case Coverage::other_machine:
      return {"is not a 64-bit x86 program", "libmwshim.so is one, and cannot be loaded into it"};
    case Coverage::other_loader:
      return {"is not started by glibc's dynamic linker",
              "libmwshim.so is made for glibc, and cannot be loaded into it"};
    case Coverage::set_user_id:
      return {"is setuid",
              "the dynamic linker ignores preloaded libraries in such a program, so "
              "its sockets would bypass the INS"};
    case Coverage::set_group_id:
      return {"is setgid",
              "the dynamic linker ignores preloaded libraries in such a program, so "
              "its sockets would bypass the INS"};
    case Coverage::changed_ids:
      return {"is started with effective ids that are not the real ones",
              "the dynamic linker ignores preloaded libraries then, so its sockets would bypass "
              "the INS"};
    case Coverage::file_capabilities:
      return {"has file capabilities",
              "the dynamic linker ignores preloaded libraries in such a program, so its sockets "
              "would bypass the INS"};
    case Coverage::unreadable:
      return {"cannot be read", "so it is not known whether libmwshim.so reaches its sockets"};
    case Coverage::shim_unreadable:
      return {"is started where libmwshim.so cannot be read",
              "the dynamic linker would start it without, so its sockets would bypass the INS"};
    case Coverage::missing:
      return {"was not found", ""};
    case Coverage::not_executable:
      return {"is not an executable file", ""};
    case Coverage::no_format:
      return {"is not a program that this kernel executes", ""};
    case Coverage::too_many_interpreters:
      return {"leads through too many interpreters", ""};
    case Coverage::covered:
      break;
  }
  return {"is reached by libmwshim.so", ""};
}

}  // namespace

void describe(const Judgement& j, const char* target, char* to, size_t size) {
  const int saved = errno;
  const Sentence s = sentence_of(j.coverage);
  const char* const first = *target != 0 ? target : j.file;
  const bool is_loop = j.coverage == Coverage::too_many_interpreters;
  const char* const name = is_loop ? first : name_of(j, target);
  // A script's interpreter, and the file behind a link: busybox behind /bin/ls.
  const bool is_script = name == j.interpreter;
  const bool is_link = j.file[0] == '/' && strcmp(last_part(j.file), last_part(name)) != 0;
  const bool tells_error = j.coverage == Coverage::unreadable ||
                           j.coverage == Coverage::shim_unreadable ||
                           j.coverage == Coverage::missing;
  // strerrordesc_np() gives fixed texts, without a lock or memory.
  const char* const error = tells_error ? ::strerrordesc_np(j.error) : nullptr;
  char cause[64] = "";
  if (error != nullptr) ::snprintf(cause, sizeof cause, " (%s)", error);
  const char* const runs = is_out_of_reach(j.coverage) ? " runs " : " needs ";
  ::snprintf(to, size, "%s%s%s%s%s%s %s%s%s%s", is_script ? first : "", is_script ? runs : "", name,
             is_link ? " (" : "", is_link ? j.file : "", is_link ? ")" : "", s.is, cause,
             *s.because != 0 ? ": " : "", s.because);
  if (size != 0) make_printable(to);
  errno = saved;
}

void make_printable(char* text) {
  for (char* c = text; *c != 0; ++c)
    if (static_cast<unsigned char>(*c) < ' ' || *c == 0x7f) *c = '?';
}

}  // namespace mw
