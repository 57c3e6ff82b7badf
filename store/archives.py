"""Reading untrusted archives."""

from dataclasses import dataclass

_MIB = 2**20
_GIB = 2**30


@dataclass(frozen=True)
class DatasetLimits:
    """What a dataset archive may cost. The defaults are those of `StoreSettings`."""

    max_unpacked_bytes: int = 32 * _GIB
    max_ratio: float = 200.0
    ratio_free_bytes: int = 64 * _MIB
    max_members: int = 2_000_000
    max_images: int = 1_000_000
    max_classes: int = 10_000
    max_member_bytes: int = 64 * _MIB
