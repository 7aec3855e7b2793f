#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Runs an example on the etcd that ETCD_ENDPOINTS names and checks what it prints.

usage: check_examples.py NAME PROGRAM | --self-test
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 45  # seconds for whatever is waited for; CTest has the hard limit


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def run(*command):
    """The lines that a program prints; it must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    check(done.returncode == 0, f"{command} ended with {done.returncode}")
    return done.stdout.splitlines()


def timeline(lines):
    """(seconds, text) for each line of an example's timeline."""
    found = (re.fullmatch(r"\[ *(\d+\.\d+) s\] (.*)", line) for line in lines)
    return [(float(each[1]), each[2]) for each in found if each]


def eventually(condition, what):
    deadline = time.monotonic() + LIMIT
    while not condition():
        check(time.monotonic() < deadline, f"never: {what}")
        time.sleep(0.02)


# ---- etcd, through its JSON gateway ------------------------------------------------------------------------


def etcd(call, prefix):
    key = prefix.encode()
    end = key[:-1] + bytes([key[-1] + 1])
    body = {"key": base64.b64encode(key).decode(), "range_end": base64.b64encode(end).decode()}
    endpoint = os.environ["ETCD_ENDPOINTS"].split(",")[0]
    request = urllib.request.Request(f"{endpoint}/v3/kv/{call}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        return json.load(answer)


def keys(prefix):
    """The keys that start with a prefix, in the order of their creation."""
    found = sorted(etcd("range", prefix).get("kvs", []), key=lambda each: int(each["create_revision"]))
    return [base64.b64decode(each["key"]).decode() for each in found]


# ---- what the programs print -------------------------------------------------------------------------------


def check_lock_contention(lines):
    row = re.compile(r" *(\d+) +(\d+)  ([ .#]{60})  +(\d+) +(\d+)-(\d+)")
    turns = [[int(each[i]) for i in (1, 2, 4, 5, 6)] for each in map(row.fullmatch, lines) if each]
    check(sorted(turn[0] for turn in turns) == list(range(1, 11)), "not each of ten sessions has one row")
    for _, _, waited, begin, end in turns:
        check(end - begin >= 299, "a session worked less than 300 ms")
        check(waited <= begin, "a session waited longer than the program ran")
    for before, after in zip(turns, turns[1:]):
        check(after[1] > before[1], "the tokens do not grow")
        check(after[3] >= before[4], f"sessions {before[0]} and {after[0]} held the lock at once")
    live = re.compile(r"session (\d+) holds the lock, token (\d+)")
    seen = [live.fullmatch(text) for _, text in timeline(lines)]
    told = [[int(each[1]), int(each[2])] for each in seen]
    check(told == [turn[:2] for turn in turns], "the chart is another story")
    check(lines[-1] == "10 sessions held the lock in turn, never two at once.", "the last line")


def check_queue_push_pop(lines, gap):
    told = timeline(lines)
    check(told[0][1] == "consumer: waits on an empty queue", "the consumer does not come first")
    rounds = [at for at, text in told if text.startswith("producer: round")]
    pops = [(at, text.removeprefix("consumer: popped ")) for at, text in told if "popped" in text]
    expected = [f"{number}.{item}" for number in (1, 2, 3) for item in range(1, 11)]
    check(len(rounds) == 3, "not three rounds")
    check([item for _, item in pops] == expected, "not popped in the order of pushing")
    order = [text.split()[-1] for _, text in told[1:]]
    right = ["1", *expected[:10], "2", *expected[10:20], "3", *expected[20:]]
    check(order == right, "items of a round came after the next round")
    check(all(b - a >= gap for a, b in zip([told[0][0], *rounds], rounds)), "the rounds come too early")
    check(lines[-1] == "30 items pushed, 30 popped, in their order; 0 left.", "the last line")


def check_priority_queue(lines):
    told = [text for _, text in timeline(lines)]
    pushed = [re.fullmatch(r"pushed (\d) at revision (\d+)", text) for text in told[:-1]]
    check(sorted(each[1] for each in pushed) == list("0123456789"), "not each number was pushed once")
    check(told[-1] == "popped 0 1 2 3 4 5 6 7 8 9", "not sorted")


def holds(told):
    """Who held the lock from which line to which: {name: (first, last)}."""
    result = {}
    for number, (_, text) in enumerate(told):
        who, what = text.split(": ", 1)
        if what.startswith("has the lock"):
            result[who] = (number, None)
        elif what == "is done":
            result[who] = (result[who][0], number)
    return result


def check_redis_comparison(lines):
    titles = [i for i, line in enumerate(lines) if re.match(r"(Redis|conclave): ", line)]
    check(len(titles) == 3, "not three parts")
    redis, conclave, stopped = (timeline(lines[a:b]) for a, b in zip(titles, [*titles[1:], len(lines)]))

    held = holds(redis)
    check(held["A"][0] < held["B"][0] < held["A"][1], "Redis: B does not come in after the expiry")
    check("A: DEL lock freed the lock of B" in [text for _, text in redis], "Redis: A does not free the lock of B")
    # C may have the lock, and say so, before A has said what it freed.
    check(held["A"][1] < held["C"][0] < held["B"][1], "Redis: A does not let C in while B works")

    held = holds(conclave)
    check(list(held) == ["A", "B", "C"], "conclave: not in the order of asking")
    check(held["A"][1] < held["B"][0] and held["B"][1] < held["C"][0], "conclave: two at once")
    asked = [i for i, (_, text) in enumerate(conclave) if text == "B: asks for the lock"]
    check(asked[0] < held["A"][1], "conclave: B did not have to wait")
    freed = [text for _, text in conclave if text.endswith("unlock freed its own")]
    check(len(freed) == 3, "conclave: an unlock failed")

    told = [text for _, text in stopped]
    holding = [re.search(r"has the lock, token (\d+)", text) for text in told]
    tokens = [int(each[1]) for each in holding if each]
    check(len(tokens) == 2 and tokens[0] < tokens[1], "stopped: the tokens do not grow")
    order = ["A: commit: committed", "A: is stopped (SIGSTOP)", "B: asks for the lock",
             "A: goes on (SIGCONT)", "A: commit: lock_lost, nothing was written",
             "B: still has the lock, and the last write is B's"]
    places = [told.index(text) for text in order]
    check(places == sorted(places), "stopped: another story")
    unlock = [text for text in told if text.startswith("A: unlock: ")]
    check(len(unlock) == 1 and unlock[0].endswith("nothing was freed"), "stopped: A freed a lock")
    check(lines[-1] == "At most 2 at once on Redis, 1 on conclave.", "the last line")


def check_recipes(lines):
    check(lines == ["mutex: done", "with_lock: counted 3", "queue: first, then 2, then none",
                    "priority_queue: put the fire out", "building blocks: the key is ours",
                    "callback: fourth"], "another output")


def check_own_recipe(lines):
    told = [text for _, text in timeline(lines)]
    leaders, terms, leading = [], [], None
    for text in told:
        begins = re.fullmatch(r"(\w+) leads, term (\d+)", text)
        if begins:
            check(leading is None, f"{leading} and {begins[1]} lead at once")
            leading = begins[1]
            leaders.append(leading)
            terms.append(int(begins[2]))
        else:
            check(text.split()[0] == leading and "had lost" not in text, f"unexpected: {text}")
            leading = None
    check(leading is None, f"{leading} leads for ever")
    check(sorted(leaders) == ["ada", "bob", "cyd"], "not everybody led")
    check(terms == sorted(set(terms)), "the terms do not grow")


def check_snippets():
    """What the documents show stands in an example, which is compiled and run."""
    examples = [[line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
                for path in sorted((ROOT / "examples").glob("*.cpp"))]
    for document in ("README.md", "docs/recipes.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        snippets = re.findall(r"^```cpp\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        check(snippets, f"{document} shows nothing")
        for snippet in snippets:
            lines = [line.strip() for line in snippet.splitlines()]
            found = any(lines == each[i:i + len(lines)] for each in examples for i in range(len(each)))
            check(found, f"{document} shows what is in no example:\n{snippet}")


def check_readme(program):
    check_snippets()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"```cpp\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL)
    source = (ROOT / "examples" / "readme.cpp").read_text(encoding="utf-8")
    licence, program_text = source.split("\n\n", 1)
    check(licence == "// SPDX-License-Identifier: BSL-1.0", "readme.cpp does not begin with its licence")
    check(shown[1] == program_text, "README.md and examples/readme.cpp differ")
    check(len(program_text.splitlines()) <= 20, "the program of README.md is longer than 20 lines")
    check(max(map(len, program_text.splitlines())) <= 110, "a line of README.md's program is too long")
    printed = run(program, os.environ["ETCD_ENDPOINTS"].split(",")[0])
    check(printed == shown[2].splitlines(), "README.md shows another output")


# ---- the server --------------------------------------------------------------------------------------------


class Server:
    """A program that runs until it is told to stop; its output is gathered meanwhile."""

    def __init__(self, *command):
        self.lines = []
        self.process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            print(line, end="", flush=True)
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern):
        eventually(lambda: self.matches(pattern) or self.process.poll() is not None, pattern)
        check(self.matches(pattern), f"ended without printing {pattern}")
        return self.matches(pattern)[0]

    def matches(self, pattern):
        return [each for each in (re.fullmatch(pattern, line) for line in list(self.lines)) if each]

    def stop(self, number):
        self.process.send_signal(number)
        check(self.process.wait(LIMIT) == 0, f"the exit code is {self.process.returncode}")
        self.reader.join(LIMIT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self.answers = self.socket.makefile("r", encoding="utf-8", newline="\n")

    def send(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def answer(self):
        return self.answers.readline().rstrip("\n")

    def ask(self, line):
        self.send(line)
        return self.answer()

    def lock(self, name):
        return self.held(self.ask(f"LOCK {name}"))

    def held(self, answer=None):
        answer = self.answer() if answer is None else answer
        check(re.fullmatch(r"HELD \d+", answer), f"no lock but {answer!r}")
        return int(answer.split()[1])

    def silent(self):
        return not select.select([self.socket], [], [], 0.05)[0]

    def close(self):
        self.answers.close()
        self.socket.close()


LOCKS = "conclave-examples/asio_server/locks/"


def check_asio_server(program):
    with Server(program, "--port", 0) as server, contextlib.ExitStack() as stack:
        port = int(server.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])

        def connect():
            client = Client(port)
            stack.callback(client.close)
            return client

        def stand_in_line(name, count, ahead):
            """Clients that ask one after another; each stands in etcd's line before the next one asks."""
            clients = []
            for place in range(count):
                clients.append(connect())
                clients[-1].send(f"LOCK {name}")
                eventually(lambda: len(keys(f"{LOCKS}{name}/")) == ahead + place + 1, "in line")
            return clients

        # One client, and what it must not do.
        one = connect()
        check(one.ask("COMMIT x 1") == "ERROR no lock is held", "a write without a lock")
        check(one.ask("UNLOCK") == "ERROR no lock is held", "an unlock without a lock")
        check(one.ask("HELLO").startswith("ERROR say"), "an unknown command")
        first = one.lock("plain")
        check(one.ask("LOCK other") == "ERROR a lock is held already", "two locks")
        check(re.fullmatch(r"COMMITTED \d+", one.ask("COMMIT x some text")), "commit")
        check(one.ask("UNLOCK") == "FREED", "unlock")
        check(one.lock("plain") > first, "the token does not grow")
        one.send("UNLOCK\nLOCK plain\nUNLOCK\nQUIT")  # in one go
        check(one.answer() == "FREED" and one.held() and one.answer() == "FREED", "pipelined commands")
        check(one.answer() == "BYE" and one.answer() == "", "QUIT does not end the connection")

        # First come, first served; one at a time.
        holder = connect()
        tokens = [holder.lock("line")]
        line = stand_in_line("line", 6, ahead=1)
        for client in line:
            check(all(each.silent() for each in line[len(tokens) - 1:]), "two hold the lock")
            check(holder.ask("UNLOCK") == "FREED", "unlock")
            tokens.append(client.held())
            holder = client
        check(tokens == sorted(set(tokens)), "the tokens do not grow")

        # Who hangs up leaves the line; a holder who hangs up frees the lock.
        leaving, staying = stand_in_line("line", 2, ahead=1)
        leaving.close()
        eventually(lambda: len(keys(f"{LOCKS}line/")) == 2, "a client that hung up leaves the line")
        holder.close()
        check(staying.held() > tokens[-1], "a holder hung up: the next one")

        # A lock that is lost: the next client has it, and the loser can neither write nor free it.
        loser = connect()
        loser.lock("lost")
        [next_one] = stand_in_line("lost", 1, ahead=1)
        etcd("deleterange", keys(f"{LOCKS}lost/")[0])
        successor = next_one.held()
        check(loser.ask("COMMIT stolen 1").startswith("LOST"), "a commit without the lock")
        check(loser.ask("UNLOCK") == "ERROR no lock is held", "the lost lock is still held")
        check(keys("conclave-examples/asio_server/data/stolen") == [], "written without the lock")
        written = next_one.ask(f"COMMIT token {successor}")
        check(re.fullmatch(r"COMMITTED \d+", written), "the successor cannot write")
        [waiting] = stand_in_line("lost", 1, ahead=1)
        etcd("deleterange", keys(f"{LOCKS}lost/")[1])
        check(waiting.answer().startswith("LOST"), "a place in line was lost unseen")

        # One thread for all connections: the others are gRPC's, and few.
        def threads():
            return len(os.listdir(f"/proc/{server.process.pid}/task"))

        before = threads()
        busy = connect()
        busy.lock("crowded")
        crowd = [connect() for _ in range(60)]
        for client in crowd:
            client.send("LOCK crowded")
        eventually(lambda: len(keys(f"{LOCKS}crowded/")) == 61, "sixty clients in line")
        check(connect().lock("meanwhile") > 0, "another client is not served")
        print(f"threads: {before} with a few connections, {threads()} with {len(crowd)} more")
        check(threads() <= before + 2, "threads grow with the connections")

        server.stop(signal.SIGTERM)
        check(server.lines[-1] == "stopped", "the last line")
        check(keys(LOCKS) == [], "locks are left behind")

    with Server(program, "--port", port) as server:
        server.wait_for(f"listening on 127.0.0.1:{port}")
        client = Client(port)
        client.lock("again")
        server.stop(signal.SIGINT)
        check(client.answer() == "", "the connection is still open")
        check(keys(LOCKS) == [], "locks are left behind")


# ---- the workers -------------------------------------------------------------------------------------------


def check_async_worker(program):
    def left():
        return int(re.fullmatch(r"(\d+) jobs wait", run(program, "left")[0])[1])

    def work_until(pattern, count, number, workers):
        """Jobs that are done when a signal comes after `count` lines of a kind."""
        with Server(program, "--workers", workers, "--job-ms", 20) as server:
            eventually(lambda: len(server.matches(pattern)) >= count, pattern)
            server.stop(number)
            begun = [each[1] for each in server.matches(r"worker \d+: begins (.*)")]
            done = [each[1] for each in server.matches(r"worker \d+: done (.*)")]
            check(sorted(begun) == sorted(done), "a job was begun and not finished")
            return done

    check(run(program, "put", 50) == ["50 jobs enqueued"], "put")
    done = work_until(r"worker \d+: begins .*", 12, signal.SIGTERM, 4)
    check(done[0] == "job-1" and 12 <= len(done) < 50, "not in the middle of the jobs")
    check(len(done) + left() == 50, "a job is lost")
    done += work_until(r"worker \d+: done .*", 9, signal.SIGINT, 3)
    check(len(done) < 50 and len(done) + left() == 50, "a job is lost")
    rest = 50 - len(done)
    done += work_until(r"worker \d+: done .*", rest, signal.SIGTERM, 8)
    check(left() == 0 and sorted(done) == sorted(f"job-{i}" for i in range(1, 51)), "not each job once")
    check(work_until(r"4 workers wait for jobs", 1, signal.SIGINT, 4) == [], "idle workers did something")


# ---- planted violations ------------------------------------------------------------------------------------

BAR = " " * 60
CONTENTION = [f"[  0.{i}00 s] session {i + 1} holds the lock, token {i + 2}" for i in range(10)] + [
    f"{i + 1:7} {i + 2:6}  {BAR}  {0:6}  {i * 300:5}-{i * 300 + 300}" for i in range(10)
] + ["", "10 sessions held the lock in turn, never two at once."]
QUEUE = ["[  0.000 s] consumer: waits on an empty queue"]
for number in (1, 2, 3):
    QUEUE.append(f"[  {number}.000 s] producer: round {number}")
    QUEUE += [f"[  {number}.100 s] consumer: popped {number}.{item}" for item in range(1, 11)]
QUEUE.append("30 items pushed, 30 popped, in their order; 0 left.")

LEADERS = ["[ 0.1 s] ada leads, term 2", "[ 0.2 s] ada resigns", "[ 0.3 s] bob leads, term 4",
           "[ 0.4 s] bob ends", "[ 0.5 s] cyd leads, term 6", "[ 0.6 s] cyd resigns"]


def replaced(lines, number, text):
    return [*lines[:number], text, *lines[number + 1:]]


def self_test():
    """The checks accept what is right and find what is wrong."""
    good = [(check_lock_contention, [CONTENTION]), (check_queue_push_pop, [QUEUE, 1.0]),
            (check_own_recipe, [LEADERS])]
    overlap = f"{3:7} {4:6}  {BAR}  {0:6}  {599:5}-{900}"
    token = [line.replace("token 5", "token 4") for line in CONTENTION]
    token = [line.replace(f"{5:6}  {BAR}", f"{4:6}  {BAR}") for line in token]
    bad = [(check_lock_contention, [replaced(CONTENTION, 12, overlap)]), (check_lock_contention, [token]),
           (check_lock_contention, [CONTENTION[:9] + CONTENTION[10:]]),
           (check_lock_contention, [CONTENTION[:-1]]),
           (check_queue_push_pop, [QUEUE, 1.5]), (check_queue_push_pop, [replaced(QUEUE, 5, QUEUE[6]), 1.0]),
           (check_queue_push_pop, [QUEUE[:12] + QUEUE[11:], 1.0]), (check_own_recipe, [LEADERS[:5]]),
           (check_own_recipe, [[LEADERS[0], *LEADERS[2:]]])]
    failures = 0
    for cases, fine in ((good, True), (bad, False)):
        for function, arguments in cases:
            try:
                function(*arguments)
                passed = True
            except (AssertionError, ValueError, IndexError, TypeError):
                passed = False
            if passed != fine:
                failures += 1
                print(f"{function.__name__} {'refuses' if fine else 'accepts'} {arguments}")
    print(f"{len(good) + len(bad)} cases, {failures} failures")
    return 1 if failures else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) != 2:
        print(__doc__)
        return 2
    name, program = arguments
    if name == "queue_push_pop":
        check_queue_push_pop(run(program, "--round-gap-ms", 500), 0.5)
    elif name == "redis_comparison":
        check_redis_comparison(run(program, "--scale", 0.2))
    elif name in ("readme", "asio_server", "async_worker"):
        globals()[f"check_{name}"](program)
    else:
        globals()[f"check_{name}"](run(program))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
