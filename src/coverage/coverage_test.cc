#include "coverage/coverage.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

namespace mw {

// For messages of GoogleTest.
void PrintTo(Coverage c, std::ostream* out) {
  *out << static_cast<int>(c);
}

namespace {

constexpr const char kLoader[] = "/lib64/ld-linux-x86-64.so.2";

// The smallest ELF file that says what a case wants to say.
struct Elf {
  std::string interpreter = std::string(kLoader) + '\0';
  std::string note{};
  std::string section_names{};
  uint16_t type = ET_DYN;
  uint16_t machine = EM_X86_64;
  unsigned char elf_class = ELFCLASS64;

  static std::string note_of(const std::string& name, const std::string& content = "abcd") {
    const Elf64_Nhdr n{static_cast<Elf64_Word>(name.size() + 1),
                       static_cast<Elf64_Word>(content.size()), 4};
    std::string text(reinterpret_cast<const char*>(&n), sizeof n);
    text += name + std::string(4 - name.size() % 4, '\0') + content;
    return text + std::string((4 - content.size() % 4) % 4, '\0');
  }

  std::string bytes() const {
    Elf64_Ehdr header{};
    Elf64_Phdr segments[2] = {};
    Elf64_Shdr sections[2] = {};
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = elf_class;
    header.e_type = type;
    header.e_machine = machine;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_shentsize = sizeof(Elf64_Shdr);
    uint64_t at = sizeof header + sizeof segments;
    const auto add = [&](uint32_t kind, const std::string& content) {
      Elf64_Phdr& segment = segments[header.e_phnum++];
      segment.p_type = kind;
      segment.p_offset = at;
      segment.p_filesz = content.size();
      at += content.size();
    };
    if (!interpreter.empty()) add(PT_INTERP, interpreter);
    add(PT_NOTE, note);
    if (!section_names.empty()) {
      sections[1].sh_offset = at;
      sections[1].sh_size = section_names.size();
      header.e_shoff = at + section_names.size();
      header.e_shnum = 2;
      header.e_shstrndx = 1;
    }
    const auto raw = [](const void* p, size_t n) {
      return std::string(static_cast<const char*>(p), n);
    };
    return raw(&header, sizeof header) + raw(segments, sizeof segments) + interpreter + note +
           section_names + raw(sections, section_names.empty() ? 0 : sizeof sections);
  }
};

class CoverageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-coverage-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    ASSERT_EQ(::chmod(name, 0755), 0);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string file(const std::string& name, const std::string& content, mode_t mode = 0755) const {
    std::ofstream(path(name), std::ios::binary | std::ios::trunc) << content;
    EXPECT_EQ(::chmod(path(name).c_str(), mode), 0);
    return path(name);
  }
  std::string static_program(const std::string& name = "static") const {
    return file(name, Elf{.interpreter = ""}.bytes());
  }
  static Judgement judged(const std::string& name, const JudgeOptions& options = {}) {
    return judge({AT_FDCWD, name.c_str(), 0}, options);
  }
  static std::string described(const std::string& name) {
    char text[600];
    describe(judged(name), name.c_str(), text, sizeof text);
    return text;
  }
  Coverage coverage(const std::string& content) const {
    return judged(file("program", content)).coverage;
  }
  Coverage coverage(const Elf& elf) const { return coverage(elf.bytes()); }

