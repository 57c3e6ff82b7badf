"""The artifact: one safetensors file that holds a compressed network and how to run it.

docs/FORMAT.md specifies it to the byte. In short: the tensors of the plan, and in the header's
metadata one key, ``bitpress``, whose value is canonical JSON: format number, plan, input
specification, class labels, provenance, accuracies. Nothing in it depends on when or where it was
written, so that equal jobs give equal files.

An `Artifact` that exists is whole: its tensors are those that the plan needs, of the right dtype
and shape, finite, with zero padding bits. Files are not trusted; every defect is an
`InvalidArtifact` that names it.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models import bits, canonical_json
from models.operators import Conv2d, Linear
from models.plan import Plan
from models.preprocessing import InputSpec
from store.errors import InvalidArtifact

FORMAT: Final = 1
METADATA_KEY: Final = "bitpress"

MAX_FILE_BYTES: Final = 1 << 32
MAX_HEADER_BYTES: Final = 1 << 24
MAX_LABEL_CHARACTERS: Final = 200

_DTYPES: Final[Mapping[str, type[np.generic]]] = {"U8": np.uint8, "F32": np.float32}
_MEMBERS: Final = {"format", "plan", "input", "labels", "provenance", "accuracy"}


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compressed network: the plan, its tensors, and what a user wants to know of it.

    ``tensors`` by name as in ``plan.tensors``, uint8 or float32, not to be written to. ``labels``:
    one class name per output of the plan. ``provenance``: JSON, by convention ``spec``, ``seed``,
    digests and versions. ``accuracy``: measured accuracies in 0..1, by name.

    Raises:
        InvalidArtifact: the parts do not fit together, naming the first defect.
    """

    plan: Plan
    tensors: Mapping[str, NDArray[Any]]
    input: InputSpec
    labels: tuple[str, ...]
    provenance: Mapping[str, Any]
    accuracy: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.plan.input_shape != self.input.shape:
            _refuse(
                f"The plan reads images of {self.plan.input_shape}, "
                f"the input specification makes {self.input.shape}.",
                "input",
            )
        _check_labels(self.labels)
        if self.plan.output_shape != (len(self.labels),):
            _refuse(
                f"There are {len(self.labels)} labels for an output of shape "
                f"{self.plan.output_shape}.",
                "labels",
            )
        _check_accuracy(self.accuracy)
        _check_tensors(self.plan, self.tensors)
        # A read-only copy of the mapping, in the plan's order.
        ordered = {name: self.tensors[name] for name in self.plan.tensors}
        object.__setattr__(self, "tensors", MappingProxyType(ordered))

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Heading:
    """What an artifact's header tells a user: what the network is fed, and its class names."""

    input: InputSpec
    labels: tuple[str, ...]


def encode(artifact: Artifact) -> bytes:
    """Return the file's bytes; equal artifacts give equal bytes.

    Raises:
        InvalidArtifact: the provenance is not JSON, or the header would be over its limit.
    """
    header = {
        "format": FORMAT,
        "plan": artifact.plan.to_json(),
        "input": artifact.input.to_json(),
        "labels": list(artifact.labels),
        "provenance": dict(artifact.provenance),
        "accuracy": {name: float(value) for name, value in artifact.accuracy.items()},
    }
    try:
        text = canonical_json.dump(header)
        canonical_json.load(text)
    except ValueError as error:
        _refuse(f"The header is {error}.", "provenance")
    tensors = {
        name: np.ascontiguousarray(tensor) for name, tensor in sorted(artifact.tensors.items())
    }
    data = safetensors.numpy.save(tensors, metadata={METADATA_KEY: text})
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        _refuse(f"The header is over {MAX_HEADER_BYTES} bytes.", "provenance")
    return data


def decode(data: bytes) -> Artifact:
    """Return the artifact that ``data`` holds, after checking all of it.

    Raises:
        InvalidArtifact: naming the first defect.
    """
    if len(data) > MAX_FILE_BYTES:
        _refuse(f"The file is over {MAX_FILE_BYTES} bytes.")
    header = _read_header(data[8 : 8 + _header_bytes(data[:8], len(data))])
    plan = Plan.from_json(header["plan"])
    heading = _heading(header)
    for member in ("provenance", "accuracy"):
        if not isinstance(header[member], dict):
            _refuse(f"The {member} is not an object.", member)
    return Artifact(
        plan=plan,
        tensors=_read_tensors(data),
        input=heading.input,
        labels=heading.labels,
        provenance=header["provenance"],
        accuracy=header["accuracy"],
    )


def read(path: Path) -> Artifact:
    """Read an artifact from a file.

    Raises:
        InvalidArtifact: naming the first defect.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            _refuse(f"The file is over {MAX_FILE_BYTES} bytes.")
        return decode(file.read(MAX_FILE_BYTES + 1))


def read_heading(path: Path) -> Heading:
    """Read an artifact's heading from a file, without its tensors: their damage goes unseen.

    Raises:
        InvalidArtifact: naming the first defect of the header.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = _header_bytes(file.read(8), os.fstat(file.fileno()).st_size)
        heading = _heading(_read_header(file.read(length)))
    _check_labels(heading.labels)
    return heading


def write(artifact: Artifact, path: Path) -> str:
    """Write ``artifact`` to ``path`` and return its digest, ``sha256:...``.

    The file appears whole or not at all, and is on the disk when this returns.
    """
    data = encode(artifact)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp makes private files; an artifact is as public as its folder.
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest(data)


