"""The app and the worker as one: started together, stopped together.

The worker begins once the app listens: where the app cannot, no job is taken up only to be left.
Each runs as a child process of its own, in its own process group, so that a Ctrl-C at the
terminal reaches this process alone, which then asks both to stop and waits until they have. A
child that ends by itself takes the other one along. Should this process be killed outright, the
kernel tells the children (on Linux).
"""

import ctypes
import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAIT_S = 0.5
READY_POLL_S = 0.05
READY_FILE = "BITPRESS_READY_FILE"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "app": (sys.executable, "-m", "app"),
    "worker": (sys.executable, "-m", "worker"),
}
# A child that is started with the others, but begins when it is told to on its standard input.
_GATE = (
    "import os, sys; os.read(0, 1) or sys.exit(1); "
    "os.dup2(os.open(os.devnull, os.O_RDONLY), 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class _Ended:
    name: str


@dataclass(frozen=True)
class _Asked:
    why: str


_Events = queue.SimpleQueue[_Ended | _Asked]
_Children = dict[str, subprocess.Popen[bytes]]


def run(
    environment: Mapping[str, str],
    log: TextIO,
    *,
    commands: Mapping[str, tuple[str, ...]] = COMMANDS,
    grace_s: float = 30.0,
) -> int:
    """Run app and worker until a stop signal comes or one of them ends; return the exit code.

    The worker begins when the app has written its ready file.

    Must be called from the main thread: there signals arrive, and the children die with the
    thread that started them.

    Args:
        environment: the environment of both processes, with ``BITPRESS_READY_FILE`` where somebody
            else wants to know, too, when the app listens. No such file may be there yet.
        log: takes their output, each line headed by its origin.
        commands: the processes by name, ``app`` and ``worker``, each with its program's path.
        grace_s: seconds that a process has for stopping before it is killed.

    Returns:
        0 after a stop signal that both processes obeyed, 1 where one had to be killed. Where a
        process ended by itself, its exit code (128 + signal where it was killed, and 1 where it
        claims success: it was not meant to end).
    """
    with tempfile.TemporaryDirectory(prefix="bitpress-up-") as folder:
        return _supervise(
            {READY_FILE: f"{folder}/ready", **environment}, _Lines(log), commands, grace_s
        )


def _supervise(
    environment: Mapping[str, str],
    lines: "_Lines",
    commands: Mapping[str, tuple[str, ...]],
    grace_s: float,
) -> int:
    events: _Events = queue.SimpleQueue()
    handlers = _catch_stop_signals(events)
    # All of them before the first thread: a fork beside running threads may lock up.
    children = _start(commands, environment)
    copiers = [_follow(name, child, lines, events) for name, child in children.items()]
    try:
        event = _event_before(Path(environment[READY_FILE]), events)
        if event is None:
            _open_gate(children["worker"])
            event = _next_event(events)
        elif event == _Ended("app") and (port := _taken_port(environment)) is not None:
            lines.say(f"port {port} is taken: give --port, or 0 for a free one")
        if isinstance(event, _Ended):
            returned = children[event.name].wait()
            lines.say(f"the {event.name} {_ending(returned)}; stopping")
            code = (returned if returned > 0 else 128 - returned) if returned else 1
        else:
            lines.say(f"{event.why}: stopping")
            code = 0
    finally:
        killed = _stop(children, events, lines, grace_s)
        for copier in copiers:
            # A killed child's own children may hold its output open a little longer.
            copier.join(timeout=2.0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 1 if killed and code == 0 else code


class _Lines:
    """The log: whole lines only, from several threads, and no fuss when nobody reads it."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._deaf = False

    def write(self, line: str) -> None:
        with self._lock:
            if self._deaf:
                return
            try:
                self._log.write(line + "\n")
                self._log.flush()
            except (OSError, ValueError):
                self._deaf = True

    def say(self, text: str) -> None:
        self.write(f"bitpress up: {text}")


class _DieWithParent:
    """Runs in the new child: asks for SIGTERM, the clean stop, once the parent is gone."""

    def __init__(self) -> None:
        # Looked up before the fork: between fork and exec the child should do next to nothing.
        self._prctl = ctypes.CDLL(None).prctl
        self._parent = os.getpid()

    def __call__(self) -> None:
        self._prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != self._parent:
            # It was gone before the kernel knew of the wish.
            os._exit(1)


def _catch_stop_signals(events: _Events) -> dict[signal.Signals, "signal._HANDLER"]:
    """Turn stop signals into events; return the handlers that were there before."""

    # A handler may put into a SimpleQueue at any time: its put cannot deadlock.
    def ask(number: int, frame: object) -> None:
        events.put(_Asked(signal.Signals(number).name))

    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in found.items():
        # nohup ignores SIGHUP and means it; a shell script's "&" ignores SIGINT and does not.
        if number != signal.SIGHUP or handler is not signal.SIG_IGN:
            signal.signal(number, ask)
    return found


def _start(commands: Mapping[str, tuple[str, ...]], environment: Mapping[str, str]) -> _Children:
    prepare: Callable[[], None] | None = _DieWithParent() if sys.platform == "linux" else None
    children: _Children = {}
    try:
        for name, command in commands.items():
            gated = name == "worker"
            children[name] = subprocess.Popen(
                (sys.executable, "-I", "-c", _GATE, *command) if gated else command,
                env=dict(environment),
                stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=prepare,
            )
    except OSError:
        for child in children.values():
            child.kill()
            child.communicate()
        raise
    return children


def _open_gate(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    # Somebody may have ended it meanwhile, of which an event tells.
    with suppress(BrokenPipeError), child.stdin as told:
        told.write(b"\n")


def _taken_port(environment: Mapping[str, str]) -> int | None:
    """Return the port that the app was to listen on, where somebody else does."""
    try:
        host = environment.get("BITPRESS_HOST", "127.0.0.1")
        port = int(environment.get("BITPRESS_PORT", "8000"))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return port if error.errno == errno.EADDRINUSE else None
    except (ValueError, OverflowError):
        return None
    return None


def _follow(
    name: str, child: subprocess.Popen[bytes], lines: _Lines, events: _Events
) -> threading.Thread:
    """Copy the child's output, line by line, and tell when it has ended; return the copier."""

    def copy() -> None:
        assert child.stdout is not None
        with child.stdout as output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                lines.write(f"{name:<6} | {text}")

    def wait() -> None:
        child.wait()
        events.put(_Ended(name))

    # The end of the output would not do: a grandchild may hold it open, or the child close it.
    threading.Thread(target=wait, name=f"wait-{name}", daemon=True).start()
    copier = threading.Thread(target=copy, name=f"log-{name}", daemon=True)
    copier.start()
    return copier


def _stop(children: _Children, events: _Events, lines: _Lines, grace_s: float) -> bool:
    """Ask every child to stop, and return once all have; return whether one had to be killed.

    They are killed after ``grace_s``, or at once when somebody asks a second time.
    """
    running = {name for name, child in children.items() if child.poll() is None}
    for name in running:
        children[name].terminate()
    timer = threading.Timer(grace_s, lambda: events.put(_Asked(f"not stopped after {grace_s:g} s")))
    timer.daemon = True
    timer.start()
    killed = False
    while running:
        event = _next_event(events)
        if isinstance(event, _Ended):
            running.discard(event.name)
            continue
        lines.say(f"{event.why}: killing the {' and the '.join(sorted(running))}")
        for name in running:
            children[name].kill()
        killed = True
    timer.cancel()
    return killed


def _event_before(ready_file: Path, events: _Events) -> _Asked | _Ended | None:
    """Return what happens before the file is there, None where nothing does."""
    while not ready_file.exists():
        with suppress(queue.Empty):
            return events.get(timeout=READY_POLL_S)
    return None


def _next_event(events: _Events) -> _Asked | _Ended:
    # Never one endless wait: of a signal that comes just before it begins, Python would hear only
    # when it ends.
    while True:
        with suppress(queue.Empty):
            return events.get(timeout=WAIT_S)


def _ending(returned: int) -> str:
    if returned >= 0:
        return f"ended with exit code {returned}"
    return f"was killed by {signal.Signals(-returned).name}"