  std::string folder_;
};

// What `look` finds in a process that `become` has changed.
Coverage elsewhere(const std::function<void()>& become, const std::function<Coverage()>& look) {
  const pid_t child = ::fork();
  if (child == 0) {
    become();
    ::_exit(static_cast<int>(look()));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return static_cast<Coverage>(WEXITSTATUS(status));
}

void become_user(unsigned uid) {
  if (::setgid(uid) != 0 || ::setuid(uid) != 0) ::_exit(100);
}

TEST_F(CoverageTest, ProgramsOfTheSystemAreCovered) {
  for (const char* name : {"/bin/sh", "/bin/true", "/usr/bin/env", "/proc/self/exe"})
    EXPECT_EQ(judged(name).coverage, Coverage::covered) << name;
}

TEST_F(CoverageTest, WhatTheHeadersSay) {
  EXPECT_EQ(coverage(Elf{}), Coverage::covered);
  EXPECT_EQ(coverage(Elf{.type = ET_EXEC}), Coverage::covered);
  EXPECT_EQ(coverage(Elf{.interpreter = "", .type = ET_EXEC}), Coverage::static_program);
  EXPECT_EQ(coverage(Elf{.interpreter = "", .type = ET_DYN}), Coverage::static_program);
  EXPECT_EQ(coverage(Elf{.interpreter = std::string("/lib/ld-musl-x86_64.so.1\0", 25)}),
            Coverage::other_loader);
  EXPECT_EQ(coverage(Elf{.interpreter = std::string("/opt/g/ld-linux-x86-64.so.2\0", 28)}),
            Coverage::covered);
  EXPECT_EQ(coverage(Elf{.machine = EM_386, .elf_class = ELFCLASS32}), Coverage::other_machine);
  EXPECT_EQ(coverage(Elf{.elf_class = ELFCLASS32}), Coverage::other_machine);  // x32
  EXPECT_EQ(coverage(Elf{.machine = EM_AARCH64}), Coverage::other_machine);
  EXPECT_EQ(coverage(Elf{.machine = EM_RISCV}), Coverage::other_machine);
}

TEST_F(CoverageTest, AnotherNameOfGlibcsLoaderIsTheSame) {
  ASSERT_EQ(::symlink(kLoader, path("loader").c_str()), 0);
  EXPECT_EQ(coverage(Elf{.interpreter = path("loader") + '\0'}), Coverage::covered);
  file("other", "x");
  EXPECT_EQ(coverage(Elf{.interpreter = path("other") + '\0'}), Coverage::other_loader);
}

TEST_F(CoverageTest, GoIsKnownByItsNoteOrItsTables) {
  const std::string gnu = Elf::note_of("GNU", std::string(20, 'x'));
  EXPECT_EQ(coverage(Elf{.note = Elf::note_of("Go")}), Coverage::go_program);
  EXPECT_EQ(coverage(Elf{.interpreter = "", .note = Elf::note_of("Go")}), Coverage::go_program);
  EXPECT_EQ(coverage(Elf{.note = gnu + Elf::note_of("Go", std::string(83, 'i'))}),
            Coverage::go_program);
  EXPECT_EQ(coverage(Elf{.section_names = std::string("\0.text\0.gopclntab\0", 18)}),
            Coverage::go_program);
  EXPECT_EQ(coverage(Elf{.section_names = std::string("\0.go.buildinfo\0", 15)}),
            Coverage::go_program);
  // Wherever the name stands in a long table.
  for (size_t before = 995; before < 1030; ++before) {
    const std::string names = std::string(before, 'x') + std::string("\0.go.buildinfo\0", 15);
    EXPECT_EQ(coverage(Elf{.section_names = names + std::string(900, 'y')}), Coverage::go_program)
        << before;
  }
  EXPECT_EQ(coverage(Elf{.note = gnu}), Coverage::covered);
  EXPECT_EQ(coverage(Elf{.note = Elf::note_of("Goat")}), Coverage::covered);
  EXPECT_EQ(coverage(Elf{.section_names = std::string("\0.gold\0.gopclntabs\0", 19)}),
            Coverage::covered);
}

TEST_F(CoverageTest, WhatNoKernelExecutesIsLeftToTheKernel) {
  EXPECT_EQ(coverage(""), Coverage::no_format);
  EXPECT_EQ(coverage("echo text\n"), Coverage::no_format);
  EXPECT_EQ(coverage("#!\n"), Coverage::no_format);
  EXPECT_EQ(coverage("#! \t\n/bin/sh"), Coverage::no_format);
  EXPECT_EQ(judged(path("none")).coverage, Coverage::missing);
  EXPECT_EQ(judged(path("none")).error, ENOENT);
  EXPECT_EQ(judged(file("plain", "x") + "/none").error, ENOTDIR);
  EXPECT_EQ(judged(std::string(PATH_MAX + 10, 'x')).error, ENAMETOOLONG);
  EXPECT_EQ(judge({AT_FDCWD, nullptr, 0}).error, EFAULT);
  EXPECT_EQ(judged("").coverage, Coverage::missing);
  EXPECT_EQ(judged(folder_).coverage, Coverage::not_executable);
  EXPECT_EQ(judged("/dev/null").coverage, Coverage::not_executable);
  EXPECT_EQ(judged(file("no-right", Elf{.interpreter = ""}.bytes(), 0644)).coverage,
            Coverage::not_executable);
}

TEST_F(CoverageTest, AFifoDoesNotStopAnybody) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0777), 0);
  EXPECT_EQ(judged(path("fifo")).coverage, Coverage::not_executable);
}

