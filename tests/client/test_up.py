"""Supervision with small stand-ins for app and worker, in a process of its own."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120

SUPERVISOR = """
import os, sys
from client.up import run
grace_s, app, worker = sys.argv[1:]
commands = {"app": (sys.executable, "-c", app), "worker": (sys.executable, "-c", worker)}
sys.exit(run(os.environ, sys.stderr, commands=commands, grace_s=float(grace_s)))
"""

# Signals are waited for, not caught: none can slip in between. Each child tells its process id,
# so that a test can see it end, and writes the ready file as the app does.
UNREADY = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, *blocked])
print("ready", os.getpid(), flush=True)
"""
LISTEN = "open(os.environ['BITPRESS_READY_FILE'], 'w').close()\n"
READY = UNREADY + LISTEN
SLOW = "blocked = []" + UNREADY + "signal.sigwait([signal.SIGUSR1]); " + LISTEN + "signal.pause()"
OBEDIENT = "blocked = []" + READY + "signal.pause()"
TIDY = "blocked = [15]" + READY + "signal.sigwait([15]); print('tidied up')"
STUBBORN = "blocked = [15]" + READY + "while True: signal.sigwait([15]); print('no', flush=True)"
ENDING = "blocked = []" + READY + "signal.sigwait([signal.SIGUSR1]); "
CHATTY = "blocked = [15]" + READY + "for _ in range(20_000): print('x' * 100)\nsignal.sigwait([15])"
DEAF = "blocked = []" + READY + "print(repr(sys.stdin.read()), flush=True); signal.pause()"


class Supervised:
    """A supervisor with its two children, and everything that it logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.children: dict[str, int] = {}

    def read_until(self, *texts: str) -> None:
        """Read the log until each text has been in a line."""
        missing = set(texts)
        assert self.process.stderr is not None
        while missing:
            line = self.process.stderr.readline()
            assert line, f"the log ended without {missing}: {self.log}"
            self.log.append(line.rstrip("\n"))
            missing -= {text for text in missing if text in line}
            if "| ready " in line:
                self.children[line.split()[0]] = int(line.split()[-1])

    def end(self) -> int:
        """Return the exit code, once the supervisor and its children are gone."""
        _, rest = self.process.communicate(timeout=DEADLINE_S)
        self.log += rest.splitlines()
        assert all(map(gone, self.children.values()))
        return self.process.returncode


Supervise = Callable[..., Supervised]


def gone(pid: int) -> bool:
    """Wait until a process has ended; tell whether it did in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], DEADLINE_S)[0])
    finally:
        os.close(handle)


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    started: list[Supervised] = []

    def start(app: str, worker: str, grace_s: float = DEADLINE_S, prefix: str = "") -> Supervised:
        process = subprocess.Popen(
            [*prefix.split(), sys.executable, "-c", SUPERVISOR, str(grace_s), app, worker],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            text=True,
        )
        started.append(Supervised(process))
        return started[-1]

    yield start
    for supervised in started:
        with supervised.process as process:
            if process.poll() is None:
                process.kill()
        for pid in supervised.children.values():
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_stops_both_and_is_no_failure(
    supervise: Supervise, number: signal.Signals
) -> None:
    # Under nohup the tests themselves have SIGHUP ignored, which children inherit.
    up = supervise(TIDY, TIDY, prefix=f"env --default-signal={number.name.removeprefix('SIG')}")
    up.read_until("app    | ready", "worker | ready")
    up.process.send_signal(number)
    assert up.end() == 0
    assert f"bitpress up: {number.name}: stopping" in up.log
    assert {"app    | tidied up", "worker | tidied up"} <= set(up.log)


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("sys.exit(3)", 3, "ended with exit code 3"),
        ("sys.exit(0)", 1, "ended with exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
    ],
)
@pytest.mark.parametrize("part", ["app", "worker"])
def test_when_one_ends_the_other_is_stopped(
    supervise: Supervise, part: str, end: str, code: int, told: str
) -> None:
    up = supervise(
        *(ENDING + end if name == part else TIDY for name in ("app", "worker")),
    )
    up.read_until("app    | ready", "worker | ready")
    os.kill(up.children[part], signal.SIGUSR1)
    assert up.end() == code
    assert f"bitpress up: the {part} {told}; stopping" in up.log


