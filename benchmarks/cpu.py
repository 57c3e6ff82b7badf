"""The CPU engine against its rivals: ``python -m benchmarks.cpu --help``.

Every network runs with 1-bit weights on float32 and on 8-bit activations (``w1a32``, ``w1a8``), on
ONNX Runtime in float32 and int8, and on torch in float32 and bfloat16, by turns in one process and
with the same number of threads; the median counts. Then come the bytes of each one's file, the
memory that it takes in a process of its own, and the speed of the engine's kernels on every shape
of layer, against the expansion of bits to int8 and what the processor's loops can do at most.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.latency import report
from benchmarks.latency.alternation import alternate
from benchmarks.latency.files import write_files
from benchmarks.latency.layer_shapes import (
    ceilings,
    distinct,
    layers,
    network_seconds,
    speeds,
)
from benchmarks.latency.nets import SEED, SOURCES, Net, make_net
from benchmarks.latency.ratios import ratios
from benchmarks.latency.resident import added_memory
from benchmarks.latency.runtimes import RUNTIMES, Run, loader
from benchmarks.options import Json, run
from benchmarks.record import hardware, write_record
from models import runtime
from models.artifact import Artifact
from models.cores import usable_cores
from models.runtime.kernel_choice import CACHE_DIR_VARIABLE
from models.runtime.native import library
from models.runtime.reference import ReferenceRuntime
from store.errors import Unavailable

Figures = dict[str, float]

# Of logits in float32, squared and relative to how much they differ between images.
_SAME_NETWORK = 1e-6
_CHECKED_IMAGES = 4  # on the reference runtime too, which takes its time


def latencies(
    net: Net,
    files: Mapping[str, Path],
    thread_counts: Sequence[int],
    batches: Sequence[int],
    seconds: float,
) -> Figures:
    """Time each runtime's file by turns, for every number of threads and images at a time.

    ``<net>.t<threads>.b<batch>.<runtime>_ms`` is the median per image; ``_gmacs`` the 10**9
    multiply-accumulates per second that it comes to.
    """
    figures: Figures = {}
    for threads in thread_counts:
        runs = {name: loader(name)(file, threads) for name, file in files.items()}
        if threads == thread_counts[0]:
            figures |= agreement(net, runs)
        for batch in batches:
            images = np.ascontiguousarray(np.resize(net.timed, (batch, *net.timed.shape[1:])))
            timed = alternate({name: partial(run, images) for name, run in runs.items()}, seconds)
            for name, times in timed.items():
                cell = f"{net.name}.t{threads}.b{batch}.{name}"
                figures[f"{cell}_ms"] = 1000 * median(times) / batch
                figures[f"{cell}_gmacs"] = net.plan.macs * batch / median(times) / 1e9
    return figures


def agreement(net: Net, runs: Mapping[str, Run]) -> Figures:
    """Compare answers to images that nothing was calibrated on, for rivals to be worth beating.

    ``<net>.<runtime>_agreement`` is the share of images answered as by the float network, or for
    ``w1a8`` as by ``w1a32``; ``_logit_error`` the squared difference of logits, relative to that
    between the images.

    Raises:
        RuntimeError: a rival computes another network, or the engine other numbers than the
            reference runtime.
    """
    images = net.timed
    logits: dict[str, NDArray[Any]] = {name: run(images) for name, run in runs.items()}
    figures: Figures = {}
    for name, found in logits.items():
        exact = logits["w1a32" if name.startswith("w1") else "torch_fp32"]
        spread = ((exact - exact.mean(axis=0)) ** 2).sum()
        error = float(((found - exact) ** 2).sum() / spread)
        if name == "ort_fp32" and not error < _SAME_NETWORK:
            raise RuntimeError(f"{net.name}: {name} is another network, by {error:.2e}")
        if name.startswith("w1"):
            _check_engine(net, name, found)
        if name not in ("w1a32", "torch_fp32"):
            agreeing = found.argmax(axis=1) == exact.argmax(axis=1)
            figures[f"{net.name}.{name}_agreement"] = float(agreeing.mean())
            figures[f"{net.name}.{name}_logit_error"] = error
    return figures


def _check_engine(net: Net, name: str, found: NDArray[Any]) -> None:
    """Hold logits to the reference runtime: bit for bit with 8-bit activations."""
    images = torch.from_numpy(net.timed[:_CHECKED_IMAGES])
    exact = ReferenceRuntime(getattr(net, name)).run(images).numpy()
    wrong = ((found[:_CHECKED_IMAGES] - exact) ** 2).sum()
    most = 0.0 if name == "w1a8" else _SAME_NETWORK * (exact**2).sum()
    if not wrong <= most:
        raise RuntimeError(f"{net.name}: {name} is not what the reference runtime computes")


def sizes(net: Net, files: Mapping[str, Path]) -> Figures:
    """Return the bytes of each file, and the MiB that it takes in memory.

    ``<net>.<runtime>_resident_mib`` is what loading and running one image adds to a process that
    has imported the runtime, ``_loaded_mib`` what loading adds by itself, ``_private_mib`` the part
    of the first that is no file's. Of the engine itself there are the bytes that it counts:
    ``_weight_bytes`` in packed weights, ``_activation_bytes`` in an image's activations.
    """
    figures: Figures = {}
    for name in ("w1a32", "w1a8"):
        loaded = runtime.load(getattr(net, name), "cpu", threads=1)
        figures[f"{net.name}.{name}_weight_bytes"] = loaded.resident_bytes
        figures[f"{net.name}.{name}_activation_bytes"] = loaded.activation_bytes
    for name, file in files.items():
        figures[f"{net.name}.{name}_bytes"] = file.stat().st_size
        memory = added_memory(name, file, net.plan.input_shape)
        figures[f"{net.name}.{name}_loaded_mib"] = memory.loaded
        figures[f"{net.name}.{name}_resident_mib"] = memory.resident
        figures[f"{net.name}.{name}_private_mib"] = memory.private
    return figures


def layer_speeds(artifacts: Mapping[str, Sequence[Artifact]], kernel_set: str) -> Figures:
    """Time the kernels on all distinct layers of some networks, given in both forms.

    ``layers.<geometry>.<kernel>_gmacs`` and ``ceiling.<kernel>_gmacs`` are 10**9
    multiply-accumulates per second in one thread; ``layers.<geometry>.<kernel>_of_ceiling`` is the
    share of the second that the first reaches, less what lies above and below the map;
    ``<net>.layers.<kernel>_ms`` is the time of all
    layers of a network, one after the other, and ``<net>.layers.best_i8_ms`` that of the faster
    integer kernel for each.
    """
    native = library()
    assert native is not None  # or there were no kernel set
    most = ceilings(native, kernel_set)
    figures = {f"ceiling.{kernel}_gmacs": gmacs for kernel, gmacs in most.items()}
    of_nets = {
        net: [layer for artifact in forms for layer in layers(artifact)]
        for net, forms in artifacts.items()
    }
    found = speeds(native, kernel_set, distinct(chain.from_iterable(of_nets.values())))
    for geometry, seconds in found.items():
        for kernel, once in seconds.items():
            figures[f"layers.{geometry}.{kernel}_gmacs"] = geometry.macs / once / 1e9
            if kernel in most:
                share = geometry.macs_inside / once / 1e9 / most[kernel]
                figures[f"layers.{geometry}.{kernel}_of_ceiling"] = share
    for net, of_net in of_nets.items():
        for kernel, total in network_seconds(of_net, found).items():
            figures[f"{net}.layers.{kernel}_ms"] = 1000 * total
    return figures


def main(
    nets: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(SOURCES),
    thread_counts: Annotated[
        str, typer.Option("--threads", help="Comma-separated numbers of threads.")
    ] = "1,2",
    batches: Annotated[str, typer.Option(help="Comma-separated numbers of images.")] = "1,16",
    seconds: Annotated[
        float, typer.Option(min=0, help="Of timed runs, for each runtime in each cell.")
    ] = 1.5,
    memory: Annotated[bool, typer.Option(help="Measure memory in processes of their own.")] = True,
    layer_table: Annotated[bool, typer.Option("--layers/--no-layers", help="Time layers.")] = True,
    json: Json = None,
) -> None:
    """Measure the CPU engine against ONNX Runtime and torch."""
    names, counts, sizes_of_batches = _names(nets), _numbers(thread_counts), _numbers(batches)
    require_rivals()
    kernels = require_engine()
    load = os.getloadavg()[0]  # before this program adds to it
    print(f"{hardware()['processor']}, {usable_cores()} usable cores, load {load:.1f}")
    print(f"bitpress: kernels {kernels}")
    figures: Figures = {}
    origins: dict[str, str] = {}
    artifacts: dict[str, Sequence[Artifact]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder, choices_made_here(Path(folder)):
            net = make_net(name, SOURCES[name])
            artifacts[name] = (net.w1a8, net.w1a32)
            origins[name] = net.about
            macs = f"{net.plan.macs / 1e9:.2f} GMAC an image"
            print(f"{name}: {net.about}; {macs}", flush=True)
            files = write_files(net, Path(folder))
            figures |= latencies(net, files, counts, sizes_of_batches, seconds)
            if memory:
                figures |= sizes(net, files)
    figures |= ratios(figures, names, counts, sizes_of_batches)
    print(report.latency_tables(figures, names, counts, sizes_of_batches))
    if memory:
        print(report.size_table(figures, names))
    if layer_table:
        figures |= layer_speeds(artifacts, kernels)
        print(report.layer_tables(figures, names))
    if json is not None:
        circumstances = {"kernels": kernels, "load_average": load, "networks": origins}
        write_record(json, seed=SEED, figures=figures, circumstances=circumstances)


@contextmanager
def choices_made_here(folder: Path) -> Iterator[None]:
    """Let the engine choose kernels by measuring now, not by what an earlier time had to suffer.

    Processes that are started meanwhile know the choices.
    """
    before = os.environ.get(CACHE_DIR_VARIABLE)
    os.environ[CACHE_DIR_VARIABLE] = str(folder / "choices")
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_DIR_VARIABLE]
        else:
            os.environ[CACHE_DIR_VARIABLE] = before


def require_engine() -> str:
    """Return the kernel set that the CPU engine runs here.

    Raises:
        Unavailable: the engine is not here; the reference runtime's times are not its.
    """
    return runtime.kernels_of(runtime.choose("cpu"))


def require_rivals() -> None:
    """Import every runtime.

    Raises:
        Unavailable: one is not installed.
    """
    for name in RUNTIMES:
        try:
            loader(name)
        except ImportError as error:
            raise Unavailable(
                f"{name} cannot be measured: {error}.",
                remedy="Install the development tools: make install.",
            ) from error


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SOURCES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(SOURCES)}")
    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,16")
    return numbers


if __name__ == "__main__":
    run(main)