TEST_F(CoverageTest, EveryCutAndEveryChangedByteIsHarmless) {
  const std::string whole = Elf{.note = Elf::note_of("GNU") + Elf::note_of("Go"),
                                .section_names = std::string("\0.text\0.gopclntab\0", 18)}
                                .bytes();
  constexpr size_t kHeaders = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr);
  for (size_t n = SELFMAG; n < whole.size(); ++n) {
    const Coverage c = coverage(whole.substr(0, n));
    if (n < kHeaders) {
      EXPECT_TRUE(c == Coverage::other_machine || c == Coverage::no_format) << n;
    } else {
      EXPECT_NE(c, Coverage::static_program) << n;  // there is a PT_INTERP, or a file cut before it
    }
  }
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const char byte : {'\x00', '\xff'}) {
      std::string changed = whole;
      changed[at] = byte;
      EXPECT_NE(coverage(changed), Coverage::missing) << at;
    }
  }
}

TEST_F(CoverageTest, NumbersThatLeadOutOfTheFileAreNotFollowed) {
  const auto changed = [&](const std::function<void(Elf64_Ehdr&, Elf64_Phdr*)>& change) {
    std::string bytes = Elf{.note = Elf::note_of("Go")}.bytes();
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    memcpy(&header, bytes.data(), sizeof header);
    memcpy(segments, bytes.data() + sizeof header, sizeof segments);
    change(header, segments);
    memcpy(bytes.data(), &header, sizeof header);
    memcpy(bytes.data() + sizeof header, segments, sizeof segments);
    return coverage(bytes);
  };
  // What the kernel refuses as well.
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phnum = 0; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phnum = 0xffff; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phnum = 1170; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phentsize = 32; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phoff = ~uint64_t{0}; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_phoff = INT64_MAX; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto&, auto* s) { s[0].p_offset = 1 << 20; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto&, auto* s) { s[0].p_filesz = ~uint64_t{0}; }), Coverage::no_format);
  EXPECT_EQ(changed([](auto&, auto* s) { s[0].p_filesz = 0; }), Coverage::no_format);
  // A note that is not there says nothing.
  EXPECT_EQ(changed([](auto&, auto* s) { s[1].p_offset = ~uint64_t{0}; }), Coverage::covered);
  EXPECT_EQ(changed([](auto&, auto* s) { s[1].p_filesz = 7; }), Coverage::covered);
  EXPECT_EQ(changed([](auto& h, auto*) { h.e_shstrndx = 0xfffe; }), Coverage::go_program);
  // Sections are not needed to run.
  EXPECT_EQ(changed([](auto& h, auto* s) {
              h.e_shoff = ~uint64_t{0};
              h.e_shstrndx = 1;
              s[1].p_filesz = 0;
            }),
            Coverage::covered);
}

TEST_F(CoverageTest, ManyNotesEnd) {
  std::string notes;
  for (int i = 0; i < 5000; ++i) notes += Elf::note_of("GNU", "");
  EXPECT_EQ(coverage(Elf{.note = notes}), Coverage::covered);
  // A note that claims to be larger than the file.
  std::string huge = Elf::note_of("GNU");
  const uint32_t most = ~uint32_t{0};
  memcpy(huge.data() + 4, &most, sizeof most);
  EXPECT_EQ(coverage(Elf{.note = huge + Elf::note_of("Go")}), Coverage::covered);
}

