#include "frontend/inspect.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace mw {
namespace {

using Verdict = Inspection::Verdict;

// The smallest ELF file that says what we want to say.
struct FakeElf {
  const char* interpreter = "/lib64/ld-linux-x86-64.so.2";
  bool go_note = false;
  unsigned char elf_class = ELFCLASS64;
  uint16_t machine = EM_X86_64;

  std::string bytes() const {
    Elf64_Ehdr header{};
    ::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = elf_class;
    header.e_machine = machine;
    header.e_phoff = sizeof(header);
    header.e_phentsize = sizeof(Elf64_Phdr);
    std::string note;
    if (go_note) {
      const Elf64_Nhdr n{4, 4, 4};
      note.assign(reinterpret_cast<const char*>(&n), sizeof(n));
      note += std::string("Go\0\0abcd", 8);
    }
    const uint64_t data = sizeof(header) + 2 * sizeof(Elf64_Phdr);
    Elf64_Phdr segments[2] = {};
    const std::string name = interpreter != nullptr ? interpreter : "";
    if (interpreter != nullptr) {
      segments[header.e_phnum].p_type = PT_INTERP;
      segments[header.e_phnum].p_offset = data;
      segments[header.e_phnum++].p_filesz = name.size();
    }
    segments[header.e_phnum].p_type = PT_NOTE;
    segments[header.e_phnum].p_offset = data + name.size();
    segments[header.e_phnum++].p_filesz = note.size();
    std::string out(reinterpret_cast<const char*>(&header), sizeof(header));
    out.append(reinterpret_cast<const char*>(segments), sizeof(segments));
    return out + name + note;
  }
};

class InspectCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-inspect-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& name, const std::string& content, mode_t mode = 0755) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return path;
  }

  std::string folder_;
};

