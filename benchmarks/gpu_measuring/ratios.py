"""What follows from measured times and sizes, and which goals it meets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.gpu_measuring.cells import Cell

Figures = Mapping[str, float]

OURS: Final = ("w1a16", "w1a8")
RIVAL: Final = "fp16_compiled"
RUNTIMES: Final = (*OURS, RIVAL)


def ratios(figures: Figures, cells: Sequence[Cell]) -> dict[str, float]:
    """Return figures made from the figures of cells, under names in the same manner.

    ``<net>.b<batch>.<runtime>_images_per_s``; ``_vs_fp16_compiled``, how many times as fast as the
    rival; ``<net>.<runtime>_vs_fp16_bytes``, the share of the rival's weights that ours take with
    their tables, and ``_vs_fp16_packed`` without.
    """
    found: dict[str, float] = {}
    for net, batch in cells:
        times = {name: figures.get(f"{net}.b{batch}.{name}_ms") for name in RUNTIMES}
        rival = times[RIVAL]
        for name, ms in times.items():
            if ms is not None:
                found[f"{net}.b{batch}.{name}_images_per_s"] = 1000 * batch / ms
                if rival is not None and name in OURS:
                    found[f"{net}.b{batch}.{name}_vs_{RIVAL}"] = rival / ms
        sizes = {name: figures.get(f"{net}.{name}_weight_bytes") for name in RUNTIMES}
        most = sizes[RIVAL]
        for name in OURS:
            size = sizes[name]
            if size is not None and most:
                found[f"{net}.{name}_vs_fp16_bytes"] = size / most
            packed = figures.get(f"{net}.{name}_packed_bytes")
            if packed is not None and most:
                found[f"{net}.{name}_vs_fp16_packed"] = packed / most
    return found


@dataclass(frozen=True)
class Goal:
    """A figure that is to be at least, or at most, a number on one H200."""

    figure: str
    least: float | None = None
    most: float | None = None

    def met(self, found: float) -> bool:
        """Tell whether a measured figure meets it."""
        enough = self.least is None or found >= self.least
        return enough and (self.most is None or found <= self.most)


_BATCH: Final = (64, 256)
_NETS: Final = ("vgg9", "resnet18", "resnet50", "alexnet")

GOALS: Final[tuple[Goal, ...]] = (
    Goal("resnet18.b1.w1a16_vs_fp16_compiled", least=1.3),
    Goal("alexnet.b1.w1a16_vs_fp16_compiled", least=3.0),
    *(Goal(f"{net}.b{n}.w1a16_vs_fp16_compiled", least=0.95) for net in _NETS for n in _BATCH),
    *(
        Goal(f"{net}.b{n}.w1a8_vs_fp16_compiled", least=1.5)
        for net in ("resnet18", "resnet50")
        for n in _BATCH
    ),
    Goal("layers.b64.w1a1_vs_w1a8", least=1.7),
    Goal("layers.c9216x1x1_n4096_k1x1_s1x1_p0x0.b1.w1a16_vs_fp16", least=6.0),
    *(Goal(f"{net}.{one}_vs_fp16_bytes", most=1 / 15) for net in _NETS for one in OURS),
    Goal("resnet18.calibration_s", most=15.0),
)
