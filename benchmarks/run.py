#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Runs the benchmarks on the etcd that ETCD_ENDPOINTS names, and writes RESULTS.md and its plots.

usage: run.py --build FOLDER [--quick] [--case NAME] [--repeat N] [--json FILE] [--readme]
       run.py --build FOLDER --smoke

tools/bench builds everything, starts an etcd and calls this. With --smoke, it only makes sure that every case
of every program works, by a few operations each.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
IMPLS = ("conclave", "go", "floor")
POSTED = "posted"  # the floor with --posted
NAMES = {"conclave": "conclave", "go": "Go", "floor": "bare gRPC", POSTED: "bare gRPC, posted"}
FLOOR_CASES = {"put", "put-pipelined", "lock-uncontended", "lock-contended", "lock-many", "enqueue", "drain",
               "dequeue-latency"}
POSTED_CASES = {"put", "put-pipelined", "lock-uncontended", "dequeue-latency"}


class Variant:
    """One case with its options. `counts` are operations for each implementation, where they are not as many as
    the time allows. `close`: its ratios are close to their targets, so that it needs more runs than others."""

    def __init__(self, case, *options, name=None, impls=(*IMPLS, POSTED), counts=None, quick=True,
                 warmup=100, close=False):
        self.case = case
        self.options = list(options)
        self.name = name or " ".join([case] + [word.removeprefix("--") for word in options])
        can = {"floor": FLOOR_CASES, POSTED: POSTED_CASES}
        self.impls = [i for i in impls if i not in can or case in can[i]]
        self.counts = counts or {}
        self.quick = quick
        self.warmup = warmup
        self.close = close

    def command(self, programs, impl, quick):
        count = self.counts.get(impl, 200_000)
        if quick and impl in self.counts and self.case != "waiters":
            count = max(10, count // 4)
        options = [*self.options, "--posted"] if impl == POSTED else self.options
        out = [programs[impl], self.case, *options, "--count", str(count), "--warmup", str(self.warmup)]
        if self.case not in ("waiters", "dequeue-latency"):
            out += ["--limit", "1" if quick else "3"]
        return out

    def smallest(self):
        """The same with as few operations as show that it works: more than may be under way, or none is measured."""
        name = self.name
        options = list(self.options)
        under_way = [int(options[n + 1]) for n, word in enumerate(options) if word in ("--depth", "--producers")]
        count = 4 * max([5] + under_way)
        for word in ("--locks", "--sessions"):
            if word in options and options[options.index(word) + 1] != "1":
                options[options.index(word) + 1] = str(count)
        out = Variant(self.case, *options, name=name, impls=self.impls, warmup=2)
        out.counts = dict.fromkeys(self.impls, 3 if self.case == "dequeue-latency" else count)
        if self.case == "waiters":
            out.warmup = 0
        return out


def plan():
    both = ("conclave", "go")
    out = [
        Variant("put", close=True),
        Variant("lock-uncontended", close=True),
        Variant("put-pipelined", "--depth", "8", quick=False),
        Variant("put-pipelined", "--depth", "64", close=True),
        Variant("put-pipelined", "--depth", "64", "--combined", impls=("conclave", "floor"), close=True),
    ]
    for contenders in (2, 3, 4, 10, 50):
        # All must stand in line before anything is measured, and Go's take long to get round.
        out.append(Variant("lock-contended", "--contenders", str(contenders), warmup=contenders * 2))
    out += [
        Variant("lock-contended", "--contenders", "4", "--noise", "200", impls=both, warmup=8),
        Variant("lock-contended", "--processes", "4", impls=both, warmup=8,
                counts={"conclave": 20_000, "go": 20_000}),
        Variant("lock-shared-session", "--contenders", "10", impls=both, quick=False),
        Variant("lock-many", "--depth", "64"),
        Variant("handoff", impls=both, warmup=10),
    ]
    # Prefilled: not so many that filling takes longer than draining.
    for consumers, go in ((1, 600), (4, 400), (16, 300), (64, 150)):
        out.append(Variant("drain", "--consumers", str(consumers), warmup=20, quick=consumers != 4,
                           counts={"conclave": 30_000 if consumers > 1 else 6_000, "go": go, "floor": 6_000}))
    out += [
        Variant("drain", "--consumers", "1", "--batch", "64", impls=("conclave",), warmup=128, quick=False,
                counts={"conclave": 30_000}),
        Variant("priority-drain", "--consumers", "16", impls=both, warmup=20, quick=False,
                counts={"conclave": 6_000, "go": 200}),
        Variant("enqueue", "--producers", "1", quick=False),
        Variant("enqueue", "--producers", "64"),
        Variant("queue", "--producers", "16", "--consumers", "64", impls=both, warmup=64,
                counts={"conclave": 200_000, "go": 5_000}),
        Variant("queue", "--processes", "4", "--producers", "4", "--consumers", "16", impls=both, quick=False,
                counts={"conclave": 50_000, "go": 5_000}),
        Variant("dequeue-latency", warmup=3, counts=dict.fromkeys((*IMPLS, POSTED), 90)),
    ]
    for count in (100, 1_000, 10_000):
        go_too = both if count < 10_000 else ("conclave",)
        exact = {"conclave": count, "go": count}
        for locks, sessions in ((1, 1), (count, 1), (1, count)):
            impls = [i for i in go_too if i == "conclave" or (locks, sessions) != (1, 1)]
            out.append(Variant("waiters", "--locks", str(locks), "--sessions", str(sessions), impls=impls,
                               name=waiters_name(count, locks, sessions), counts=dict(exact), warmup=0,
                               quick=count == 1_000 and sessions == 1 or (count, sessions) == (10_000, 1)))
    return out


def waiters_name(count, locks, sessions):
    where = "one lock" if locks == 1 else "a lock each"
    return f"waiters {count} on {where}, " + ("a session each" if sessions > 1 else "one session")


# ---- running ------------------------------------------------------------------------------------------------

def run_all(variants, programs, quick, repeats, keep):
    """({variant's name: {implementation: [the lines of its runs]}}, what failed)"""
    runs = {}
    failures = []
    # Each has to go first in turn: what went before may still keep etcd busy.
    jobs = [(v, r, v.impls[(n + r) % len(v.impls)])
            for v in variants for r in range(repeats * (3 if v.close and not quick else 1))
            for n in range(len(v.impls))]
    begun = time.monotonic()
    for number, (variant, repeat, impl) in enumerate(jobs, 1):
        command = variant.command(programs, impl, quick)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, 1, "", "not done within 120 s")
        line = {}
        if done.returncode == 0:
            line = json.loads(done.stdout)
            said = f"{line['per_s']:>10,.0f}/s  p50 {line['p50_us']:>9,.0f} us"
        else:
            said = f"FAILED: {done.stderr.strip()}"
            failures.append(f"{' '.join(command)}: {done.stderr.strip()}")
        passed = time.monotonic() - begun
        print(f"[{number:>3}/{len(jobs)} {passed:5.0f} s] {variant.name:<52} {NAMES[impl]:<17} {said}", flush=True)
        if not line:
            continue
        runs.setdefault(variant.name, {}).setdefault(impl, []).append(line)
        if keep:
            keep.write(json.dumps({**line, "variant": variant.name, "options": variant.options,
                                   "repeat": repeat}) + "\n")
            keep.flush()
    return runs, failures


