"""What follows from measured latencies and sizes: ratios to rivals, means, gains by threads."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import geometric_mean
from typing import Final

from benchmarks.latency.runtimes import RUNTIMES

# How many times as fast the first is as the second.
COMPARED: Final = (
    ("w1a8", "ort_int8"),
    ("w1a32", "ort_fp32"),
    ("w1a8", "torch_bf16"),
    ("w1a32", "torch_fp32"),
)
# Networks whose geometric mean is stated, under a name.
MEANS: Final[Mapping[str, tuple[str, ...]]] = {"vgg9_resnet18": ("vgg9", "resnet18")}


def ratios(
    figures: Mapping[str, float],
    nets: Sequence[str],
    thread_counts: Sequence[int],
    batches: Sequence[int],
) -> dict[str, float]:
    """Return figures made from figures, under names in the same manner.

    ``<net>.t<threads>.b<batch>.<runtime>_vs_<rival>`` is the rival's latency over the runtime's,
    for a network or for the geometric mean of those in `MEANS`; ``<net>.b<batch>.<runtime>_t<n>_vs_
    t<m>`` the latency in m threads over that in n; ``<net>.<runtime>_vs_<rival>_bytes`` and
    ``_resident`` are the runtime's share of what the rival takes.
    """
    found: dict[str, float] = {}
    means = {name: members for name, members in MEANS.items() if set(members) <= set(nets)}
    for threads, batch, (ours, rival) in product(thread_counts, batches, COMPARED):
        cell, name = f"t{threads}.b{batch}", f"{ours}_vs_{rival}"
        for net in nets:
            times = (figures[f"{net}.{cell}.{one}_ms"] for one in (rival, ours))
            found[f"{net}.{cell}.{name}"] = _quotient(*times)
        for mean, members in means.items():
            each = [found[f"{net}.{cell}.{name}"] for net in members]
            found[f"{mean}.{cell}.{name}"] = geometric_mean(each)
    few = min(thread_counts)
    for net, batch, one in product(nets, batches, RUNTIMES):
        for many in (threads for threads in thread_counts if threads > few):
            times = (figures[f"{net}.t{threads}.b{batch}.{one}_ms"] for threads in (few, many))
            found[f"{net}.b{batch}.{one}_t{many}_vs_t{few}"] = _quotient(*times)
    for net, (ours, rival), what in product(nets, COMPARED[:2], ("bytes", "resident_mib")):
        sizes = [f"{net}.{one}_{what}" for one in (ours, rival)]
        if all(size in figures for size in sizes):
            share = _quotient(*(figures[size] for size in sizes))
            found[f"{net}.{ours}_vs_{rival}_{what.removesuffix('_mib')}"] = share
    return found


def _quotient(of: float, by: float) -> float:
    return of / by
