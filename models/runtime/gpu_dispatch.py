"""The one thread of a process that gives a GPU its work, on one stream."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

import torch

from store.errors import Unavailable

_making: Final = threading.Lock()

_log = logging.getLogger("bitpress.models")


class GpuDispatch:
    """Runs functions one after the other on a thread whose current stream is its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bitpress-gpu")
        self._failed = False
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Run ``work`` on the thread; once the device has done what it enqueued, ``then`` too.

        Raises:
            Unavailable: the device has failed, now or before: it does nothing more for a process
                once a kernel of that went wrong.
        """
        self._thread.submit(self._run, work, then).result()

    def _run(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        if self._failed:
            raise _failure()
        try:
            self._run_on_device(work, then)
        except torch.AcceleratorError as error:
            self._failed = True
            _log.exception("the GPU failed")
            raise _failure() from error

    def _run_on_device(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        # Callers may be in inference mode, and what they made can be written in no other.
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
            torch.inference_mode(),
        ):
            work()
            self._stream.synchronize()
            then()


def _failure() -> Unavailable:
    return Unavailable(
        "The GPU has failed.", field="runtime", remedy="Start this process of bitpress anew."
    )


def dispatch(device: torch.device) -> GpuDispatch:
    """Return the one of ``device``, which has an index."""
    with _making:
        return _dispatch(device)


@cache
def _dispatch(device: torch.device) -> GpuDispatch:
    return GpuDispatch(device)
