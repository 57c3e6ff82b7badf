"""The rows of the paper's comparisons: every method, and its published accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.commands.options import pairs
from store.errors import InvalidSpec


def bwnh_as_published(parameters: Sequence[str] = ()) -> dict[str, Any]:
    """Return BWNH without anything of ours; ``parameters`` (``key=value``) count before all."""
    return {
        "name": "bwnh",
        "recalibrate_batch_norm": "never",
        "mirror_images": False,
        "sweeps": 20,
        "target": "full_precision",
        "blocks": False,
        "scale": True,
        "offset": False,
        "correction": 0.0,
        "ridge": 0.0,
        "positions": 65_536,  # the paper does not say
        "starts": ("sign",),
        "eliminate_scale": False,
        "bit_pairs": 0,
        "bases": 1,
        **pairs(parameters),
    }


@dataclass(frozen=True)
class Variant:
    """One row: ``method`` is the member of a specification."""

    key: str
    title: str
    method: Mapping[str, Any]


VARIANTS: Mapping[str, Variant] = {
    variant.key: variant
    for variant in (
        Variant("binary_connect", "BinaryConnect", {"name": "binary_connect"}),
        Variant("bwn", "BWN", {"name": "bwn"}),
        Variant("sq_bwn", "SQ-BWN", {"name": "sq_bwn"}),
        Variant("hwgq_bwn", "HWGQ-BWN", {"name": "hwgq_bwn"}),
        Variant("bwnh_as_published", "BWNH as published", bwnh_as_published()),
        Variant("bwnh", "BWNH of bitpress", {"name": "bwnh"}),
        # As many bits as the others have.
        Variant("bwnh_one_basis", "BWNH of bitpress, one basis", {"name": "bwnh", "bases": 1}),
        # What the codes are worth: the training of BWNH without its calibration.
        Variant("sign", "signs, trained as BWNH", {**bwnh_as_published(), "sweeps": 0}),
    )
}

FULL_PRECISION = "full_precision"
PublishedRows = Mapping[str, tuple[float, float | None]]

# Accuracies in percent, top-1 and top-5, by workload and variant, from tables 1 to 3 of the paper.
# Its networks were trained and tested on other images than these (see RESULTS.md), its methods
# differ in the layers that they leave in float, and it states no full-precision AlexNet.
PUBLISHED: Mapping[str, PublishedRows] = {
    "vgg9-cifar10": {
        FULL_PRECISION: (90.99, None),
        "binary_connect": (88.85, None),
        "bwn": (89.33, None),
        "sq_bwn": (90.60, None),
        "bwnh_as_published": (90.79, None),
    },
    "vgg9-cifar100": {
        FULL_PRECISION: (69.55, None),
        "binary_connect": (62.30, None),
        "bwn": (62.32, None),
        "sq_bwn": (64.75, None),
        "bwnh_as_published": (65.65, None),
    },
    "alexnet-imagenet": {
        "binary_connect": (35.4, 61.0),
        "bwn": (56.8, 79.4),
        "sq_bwn": (51.2, 75.1),
        "hwgq_bwn": (52.4, 75.9),
        "bwnh_as_published": (58.5, 80.9),
    },
    "resnet18-imagenet": {
        FULL_PRECISION: (69.3, 89.2),
        "bwn": (60.8, 83.0),
        "sq_bwn": (58.3, 81.6),
        "hwgq_bwn": (61.3, 83.9),
        "bwnh_as_published": (64.3, 85.9),
    },
}


def chosen(keys: str) -> list[Variant]:
    """Return the variants of a comma-separated list of keys.

    Raises:
        InvalidSpec: there is no such variant.
    """
    for key in keys.split(","):
        if key not in VARIANTS:
            raise InvalidSpec(
                f"There is no method {key!r} to compare.",
                field="methods",
                remedy="Use some of: " + ", ".join(VARIANTS) + ".",
            )
    return [VARIANTS[key] for key in dict.fromkeys(keys.split(","))]