TEST_F(InspectCommand, OrdinaryProgramsAndScriptsPass) {
  EXPECT_EQ(inspect_command({"true"}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({"/bin/sh", "-c", "x"}).verdict, Verdict::coverable);
  const std::string script = file("s", "#!/bin/sh -e\ntrue\n");
  EXPECT_EQ(inspect_command({script}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({file("e", "#! /usr/bin/env sh\n")}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({file("plain", "echo no first line\n")}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({"env", "A=1", "true"}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({"env", "-u", "HOME", "true"}).verdict, Verdict::coverable);
}

TEST_F(InspectCommand, WhatIsMissingIsSaid) {
  EXPECT_EQ(inspect_command({"no-such-program-anywhere"}).verdict, Verdict::not_found);
  EXPECT_EQ(inspect_command({folder_ + "/none"}).verdict, Verdict::not_found);
  EXPECT_EQ(inspect_command({folder_}).verdict, Verdict::not_executable);
  EXPECT_EQ(inspect_command({file("data", "x", 0644)}).verdict, Verdict::not_executable);
  const Inspection result = inspect_command({file("s", "#!/no/such/interpreter\n")});
  EXPECT_EQ(result.verdict, Verdict::not_found);
  EXPECT_NE(result.reason.find("/no/such/interpreter"), std::string::npos) << result.reason;
}

TEST_F(InspectCommand, RefusesWhatTheShimCannotReach) {
  const std::pair<FakeElf, const char*> cases[] = {
      {{.interpreter = nullptr}, "statically linked"},
      {{.interpreter = "/lib/ld-musl-x86_64.so.1"}, "glibc"},
      {{.go_note = true}, "Go program"},
      {{.elf_class = ELFCLASS32, .machine = EM_386}, "64-bit"},
      {{.machine = EM_AARCH64}, "64-bit"},
  };
  for (const auto& [elf, word] : cases) {
    const std::string path = file("program", elf.bytes());
    const Inspection result = inspect_command({path});
    EXPECT_EQ(result.verdict, Verdict::refused) << word;
    EXPECT_NE(result.reason.find(word), std::string::npos) << result.reason;
  }
  EXPECT_EQ(inspect_command({file("program", FakeElf{}.bytes())}).verdict, Verdict::coverable);
}

TEST_F(InspectCommand, FollowsScriptsToARefusal) {
  const std::string program = file("static", FakeElf{.interpreter = nullptr}.bytes());
  const std::string script = file("outer", "#!" + file("inner", "#!" + program + "\n") + "\n");
  const Inspection result = inspect_command({script});
  EXPECT_EQ(result.verdict, Verdict::refused);
  EXPECT_NE(result.reason.find(script), std::string::npos) << result.reason;
  EXPECT_NE(result.reason.find("statically linked"), std::string::npos) << result.reason;
  EXPECT_EQ(inspect_command({file("loop", "#!" + folder_ + "/loop\n")}).verdict, Verdict::refused);
}

TEST_F(InspectCommand, RefusesSetuidOfAnotherUser) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  const std::string path = file("setuid", FakeElf{}.bytes());
  ASSERT_EQ(::chown(path.c_str(), 65534, 0), 0);
  ASSERT_EQ(::chmod(path.c_str(), 04755), 0);
  const Inspection result = inspect_command({path});
  EXPECT_EQ(result.verdict, Verdict::refused);
  EXPECT_NE(result.reason.find("setuid"), std::string::npos) << result.reason;
  // Root's own setuid program changes nothing for root.
  ASSERT_EQ(::chown(path.c_str(), 0, 0), 0);
  ASSERT_EQ(::chmod(path.c_str(), 04755), 0);
  EXPECT_EQ(inspect_command({path}).verdict, Verdict::coverable);
}

TEST_F(InspectCommand, SurvivesDamagedHeaders) {
  const std::string whole = FakeElf{.go_note = true}.bytes();
  for (size_t length = 0; length < whole.size(); ++length) {
    const Inspection result = inspect_command({file("cut", whole.substr(0, length))});
    // What does not even start like ELF is a script for /bin/sh; without its headers nothing is
    // covered.
    if (length < SELFMAG) {
      EXPECT_EQ(result.verdict, Verdict::coverable) << length;
    } else if (length < sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr)) {
      EXPECT_EQ(result.verdict, Verdict::refused) << length;
    } else {
      EXPECT_NE(result.verdict, Verdict::not_found) << length;
    }
  }
  for (size_t at = SELFMAG; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = '\xff';
    EXPECT_NE(inspect_command({file("damaged", damaged)}).verdict, Verdict::not_found) << at;
  }
}

TEST_F(InspectCommand, TheDynamicLinkersProgramIsTheCommand) {
  const std::string loader = "/lib64/ld-linux-x86-64.so.2";
  EXPECT_EQ(inspect_command({loader, "--inhibit-cache", "/bin/true"}).verdict, Verdict::coverable);
  EXPECT_EQ(inspect_command({loader, "--list", "/bin/true"}).verdict, Verdict::coverable);
  const std::string program = file("static", FakeElf{.interpreter = nullptr}.bytes());
  EXPECT_EQ(inspect_command({loader, program}).verdict, Verdict::refused);
  EXPECT_EQ(inspect_command({"env", "A=1", loader, program}).verdict, Verdict::coverable)
      << "env's words are not followed further; the shim refuses it there";
}

TEST_F(InspectCommand, WhatIsAllowedIsToldAndRuns) {
  const std::string program = file("static", FakeElf{.interpreter = nullptr}.bytes());
  const Inspection refused = inspect_command({program}, "other");
  EXPECT_EQ(refused.verdict, Verdict::refused);
  EXPECT_EQ(refused.to_allow, "static");
  for (const std::string& list : {std::string("*"), std::string("static"), program}) {
    const Inspection result = inspect_command({"env", program}, list);
    EXPECT_EQ(result.verdict, Verdict::allowed) << list;
    EXPECT_NE(result.reason.find("statically linked"), std::string::npos) << result.reason;
  }
  // What nothing can start is not helped by a list.
  const std::string broken = file("broken", std::string(ELFMAG) + std::string(100, '\2'));
  EXPECT_EQ(inspect_command({broken}).verdict, Verdict::refused);
  EXPECT_EQ(inspect_command({file("loop", "#!" + folder_ + "/loop\n")}, "*").verdict,
            Verdict::refused);
}

}  // namespace
}  // namespace mw
