"""Threads that do one thing again and again, for as long as the worker lives."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("worker.repeating")

_JOIN_S = 5.0


class Repeating:
    """A daemon thread that does one thing again and again, and survives its failures."""

    def __init__(self, name: str, every_s: float, action: Callable[[], object]) -> None:
        self._name = name
        self._every_s = every_s
        self._action = action
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._at_once = False

    def start(self, *, at_once: bool = False) -> None:
        """Begin, ``at_once`` or when the time has passed for the first time."""
        self._at_once = at_once
        self._thread.start()

    def stop(self) -> None:
        """End it; wait a while for what is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        if self._at_once:
            self._attempt()
        while not self._stop.wait(self._every_s):
            self._attempt()

    def _attempt(self) -> None:
        try:
            self._action()
        except Exception:
            # The database may be away for a while; it is tried again at the next turn.
            log.exception("%s failed", self._name)
