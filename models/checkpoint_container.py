"""What kind of file a checkpoint is, by its content, and whether its container is sound.

Nothing is unpickled and nothing is unpacked here. Every size that a file declares is compared with
what the file has before anything is allocated for it.

==============  ================================================================================
safetensors     8 bytes of header length, a JSON header, raw tensors; read by bounds-checked code
torch-zip       ``torch.save`` since 1.6: a zip without compression, one pickle and raw storages
torch-legacy    ``torch.save`` before: a row of pickles; its sizes show only when it is read
==============  ================================================================================
"""

import struct
import zipfile
from pathlib import Path
from typing import IO, Literal

from safetensors import SafetensorError, safe_open

from store.errors import InvalidCheckpoint

Format = Literal["safetensors", "torch-zip", "torch-legacy"]
Shape = tuple[int, ...]

SAVE_SAFELY = (
    "Save the weights alone as safetensors: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)
_DAMAGED = "The file is damaged or incomplete: save or upload it again."

_MAX_HEADER_BYTES = 16 * 2**20
_MAX_TENSORS = 100_000
_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})

# The pickled number 0x1950a86a20f9469cfc6c with which `torch.save` begins a legacy file.
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")


def identify(path: Path) -> Format:
    """Return the format of the file at ``path``, by its first bytes.

    Raises:
        InvalidCheckpoint: the file is empty, or none of the formats.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise _invalid("The file is empty.", _DAMAGED)
    if head.startswith(_ZIP):
        return "torch-zip"
    if head.startswith(_PICKLE) and _LEGACY_MAGIC in head:
        return "torch-legacy"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(_PICKLE):
        raise _invalid("The file is a pickle that torch.save did not write.", SAVE_SAFELY)
    raise _invalid("The file is neither safetensors nor a file of torch.save.", SAVE_SAFELY)


def safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Return the shape of every tensor in a safetensors file, reading only its header.

    Raises:
        InvalidCheckpoint: a damaged file, too large a header, or a type that no weight has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > size - 8:
        raise _invalid("The safetensors header is longer than the file.", _DAMAGED)
    if header_bytes > _MAX_HEADER_BYTES:
        raise _invalid(
            f"The safetensors header has {header_bytes} bytes; "
            f"at most {_MAX_HEADER_BYTES} are read.",
            SAVE_SAFELY,
        )
    shapes: dict[str, Shape] = {}
    try:
        with safe_open(path, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (the handle is no mapping)
                entry = tensors.get_slice(key)
                if entry.get_dtype() not in _DTYPES:
                    raise _invalid(
                        f"Tensor {short(key)} has type {entry.get_dtype()}, "
                        "which no weight of these networks has.",
                        "Save the weights as float32, float16 or bfloat16.",
                    )
                shapes[key] = tuple(entry.get_shape())
    except SafetensorError as error:
        raise _invalid(f"The safetensors file is damaged: {str(error)[:200]}.", _DAMAGED) from None
    if len(shapes) > _MAX_TENSORS:
        raise _invalid(f"The file holds more than {_MAX_TENSORS} tensors.", SAVE_SAFELY)
    return shapes


def check_zip(path: Path) -> None:
    """Check the directory of a ``torch.save`` zip, before any of its members is opened.

    torch stores members uncompressed; so what they declare adds up to less than the file has.
    Anything else is no file of torch's, and a zip bomb is always something else.

    Raises:
        InvalidCheckpoint: truncated, compressed, encrypted, with too many members or larger ones
            than the file can hold, or not from ``torch.save``.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _check_directory_bounds(file, size)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError):
            raise _invalid("The zip directory is damaged.", _DAMAGED) from None
    declared = sum(member.file_size for member in members)
    if declared > size:
        raise _invalid(
            f"The zip declares {declared} bytes of content in a file of {size} bytes.", SAVE_SAFELY
        )
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED
        if not stored or member.compress_size != member.file_size or member.flag_bits & 1:
            raise _invalid(
                f"Zip member {short(member.filename)} is compressed or encrypted; "
                "torch.save does neither.",
                SAVE_SAFELY,
            )
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise _invalid("The file is a TorchScript program, not a checkpoint.", SAVE_SAFELY)
    if sum(name.count("/") == 1 and name.endswith("/data.pkl") for name in names) != 1:
        raise _invalid("The file is a zip archive, but not one of torch.save.", SAVE_SAFELY)


def _check_directory_bounds(file: IO[bytes], size: int) -> None:
    """Bound the number of members before the standard library makes an object of each.

    Only the form that torch writes is taken: no archive comment, and the zip64 records, where
    there are any, directly before the end. So there is one way to read it, not two.
    """
    tail_bytes = min(size, _END64.size + _END64_LOCATOR.size + _END.size)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\x05\x06"):
        raise _invalid("The zip directory at the end of the file is missing.", _DAMAGED)
    _, disk, _, _, members, directory_bytes, directory_at, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    records64 = tail[: -_END.size]
    if records64[-_END64_LOCATOR.size :].startswith(b"PK\x06\x07"):
        end = size - tail_bytes
        if len(tail) < tail_bytes or not records64.startswith(b"PK\x06\x06"):
            raise _invalid("The zip64 directory is damaged.", _DAMAGED)
        *_, members, directory_bytes, directory_at = _END64.unpack(records64[: _END64.size])
    if disk or comment or directory_at + directory_bytes > end:
        raise _invalid("The zip directory does not lie within the file.", _DAMAGED)
    if members > _MAX_TENSORS or directory_bytes > _MAX_HEADER_BYTES:
        raise _invalid(
            f"The zip declares {members} members; at most {_MAX_TENSORS} are read.", SAVE_SAFELY
        )


def short(key: str) -> str:
    """Return ``key`` quoted, printable and bounded, for a message."""
    return repr(key if len(key) <= 80 else key[:77] + "...")


def _invalid(detail: str, remedy: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(detail, field="checkpoint", remedy=remedy)
