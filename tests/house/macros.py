#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks that our headers leave only CONCLAVE_ macros behind, explained where they are defined.

usage: macros.py INCLUDE_FOLDER COMPILER [FLAG...] | --self-test COMPILER
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# Settings of Asio that asio.hpp makes on purpose, for compilers that Asio does not recognise.
FOREIGN = {"asio.hpp": {"ASIO_STANDALONE", "ASIO_HAS_CO_AWAIT", "ASIO_HAS_STD_COROUTINE"}}

LINE_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"')
DIRECTIVE = re.compile(r"^#(define|undef) (\w+)")


def left_behind(root, compiler, flags):
    """The macros that our headers define and nobody undefines: name -> (header, line)."""
    headers = sorted(p.relative_to(root).as_posix() for p in (root / "conclave").rglob("*.hpp")
                     if p.name != "src.hpp")  # which includes them all
    source = "".join(f"#include <{header}>\n" for header in headers)
    command = [compiler, *flags, f"-I{root}", "-E", "-dD", "-x", "c++", "-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-4000:]}")
    ours, file, line = {}, "", 0
    for text in run.stdout.splitlines():
        marker = LINE_MARKER.match(text)
        if marker:
            file, line = marker.group(2), int(marker.group(1))
            continue
        directive = DIRECTIVE.match(text)
        if directive:
            kind, name = directive.groups()
            ours.pop(name, None)
            if kind == "define" and pathlib.Path(file).is_relative_to(root):
                ours[name] = (pathlib.Path(file).relative_to(root / "conclave").as_posix(), line)
        line += 1
    return headers, ours


def explained(root, header, name):
    """Whether a comment stands on the macro's line, or above its run of preprocessor lines."""
    lines = (root / "conclave" / header).read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(lines):
        if not re.match(rf"\s*#\s*define\s+{name}\b", text):
            continue
        if "//" in text:
            return True
        above = number - 1
        while above >= 0 and re.match(r"\s*#", lines[above]):
            above -= 1
        if above >= 0 and lines[above].lstrip().startswith("//"):
            return True
    return False


def check(root, compiler, flags):
    root = pathlib.Path(root).resolve()
    headers, ours = left_behind(root, compiler, flags)
    complaints = [] if headers else ["no header found: this check would check nothing"]
    for name, (header, line) in sorted(ours.items()):
        where = f"{header}:{line}: {name}"
        if name in FOREIGN.get(header, ()):
            continue
        if not name.startswith("CONCLAVE_"):
            complaints.append(f"{where} stays defined and does not begin with CONCLAVE_")
        elif not explained(root, header, name):
            complaints.append(f"{where} stays defined and no comment explains it: is it public?")
    return complaints, len(headers), len(ours)


CASES = [
    ("/// Public.\n#define CONCLAVE_VERSION_MAJOR 0\n#define CONCLAVE_VERSION_MINOR 1\n", None),
    ("#define HELPER 1\n#undef HELPER\n", None),
    ("#include <climits>\n", None),
    ("#define HELPER 1\n", "does not begin"),
    ("#define CONCLAVE_HELPER 1\n", "no comment"),
    ("#define ASIO_STANDALONE\n", "does not begin"),
]


def self_test(compiler):
    failures = 0
    for text, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            header = pathlib.Path(folder) / "conclave" / "planted.hpp"
            header.parent.mkdir()
            header.write_text("#pragma once\n" + text, encoding="utf-8")
            complaints, _, _ = check(folder, compiler, ["-std=c++20"])
        right = any(expected in c for c in complaints) if expected else not complaints
        if not right:
            failures += 1
            print(f"planted {text!r}: expected {expected!r}, got {complaints}")
    with tempfile.TemporaryDirectory() as folder:
        if not check(folder, compiler, ["-std=c++20"])[0]:
            failures += 1
            print("an empty folder passes")
    print(f"{len(CASES) + 1} cases, {failures} failures")
    return 1 if failures else 0


def main(arguments):
    if len(arguments) == 2 and arguments[0] == "--self-test":
        return self_test(arguments[1])
    if len(arguments) < 2:
        print(__doc__)
        return 2
    complaints, headers, macros = check(arguments[0], arguments[1], arguments[2:])
    for complaint in complaints:
        print(complaint)
    print(f"{headers} headers, {macros} macros of ours stay defined, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
