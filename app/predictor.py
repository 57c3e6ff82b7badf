"""A prediction from bytes to labels: check, decode, batch, compute, softmax."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
import numpy as np
from anyio.to_thread import run_sync

from app.images import ImageLimits, check_image
from app.metrics import Metrics
from app.pool import LoadedModel, Logits, ModelPool, Pixels
from app.prediction_requests import PredictionInput, SentImage
from app.schemas import Fault, Label, Prediction, PredictionAnswer
from models.cores import usable_cores
from models.preprocessing import InputSpec, decode_image
from store.aliases import LATEST
from store.errors import BitpressError, Overloaded

_IMAGES_PER_HOP = 16
"""Images that one thread decodes in a row: a hop per small image would cost more than decoding."""


class Predictor:
    """Answers prediction requests with the models of ``pool``.

    ``max_requests`` bounds the requests whose bodies are in memory at once.
    """

    def __init__(
        self, pool: ModelPool, limits: ImageLimits, max_requests: int, metrics: Metrics
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._max_requests = max_requests
        self._metrics = metrics
        self._requests = 0
        self._decoders = anyio.CapacityLimiter(usable_cores())

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one request's place, from before its body is read.

        Raises:
            Overloaded: too many requests are under way.
        """
        if self._requests >= self._max_requests:
            raise Overloaded(
                "Too many prediction requests are under way.",
                remedy="Try again after the time in Retry-After.",
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def predict(self, sent: PredictionInput) -> bytes:
        """Classify the images of ``sent``; a bad one among several gets its own problem.

        Returns a `PredictionAnswer` as JSON. It is made on a thread: with all labels of many
        images it takes longer than other requests may be kept waiting.

        Raises:
            NotFound: no such model, version or alias.
            Overloaded: too many images wait for the model.
            Unavailable: the model cannot be loaded here.
            InvalidImage, TooLarge: there is only one image, and it cannot be used.
        """
        model = await self._pool.get(sent.model, sent.version)
        with model.batcher.admit(len(sent.images)):
            begun = time.monotonic()
            decoded = await self._decode(sent.images, model.card.input)
            decode_s = time.monotonic() - begun
            usable = [one for one in decoded if not isinstance(one, BitpressError)]
            faults = [one for one in decoded if isinstance(one, BitpressError)]
            self._metrics.count_images(model.version.name, usable=len(usable), refused=len(faults))
            if len(decoded) == len(faults) == 1:
                raise faults[0]
            logits, timing = await model.batcher.submit(usable)
        self._metrics.observe_prediction(decode_s, timing)
        answers = iter(logits)
        outcomes = [one if isinstance(one, BitpressError) else next(answers) for one in decoded]
        return await run_sync(_answer, model, sent, outcomes, limiter=self._decoders)

    async def _decode(
        self, images: Sequence[SentImage], spec: InputSpec
    ) -> list[Pixels | BitpressError]:
        decoded: list[Pixels | BitpressError] = [None] * len(images)  # type: ignore[list-item]

        async def decode_some(start: int) -> None:
            some = images[start : start + _IMAGES_PER_HOP]
            decoded[start : start + len(some)] = await run_sync(
                _decode_some, some, spec, self._limits, limiter=self._decoders
            )

        async with anyio.create_task_group() as tasks:
            for start in range(0, len(images), _IMAGES_PER_HOP):
                tasks.start_soon(decode_some, start)
        return decoded


def _answer(
    model: LoadedModel, sent: PredictionInput, outcomes: Sequence[Logits | BitpressError]
) -> bytes:
    asked = sent.version
    answer = PredictionAnswer(
        model=model.version.name,
        version=model.version.version,
        alias=asked if isinstance(asked, str) and asked != LATEST else None,
        predictions=[],
    )
    head, _, tail = answer.model_dump_json().partition("[]")
    # One image at a time: a single long call would keep the interpreter from the event loop.
    predictions = (
        _prediction(image, outcome, model.card.labels, sent.top_k).model_dump_json(
            exclude_none=True
        )
        for image, outcome in zip(sent.images, outcomes, strict=True)
    )
    return f"{head}[{','.join(predictions)}]{tail}".encode()


def _prediction(
    image: SentImage, outcome: Logits | BitpressError, labels: Sequence[str], top_k: int
) -> Prediction:
    if isinstance(outcome, BitpressError):
        return Prediction(filename=image.filename, error=Fault(**outcome.problem()))
    return Prediction(filename=image.filename, top=top_labels(outcome, labels, top_k))


def top_labels(logits: Logits, labels: Sequence[str], count: int) -> list[Label]:
    """Return the ``count`` most probable labels of ``logits`` (classes,), or as many as exist.

    Softmax in float64, ``p_i = exp(z_i - max z) / sum_j exp(z_j - max z)``, to six decimals. Equal
    logits keep the labels' order.
    """
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max())
    probabilities = weights / weights.sum()
    return [
        Label(label=labels[index], index=int(index), probability=round(float(p), 6))
        for index in np.argsort(-exact, kind="stable")[:count]
        for p in (probabilities[index],)
    ]


def _decode_some(
    images: Sequence[SentImage], spec: InputSpec, limits: ImageLimits
) -> list[Pixels | BitpressError]:
    return [_decode_one(image, spec, limits) for image in images]


def _decode_one(image: SentImage, spec: InputSpec, limits: ImageLimits) -> Pixels | BitpressError:
    if image.fault is not None:
        return image.fault
    try:
        check_image(image.data, limits, image.field)
        return decode_image(image.data, spec)
    except BitpressError as error:
        # The decoder does not know which of several images it was given.
        error.field = image.field
        return error
