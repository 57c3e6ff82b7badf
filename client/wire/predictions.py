"""What a model says of images."""

from typing import Any

from pydantic import field_validator

from client.wire.model import Wire
from client.wire.problems import Problem


class Label(Wire):
    """One of the best labels for an image, ``probability`` in 0..1."""

    label: str
    index: int
    probability: float


class Prediction(Wire):
    """The answer for one image: the best labels, or the problem with this image."""

    filename: str | None = None
    top: tuple[Label, ...] = ()
    error: Problem | None = None

    @field_validator("top", mode="before")
    @classmethod
    def _none_is_empty(cls, top: Any) -> Any:
        return () if top is None else top


class Predictions(Wire):
    """The answers for the images of one request, in the order they were sent.

    ``alias`` is there where one was asked for; ``version`` is the one that answered.
    """

    model: str
    version: int
    alias: str | None = None
    predictions: tuple[Prediction, ...]
