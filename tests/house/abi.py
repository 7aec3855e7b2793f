#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks that every name of ours is in the inline namespace that tells version and Asio: two builds which differ in
them then do not link, where they would break at run time.

usage: abi.py INCLUDE_FOLDER COMPILER     checks the headers, and the names that COMPILER makes
       abi.py --fix INCLUDE_FOLDER        puts the headers right (then run tools/format and tools/amalgamate)
"""

import pathlib
import re
import subprocess
import sys

OPENED = re.compile(r"^namespace conclave((?:::\w+)*) \{", re.MULTILINE)
RIGHT = re.compile(r"^namespace conclave::inline CONCLAVE_ABI((?:::\w+)*) \{", re.MULTILINE)
INCLUDE = "#include <conclave/version.hpp>\n"
OWN_INCLUDE = re.compile(r"^#include <conclave/", re.MULTILINE)
DIRECTIVE = re.compile(r"^#(include|if)", re.MULTILINE)


def sources(root):
    return sorted(p for p in (root / "conclave").rglob("*") if p.suffix in (".hpp", ".ipp"))


def fixed(text):
    """A header's text with its namespaces opened as they should be, and the header included that names them."""
    text, count = OPENED.subn(r"namespace conclave::inline CONCLAVE_ABI\1 {", text)
    if not count or INCLUDE in text:
        return text
    own = OWN_INCLUDE.search(text)
    if own:
        return text[:own.start()] + INCLUDE + text[own.start():]
    first = DIRECTIVE.search(text) or RIGHT.search(text)
    return text[:first.start()] + INCLUDE + "\n" + text[first.start():]


def mangled(root, compiler, definition):
    source = "#include <conclave/fwd.hpp>\nvoid name_of(conclave::client&) {}\n"
    command = [compiler, "-std=c++20", f"-I{root}", *definition, "-S", "-x", "c++", "-", "-o", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def check(root, compiler):
    headers = [p for p in sources(root) if p.name != "version.hpp"]
    complaints, right = [], 0
    for path in headers:
        text = path.read_text(encoding="utf-8")
        right += len(RIGHT.findall(text))
        complaints += [f"{path}: opens namespace conclave{inner} outside of the inline namespace"
                       for inner in OPENED.findall(text)]
        # What defines a header's functions has it from the header.
        if RIGHT.search(text) and INCLUDE not in text and path.suffix == ".hpp":
            complaints.append(f"{path}: does not include conclave/version.hpp, which names the inline namespace")
    if not right:
        complaints.append("no header opens the inline namespace: this check would check nothing")
    version = dict(re.findall(r"^#define CONCLAVE_VERSION_(MAJOR|MINOR) +(\d+)",
                              (root / "conclave/version.hpp").read_text(encoding="utf-8"), re.MULTILINE))
    begin = f"v{version['MAJOR']}_{version['MINOR']}_"
    for definition, name in (([], "standalone"), (["-DCONCLAVE_USE_BOOST_ASIO"], "boost")):
        if begin + name not in mangled(root, compiler, definition):
            complaints.append(f"names made with {definition or 'no definition'} do not have {begin + name}")
    return complaints, right


def main(arguments):
    if len(arguments) != 2:
        print(__doc__)
        return 2
    if arguments[0] == "--fix":
        for path in sources(pathlib.Path(arguments[1])):
            text = path.read_text(encoding="utf-8")
            if path.name != "version.hpp" and fixed(text) != text:
                path.write_text(fixed(text), encoding="utf-8")
                print(f"changed {path}")
        return 0
    complaints, right = check(pathlib.Path(arguments[0]), arguments[1])
    for complaint in complaints:
        print(complaint)
    print(f"{right} namespaces, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
