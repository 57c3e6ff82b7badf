"""POST /predict: images in, labels and probabilities out."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app.interruption import leaving
from app.openapi import form_body, problems
from app.prediction_requests import read_prediction_request
from app.schemas import DEFAULT_TOP_K, MOST_VERSION, VERSION, PredictionAnswer
from app.services import ServicesDep
from store.aliases import ALIAS_PATTERN, LATEST
from store.specs import NAME_PATTERN

router = APIRouter(tags=["predictions"])

T = TypeVar("T")

_MODEL = {"type": "string", "pattern": NAME_PATTERN}
_VERSION = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MOST_VERSION},
        {"type": "string", "pattern": ALIAS_PATTERN},
    ],
    "default": LATEST,
    "description": VERSION.description,
}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": 1000, "default": DEFAULT_TOP_K}
_IMAGE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "application/json": {"schema": {"$ref": "#/components/schemas/PredictionRequest"}},
    "multipart/form-data": form_body(
        {
            "model": _MODEL,
            "version": _VERSION,
            "top_k": _TOP_K,
            "images": {"type": "array", "items": _IMAGE["schema"], "minItems": 1},
        },
        required=("model", "images"),
    ),
    "image/*": _IMAGE,
    "application/octet-stream": _IMAGE,
}
_QUERY = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": "Only with a raw image as body" + (", and then required." if must else "."),
    }
    for name, schema, must in (
        ("model", _MODEL, True),
        ("version", _VERSION, False),
        ("top_k", _TOP_K, False),
    )
]


@router.post(
    "/predict",
    response_model=PredictionAnswer,
    responses=problems(400, 404, 408, 413, 415, 422, 429, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": _BODY},
        "parameters": _QUERY,
    },
)
async def predict(request: Request, services: ServicesDep) -> Response:
    """Classify images: several as multipart files or in base64 JSON, or one as the raw body.

    Of several images each gets its labels or its own problem; where there is only one, its problem
    is the answer. `version` may be an alias: which version that is, is decided anew for each
    request, and the answer tells.
    """
    with services.predictor.admit():
        sent = await read_prediction_request(request, services.settings)
        answer = await _while_connected(request, services.predictor.predict(sent))
    return Response(answer, media_type="application/json")


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, but drop it as soon as the client goes away. The body must have been read.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(leaving(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