def run_codec(program, quick):
    """{message: {who: nanoseconds}}"""
    command = [program, "--benchmark_format=json", f"--benchmark_min_time={0.02 if quick else 0.2}",
               f"--benchmark_repetitions={3}", "--benchmark_report_aggregates_only=true"]
    print("codec", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    out = {}
    for each in json.loads(done.stdout)["benchmarks"]:
        if each.get("aggregate_name") == "median":
            message, who = each["run_name"].split("/")[:2]
            out.setdefault(message, {})[who] = Median([each["cpu_time"]])
    return out


class Median(float):
    """A median that knows what it is of. Two are compared run by run: a machine whose speed changes while it works is
    about as fast in one turn of a case, and not in the next."""

    def __new__(cls, values):
        self = super().__new__(cls, statistics.median(values))
        self.values = list(values)
        return self

    def over(self, other):
        if isinstance(other, Median) and len(self.values) == len(other.values):
            return statistics.median(ours / theirs for ours, theirs in zip(self.values, other.values))
        return self / other


class Medians:
    """The median of a field over the runs of one implementation; None where there are none."""

    def __init__(self, runs):
        self.runs = runs

    def __call__(self, variant, impl, field="per_s"):
        lines = [line[field] for line in self.runs.get(variant, {}).get(impl, []) if field in line]
        return Median(lines) if lines else None

    def spread(self, variant, impl, field="per_s"):
        lines = [line[field] for line in self.runs.get(variant, {}).get(impl, [])]
        return (min(lines), max(lines)) if lines else None


# ---- targets ------------------------------------------------------------------------------------------------

def targets(of, codec):
    """Rows of (what, against what, bound as text, measured ratio, whether it is met, the same ratio of bare gRPC calls).
    What is only compared has no bound, and is not met or missed: both are None."""
    rows = []

    def row(what, against, ours, theirs, bound=None, at_most=False, unit="x", bare=None):
        if ours is None or theirs is None or theirs == 0:
            return
        ratio = ours.over(theirs)
        bare = "" if bare is None else f"{bare.over(theirs):.2f} {unit}"
        if bound is None:
            rows.append((what, against, None, f"{ratio:.2f} {unit}", None, bare))
            return
        rows.append((what, against, f"{'<=' if at_most else '>='} {bound:g} {unit}", f"{ratio:.2f} {unit}",
                     ratio <= bound if at_most else ratio >= bound, bare))

    single = "put-pipelined depth 64"
    combined = "put-pipelined depth 64 combined"
    for name in ("put", "lock-uncontended"):
        row(name, "Go", of(name, "conclave"), of(name, "go"), 1.0, bare=of(name, "floor"))
        row(name, "floor", of(name, "conclave"), of(name, "floor"), 0.9, bare=of(name, POSTED))
        row(name, "floor, its answers posted", of(name, "conclave"), of(name, POSTED))
    row(f"{single}, single calls", "Go", of(single, "conclave"), of(single, "go"), 1.0, bare=of(single, "floor"))
    row(f"{single}, single calls: CPU per put", "Go", of(single, "conclave", "cpu_us_per_op"),
        of(single, "go", "cpu_us_per_op"), 0.5, at_most=True, bare=of(single, "floor", "cpu_us_per_op"))
    row(f"{single}, combined", "Go", of(combined, "conclave"), of(single, "go"), 2.5, bare=of(combined, "floor"))
    row(f"{single}, single calls", "floor", of(single, "conclave"), of(single, "floor"), 0.9, bare=of(single, POSTED))
    row(f"{single}, combined", "floor", of(combined, "conclave"), of(single, "floor"), 2.0)
    row(f"{single}, single calls", "floor, its answers posted", of(single, "conclave"), of(single, POSTED))
    row(f"{single}, single calls: CPU per put", "floor, its answers posted", of(single, "conclave", "cpu_us_per_op"),
        of(single, POSTED, "cpu_us_per_op"))
    row(f"{single}, combined", "floor's transactions of 64 puts", of(combined, "conclave"), of(combined, "floor"))
    for contenders, bound in ((2, 8), (3, 20), (4, 20), (10, 8), (50, 4)):
        name = f"lock-contended contenders {contenders}"
        row(name, "Go", of(name, "conclave"), of(name, "go"), bound, bare=of(name, "floor"))
    for contenders in (2, 3, 4, 10, 50):
        name = f"lock-contended contenders {contenders}"
        row(name, "floor's lock-uncontended", of(name, "conclave"), of("lock-uncontended", "floor"), 0.6,
            bare=of(name, "floor"))
        row(name, "floor's line", of(name, "conclave"), of(name, "floor"))
    noisy = "lock-contended contenders 4 noise 200"
    row(noisy, "Go", of(noisy, "conclave"), of(noisy, "go"), 20)
    name = "lock-many depth 64"
    row(name, "Go", of(name, "conclave"), of(name, "go"), 3, bare=of(name, "floor"))
    for consumers, bound in ((1, 10), (16, 50), (64, 100)):
        name = f"drain consumers {consumers}"
        row(name, "Go", of(name, "conclave"), of(name, "go"), bound, bare=of(name, "floor"))
    row("drain consumers 1, 64 items at a time", "Go", of("drain consumers 1 batch 64", "conclave"),
        of("drain consumers 1", "go"))
    name = "enqueue producers 64"
    row(name, "Go", of(name, "conclave"), of(name, "go"), 3, bare=of(name, "floor"))
    name = "queue producers 16 consumers 64"
    row(name, "Go", of(name, "conclave"), of(name, "go"), 50)
    name = "dequeue-latency"
    row(f"{name} p50", "Go", of(name, "conclave", "p50_us"), of(name, "go", "p50_us"), 0.8, at_most=True,
        bare=of(name, "floor", "p50_us"))
    row(f"{name} p50", "floor's put and its event", of(name, "conclave", "p50_us"),
        of(name, "floor", "event_p50_us"), 1.3, at_most=True, bare=of(name, "floor", "p50_us"))
    for impl, how in (("floor", ""), (POSTED, ", posted")):
        row(f"{name} p50", f"floor's put, its event, and a claim{how}", of(name, "conclave", "p50_us"),
            of(name, impl, "p50_us"))
    for locks, bound in ((1, 2048), (10_000, 8192)):
        name = waiters_name(10_000, locks, 1)
        row(f"{name}: bytes each", "", of(name, "conclave", "bytes_each"), Median([1.0]), bound, at_most=True, unit="B")
        extra = of(name, "conclave", "extra_threads")
        if extra is not None:
            rows.append((f"{name}: threads more", "", "0", f"{extra:g}", extra <= 0, ""))
    for message, times in codec.items():
        row(f"codec: {message}", "protobuf's classes", times.get("protobuf"), times.get("conclave"), 1.0)
    return rows


# ---- the machine --------------------------------------------------------------------------------------------

def said_by(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return (done.stdout or done.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "unknown"


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def fsync_us():
    """What the disk takes to keep 2 KiB, where etcd has its data."""
    import tempfile
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(50):
            file.write(b"x" * 2048)
            file.flush()
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def etcd_version():
    first = os.environ["ETCD_ENDPOINTS"].split(",")[0]
    with urllib.request.urlopen(first + "/version", timeout=5) as answer:
        return json.load(answer)["etcdserver"]


def machine_facts(quick, repeats):
    import tempfile
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()
    top = HERE.parent
    commit = said_by("git", "-C", str(top), "describe", "--always", "--dirty")
    disk = said_by("sh", "-c", f"df --output=fstype {tempfile.gettempdir()} | tail -1")
    return [
        ("commit", commit),
        ("date", time.strftime("%Y-%m-%d", time.gmtime())),
        ("run", f"quick; median of {repeats} for each case" if quick else
         f"full; median of {repeats} for each case, {3 * repeats} for those that are close to their targets"),
        ("load before (1 min)", f"{load[0]:.1f}"),
        ("processor", f"{cpu_model()}, {os.cpu_count()} used"),
        ("memory", f"{memory:.0f} GiB"),
        ("disk of etcd's data", f"{disk}; fdatasync of 2 KiB {fsync_us():,.0f} us"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("etcd", etcd_version() + ", one member"),
        ("compiler", said_by("c++", "--version") + ", -O2"),
        ("gRPC", "C++ " + said_by("pkg-config", "--modversion", "grpc++")),
        ("Go", said_by("go", "version").removeprefix("go version ")),
        ("Go packages", said_by("dpkg-query", "-W", "-f", "etcd ${Version}", "golang-etcd-server-dev")),
    ]


# ---- what is written ----------------------------------------------------------------------------------------

def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def target_tables(rows):
    out = table(("case", "against", "target", "measured", "met", "bare gRPC"),
                [(*row[:4], "yes" if row[4] else "**no**", row[5]) for row in rows if row[2] is not None])
    compared = [(*row[:2], row[3]) for row in rows if row[2] is None]
    return out + ("\nWithout a target:\n\n" + table(("case", "against", "measured"), compared) if compared else "")


def case_table(runs, of):
    rows = []
    for variant, impls in runs.items():
        for impl in impls:
            low, high = of.spread(variant, impl)
            rows.append((variant, NAMES[impl], number(of(variant, impl)), f"{number(low)} – {number(high)}",
                         *(number(of(variant, impl, field), digits) for field, digits in (
                             ("p50_us", 0), ("p99_us", 0), ("cpu_us_per_op", 1), ("etcd_cpu_us_per_op", 1),
                             ("rss_kib", 0), ("threads", 0), ("proposals_per_op", 2), ("rpcs_per_op", 2),
                             ("allocations_per_op", 0)))))
    return table(("case", "by", "per s", "least – most", "p50 us", "p99 us", "CPU us/op", "etcd's CPU us/op",
                  "RSS KiB", "threads", "proposals/op", "RPCs/op", "allocations/op"), rows)


def waiter_table(runs, of):
    rows = []
    for variant, impls in runs.items():
        for impl in impls:
            if of(variant, impl, "bytes_each") is not None:
                rows.append((variant.removeprefix("waiters "), NAMES[impl],
                             number(of(variant, impl, "bytes_each")),
                             number(of(variant, impl, "extra_threads")),
                             number(of(variant, impl, "enter_seconds"), 1),
                             number(of(variant, impl, "seconds"), 1)))
    return table(("waiters", "by", "bytes each", "threads more", "s to enter", "s to drain"), rows)


def plot(name, title, commands, data):
    if shutil.which("gnuplot") is None:
        print("no gnuplot: no plots")
        return
    script = f"""
set terminal svg size 720,420 font "sans,12" background "white"
set output "{HERE / name}"
set title "{title}"
set grid ytics
set key outside bottom center horizontal
{data}
{commands}
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def block(name, rows):
    return f"${name} << END\n" + "\n".join(" ".join(map(str, row)) for row in rows) + "\nEND\n"


COLOURS = {"conclave": "#1f6fb4", "go": "#d1802a", "floor": "#777777"}


def lines_plot(name, title, xlabel, ylabel, series):
    """series: (title, colour, dash, [(x, y)])"""
    series = [s for s in series if any(y is not None for _, y in s[3])]
    if not series:
        return
    data = "".join(block(f"S{i}", [(x, y) for x, y in s[3] if y]) for i, s in enumerate(series))
    curves = ", ".join(f'$S{i} using 1:2 with linespoints lw 2 pt 7 ps 0.6 dt {s[2]} lc rgb "{s[1]}" title "{s[0]}"'
                       for i, s in enumerate(series))
    plot(name, title, f'set logscale xy\nset xlabel "{xlabel}"\nset ylabel "{ylabel}"\nplot {curves}', data)


def draw(of):
    contenders = (2, 3, 4, 10, 50)
    sequential = of("lock-uncontended", "floor")
    lines_plot("handovers.svg", "One lock, N sessions that want it all the time", "sessions", "hand-overs per second", [
        *((NAMES[i], COLOURS[i], 1, [(n, of(f"lock-contended contenders {n}", i)) for n in contenders]) for i in IMPLS),
        ("bare gRPC, one session alone", COLOURS["floor"], 2, [(n, sequential) for n in contenders])])
    lines_plot("drain.svg", "A queue that was full, N consumers", "consumers", "items per second", [
        (NAMES[i], COLOURS[i], 1, [(n, of(f"drain consumers {n}", i)) for n in (1, 4, 16, 64)]) for i in IMPLS])
    counts = (100, 1_000, 10_000)

    def memory(impl, locks_of, sessions_of):
        return [(n, of(waiters_name(n, locks_of(n), sessions_of(n)), impl, "bytes_each")) for n in counts]

    one, each = (lambda n: 1), (lambda n: n)
    lines_plot("waiters.svg", "What a coroutine or goroutine that waits for a lock takes", "waiters",
               "bytes of memory each", [
                   ("conclave, one lock", COLOURS["conclave"], 1, memory("conclave", one, one)),
                   ("conclave, a lock each", COLOURS["conclave"], 2, memory("conclave", each, one)),
                   ("conclave, a session each", COLOURS["conclave"], 3, memory("conclave", one, each)),
                   ("Go, a lock each", COLOURS["go"], 2, memory("go", each, one)),
                   ("Go, a session each", COLOURS["go"], 3, memory("go", one, each))])
    cases = ("put", "lock-uncontended", "handoff", "dequeue-latency", "lock-contended contenders 4")
    rows = [(f'"{case.replace(" contenders", ",")}"', *(of(case, i, f) or "?" for i in IMPLS for f in ("p50_us", "p99_us")))
            for case in cases if of(case, "conclave")]
    if rows:
        columns = [(2 + 2 * n + k, NAMES[i], COLOURS[i], k) for n, i in enumerate(IMPLS) for k in (0, 1)]
        bars = ", ".join(f'$D using {c}{":xtic(1)" if c == 2 else ""} lc rgb "{colour}" fs {"pattern 4" if k else "solid 0.9"} '
                         f'title "{title} {"p99" if k else "p50"}"' for c, title, colour, k in columns)
        plot("latency.svg", "How long one operation takes", "set style data histograms\nset style histogram clustered gap 1\n"
             'set datafile missing "?"\nset logscale y\nset yrange [50:*]\nset ylabel "microseconds"\nplot ' + bars, block("D", rows))


def write_results(runs, codec, facts):
    of = Medians(runs)
    draw(of)
    plots = "".join(f"![{alt}]({name})\n\n" for name, alt in (
        ("handovers.svg", "hand-overs per second against contenders"),
        ("drain.svg", "drain rate against consumers"),
        ("waiters.svg", "memory against waiters"),
        ("latency.svg", "latency percentiles")) if (HERE / name).exists())
    codec_rows = [(m, number(t.get("conclave"), 1), number(t.get("protobuf"), 1)) for m, t in codec.items()]
    (HERE / "RESULTS.md").write_text(f"""# Results

Written by `tools/bench`; [README.md](README.md) says what each case does. All programs of a case ran one after the
other on the same etcd, in turns.

{table(("", ""), facts)}
## Targets

Medians of the ratios of runs that went side by side. The last column is what the same work comes to as bare gRPC calls,
one for each transaction, without the library: a target that both miss is not to be had from etcd by such calls. Against
the floor that is what its answers being posted to an executor leave of it.

{target_tables(targets(of, codec))}
{plots}## Cases

{case_table(runs, of)}
CPU is the program's own, user and system. Allocations are calls of operator new, gRPC's C++ library included.

## Waiters

{waiter_table(runs, of)}
A Go program needs a session for each waiter of one lock: two mutexes of one session do not exclude each other.

## Codec

Nanoseconds of CPU for one message.

{table(("message", "conclave", "protobuf's classes"), codec_rows)}""")
    print(f"\nwritten: {HERE / 'RESULTS.md'}")


README_CASES = (("put", "put, one after the other"),
                ("put-pipelined depth 64", "put, 64 under way"),
                ("lock-uncontended", "lock and unlock"),
                ("lock-contended contenders 4", "hand-over of a lock, 4 sessions"),
                ("lock-contended contenders 50", "hand-over of a lock, 50 sessions"),
                ("lock-many depth 64", "lock and unlock, 64 locks"),
                ("enqueue producers 64", "enqueue, 64 producers"),
                ("drain consumers 1", "dequeue, one consumer"),
                ("drain consumers 64", "dequeue, 64 consumers"),
                ("queue producers 16 consumers 64", "item through a queue, 16 producers, 64 consumers"))


def write_readme(of):
    """Puts the figures between the marks of the README at the top."""
    begin, end = "<!-- figures of tools/bench -->\n", "<!-- end of figures -->"
    file = HERE.parent / "README.md"
    text = file.read_text()
    rows = []
    for name, says in README_CASES:
        ours, theirs, floor = (of(name, i) for i in IMPLS)
        rows.append((says, number(ours), number(theirs), number(floor),
                     f"{ours.over(theirs):.1f}" if ours and theirs else ""))
    figures = table(("a second", "conclave", "Go", "bare gRPC", "times Go's"), rows)
    before, after = text.index(begin) + len(begin), text.index(end)
    image = "![hand-overs per second against contenders](benchmarks/handovers.svg)"
    file.write_text(f"{text[:before]}\n{figures}\n{image}\n\n{text[after:]}")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--build", required=True, type=pathlib.Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--case")
    arguments.add_argument("--repeat", type=int)
    arguments.add_argument("--json")
    arguments.add_argument("--readme", action="store_true")
    arguments.add_argument("--smoke", action="store_true")
    given = arguments.parse_args()
    folder = given.build.resolve() / "benchmarks"
    programs = {impl: str(folder / f"{impl}_bench") for impl in IMPLS}
    programs[POSTED] = programs["floor"]
    repeats = given.repeat or (1 if given.quick else 5)
    variants = [v for v in plan() if v.quick or not given.quick]
    if given.case and given.case != "codec":
        variants = [v for v in plan() if given.case in (v.case, v.name)]
        if not variants:
            sys.exit("no such case; there are: " + " ".join(dict.fromkeys(v.case for v in plan())) + " codec")
    if given.case == "codec":
        variants = []
    if given.smoke:
        # Of each case the variants that differ in more than numbers.
        kinds = {(v.case, *(w if w.startswith("--") else w == "1" for w in v.options)): v for v in reversed(variants)}
        _, failures = run_all([v.smallest() for v in kinds.values()], programs, False, 1, None)
        sys.exit("\n".join(failures) or None)
    facts = machine_facts(given.quick, repeats)
    keep = open(given.json, "w", encoding="utf-8") if given.json else None
    runs, failures = run_all(variants, programs, given.quick, repeats, keep)
    codec = run_codec(str(folder / "codec_bench"), given.quick) if given.case in (None, "codec") else {}
    if given.case:
        print("\n" + case_table(runs, Medians(runs)) + "\n" + target_tables(targets(Medians(runs), codec)))
    else:
        write_results(runs, codec, facts)
        print("\n" + target_tables(targets(Medians(runs), codec)))
        if given.readme:
            write_readme(Medians(runs))
    if failures:
        sys.exit("\n".join(["", f"{len(failures)} runs failed:", *failures]))


if __name__ == "__main__":
    main()
