#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks that the tests which fault_test.cpp names for the pairs that it leaves out exist under those names.

usage: named_tests.py INTEGRATION_TESTS_FOLDER
"""

import pathlib
import re
import sys

LITERAL = re.compile(r'"((?:\\.|[^"\\])*)"')
TEXT = re.compile(rf"(?:{LITERAL.pattern}\s*)+")  # literals side by side are one


def named(text):
    """Pairs of (file, test case): `const std::string queues = "queue_test: ";` and, later, `queues + "…"`, where
    the right side may be a choice of several."""
    found = set()
    for name, file in re.findall(r'const std::string (\w+) = "(\w+_test): ";', text):
        for use in re.finditer(rf"\b{name}\s*\+\s*(\(?)", text):
            one = TEXT.match(text, use.end())
            end = text.index(")", use.end()) if use.group(1) else one.end()
            for case in TEXT.finditer(text, use.end(), end):
                found.add((file, "".join(LITERAL.findall(case.group()))))
    return found


def main():
    folder = pathlib.Path(sys.argv[1])
    pairs = named((folder / "fault_test.cpp").read_text())
    missing = []
    for file, case in sorted(pairs):
        text = (folder / f"{file}.cpp").read_text()
        if not re.search(r'TEST_CASE\(\s*"' + re.escape(case) + '"', text):
            missing.append(f'{file}.cpp has no test "{case}"')
    print("\n".join(missing) or f"{len(pairs)} tests are named, and exist")
    return 1 if missing or len(pairs) < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
