#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Checks which header may include which: the one-way layers of docs/design.md.

usage: layers.py INCLUDE_FOLDER | --self-test
"""

import pathlib
import re
import sys
import tempfile

# From the bottom up; a header may include what stands in its own layer or below. The first pattern that
# matches a path (relative to conclave/) decides.
LAYERS = [
    # Names the inline namespace that everything is in.
    ("version", r"version\.hpp"),
    ("configuration", r"(asio|error|fwd)\.hpp"),
    ("messages", r"etcd/.*"),
    ("wire", r"detail/wire/.*"),
    # A pure state machine and the values that it works on know neither the wire nor the rpc layer; below they
    # are held to the standard library, the messages and the errors.
    ("machines", r"detail/(engine|pattern)/(.*_machine|backoff|numbered)\.hpp"),
    ("rpc", r"detail/rpc/.*"),
    ("engine", r"detail/engine/.*"),
    ("client", r"(client|client_.*|tls_options|kept_lease|watcher)\.hpp|detail/client/.*"),
    ("patterns", r"detail/pattern/.*"),
    # `session.hpp` is what all other recipes are made under.
    ("session", r"session\.hpp|detail/session/.*"),
    ("recipes", r"[a-z_]+\.hpp|detail/recipe/.*"),
    ("umbrella", r"(conclave|src)\.hpp"),
    ("testing", r"testing/.*"),
]
RANK = {name: rank for rank, (name, _) in enumerate(LAYERS)}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
CLOCK = re.compile(r"\b(steady_clock|system_clock|high_resolution_clock)\s*::\s*now\b")
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
THIRD_PARTY = ("google/", "grpcpp/", "grpc/", "grpc++/", "asio", "boost/", "absl/")


def header_of(path):
    """The header whose functions are defined at `path`; a header's own path."""
    return re.sub(r"(^|/)impl/([^/]+)\.ipp$", r"\1\2.hpp", path)


def layer_of(path):
    path = header_of(path)
    if path in ("conclave.hpp", "src.hpp"):
        return "umbrella"
    for name, pattern in LAYERS:
        if re.fullmatch(pattern, path):
            return name
    return None


def third_party_allowed(path, included):
    """Whether the header at `path` may include this header of gRPC, protobuf or Asio."""
    if included.startswith(("grpcpp/", "grpc/", "grpc++/")):
        return re.fullmatch(r"detail/rpc/grpc[^/]*\.hpp", path) is not None
    if included.startswith("google/protobuf/"):
        return path.startswith("detail/wire/")
    if included == "asio.hpp" or included.startswith(("asio/", "boost/")):
        return path == "asio.hpp"
    return False


def check_header(path, text, known):
    """The complaints about one header."""
    layer = layer_of(path)
    if layer is None:
        return [f"{path}: belongs to no layer (add its folder to LAYERS)"]
    complaints = []
    for kind, included in INCLUDE.findall(text):
        if kind == '"':
            complaints.append(f'{path}: "{included}": own headers are included as <conclave/...>')
        elif included.startswith("conclave/"):
            target = included.removeprefix("conclave/")
            if target not in known:
                complaints.append(f"{path}: <{included}> does not exist")
                continue
            if target.endswith(".ipp") and header_of(target) != path:
                complaints.append(f"{path}: includes {target}, which only {header_of(target)} may")
            above = layer_of(target)
            if above is None:
                continue  # reported for the target itself
            if RANK[above] > RANK[layer]:
                complaints.append(f"{path} ({layer}) includes {target} ({above}), which stands above it")
            if layer == "machines" and above not in ("machines", "messages", "version") and target != "error.hpp":
                complaints.append(f"{path}: a pure machine includes {target}, not std, etcd/ or error.hpp")
            if layer == "wire" and target == "asio.hpp" or layer == "messages" and above == "configuration":
                complaints.append(f"{path} ({layer}) includes {target}: this layer does not know Asio")
        elif included.startswith(THIRD_PARTY) and not third_party_allowed(path, included):
            complaints.append(f"{path}: <{included}> may not be included here")
    # testing/ is outside the seam: it runs real processes in real time.
    reads_clock = CLOCK.search(COMMENT.sub(" ", text)) is not None
    if reads_clock and layer != "testing" and not re.fullmatch(r"detail/rpc/[^/]*clock\.hpp", path):
        complaints.append(f"{path}: reads a clock; only the clock in detail/rpc may")
    return complaints