def digest(source: bytes | Path) -> str:
    """Return ``sha256:`` and the hexadecimal digest of an encoded artifact, or of a file."""
    if isinstance(source, bytes):
        return "sha256:" + hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def compression_ratio(float_bytes: int, path: Path) -> float:
    """Return the float32 bytes of the network over the bytes of its artifact file."""
    return float_bytes / path.stat().st_size


def binary_codes(artifact: Artifact) -> dict[str, NDArray[np.int8]]:
    """Return the codes -1 and +1 of every binary layer, by node.

    int8 ``(N, C / groups, kh, kw)`` or ``(N, S)``, with a first axis of bases where there are
    several.
    """
    codes = {}
    for node in artifact.plan.nodes:
        if isinstance(node, Conv2d | Linear) and node.weight == "bits":
            shape = node.weight_shape(artifact.plan.source_shapes(node))
            bases = artifact.tensors[f"{node.name}.bits"]
            unpacked = [bits.unpack(basis, shape) for basis in bases]
            codes[node.name] = unpacked[0] if node.bases == 1 else np.stack(unpacked)
    return codes


def _refuse(detail: str, field: str | None = None) -> NoReturn:
    raise InvalidArtifact(detail, field=field)


def _header_bytes(prefix: bytes, file_bytes: int) -> int:
    """Return the length of the header, from the eight bytes before it."""
    length = int.from_bytes(prefix, "little")
    if file_bytes < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
        _refuse("The file is truncated, or not a safetensors file.")
    return length


def _heading(header: Mapping[str, Any]) -> Heading:
    try:
        input_spec = InputSpec.from_json(header["input"])
    except ValueError as error:
        _refuse(f"The input specification: {error}.", "input")
    if not isinstance(header["labels"], list):
        _refuse("The labels are not a list.", "labels")
    return Heading(input_spec, tuple(header["labels"]))


def _read_header(raw: bytes) -> dict[str, Any]:
    """Return the parsed value of the metadata key."""
    try:
        outer = canonical_json.load(raw.decode())
    except ValueError as error:
        _refuse(f"The safetensors header is not usable JSON: {str(error)[:200]}.")
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    if not isinstance(metadata, dict) or set(metadata) != {METADATA_KEY}:
        _refuse(f"The metadata does not hold exactly the key {METADATA_KEY!r}.")
    if not isinstance(metadata[METADATA_KEY], str):
        _refuse("The metadata is not text.")
    try:
        header = canonical_json.load(metadata[METADATA_KEY])
    except ValueError as error:
        _refuse(f"The metadata is not usable JSON: {str(error)[:200]}.")
    if not isinstance(header, dict):
        _refuse("The metadata is not a JSON object.")
    number = header.get("format")
    if type(number) is not int or number != FORMAT:
        _refuse(f"The file is of format {number!r:.60}; this release reads format {FORMAT}.")
    if set(header) != _MEMBERS:
        odd = ", ".join(sorted(f"{key!r:.60}" for key in set(header) ^ _MEMBERS))
        _refuse(f"The metadata has missing or unknown members: {odd}.")
    return header


def _read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        _refuse(f"The safetensors file is damaged: {str(error)[:200]}.")
    tensors = {}
    for name, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            _refuse(f"The tensor {name[:250]!r} is of type {entry['dtype']}, not U8 or F32.")
        array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        array.flags.writeable = False
        tensors[name] = array
    return tensors


def _check_labels(labels: tuple[str, ...]) -> None:
    for label in labels:
        if not isinstance(label, str) or not 1 <= len(label) <= MAX_LABEL_CHARACTERS:
            _refuse(
                f"The label {label!r:.60} is not text of 1 to {MAX_LABEL_CHARACTERS} characters.",
                "labels",
            )
    if len(set(labels)) != len(labels):
        _refuse("A label is given twice.", "labels")


def _check_accuracy(accuracy: Mapping[str, float]) -> None:
    for name, value in accuracy.items():
        if type(value) not in (int, float) or not 0 <= value <= 1 or not isfinite(value):
            _refuse(f"The accuracy {name!r:.60} is not a number in 0..1.", "accuracy")


def _check_tensors(plan: Plan, tensors: Mapping[str, NDArray[Any]]) -> None:
    for name in sorted(set(plan.tensors) ^ set(tensors)):
        defect = "is missing" if name in plan.tensors else "belongs to no node of the plan"
        _refuse(f"The tensor {name[:250]!r} {defect}.", "tensors")
    for name, spec in plan.tensors.items():
        tensor = tensors[name]
        if tensor.dtype != _DTYPES[spec.dtype] or tensor.shape != spec.shape:
            _refuse(
                f"The tensor {name!r} is {tensor.dtype} {tensor.shape}; "
                f"the plan wants {np.dtype(_DTYPES[spec.dtype])} {spec.shape}.",
                "tensors",
            )
        if spec.dtype == "F32" and not np.isfinite(tensor).all():
            _refuse(f"The tensor {name!r} holds NaN or infinity.", "tensors")
    for node in plan.nodes:
        if isinstance(node, Conv2d | Linear) and node.weight == "bits":
            shape = node.weight_shape(plan.source_shapes(node))
            if not bits.padding_is_zero(tensors[f"{node.name}.bits"], shape):
                _refuse(f"The tensor '{node.name}.bits' has a padding bit set.", "tensors")
        if node.op == "sign_pack" and f"{node.name}.threshold" in tensors:
            senses = tensors[f"{node.name}.threshold"][0]
            if not np.isin(senses, (-1, 0, 1)).all():
                _refuse(f"The tensor '{node.name}.threshold' has a sense that is not -1, 0, 1.")