TEST_F(CoverageTest, ScriptsAreFollowedAsTheKernelDoes) {
  const std::string program = static_program();
  for (const char* form : {"#!%s\n", "#! %s\n", "#!\t%s  \n", "#!%s -x y\n", "#!%s"}) {
    char line[600];
    ::snprintf(line, sizeof line, form, program.c_str());
    const Judgement j = judged(file("script", line));
    EXPECT_EQ(j.coverage, Coverage::static_program) << line;
    EXPECT_STREQ(j.interpreter, program.c_str());
  }
  EXPECT_STREQ(judged(file("script", "#!/bin/sh -e  -u \nx")).argument, "-e  -u");
  EXPECT_EQ(coverage("#!/bin/sh\n"), Coverage::covered);
  const Judgement none = judged(file("script", "#!/no/interpreter\n"));
  EXPECT_EQ(none.coverage, Coverage::missing);
  EXPECT_STREQ(none.interpreter, "/no/interpreter");
  // Windows' line end is part of the name, for the kernel too.
  EXPECT_EQ(coverage("#!/bin/sh\r\n"), Coverage::missing);
}

TEST_F(CoverageTest, ChainsOfScriptsEnd) {
  std::string last = static_program();
  for (int i = 1; i <= 5; ++i) last = file("s" + std::to_string(i), "#!" + last + "\n");
  EXPECT_EQ(judged(last).coverage, Coverage::static_program);
  last = file("s6", "#!" + last + "\n");
  EXPECT_EQ(judged(last).coverage, Coverage::too_many_interpreters);
  const std::string loop = file("loop", "#!" + path("loop") + "\n");
  EXPECT_EQ(judged(loop).coverage, Coverage::too_many_interpreters);
  EXPECT_NE(described(loop).find("too many"), std::string::npos);
}

