"""The figures of `benchmarks.cpu` as tables."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.latency.layer_shapes import KERNELS
from benchmarks.latency.ratios import COMPARED, MEANS
from benchmarks.latency.runtimes import RUNTIMES
from benchmarks.latency.tables import Cell, table

Figures = Mapping[str, float]

_SPEEDS = ("w1a32", "w1a8", "ort_fp32", "ort_int8")


def latency_tables(
    figures: Figures, nets: Sequence[str], thread_counts: Sequence[int], batches: Sequence[int]
) -> str:
    """Return a table for each number of threads and of images, and one on threads."""
    parts = []
    columns = [
        *(f"{name}_ms" for name in RUNTIMES),
        *(f"{ours}_vs_{rival}" for ours, rival in COMPARED[:2]),
        *(f"{name}_gmacs" for name in _SPEEDS),
    ]
    headings = [
        "",
        *RUNTIMES,
        *(f"{rival} / {ours}" for ours, rival in COMPARED[:2]),
        *(f"G {name}" for name in _SPEEDS),
    ]
    for threads, batch in product(thread_counts, batches):
        parts.append(
            f"\n{threads} {'thread' if threads == 1 else 'threads'}, batches of {batch}: "
            "ms per image; their quotients; G: 10**9 multiply-accumulates per second"
        )
        rows = [
            [net, *(figures.get(f"{net}.t{threads}.b{batch}.{column}") for column in columns)]
            for net in (*nets, *MEANS)
        ]
        parts.append(table(headings, [row for row in rows if any(row[1:])]))
    gains = list(_gains(figures, nets, thread_counts, batches))
    if gains:
        parts += ["\ntimes as fast by more threads", table(["", "", "batch", *RUNTIMES], gains)]
    return "\n".join(parts)


def _gains(
    figures: Figures, nets: Sequence[str], thread_counts: Sequence[int], batches: Sequence[int]
) -> Iterator[list[Cell]]:
    few = min(thread_counts)
    for net, many, batch in product(nets, thread_counts, batches):
        if many > few:
            name = f"t{many}_vs_t{few}"
            cells = (figures[f"{net}.b{batch}.{one}_{name}"] for one in RUNTIMES)
            yield [net, f"{few} to {many}", batch, *cells]


def size_table(figures: Figures, nets: Sequence[str]) -> str:
    """Return bytes and memory, and how well 8 bits answer."""
    rows: list[list[Cell]] = [
        [
            net,
            one,
            int(figures[f"{net}.{one}_bytes"]),
            *(figures[f"{net}.{one}_{what}_mib"] for what in ("loaded", "resident", "private")),
            figures.get(f"{net}.{one}_agreement"),
            figures.get(f"{net}.{one}_logit_error"),
        ]
        for net, one in product(nets, RUNTIMES)
    ]
    title = (
        "\nfile; MiB added by loading, by running an image too, and of these no file's; share of "
        "answers as in float"
    )
    headings = ["", "", "bytes", "loaded", "resident", "private", "agreement", "logit error"]
    return f"{title}\n{table(headings, rows)}"


def layer_tables(figures: Figures, nets: Sequence[str]) -> str:
    """Return the kernels' speed on each shape, and what the layers of each network add up to.

    Beside the sums stands the whole network on ONNX Runtime int8, where one thread ran one image.
    """
    kernels = [kernel for kernel in KERNELS if f"ceiling.{kernel}_gmacs" in figures]
    shapes = dict.fromkeys(name.split(".")[1] for name in figures if name.startswith("layers."))
    rows: list[list[Cell]] = []
    for shape in shapes:
        speeds = {kernel: figures.get(f"layers.{shape}.{kernel}_gmacs") for kernel in kernels}
        shares = [figures.get(f"layers.{shape}.{kernel}_of_ceiling") for kernel in kernels]
        lookup, expand = speeds.get("lookup_i16"), speeds.get("expand_i8")
        gain = lookup / expand if lookup and expand else None
        rows.append([shape, *speeds.values(), gain, *shares])
    rows.append(["ceiling", *(figures[f"ceiling.{kernel}_gmacs"] for kernel in kernels)])
    rows[-1] += [None] * (1 + len(kernels))
    headings = ["", *kernels, "lookup_i16 / expand_i8", *(f"of {kernel}" for kernel in kernels)]
    sums = [*kernels, "best_i8"]
    columns = [*(f"layers.{kernel}_ms" for kernel in sums), "t1.b1.ort_int8_ms"]
    totals = [[net, *(figures.get(f"{net}.{column}") for column in columns)] for net in nets]
    return "\n".join(
        [
            "\nlayers in one thread, one image: 10**9 multiply-accumulates per second, and shares "
            "of the ceiling",
            table(headings, rows),
            "\nall layers of a network, ms",
            table(["", *sums, "ort_int8, whole"], totals),
        ]
    )
