"""The figures of `benchmarks.gpu` as tables."""

from collections.abc import Mapping, Sequence

from benchmarks.gpu_measuring.cells import Cell
from benchmarks.gpu_measuring.layers import COMPILED, LIBRARY, NAMES
from benchmarks.gpu_measuring.ratios import GOALS, OURS, RIVAL, RUNTIMES, Goal
from benchmarks.latency import tables

Figures = Mapping[str, float]


def ceilings_line(figures: Figures) -> str:
    """Return what the card does at most, in words."""
    speeds = [
        f"{name.split('.')[1].removesuffix('_per_s')} {per_s / 1e12:,.2f}"
        for name, per_s in figures.items()
        if name.startswith("ceiling.")
    ]
    return "\nceilings, measured, 10**12 per second: " + (", ".join(speeds) or "none")


def network_table(figures: Figures, cells: Sequence[Cell]) -> str:
    """Return the times of whole networks, a row for each network and batch."""
    headings = [
        *("", "batch"),
        *(f"{name} ms" for name in RUNTIMES),
        *(f"{RIVAL} / {name}" for name in OURS),
        *(f"{name} images/s" for name in RUNTIMES),
        *(f"{name} peak MiB" for name in RUNTIMES),
    ]
    suffixes = [
        *(f"{name}_ms" for name in RUNTIMES),
        *(f"{name}_vs_{RIVAL}" for name in OURS),
        *(f"{name}_images_per_s" for name in RUNTIMES),
        *(f"{name}_peak_mib" for name in RUNTIMES),
    ]
    rows: list[list[tables.Cell]] = [
        [net, batch, *(figures.get(f"{net}.b{batch}.{suffix}") for suffix in suffixes)]
        for net, batch in cells
    ]
    return f"\nwhole networks; ms of a batch\n{tables.table(headings, rows)}"


def size_table(figures: Figures, nets: Sequence[str]) -> str:
    """Return the bytes of weights and tables on the device, and calibration's seconds."""
    headings = [
        "",
        *(f"{name} bytes" for name in RUNTIMES),
        *(f"{name} / fp16" for name in OURS),
        *(f"bits of {name} / fp16" for name in OURS),
        "calibration s",
    ]
    rows: list[list[tables.Cell]] = []
    for net in nets:
        sizes = [figures.get(f"{net}.{name}_weight_bytes") for name in RUNTIMES]
        rows.append(
            [
                net,
                *(None if size is None else int(size) for size in sizes),
                *(figures.get(f"{net}.{name}_vs_fp16_bytes") for name in OURS),
                *(figures.get(f"{net}.{name}_vs_fp16_packed") for name in OURS),
                figures.get(f"{net}.calibration_s"),
            ]
        )
    return f"\nweights on the device\n{tables.table(headings, rows)}"


def layer_table(figures: Figures, images: int) -> str:
    """Return the layers' times, traffic and shares of the ceilings, a row for each shape."""
    mark = f".b{images}."
    shapes = dict.fromkeys(
        name.split(".")[1] for name in figures if name.startswith("layers.c") and mark in name
    )
    kernels = [LIBRARY, COMPILED, *NAMES]
    headings = [
        "",
        "GOP",
        *(f"{name} MB" for name in kernels),
        *(f"{name} us" for name in kernels),
        *(f"{name} of ceiling" for name in kernels),
        *(f"{LIBRARY} / {name}" for name in NAMES),
    ]
    rows: list[list[tables.Cell]] = []
    for shape in shapes:
        cell = f"layers.{shape}{mark}"
        rows.append(
            [
                shape,
                _scaled(figures.get(f"{cell}{LIBRARY}_operations"), 1e-9),
                *(_scaled(figures.get(f"{cell}{name}_bytes"), 1e-6) for name in kernels),
                *(_scaled(figures.get(f"{cell}{name}_ms"), 1000.0) for name in kernels),
                *(figures.get(f"{cell}{name}_of_ceiling") for name in kernels),
                *(figures.get(f"{cell}{name}_vs_{LIBRARY}") for name in NAMES),
            ]
        )
    title = (
        f"\nlayers, batches of {images}: operations, bytes moved at least, time, share of the "
        "ceiling (the slower of copying and multiplying)"
    )
    return f"{title}\n{tables.table(headings, rows)}"


def goal_table(figures: Figures, goals: Sequence[Goal] = GOALS) -> str:
    """Return what was to be reached and what was measured; what was not measured says so."""
    rows: list[list[tables.Cell]] = []
    for goal in goals:
        found = figures.get(goal.figure)
        wanted = f">= {goal.least:g}" if goal.least is not None else f"<= {goal.most:.3g}"
        verdict = "not measured" if found is None else "met" if goal.met(found) else "MISSED"
        rows.append([goal.figure, wanted, found, verdict])
    return f"\ngoals on one H200\n{tables.table(['', 'wanted', 'measured', ''], rows)}"


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor
