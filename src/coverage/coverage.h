// coverage.h - can the shim reach the sockets of a program that is about to be executed?
//
// PURPOSE     The shim is a preloaded library. It reaches programs that glibc's dynamic linker starts
//             without the kernel's "secure execution" flag, and whose run-time enters the kernel
//             through libc. Every other program would use the host's network without a word. `mw run`
//             asks about its command, the shim about every program that the application executes.
// TRUST       The file is hostile: it can say anything, and can change while it is read. What is read
//             of it is bounded, and never used as an index without a check. Nothing but a regular
//             file is opened.
// INVARIANTS  No allocation and no lock. System calls are made directly, never through names that
//             the shim interposes. errno is preserved. What the kernel refuses by itself is left to
//             the kernel.
// THREADS     Any; also a child of vfork() in a program with threads, and a signal handler. Takes
//             some 6 KiB of stack.
#pragma once

#include <fcntl.h>
#include <stddef.h>

#include <cstdint>

namespace mw {

// What is to be executed, as execveat(2) names it.
struct ExecTarget {
  int folder = AT_FDCWD;
  const char* path = "";
  int flags = 0;  // AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW
};

enum class Coverage : uint8_t {
  covered,
  // The kernel does not execute these.
  missing,         // Judgement::error says why
  not_executable,  // no regular file, or nobody may execute it
  no_format,       // ENOEXEC; execvp(3) and shells take the file for a script of /bin/sh
  too_many_interpreters,
  // The shim does not reach these.
  static_program,
  go_program,
  other_machine,
  other_loader,
  set_user_id,
  set_group_id,
  changed_ids,
  file_capabilities,
  unreadable,       // Judgement::error says why
  shim_unreadable,  // said by the shim alone: it is not there for the program. error says why
};

constexpr bool is_out_of_reach(Coverage c) {
  return c >= Coverage::static_program;
}

struct JudgeOptions {
  // The effective ids become the real ones before the exec (POSIX_SPAWN_RESETIDS).
  bool resets_ids = false;
  // The program runs under a seccomp filter of its own. Only system calls that the dynamic linker
  // makes too are made, so ids and capabilities are not looked at.
  bool is_confined = false;
  // The file is mapped by glibc's dynamic linker, not by the kernel: its mode bits give nothing.
  bool is_mapped_by_loader = false;
};

constexpr size_t kInterpreterBytes = 256;  // the kernel reads so much of a "#!" line
constexpr size_t kFileNameBytes = 512;

struct Judgement {
  Coverage coverage = Coverage::covered;
  int error = 0;
  bool is_elf = false;
  // The program is glibc's dynamic linker, which starts another one: see behind_loader().
  bool is_loader = false;
  // The program that a "#!" line or binfmt_misc names last, and the one word behind it on the line;
  // both empty: the target itself is the program.
  char interpreter[kInterpreterBytes] = {};
  char argument[kInterpreterBytes] = {};
  char loader[kInterpreterBytes] = {};  // other_loader: its name
  // What /proc calls the program, if it is out of reach; empty: not known.
  char file[kFileNameBytes] = {};
  // Which file it is.
  uint64_t device = 0;
  uint64_t inode = 0;
};

// Follows "#!" lines and binfmt_misc to the program that the kernel would execute.
Judgement judge(const ExecTarget& target, const JudgeOptions& options = {});

// The program that execvp(3) and shells run a file with that has no format.
Judgement judge_shell();

// What glibc's dynamic linker would execute if it were started with these words; null if it only
// lists or verifies. Requires: readable words.
const char* behind_loader(const char* const* argv);

// The name that a sentence gives the program by: of the target, or of its interpreter.
const char* name_of(const Judgement& j, const char* target);

// "NAME is statically linked: ...", without an end. `target`: the name that it was called by; if
// empty, the one that /proc knows is taken.
void describe(const Judgement& j, const char* target, char* to, size_t size);

// Control characters become '?', so that no file's name starts a line of its own.
void make_printable(char* text);

// Does this list allow the program although it is out of reach? Entries stand between commas: "*"
// is every program; an entry with a slash is a file, whatever path leads to it; one without is the
// last part of its name.
constexpr size_t kMaxAllowedBytes = 4000;
bool is_allowed(const char* list, const Judgement& j, const char* target);

}  // namespace mw