def reachable(start, graph):
    seen, todo = set(), [start]
    while todo:
        for target in graph.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def check(include_folder):
    root = pathlib.Path(include_folder) / "conclave"
    headers = sorted([*root.rglob("*.hpp"), *root.rglob("*.ipp")])
    texts = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in headers}
    if not texts:
        return ["no header found: this check would check nothing"], 0
    complaints = []
    for path, text in texts.items():
        complaints += check_header(path, text, texts)
    # Same-layer includes could hide a way around: a machine stays pure through everything that it reaches.
    graph = {}
    for path, text in texts.items():
        own = [header_of(i.removeprefix("conclave/")) for _, i in INCLUDE.findall(text) if i.startswith("conclave/")]
        graph.setdefault(header_of(path), []).extend(i for i in own if i != header_of(path))
    for path in graph:
        if path in reachable(path, graph):
            complaints.append(f"{path}: includes itself in a circle")
        if layer_of(path) == "messages":
            for target in sorted(reachable(path, graph)):
                if layer_of(target) not in ("messages", "version"):
                    complaints.append(f"{path}: a message reaches {target}; messages know std only")
    return sorted(set(complaints)), len(texts)


# Each case: files (beside the sound ones below) and a word that a complaint must contain; None: no complaint.
SOUND = {
    "asio.hpp": "#include <asio/post.hpp>\n",
    "error.hpp": "#include <string>\n",
    "version.hpp": "",
    "etcd/kv.hpp": "#include <vector>\n",
    "detail/wire/codec.hpp":
        "#include <conclave/etcd/kv.hpp>\n#include <google/protobuf/io/coded_stream.h>\n",
    "detail/rpc/grpc_channel.hpp": "#include <grpcpp/channel.h>\n#include <conclave/detail/wire/codec.hpp>\n",
    "detail/rpc/steady_clock.hpp": "auto t = std::chrono::steady_clock::now();\n",
    "detail/engine/hub_machine.hpp": "#include <conclave/error.hpp>\n#include <conclave/etcd/kv.hpp>\n",
    "detail/engine/hub.hpp":
        "#include <conclave/detail/engine/hub_machine.hpp>\n"
        "#include <conclave/detail/rpc/grpc_channel.hpp>\n",
    "client.hpp": "#include <conclave/detail/engine/hub.hpp>\n",
    "detail/pattern/line.hpp": "#include <conclave/client.hpp>\n",
    "session.hpp": "#include <conclave/client.hpp>\n",
    "mutex.hpp": "#include <conclave/session.hpp>\n#include <conclave/detail/pattern/line.hpp>\n",
    "conclave.hpp": "#include <conclave/mutex.hpp>\n",
    "testing/server.hpp": "#include <conclave/client.hpp>\nauto t = std::chrono::steady_clock::now();\n",
}
CASES = [
    ({}, None),
    ({"queue.hpp": "// see #include <grpcpp/x.h>, steady_clock::now()\n"}, None),
    ({"queue.hpp": "#include <conclave/impl/queue.ipp>\n",
      "impl/queue.ipp": "#include <conclave/queue.hpp>\n#include <conclave/session.hpp>\n"}, None),
    ({"queue.hpp": "#include <conclave/impl/queue.ipp>\n",
      "impl/queue.ipp": "#include <conclave/conclave.hpp>\n"}, "stands above"),
    ({"mutex.hpp": "#include <conclave/impl/queue.ipp>\n",
      "impl/queue.ipp": ""}, "which only queue.hpp may"),
    ({"detail/pattern/line.hpp": "#include <conclave/detail/pattern/impl/line.ipp>\n",
      "detail/pattern/impl/line.ipp": "#include <conclave/session.hpp>\n"}, "stands above"),
    ({"etcd/bad.hpp": "#include <conclave/client.hpp>\n"}, "stands above"),
    ({"etcd/bad.hpp": "#include <conclave/asio.hpp>\n"}, "does not know Asio"),
    ({"etcd/good.hpp": "#include <conclave/version.hpp>\n"}, None),
    ({"detail/engine/good_machine.hpp": "#include <conclave/version.hpp>\n"}, None),
    ({"version.hpp": "#include <conclave/error.hpp>\n"}, "stands above"),
    ({"detail/wire/bad.hpp": "#include <conclave/detail/rpc/grpc_channel.hpp>\n"}, "stands above"),
    ({"detail/rpc/bad.hpp": "#include <conclave/detail/engine/hub_machine.hpp>\n"
      "#include <conclave/detail/engine/hub.hpp>\n"}, "stands above"),
    ({"client_bad.hpp": "#include <conclave/mutex.hpp>\n"}, "stands above"),
    ({"mutex.hpp": "  #  include <conclave/testing/server.hpp>\n"}, "stands above"),
    ({"conclave.hpp": "#include <conclave/testing/server.hpp>\n"}, "stands above"),
    ({"mutex.hpp": "#include <conclave/conclave.hpp>\n"}, "stands above"),
    ({"detail/rpc/bad.hpp": "#include <grpcpp/channel.h>\n"}, "may not be included"),
    ({"detail/engine/bad.hpp": "#include <grpcpp/channel.h>\n"}, "may not be included"),
    ({"detail/rpc/grpc_channel.hpp": "#include <google/protobuf/message.h>\n"}, "may not be included"),
    ({"mutex.hpp": "#include <asio/steady_timer.hpp>\n"}, "may not be included"),
    ({"mutex.hpp": "#include <boost/asio/post.hpp>\n"}, "may not be included"),
    ({"mutex.hpp": "auto t = std::chrono::steady_clock::now();\n"}, "reads a clock"),
    ({"detail/rpc/grpc_bad.hpp": "auto t = std::chrono::system_clock :: now();\n"}, "reads a clock"),
    ({"detail/engine/bad_machine.hpp": "#include <conclave/asio.hpp>\n"}, "pure machine"),
    ({"detail/engine/bad_machine.hpp": "#include <conclave/detail/wire/codec.hpp>\n"}, "pure machine"),
    ({"detail/engine/bad_machine.hpp": "#include <conclave/detail/engine/hub.hpp>\n"}, "pure machine"),
    ({"mutex.hpp": "#include <conclave/queue.hpp>\n",
      "queue.hpp": "#include <conclave/mutex.hpp>\n"}, "circle"),
    ({"mutex.hpp": "#include <conclave/nothing.hpp>\n"}, "does not exist"),
    ({"mutex.hpp": '#include "session.hpp"\n'}, "included as"),
    ({"elsewhere/bad.hpp": ""}, "no layer"),
]


def self_test():
    failures = 0
    for files, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for path, text in {**SOUND, **files}.items():
                file = pathlib.Path(folder) / "conclave" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            complaints, _ = check(folder)
        right = any(expected in c for c in complaints) if expected else not complaints
        if not right:
            failures += 1
            print(f"planted {files}: expected {expected!r}, got {complaints}")
    with tempfile.TemporaryDirectory() as folder:
        if not check(folder)[0]:
            failures += 1
            print("an empty folder passes")
    print(f"{len(CASES) + 1} cases, {failures} failures")
    return 1 if failures else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) != 1:
        print(__doc__)
        return 2
    complaints, count = check(arguments[0])
    for complaint in complaints:
        print(complaint)
    print(f"{count} headers, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
