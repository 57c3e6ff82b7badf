"""The application factory.

``uvicorn --factory app.main:create_app`` works; ``python -m app`` adds logs, a free port, a clean
stop, and problem documents for what is not HTTP.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from app import errors, methods, openapi
from app.metrics import Metrics
from app.observation import Observation
from app.routes import aliases, compress, datasets, events, health, jobs, models, predict
from app.services import open_services
from app.settings import AppSettings

_DESCRIPTION = (
    "Turns a pretrained CNN classifier into single bits by hashing, and serves the result. "
    "Every error is a problem document (RFC 9457)."
)


def create_app(settings: AppSettings | None = None) -> FastAPI:
    """Return the application; without ``settings`` they are read from the environment.

    Nothing is opened before its lifespan starts, and everything is closed when that ends.
    """
    settings = settings or AppSettings()
    metrics = Metrics(errors.reasons(), _version())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, metrics) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="bitpress",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # A redirect would be the one answer that is neither a success nor a problem document.
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    app.state.settings = settings
    for routes in (compress, jobs, events, datasets, models, aliases, predict, health):
        app.include_router(routes.router)
    errors.install(app)
    methods.install(app)
    app.add_middleware(Observation, metrics=metrics)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return version("bitpress")
    except PackageNotFoundError:
        return "0"
