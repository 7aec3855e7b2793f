#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks that what fwd.hpp declares is defined, as the same kind of thing, in the headers that users include.

usage: forward.py INCLUDE_FOLDER
"""

import pathlib
import re
import sys

DECLARED = re.compile(r"^(class|struct|enum class) (\w+);", re.MULTILINE)


def main(arguments):
    if len(arguments) != 1:
        print(__doc__)
        return 2
    root = pathlib.Path(arguments[0]) / "conclave"
    headers = [p for folder in (root, root / "etcd") for p in folder.glob("*.hpp") if p.name != "fwd.hpp"]
    text = "\n".join(p.read_text(encoding="utf-8") for p in headers)
    declared = DECLARED.findall((root / "fwd.hpp").read_text(encoding="utf-8"))
    complaints = [f"fwd.hpp declares {kind} {name}, which no header defines"
                  for kind, name in declared
                  if not re.search(rf"^{kind} {name}\b[^;]*\{{", text, re.MULTILINE)]
    if not declared:
        complaints.append("fwd.hpp declares nothing: this check would check nothing")
    for complaint in complaints:
        print(complaint)
    print(f"{len(declared)} declarations, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