def test_the_children_die_with_a_killed_supervisor(supervise: Supervise) -> None:
    up = supervise(OBEDIENT, OBEDIENT)
    up.read_until("app    | ready", "worker | ready")
    up.process.kill()
    assert up.end() == -signal.SIGKILL
    assert len(up.children) == 2


def test_a_child_that_will_not_stop_is_killed_after_the_grace(supervise: Supervise) -> None:
    up = supervise(TIDY, STUBBORN, grace_s=0.1)
    up.read_until("app    | ready", "worker | ready")
    up.process.terminate()
    assert up.end() == 1
    assert "bitpress up: not stopped after 0.1 s: killing the worker" in up.log


def test_a_second_signal_kills_at_once(supervise: Supervise) -> None:
    up = supervise(STUBBORN, STUBBORN)
    up.read_until("app    | ready", "worker | ready")
    up.process.send_signal(signal.SIGINT)
    up.read_until("app    | no", "worker | no")
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 1
    assert "bitpress up: SIGINT: killing the app and the worker" in up.log


def test_a_hang_up_that_was_ignored_from_the_start_stays_ignored(supervise: Supervise) -> None:
    up = supervise(TIDY, TIDY, prefix="env --ignore-signal=HUP")
    up.read_until("app    | ready", "worker | ready")
    up.process.send_signal(signal.SIGHUP)
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert "bitpress up: SIGHUP: stopping" not in up.log


def test_an_interrupt_is_heard_in_the_background_of_a_script(supervise: Supervise) -> None:
    up = supervise(TIDY, TIDY, prefix="env --ignore-signal=INT")
    up.read_until("app    | ready", "worker | ready")
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0


def test_the_children_have_no_terminal_of_their_own(supervise: Supervise) -> None:
    up = supervise(DEAF, OBEDIENT)
    up.read_until("app    | ''", "worker | ready")
    groups = {os.getpgid(pid) for pid in up.children.values()}
    assert os.getpgid(up.process.pid) not in groups
    up.process.terminate()
    assert up.end() == 0


def test_a_log_that_nobody_reads_stops_nothing(supervise: Supervise) -> None:
    up = supervise(CHATTY, TIDY)
    up.read_until("app    | ready", "worker | ready")
    assert up.process.stderr is not None
    up.process.stderr.close()
    up.process.terminate()
    assert up.process.wait(DEADLINE_S) == 0
    assert all(map(gone, up.children.values()))


def test_the_worker_begins_once_the_app_listens(supervise: Supervise) -> None:
    up = supervise(SLOW, TIDY, prefix="env -u BITPRESS_READY_FILE")
    up.read_until("app    | ready")
    assert list(up.children) == ["app"]
    os.kill(up.children["app"], signal.SIGUSR1)
    up.read_until("worker | ready")
    up.process.terminate()
    assert up.end() == 0
    assert "worker | tidied up" in up.log


def test_an_app_that_does_not_come_to_listen_begins_no_worker(supervise: Supervise) -> None:
    up = supervise("raise SystemExit(3)", TIDY, prefix="env BITPRESS_PORT=0")
    assert up.end() == 3
    assert up.log == ["bitpress up: the app ended with exit code 3; stopping"]


def test_a_stop_before_the_app_listens_begins_no_worker(supervise: Supervise) -> None:
    up = supervise(SLOW, TIDY)
    up.read_until("app    | ready")
    up.process.terminate()
    assert up.end() == 0
    assert not any("worker |" in line for line in up.log)


def test_a_taken_port_is_told_in_plain_words(supervise: Supervise) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = supervise("raise SystemExit(1)", TIDY, prefix=f"env BITPRESS_PORT={port}")
        assert up.end() == 1
    told = f"bitpress up: port {port} is taken: give --port, or 0 for a free one"
    assert up.log == [told, "bitpress up: the app ended with exit code 1; stopping"]


def test_an_app_that_ends_later_is_not_said_to_lack_a_port(supervise: Supervise) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = supervise(ENDING + "sys.exit(1)", TIDY, prefix=f"env BITPRESS_PORT={port}")
        up.read_until("app    | ready", "worker | ready")
        os.kill(up.children["app"], signal.SIGUSR1)
        assert up.end() == 1
    assert not any("taken" in line for line in up.log)
