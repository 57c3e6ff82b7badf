"""A run of the benchmark: what was measured so far, what failed, and what there was no time for.

Of what fails the rest is measured all the same: on a card that is lent by the minute, half of the
figures and a message are worth more than a message.
"""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from benchmarks.gpu_measuring.calibrating import calibration_seconds
from benchmarks.gpu_measuring.cells import Cell, Deadline, Task
from benchmarks.gpu_measuring.layers import Timed, in_a_graph, layer_figures, layers, time_layer
from benchmarks.gpu_measuring.nets import Net, Source, make_net
from benchmarks.gpu_measuring.roofline import Ceilings, geometry
from models.kernels.product_shape import ProductShape


@dataclass
class Session:
    """Measures tasks on the current GPU.

    ``seconds``: of laps of each runtime on a network; a layer's kernel has a tenth.
    """

    sources: Mapping[str, Source]
    deadline: Deadline
    seconds: float
    autotune: bool
    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: list[Task] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    cells: list[Cell] = field(default_factory=list)
    _nets: dict[str, Net] = field(default_factory=dict)
    _timed: dict[int, dict[ProductShape, dict[str, Timed]]] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task], keep: Callable[[], None]) -> None:
        """Measure ``tasks`` in their order, as long as there is time.

        After each one ``keep`` is called, so that what is measured outlives whatever comes next.
        """
        measure: Mapping[str, Callable[[Task], None]] = {
            "network": self._network,
            "layers": self._layers,
            "calibration": self._calibration,
        }
        for task in self.deadline.while_time(tasks, self.left_out):
            print(f"measuring: {task}", flush=True)
            known = set(self.figures)
            with self._failing(str(task)):
                measure[task.kind](task)
            for name in [name for name in self.figures if name not in known]:
                if name.endswith(("_ms", "_s", "_error")):
                    print(f"  {name} {self.figures[name]:.4g}", flush=True)
            # What a graph holds on the card is given back before the next one's peak is measured.
            gc.collect()
            torch.cuda.empty_cache()
            keep()

    @cached_property
    def ceilings(self) -> Ceilings:
        """What the card does at most, measured when it is first asked for."""
        from benchmarks.gpu_measuring.ceilings import ceilings

        found = ceilings()
        self.figures["ceiling.copy_bytes_per_s"] = found.bytes_per_s
        for kind, per_s in found.operations_per_s.items():
            self.figures[f"ceiling.{kind}_operations_per_s"] = per_s
        return found

    def _network(self, task: Task) -> None:
        # Brings the kernels, which a machine without Triton has not.
        from benchmarks.gpu_measuring.networks import measure

        found = measure(self._net(task.net), task.images, self.seconds, autotune=self.autotune)
        self.figures |= found.figures
        self.failures += found.failures
        self.cells.append((task.net, task.images))

    def _layers(self, task: Task) -> None:
        from models.runtime.gpu_kernels import GpuKernels

        kernels = GpuKernels(autotune=self.autotune)
        timed = self._timed.setdefault(task.images, {})
        longest = 0.0
        torch.backends.cudnn.benchmark = True  # the library's fastest convolution for a shape
        for shape, step in layers([self._net(task.net).w1a16]).items():
            if shape in timed:
                continue  # another network has it too
            left = self.deadline.left_s
            if left <= longest:
                self.left_out.append(task)
                break
            with self._failing(f"{geometry(shape)}, batches of {task.images}"):
                timed[shape] = time_layer(
                    step, task.images, kernels, self.device, self.seconds / 10, in_a_graph
                )
            longest = max(longest, left - self.deadline.left_s)
        self.figures |= layer_figures(timed, task.images, self.ceilings)

    def _calibration(self, task: Task) -> None:
        seconds = calibration_seconds(self.sources[task.net], task.images, self.device)
        self.figures[f"{task.net}.calibration_s"] = seconds

    def _net(self, name: str) -> Net:
        if name not in self._nets:
            self._nets[name] = make_net(name, self.sources[name])
        return self._nets[name]

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Note a failure, with its traceback on the error stream, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
