#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks that the version in version.hpp is the one in the files that cannot read it from there.

usage: version.py SOURCE_FOLDER
"""

import json
import pathlib
import re
import sys


def main(arguments):
    if len(arguments) != 1:
        print(__doc__)
        return 2
    top = pathlib.Path(arguments[0])
    header = (top / "include/conclave/version.hpp").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^#define CONCLAVE_VERSION_(MAJOR|MINOR|PATCH) +(\d+)", header, re.MULTILINE))
    version = ".".join(parts[part] for part in ("MAJOR", "MINOR", "PATCH"))
    vcpkg = json.loads((top / "packaging/vcpkg/vcpkg.json").read_text(encoding="utf-8"))["version-semver"]
    newest = re.search(r"^## (.*)$", (top / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    complaints = []
    if vcpkg != version:
        complaints.append(f"packaging/vcpkg/vcpkg.json says {vcpkg}, version.hpp {version}")
    if version not in newest:
        complaints.append(f"CHANGELOG.md begins with '{newest}', version.hpp says {version}")
    for complaint in complaints:
        print(complaint)
    print(f"version {version}, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
