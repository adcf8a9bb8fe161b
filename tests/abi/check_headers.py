"""Compiles each header of abi/ the ways its users do, each alone and twice in a row.

usage: check_headers.py ROOT c11|cxx20|kernel

c11, cxx20: with every compiler of gcc and clang that is installed, and all warnings as errors.
kernel: in an out-of-tree stub module against the kernel headers that are installed; the module is built
and never loaded.
Exits 0 if all compile and a header that is wrong on purpose does not.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pedantic-errors"]
LANGUAGES = {"c11": (["gcc", "clang"], ["-x", "c", "-std=c11"]),
             "cxx20": (["g++", "clang++"], ["-x", "c++", "-std=c++20"])}
# A wrong size, which every user of a header must notice.
WRONG = """#pragma once
#include "abi/mw_types.h"
struct mw_wrong { uint32_t a; uint64_t b; };
MW_STATIC_ASSERT(sizeof(struct mw_wrong) == 12, "there is padding");
"""


def run(command, **how):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **how)


def compile_alone(compiler, options, root, header):
    source = f'#include "{header}"\n#include "{header}"\nint main(void) {{ return 0; }}\n'
    return run([compiler, *options, *WARNINGS, f"-I{root}", "-fsyntax-only", "-"], input=source)


def check_userspace(root, headers, language):
    compilers, options = LANGUAGES[language]
    found = [c for c in compilers if shutil.which(c)]
    if not found:
        return f"none of {', '.join(compilers)} is installed"
    with tempfile.TemporaryDirectory() as folder:
        wrong = pathlib.Path(folder) / "wrong.h"
        wrong.write_text(WRONG, encoding="utf-8")
        for compiler in found:
            for header in headers:
                result = compile_alone(compiler, options, root, header)
                if result.returncode != 0:
                    return f"{header} does not compile with {compiler} as {language}:\n{result.stdout}"
            if compile_alone(compiler, options, root, str(wrong)).returncode == 0:
                return f"{compiler} accepts a wrong size as {language}"
    return None


def kernel_build_folder():
    """The newest installed kernel headers that modules can be built against, or None."""
    running = pathlib.Path("/lib/modules") / os.uname().release / "build"
    candidates = [running, *sorted(pathlib.Path("/usr/src").glob("linux-headers-*"), reverse=True)]
    for folder in candidates:
        if (folder / "Makefile").exists() and (folder / ".config").exists():
            return folder
    return None


def build_module(kernel, root, headers):
    lines = ["#include <linux/module.h>"]
    lines += [f'#include "{h}"' for h in headers for _ in range(2)]
    lines += [
        # Uses the inline functions, so that they are compiled to code.
        "static struct mw_geometry g = {.slots = 1, .rx_ring = 4096, .tx_ring = 4096, .groups = 1, .workers = 1,",
        "                               .calls = 1};",
        "static int __init stub_init(void) {",
        "  struct mw_layout l;",
        "  return mw_layout_of(&g, &l) == 0 && l.bytes > 0 ? 0 : -EINVAL;",
        "}",
        "static void __exit stub_exit(void) {}",
        "module_init(stub_init);",
        "module_exit(stub_exit);",
        'MODULE_LICENSE("GPL");',
        'MODULE_DESCRIPTION("compiles the headers of the shared region");',
    ]
    with tempfile.TemporaryDirectory() as folder:
        stub = pathlib.Path(folder)
        (stub / "mw_abi_stub.c").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (stub / "Kbuild").write_text(
            # The kernel's own warnings: its headers do not pass more than these.
            f"obj-m := mw_abi_stub.o\nccflags-y := -std=gnu11 -Werror -I{root}\n", encoding="utf-8")
        result = run(["make", "-C", str(kernel), f"M={stub}", "modules"])
        return result, (stub / "mw_abi_stub.ko").exists()


def check_kernel(root, headers):
    kernel = kernel_build_folder()
    if kernel is None:
        return "no kernel headers found: install linux-headers-amd64"
    result, built = build_module(kernel, root, headers)
    if result.returncode != 0 or not built:
        return f"the stub module does not build against {kernel}:\n{result.stdout}"
    with tempfile.TemporaryDirectory() as folder:
        wrong = pathlib.Path(folder) / "wrong.h"
        wrong.write_text(WRONG, encoding="utf-8")
        result, _ = build_module(kernel, root, [*headers, str(wrong)])
        if result.returncode == 0:
            return "the stub module builds with a wrong size in it"
    return None


def main():
    if len(sys.argv) != 3 or sys.argv[2] not in (*LANGUAGES, "kernel"):
        print(__doc__, file=sys.stderr)
        return 2
    root = pathlib.Path(sys.argv[1]).resolve()
    headers = [f"abi/{p.name}" for p in sorted((root / "abi").glob("*.h"))]
    if not headers:
        print(f"no headers in {root}/abi")
        return 1
    how = sys.argv[2]
    fault = check_kernel(root, headers) if how == "kernel" else check_userspace(root, headers, how)
    if fault:
        print(fault)
        return 1
    print(f"{how}: {', '.join(headers)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
