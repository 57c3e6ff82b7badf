"""Health, and the figures that Prometheus scrapes."""

import tempfile

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from app.metrics import Metrics
from app.openapi import problems
from app.schemas import Health
from app.services import ServicesDep
from store.errors import Unavailable

router = APIRouter(tags=["operation"])


@router.get("/health/live", responses=problems())
async def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/health/ready", responses=problems(503))
def ready(services: ServicesDep) -> Health:
    """The job database answers and the data folder can be written."""
    services.jobs.counts()
    try:
        with tempfile.TemporaryFile(dir=services.settings.data_dir) as probe:
            probe.write(b"x")
    except OSError:
        raise Unavailable(
            "The data folder cannot be written.",
            remedy="Ask the operator to look at its permissions and free space.",
        ) from None
    return Health()


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Prometheus' text, or OpenMetrics where `Accept` asks for it.",
            "content": {
                kind: {"schema": {"type": "string"}}
                for kind in ("text/plain", "application/openmetrics-text")
            },
        },
        **problems(),
    },
)
def scrape(request: Request) -> Response:
    """Return all metrics, in the format that Accept asks for."""
    metrics: Metrics = request.app.state.metrics
    content, content_type = metrics.expose(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})
