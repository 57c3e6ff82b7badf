"""The app and the worker as one: started together, stopped together.

Each runs as a child process of its own, in its own process group, so that a Ctrl-C at the
terminal reaches this process alone, which then asks both to stop and waits until they have. A
child that ends by itself takes the other one along. Should this process be killed outright, the
kernel tells the children (on Linux).
"""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAIT_S = 0.5
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "app": (sys.executable, "-m", "app"),
    "worker": (sys.executable, "-m", "worker"),
}


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

    Must be called from the main thread: there signals arrive, and the children die with the
    thread that started them.

    Args:
        environment: the environment of both processes.
        log: takes their output, each line headed by its origin.
        commands: the processes by name.
        grace_s: seconds that a process has for stopping before it is killed.

    Returns:
        0 after a stop signal that both processes obeyed, 1 where one had to be killed. Where a
        process ended by itself, its exit code (128 + signal where it was killed, and 1 where it
        claims success: it was not meant to end).
    """
    events: _Events = queue.SimpleQueue()
    lines = _Lines(log)
    handlers = _catch_stop_signals(events)
    # All of them before the first thread: a fork beside running threads may lock up.
    children = _start(commands, environment)
    copiers = [_follow(name, child, lines, events) for name, child in children.items()]
    try:
        event = _next_event(events)
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
            children[name] = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
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
