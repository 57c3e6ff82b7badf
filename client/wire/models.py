"""Published models."""

from datetime import datetime

from client.wire.model import Wire
from client.wire.reports import Accuracy, Gate, Latency, Size
from client.wire.specs import InputShape


class _Figures(Wire):
    """What is known about one version.

    ``runtime`` serves it, with ``kernels``, the set of kernels, which older services do not tell;
    ``gate`` and ``latency`` are None where they were not measured.
    """

    architecture: str
    method: str
    accuracy: Accuracy
    bytes: Size
    compression_ratio: float
    gate: Gate | None = None
    latency: Latency | None = None
    input: InputShape
    labels: tuple[str, ...]
    runtime: str
    kernels: str | None = None
    digest: str
    job: str
    created_at: datetime


class Model(_Figures):
    """A published model: its versions, and what is known about the latest of them.

    ``aliases`` has the version that each alias points to, None where the service cannot tell.
    """

    name: str
    latest: int
    versions: tuple[int, ...]
    aliases: dict[str, int] | None = None


class ModelVersion(_Figures):
    """One version of a model, and the aliases that point to it."""

    name: str
    version: int
    aliases: tuple[str, ...] = ()


class Aliases(Wire):
    """The aliases of a model."""

    model: str
    aliases: dict[str, int]


class AliasSet(Wire):
    """An alias, and the version that it now points to."""

    model: str
    alias: str
    version: int
