"""``python -m app``: serve until SIGTERM or SIGINT, then finish what is under way and leave."""

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path

import uvicorn
from PIL import Image
from pydantic import ValidationError

from app import logs
from app.main import create_app
from app.protocol import ProblemProtocol
from app.settings import AppSettings
from store.settings import setting_faults

_log = logging.getLogger("bitpress.app")


class _Server(uvicorn.Server):
    """Tells its URL once it listens and the app has started."""

    def __init__(self, config: uvicorn.Config, url: str, ready_file: Path | None) -> None:
        super().__init__(config)
        self._url = url
        self._ready_file = ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._ready_file is not None:
                _write_atomically(self._ready_file, self._url)
            _log.info(f"bitpress app listening on {self._url}")


def main() -> int:
    """Serve with the settings of the environment; return the exit code."""
    logs.configure()
    # A header that claims too many pixels is refused as such, not mentioned on standard error.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        settings = AppSettings()
    except ValidationError as error:
        for fault in setting_faults(error):
            _log.error("invalid setting", extra=fault)
        return 2
    logs.configure(settings.log_level)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        where = {"host": settings.host, "port": settings.port}
        _log.error("cannot listen", extra={**where, **_fault_of_address(error)})
        return 1
    config = uvicorn.Config(
        create_app(settings),
        http=ProblemProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    server = _Server(config, _url(settings.host, listener), settings.ready_file)
    # uvicorn raises the signal again after its clean stop; by then it has done its work.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listener])
    finally:
        if settings.ready_file is not None:
            settings.ready_file.unlink(missing_ok=True)
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _fault_of_address(error: OSError) -> dict[str, str | None]:
    """Return ``fault`` and ``remedy`` of an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        remedy = "Give another BITPRESS_PORT, 0 for a free one, or stop who listens there."
    elif error.errno == errno.EACCES:
        remedy = "Give a BITPRESS_PORT from 1024 up, or allow this user the lower ones."
    else:
        remedy = "Set BITPRESS_HOST to an address of this machine; 0.0.0.0 is all of them."
    return {"fault": error.strerror, "remedy": remedy}


def _url(host: str, listener: socket.socket) -> str:
    # Who listens everywhere is reached, from here, at the loopback address.
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    shown = f"[{reached}]" if ":" in reached else reached
    return f"http://{shown}:{listener.getsockname()[1]}"


def _write_atomically(path: Path, text: str) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
