"""The GPU engine against compiled half precision: ``python -m benchmarks.gpu --help``.

Every network runs with 1-bit weights on float16 and on 8-bit activations (``w1a16``, ``w1a8``), and
in half precision as torch's compiler makes it fastest (``fp16_compiled``): all in CUDA graphs, by
turns in one process, timed by events on the card; the median counts. Then come single layers, on
1-bit activations too, with the bytes that they move and the operations that they do over what the
card was measured to be able to, and the seconds that calibration takes.

Weights and images are drawn from a seed. Nothing else is needed than torch with its Triton,
cuda-core, numpy, safetensors and pillow: not an installed bitpress, not a network.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_measuring import calibrating, report
from benchmarks.gpu_measuring.card import card, require_card
from benchmarks.gpu_measuring.cells import BATCHES, LAYER_BATCHES, NETS, Deadline, tasks
from benchmarks.gpu_measuring.nets import SEED, SOURCES
from benchmarks.gpu_measuring.ratios import GOALS, ratios
from benchmarks.gpu_measuring.session import Session
from benchmarks.record import write_record
from store.errors import BitpressError

_CALIBRATED = ("resnet18", "vgg9")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; whoever asks for what there is not is told, and the program ends."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure the GPU engine against networks compiled in half precision.",
    )
    add = parser.add_argument
    add("--nets", type=_names(NETS), default=NETS, help="comma-separated: " + ", ".join(NETS))
    add("--batches", type=_numbers, default=BATCHES, help="comma-separated numbers of images")
    add(
        *("--layer-batches",),
        type=_numbers,
        default=LAYER_BATCHES,
        help="those that single layers are timed with; empty for no layers",
    )
    add(
        *("--calibrate",),
        type=_names(NETS),
        default=_CALIBRATED,
        help="networks whose calibration is timed; empty for none",
    )
    add("--seconds", type=float, default=0.5, help="of timed runs, for each runtime in each cell")
    add("--limit", type=float, metavar="SECONDS", help="begin nothing that would end later")
    add(
        *("--no-autotune",),
        dest="autotune",
        action="store_false",
        help="take kernels that were chosen before, or by rule: spares minutes of measuring them",
    )
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print it as tables; return the exit status."""
    asked = arguments(given)
    try:
        require_card()
    except BitpressError as error:
        print(f"{error.title}: {error.detail} {error.remedy or ''}", file=sys.stderr)
        return 1
    session = Session(SOURCES, Deadline(asked.limit), asked.seconds, asked.autotune)
    on = card()
    print(", ".join(f"{name} {value}" for name, value in on.items()), flush=True)

    def keep() -> None:
        session.figures |= ratios(session.figures, session.cells)
        if asked.json is not None:
            circumstances = {
                "card": on,
                "autotuned": asked.autotune,
                "not_measured": [str(task) for task in session.left_out],
                "failures": session.failures,
            }
            figures = session.figures
            write_record(asked.json, seed=SEED, figures=figures, circumstances=circumstances)

    wanted = (asked.nets, asked.batches, asked.layer_batches, asked.calibrate)
    try:
        session.run(tasks(*wanted, calibrating.IMAGES), keep)
    except KeyboardInterrupt:
        session.failures.append("interrupted: what comes after was not measured")
    keep()
    print_tables(session, asked.nets, asked.layer_batches)
    return int(bool(session.failures))


def print_tables(session: Session, nets: Sequence[str], layer_batches: Sequence[int]) -> None:
    """Print what was measured, what failed and what was left out."""
    figures = session.figures
    print(report.network_table(figures, sorted(session.cells)))
    print(report.size_table(figures, nets))
    for images in layer_batches:
        print(report.layer_table(figures, images))
    print(report.ceilings_line(figures))
    print(report.goal_table(figures, GOALS))
    for task in session.left_out:
        print(f"not measured, for want of time: {task}")
    for failure in session.failures:
        print(f"FAILED: {failure}")


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        found = tuple(filter(None, text.split(",")))
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(known)}")
        return found

    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        found = (0,)
    if found and min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,64")
    return found


if __name__ == "__main__":
    sys.exit(main())
