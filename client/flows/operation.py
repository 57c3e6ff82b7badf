"""Health and figures of the service itself."""

from client.answers import parsed
from client.exchange import Flow, Request
from client.session import Session
from client.types import Health


def live(session: Session) -> Flow[Health]:
    """Return that the process answers."""
    return parsed(Health, (yield from session.answer(Request("GET", "/health/live"))))


def ready(session: Session) -> Flow[Health]:
    """Return that the service can work."""
    return parsed(Health, (yield from session.answer(Request("GET", "/health/ready"))))


def metrics(session: Session) -> Flow[str]:
    """Return the figures as Prometheus text."""
    request = Request("GET", "/metrics", headers={"accept": "text/plain"})
    return (yield from session.answer(request)).text
