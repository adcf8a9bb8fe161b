"""Checks what the kernel's own build makes of kmod/.

usage: check_kmod.py ROOT freestanding|module|locks

freestanding: each file of the core compiles as C11 without a C library, with gcc and clang and all
warnings, and needs nothing but the four functions that kmod/core/base.h names.
module: the module builds against the installed kernel headers with warnings as errors, and its core
needs nothing of the kernel but those functions and what the compiler itself calls.
locks: no operation of the module on shared words is one whose lock prefix a kernel on one processor
takes away; an operation of the kernel's own kind, in the same build, is found to be one.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

C11 = ["-std=c11", "-ffreestanding", "-mgeneral-regs-only", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wvla",
       "-Wconversion", "-Wno-sign-conversion", "-Wdeclaration-after-statement", "-Werror"]
FUNCTIONS = {"memcpy", "memmove", "memset", "memcmp"}
# What compilers call of themselves in the kernel: tracing, return thunks, stack protection.
COMPILERS = re.compile(r"__fentry__|__x86_\w+|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_")
# A file whose atomics the kernel patches, beside one in which they are the core's.
PATCHED = """#include <linux/bitops.h>
#include <linux/types.h>
void mw_patched(unsigned long *word);
void mw_patched(unsigned long *word) { set_bit(3, word); }
"""


def run(command, **how):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **how)


def kernel_build_folder():
    """The newest installed kernel headers that modules can be built against, or None."""
    folders = sorted(pathlib.Path("/usr/src").glob("linux-headers-*"), reverse=True)
    return next((f for f in folders if (f / "Makefile").exists() and (f / ".config").exists()), None)


def undefined(objects):
    """What these objects need of others."""
    own, needed = set(), set()
    for line in run(["nm", *map(str, objects)]).stdout.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "U":
            needed.add(words[1])
        elif len(words) == 3:
            own.add(words[2])
    return {name for name in needed - own if not COMPILERS.fullmatch(name)}


def check_freestanding(root):
    compilers = [c for c in ("gcc", "clang") if shutil.which(c)]
    if not compilers:
        return "neither gcc nor clang is installed"
    for compiler in compilers:
        with tempfile.TemporaryDirectory() as folder:
            objects = []
            for source in sorted((root / "kmod/core").glob("*.c")):
                objects.append(pathlib.Path(folder) / f"{source.stem}.o")
                done = run([compiler, *C11, f"-I{root}", "-c", str(source), "-o", str(objects[-1])])
                if done.returncode != 0:
                    return f"{compiler}: {source.name}:\n{done.stdout}"
            if not undefined(objects) <= FUNCTIONS:
                return f"{compiler}: the core needs {', '.join(sorted(undefined(objects) - FUNCTIONS))}"
    return None


def build(root, folder, extra=""):
    """Builds the module in `folder`. Returns a fault, or None; `extra`: one more file of the module."""
    kernel = kernel_build_folder()
    if kernel is None:
        return "no kernel headers found: install linux-headers-amd64"
    shutil.copytree(root / "abi", folder / "abi")
    shutil.copytree(root / "kmod", folder / "kmod")
    if extra:
        (folder / "kmod/extra.c").write_text(extra, encoding="utf-8")
        with (folder / "kmod/Kbuild").open("a", encoding="utf-8") as kbuild:
            kbuild.write("mwcomms-y += extra.o\n")
    done = run(["make", "-C", str(kernel), f"M={folder / 'kmod'}", "modules"])
    if done.returncode != 0 or not (folder / "kmod/mwcomms.ko").exists():
        return f"the module does not build against {kernel}:\n{done.stdout}"
    if re.search(r"\bwarning:", done.stdout):
        return f"the module builds with warnings:\n{done.stdout}"
    return None


def check_module(root):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        fault = build(root, folder)
        if fault:
            return fault
        needs = undefined(sorted((folder / "kmod/core").glob("*.o")))
        if not needs <= FUNCTIONS:
            return f"the core in the kernel needs {', '.join(sorted(needs - FUNCTIONS))}"
    return None


def patched(file):
    """True if the file lists instructions whose lock prefix the kernel takes away on one processor."""
    return ".smp_locks" in run(["objdump", "-h", str(file)]).stdout


def check_locks(root):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        fault = build(root, folder, PATCHED)
        if fault:
            return fault
        kmod = folder / "kmod"
        if not patched(kmod / "extra.o"):
            return "the kernel's set_bit() is not found in .smp_locks: this test would find nothing"
        for file in [kmod / "main.o", *sorted((kmod / "core").glob("*.o"))]:
            if patched(file):
                return f"{file.name} has operations that lose their lock prefix on one processor"
        # And they are there: what the sets and words of main.c's trial need.
        code = run(["objdump", "-d", "--no-show-raw-insn", str(kmod / "main.o")]).stdout
        for wanted in (r"lock bts\s", r"lock btsq?\s+\S+,\S*\(", r"lock btr", r"xchg\s+%r\w+,\S*\(|xchg\s+\S*\(\S*\),%r\w+",
                       r"xchg\s+%e\w+,\S*\(|xchg\s+\S*\(\S*\),%e\w+"):
            if not re.search(wanted, code):
                return f"main.o has no {wanted}"
    return None


def main():
    checks = {"freestanding": check_freestanding, "module": check_module, "locks": check_locks}
    if len(sys.argv) != 3 or sys.argv[2] not in checks:
        print(__doc__, file=sys.stderr)
        return 2
    fault = checks[sys.argv[2]](pathlib.Path(sys.argv[1]).resolve())
    print(fault or f"kmod: {sys.argv[2]}")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
