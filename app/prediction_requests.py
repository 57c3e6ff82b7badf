"""The three forms of a prediction request, read into one `PredictionInput`.

JSON with base64 images; multipart with files; one raw image with its options in the query.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from app.errors import UnsupportedMedia
from app.json_bodies import first_fault
from app.schemas import (
    DEFAULT_TOP_K,
    MODEL_NAME,
    MOST_VERSION,
    TOP_K,
    PredictionRequest,
    VersionName,
)
from app.settings import AppSettings
from app.uploads import BodyLimits, Part, media_type, read_body, receive_form
from store.errors import BitpressError, InvalidImage, InvalidInput, TooLarge

_MOST_OPTION_BYTES = 1024
_OPTIONS = ("model", "version", "top_k")
_REMEDIES = {
    "model": "Give the name of a published model; GET /models lists them.",
    "version": "Give a version's number or an alias, or leave it out for the latest.",
    "top_k": "Give a number from 1 to 1000.",
    "images": "Give a list of image files, each in base64.",
}


@dataclass(frozen=True)
class SentImage:
    """One image as it came: its bytes, or what was wrong with them before any decoding."""

    field: str
    filename: str | None
    data: bytes
    fault: BitpressError | None = None


@dataclass(frozen=True)
class PredictionInput:
    """What to predict with which model; at least one image.

    ``version`` is a number, an alias or ``latest``; `None` is the latest too.
    """

    model: str
    version: int | str | None
    top_k: int
    images: tuple[SentImage, ...]


class _Options(BaseModel):
    """The options where they come as text, in the query or in form fields."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, MODEL_NAME]
    version: Annotated[int, Field(ge=1, le=MOST_VERSION)] | VersionName | None = None
    top_k: Annotated[int, TOP_K] = DEFAULT_TOP_K


async def read_prediction_request(request: Request, settings: AppSettings) -> PredictionInput:
    """Read any of the three forms, chosen by Content-Type.

    Raises:
        UnsupportedMedia: another Content-Type.
        MalformedBody: broken JSON or multipart.
        InvalidInput: an option or the list of images is not valid.
        TooLarge: too many bytes or images.
        SlowBody: the body did not arrive in time.
    """
    kind = media_type(request)
    limits = BodyLimits(
        settings.max_body_bytes,
        settings.body_idle_s,
        # Who sends slowly holds one of the few places of prediction requests meanwhile.
        settings.predict_body_s,
        # One more than images and options can be, so that the images' own limit speaks first.
        max_parts=settings.max_images_per_request + len(_OPTIONS) + 1,
    )
    if kind == "application/json":
        return await run_sync(_from_json, await read_body(request, limits), settings)
    if kind == "multipart/form-data":
        return await _from_form(request, limits, settings)
    if kind.startswith("image/") or kind == "application/octet-stream":
        options = _options(dict(request.query_params))
        data = await read_body(request, limits)
        return _input(options, [SentImage("body", None, data)])
    raise UnsupportedMedia(
        "This Content-Type is not accepted.",
        field="Content-Type",
        remedy="Send application/json, multipart/form-data, or an image as image/*.",
    )


def _from_json(body: bytes, settings: AppSettings) -> PredictionInput:
    # Before parsing, which keeps the interpreter to itself for as long as there is something new:
    # no more than one comma for each image and option, and one in each where it is a data URL.
    _check_count(body.count(b",") // 2 - len(_OPTIONS), settings)
    try:
        sent = PredictionRequest.model_validate_json(body)
    except ValidationError as error:
        raise first_fault(error, PredictionRequest, _REMEDIES) from None
    _check_count(len(sent.images), settings)
    images = [_from_base64(text, f"images[{index}]") for index, text in enumerate(sent.images)]
    return PredictionInput(sent.model, sent.version, sent.top_k, tuple(images))


def _from_base64(text: str, field: str) -> SentImage:
    try:
        return SentImage(field, None, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        fault = InvalidImage(
            "The image is not valid base64.",
            field=field,
            remedy="Encode the image file in standard base64, without line breaks or data: prefix.",
        )
        return SentImage(field, None, b"", fault)


async def _from_form(
    request: Request, limits: BodyLimits, settings: AppSettings
) -> PredictionInput:
    texts: dict[str, bytearray] = {}
    files: list[tuple[Part, bytearray]] = []
    current: tuple[Part, bytearray] | None = None

    async def take(part: Part, data: bytes) -> None:
        nonlocal current
        if current is None or part is not current[0]:
            current = (part, bytearray())
            if part.name == "images":
                _check_count(len(files) + 1, settings)
                files.append(current)
            elif part.name not in _OPTIONS or part.name in texts:
                raise InvalidInput(
                    "This form field is unknown, or sent twice.",
                    field=part.name[:100],
                    remedy="Send model, version and top_k once at most, and files as images.",
                )
            else:
                texts[part.name] = current[1]
        current[1].extend(data)
        # One byte too many is kept of an oversized file, so that it gets its own problem later
        # without filling the memory until then.
        most = settings.max_image_bytes + 1 if part.name == "images" else _MOST_OPTION_BYTES
        del current[1][most:]

    await receive_form(request, limits, take)
    options = _options({name: text.decode("utf-8", "replace") for name, text in texts.items()})
    images = [
        SentImage(f"images[{index}]", part.filename, bytes(data))
        for index, (part, data) in enumerate(files)
    ]
    if not images:
        raise InvalidInput(
            "There is no image.", field="images", remedy="Send at least one file as images."
        )
    return _input(options, images)


def _input(options: _Options, images: Sequence[SentImage]) -> PredictionInput:
    return PredictionInput(options.model, options.version, options.top_k, tuple(images))


def _options(texts: Mapping[str, Any]) -> _Options:
    try:
        return _Options.model_validate(texts)
    except ValidationError as error:
        raise first_fault(error, _Options, _REMEDIES) from None


def _check_count(count: int, settings: AppSettings) -> None:
    if count > settings.max_images_per_request:
        raise TooLarge(
            f"There are more than {settings.max_images_per_request:,} images.",
            field="images",
            remedy="Send them in several requests.",
        )