TEST_F(CoverageTest, TheKernelAgreesAboutChains) {
  std::string last = "/bin/true";
  for (int i = 1; i <= 6; ++i) {
    last = file("s" + std::to_string(i), "#!" + last + "\n");
    const pid_t child = ::fork();
    if (child == 0) {
      ::execl(last.c_str(), last.c_str(), nullptr);
      ::_exit(errno == ELOOP ? 40 : 41);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    const Coverage c = judged(last).coverage;
    EXPECT_EQ(WEXITSTATUS(status), c == Coverage::covered ? 0 : 40) << i;
    EXPECT_EQ(c, i <= 5 ? Coverage::covered : Coverage::too_many_interpreters) << i;
  }
}

TEST_F(CoverageTest, AFolderAndALinkAreThoseOfTheCall) {
  static_program();
  const int folder = ::open(folder_.c_str(), O_PATH | O_CLOEXEC);
  ASSERT_GE(folder, 0);
  EXPECT_EQ(judge({folder, "static", 0}).coverage, Coverage::static_program);
  ASSERT_EQ(::symlink("static", path("link").c_str()), 0);
  const Judgement j = judge({folder, "link", 0});
  EXPECT_EQ(j.coverage, Coverage::static_program);
  EXPECT_EQ(std::string(j.file), path("static"));
  EXPECT_NE(described(path("link")).find("link (" + path("static") + ") is statically linked"),
            std::string::npos)
      << described(path("link"));
  EXPECT_EQ(judge({folder, "link", AT_SYMLINK_NOFOLLOW}).coverage, Coverage::not_executable);
  ::close(folder);
}

TEST_F(CoverageTest, ADescriptorIsJudgedAndLeftAsItIs) {
  const std::string bytes = Elf{.interpreter = ""}.bytes();
  const std::string program = static_program();
  for (const int how : {O_RDONLY, O_PATH}) {
    const int fd = ::open(program.c_str(), how | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(judge({fd, "", AT_EMPTY_PATH}).coverage, Coverage::static_program) << how;
    if (how == O_RDONLY) {
      EXPECT_EQ(::lseek(fd, 0, SEEK_CUR), 0);
    }
    EXPECT_EQ(::close(fd), 0);  // it is still there
  }
  const int memory = ::memfd_create("program", MFD_CLOEXEC);
  ASSERT_EQ(::write(memory, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const Judgement j = judge({memory, "", AT_EMPTY_PATH});
  EXPECT_EQ(j.coverage, Coverage::static_program);
  EXPECT_STREQ(name_of(j, ""), "/memfd:program");
  EXPECT_TRUE(is_allowed("memfd:program", j, ""));
  ::close(memory);
  EXPECT_EQ(judge({memory, "", AT_EMPTY_PATH}).error, EBADF);
}

TEST_F(CoverageTest, TheCallersErrnoStays) {
  errno = ENOTTY;
  judged(path("none"));
  judged(static_program());
  EXPECT_EQ(errno, ENOTTY);
}

TEST_F(CoverageTest, NoDescriptorIsLeft) {
  const auto open_ones = [] {
    const std::filesystem::directory_iterator list("/proc/self/fd");
    return std::distance(begin(list), end(list));
  };
  const auto before = open_ones();
  judged(static_program());
  judged(file("script", "#!/bin/sh\n"));
  judged(file("text", "echo\n"));
  judged("/bin/sh");
  EXPECT_EQ(open_ones(), before);
}

// ---- ids and capabilities: the cases need root ----

class SecureExecution : public CoverageTest {
 protected:
  void SetUp() override {
    CoverageTest::SetUp();
    if (::getuid() != 0) GTEST_SKIP() << "needs root to give files away and to become others";
    program_ = path("program");
    std::filesystem::copy_file("/bin/true", program_);
  }
  void owned(unsigned uid, unsigned gid, mode_t mode) {
    ASSERT_EQ(::chown(program_.c_str(), uid, gid), 0);
    ASSERT_EQ(::chmod(program_.c_str(), mode), 0);
  }
  Coverage as(unsigned uid) {
    return elsewhere([uid] { become_user(uid); }, [this] { return judged(program_).coverage; });
  }
  // The kernel's own word: does the dynamic linker see AT_SECURE?
  bool is_secure(const std::function<void()>& become) {
    std::filesystem::remove(path("auxv"));
    const pid_t child = ::fork();
    if (child == 0) {
      const int out = ::open(path("auxv").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
      if (::dup2(out, STDOUT_FILENO) < 0) ::_exit(100);
      become();
      char show[] = "LD_SHOW_AUXV=1";
      char* const env[] = {show, nullptr};
      char* const argv[] = {program_.data(), nullptr};
      ::execve(program_.c_str(), argv, env);
      ::_exit(101);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), 0);
    // A secure program ignores LD_SHOW_AUXV.
    return std::filesystem::file_size(path("auxv")) == 0;
  }
  void set_capability(uint32_t permitted, uint32_t inheritable, bool effective) {
    vfs_cap_data data{};
    data.magic_etc = VFS_CAP_REVISION_2 | (effective ? VFS_CAP_FLAGS_EFFECTIVE : 0);
    data.data[0] = {permitted, inheritable};
    if (::setxattr(program_.c_str(), "security.capability", &data, XATTR_CAPS_SZ_2, 0) < 0)
      GTEST_SKIP() << "no file capabilities here: " << strerror(errno);
  }

  std::string program_;
};

TEST_F(SecureExecution, SetuidIsWhatChangesTheUser) {
  owned(0, 0, 04755);
  EXPECT_EQ(judged(program_).coverage, Coverage::covered);  // for root it changes nothing
  EXPECT_EQ(as(65534), Coverage::set_user_id);
  owned(65534, 0, 04755);
  EXPECT_EQ(judged(program_).coverage, Coverage::set_user_id);
  EXPECT_EQ(as(65534), Coverage::covered);
}

TEST_F(SecureExecution, SetgidNeedsTheGroupsRightToExecute) {
  owned(0, 42, 02755);
  EXPECT_EQ(judged(program_).coverage, Coverage::set_group_id);
  EXPECT_EQ(as(42), Coverage::covered);
  owned(0, 42, 02745);
  EXPECT_EQ(judged(program_).coverage, Coverage::covered);
}

TEST_F(SecureExecution, TheInterpretersBitsCountAndNotTheScripts) {
  owned(65534, 0, 04755);
  EXPECT_EQ(judged(file("script", "#!" + program_ + "\n")).coverage, Coverage::set_user_id);
  EXPECT_EQ(judged(file("script", "#!/bin/sh\n", 04755)).coverage, Coverage::covered);
  ASSERT_EQ(::chown(path("script").c_str(), 65534, 0), 0);
  ASSERT_EQ(::chmod(path("script").c_str(), 04755), 0);
  EXPECT_EQ(judged(path("script")).coverage, Coverage::covered);
}

TEST_F(SecureExecution, WithoutNewPrivilegesTheBitIsIgnored) {
  owned(0, 0, 04755);
  const auto become = [] {
    become_user(65534);
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) ::_exit(100);
  };
  EXPECT_EQ(elsewhere(become, [this] { return judged(program_).coverage; }), Coverage::covered);
  EXPECT_FALSE(is_secure(become));
}

TEST_F(SecureExecution, NosuidFileSystemsGiveNothing) {
  owned(0, 0, 04755);
  const auto become = [this] {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount(folder_.c_str(), folder_.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
        ::mount("", folder_.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_NOSUID, nullptr) != 0)
      ::_exit(100);
    become_user(65534);
  };
  EXPECT_EQ(elsewhere(become, [this] { return judged(program_).coverage; }), Coverage::covered);
  EXPECT_FALSE(is_secure(become));
}

TEST_F(SecureExecution, EffectiveIdsThatAreNotTheRealOnes) {
  owned(0, 0, 0755);
  const auto become = [] {
    if (::seteuid(65534) != 0) ::_exit(100);
  };
  EXPECT_EQ(elsewhere(become, [this] { return judged(program_).coverage; }), Coverage::changed_ids);
  EXPECT_TRUE(is_secure(become));
  JudgeOptions options;
  options.resets_ids = true;
  EXPECT_EQ(elsewhere(become, [&] { return judged(program_, options).coverage; }),
            Coverage::covered);
  // A setuid program that takes the difference away is secure for newer kernels.
  owned(0, 0, 04755);
  EXPECT_EQ(elsewhere(become, [this] { return judged(program_).coverage; }), Coverage::set_user_id);
}

TEST_F(SecureExecution, FileCapabilitiesOfAnOrdinaryUser) {
  owned(0, 0, 0755);
  constexpr uint32_t kRaw = 1u << CAP_NET_RAW;
  for (const auto& [permitted, inheritable, effective] :
       {std::tuple{kRaw, 0u, true}, {kRaw, 0u, false}, {0u, kRaw, false}, {0u, 0u, true}}) {
    set_capability(permitted, inheritable, effective);
    if (IsSkipped()) return;
    EXPECT_EQ(judged(program_).coverage, Coverage::covered) << "root has them already";
    const bool secure = is_secure([] { become_user(65534); });
    EXPECT_EQ(as(65534), secure ? Coverage::file_capabilities : Coverage::covered)
        << permitted << " " << inheritable << " " << effective;
  }
}

TEST_F(SecureExecution, WhatMayBeExecutedButNotReadIsNotKnown) {
  owned(0, 0, 0711);
  EXPECT_EQ(judged(program_).coverage, Coverage::covered);  // root reads it
  EXPECT_EQ(as(65534), Coverage::unreadable);
  owned(0, 0, 04711);
  EXPECT_EQ(as(65534), Coverage::set_user_id);
  // Who may not even execute it hears so from the kernel.
  owned(0, 0, 0700);
  EXPECT_EQ(as(65534), Coverage::not_executable);
}

TEST_F(SecureExecution, WhatTheDynamicLinkerMapsGivesNoPrivileges) {
  owned(65534, 0, 04755);
  JudgeOptions options;
  options.is_mapped_by_loader = true;
  EXPECT_EQ(judged(program_, options).coverage, Coverage::covered);
  EXPECT_EQ(judged(static_program(), options).coverage, Coverage::static_program);
}

// ---- binfmt_misc: kernels since 6.7 have one for each user namespace ----

TEST_F(CoverageTest, WhatBinfmtMiscStartsIsTheProgram) {
  const std::string program = static_program();
  const std::string magic = file("magic", "MWT_EST and more");
  const std::string other = file("other", "MWT_ESX and more");
  const std::string extension = file("file.mwtest", "text");
  constexpr int kNotHere = 99;
  const auto become = [&] {
    const auto tell = [](const char* name, const std::string& text) {
      const int fd = ::open(name, O_WRONLY | O_CLOEXEC);
      if (fd < 0 || ::write(fd, text.data(), text.size()) < 0) ::_exit(kNotHere);
      ::close(fd);
    };
    constexpr const char* kPlace = "/proc/sys/fs/binfmt_misc";
    // As they are before the namespace.
    const std::string user = "0 " + std::to_string(::getuid()) + " 1";
    const std::string group = "0 " + std::to_string(::getgid()) + " 1";
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ::_exit(kNotHere);
    tell("/proc/self/uid_map", user);
    tell("/proc/self/setgroups", "deny");
    tell("/proc/self/gid_map", group);
    if (::mount("none", kPlace, "binfmt_misc", 0, nullptr) != 0) ::_exit(kNotHere);
    const std::string registry = std::string(kPlace) + "/register";
    tell(registry.c_str(), ":mwmagic:M:4:EST:\\xff\\xff\\xff:" + program + ":");
    tell(registry.c_str(), ":mwextension:E::mwtest::" + program + ":");
  };
  const auto seen = [&](const std::string& name) {
    return elsewhere(become, [&] { return judged(name).coverage; });
  };
  const Coverage first = seen(magic);
  if (static_cast<int>(first) == kNotHere) GTEST_SKIP() << "no binfmt_misc in user namespaces";
  EXPECT_EQ(first, Coverage::static_program);
  EXPECT_EQ(seen(extension), Coverage::static_program);
  EXPECT_EQ(seen(other), Coverage::no_format);
  EXPECT_EQ(judged(magic).coverage, Coverage::no_format);
}

// ---- the dynamic linker as a program, and the list of what is allowed ----

TEST_F(CoverageTest, TheDynamicLinkerStartsAnotherProgram) {
  const Judgement j = judged(kLoader);
  EXPECT_EQ(j.coverage, Coverage::covered);
  EXPECT_TRUE(j.is_loader);
  EXPECT_FALSE(judged("/bin/true").is_loader);
  const auto behind = [](std::vector<const char*> words) {
    words.push_back(nullptr);
    const char* found = behind_loader(words.data());
    return std::string(found == nullptr ? "-" : found);
  };
  EXPECT_EQ(behind({"ld", "/bin/x", "--list"}), "/bin/x");
  EXPECT_EQ(behind({"ld", "--inhibit-cache", "--library-path", "/a", "--argv0", "b", "x"}), "x");
  EXPECT_EQ(behind({"ld", "--verify", "/bin/x"}), "-");
  EXPECT_EQ(behind({"ld", "--list", "/bin/x"}), "-");
  EXPECT_EQ(behind({"ld", "--preload"}), "-");
  EXPECT_EQ(behind({"ld"}), "-");
  EXPECT_EQ(behind({}), "-");
}

TEST_F(CoverageTest, TheListNamesProgramsByNameOrPath) {
  const std::string program = static_program("busybox");
  ASSERT_EQ(::symlink("busybox", path("ls").c_str()), 0);
  const std::string link = path("ls");
  const Judgement j = judged(link);
  const auto allows = [&](const std::string& list) {
    return is_allowed(list.c_str(), j, link.c_str());
  };
  for (const std::string& list : {std::string("*"), std::string("ls"), std::string("busybox"),
                                  program, link, "x,," + program + ",y", std::string(",ls")})
    EXPECT_TRUE(allows(list)) << list;
  for (const std::string& list :
       {std::string(), std::string(","), std::string("l"), std::string("lsx"), std::string("**"),
        std::string("busybox "), path("none"), std::string("/bin/true"),
        std::string(PATH_MAX + 1, 'x')})
    EXPECT_FALSE(allows(list)) << list;
  // Of a script it is the interpreter that is meant.
  const std::string script = file("script", "#!" + program + "\n");
  const Judgement s = judged(script);
  EXPECT_TRUE(is_allowed("busybox", s, script.c_str()));
  EXPECT_FALSE(is_allowed("script", s, script.c_str()));
}

TEST_F(CoverageTest, ASentenceSaysWhichAndWhy) {
  const std::string program = static_program();
  EXPECT_EQ(described(program).find(program + " is statically linked: "), 0u);
  const std::string script = file("script", "#!" + program + "\n");
  EXPECT_EQ(described(script).find(script + " runs " + program + " is statically linked: "), 0u);
  EXPECT_EQ(described(path("none")), path("none") + " was not found (No such file or directory)");
  // Nothing in a name can start a line of its own.
  const std::string odd = static_program("a\nb\x1b[1m");
  EXPECT_EQ(described(odd).find_first_of("\n\x1b"), std::string::npos);
  char small[20];
  describe(judged(program), program.c_str(), small, sizeof small);
  EXPECT_EQ(strlen(small), sizeof small - 1);
}

}  // namespace
}  // namespace mw
