"""The service's remedies, which name requests, in the words of the command line."""

import re

# A request as remedies name it; "{name}" stands for whatever it is about.
_SEGMENT = r"(?:\{\w+\}|[\w-]+(?:\.[\w-]+)*)"
_REQUEST = re.compile(rf"\b(to )?(GET|POST|DELETE) ((?:/{_SEGMENT})+)")

# A request that is missing here is left as it is.
_COMMANDS = {
    "GET /jobs": "bitpress jobs",
    "GET /jobs/{}": "bitpress jobs {}",
    "GET /jobs/{}/report": "bitpress report {}",
    "POST /jobs/{}/cancel": "bitpress jobs {} --cancel",
    "POST /jobs/{}/retry": "bitpress jobs {} --retry",
    "DELETE /jobs/{}": "bitpress jobs {} --delete",
    "POST /compress": "bitpress compress",
    "GET /models": "bitpress models",
    "GET /models/{}": "bitpress models {}",
    "DELETE /models/{}/versions/{}": "bitpress models {} --delete {}",
    "DELETE /models/{}": "bitpress models {} --delete all",
    "GET /datasets": "bitpress datasets",
    "GET /datasets/{}": "bitpress datasets {}",
    "POST /datasets": "bitpress datasets --add PATH",
    "DELETE /datasets/{}": "bitpress datasets {} --delete",
}


def as_commands(remedy: str, job_id: str | None = None) -> str:
    """Return ``remedy`` with commands in the place of requests.

    ``job_id`` stands where a remedy of a job says ``{id}``; without one, ID does.
    """

    def command(found: re.Match[str]) -> str:
        target, method, path = found.groups()
        _, collection, *below = path.split("/")
        # Every other segment is a name: /jobs/NAME/retry, /models/NAME/versions/NUMBER.
        pattern = ["{}" if index % 2 == 0 else part for index, part in enumerate(below)]
        names = [_name(part, job_id) for part in below[::2]]
        known = _COMMANDS.get("/".join([f"{method} /{collection}", *pattern]))
        if known is None:
            return found.group()
        return ("with " if target else "") + known.format(*names)

    return _REQUEST.sub(command, remedy)


def _name(segment: str, job_id: str | None) -> str:
    if not segment.startswith("{"):
        return segment
    name = segment.strip("{}")
    if name in ("id", "job_id"):
        return job_id or "ID"
    return name.upper()
