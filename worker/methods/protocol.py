"""What a binarization method is given and what it hands over.

A method turns the filters of one layer into signs and one scale per filter: a function of a
`LayerProblem` and of keyword parameters. Its rule says how these are trained further. It knows
nothing of networks, files or jobs. To add one, write a file beside this one and enter it in
``METHODS`` here and in ``store/specs.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from worker.progress import Progress
from worker.statistics import LayerStatistics
from worker.training.rules import WeightRule

Target = Literal["full_precision", "binarized"]


@dataclass(frozen=True)
class LayerProblem:
    """One layer to binarize.

    Attributes:
        weight: the filters as rows, shape (N, S), float32.
        statistics: collects the layer's statistics from the calibration images, at most about
            ``positions`` samples; ``target`` names the network whose input the target responses
            come from; ``blocks`` makes the result of a residual block the target of the layer that
            ends it. Costly, so called by methods that use data only.
        report: takes a fraction in 0..1 of the method's own work, a short message and, where there
            are any, figures by name; see `worker.progress`.
        seed: fixes what a method draws at random.
        network_bits: the weights of all layers of the network.
        further_bits: the weights of all bases beyond each layer's first, in the layers before.
    """

    weight: Tensor
    statistics: Callable[[Target, int, bool], LayerStatistics]
    report: Progress
    seed: int = 0
    network_bits: int = 0
    further_bits: int = 0


@dataclass(frozen=True)
class BinaryFilters:
    """Filters as signs times a scale.

    Attributes:
        codes: -1 or +1, shape (N, S), float32; of K > 1 bases (K, N, S).
        scale: shape (N,), float32, not negative; of K > 1 bases (K, N).
        losses: the layer's squared error over the target's energy, at the start, after every sweep
            and with every further basis; of several starts, the least so far. Empty where the
            method looks at no data. What may be offset is left out of both.
        offset: what is to be added to each filter's response, shape (N,), float32, or None.
    """

    codes: Tensor
    scale: Tensor
    losses: tuple[float, ...]
    offset: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """One paper's way to 1-bit weights.

    Attributes:
        binarize: called with a `LayerProblem` and the method's own keyword parameters.
        rule: how the method's weights are trained.
        binary_fractions: what a recipe's ``binary_fractions`` are where it has none: the share of
            binary filters in each of so many equally long parts of the training.
    """

    binarize: Callable[..., BinaryFilters]
    rule: WeightRule
    binary_fractions: tuple[float, ...] | None = None


def sign_and_mean_magnitude(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sign(w)``, with sign(0) = +1, and ``mean |w|`` of every filter of ``weight`` (N, S).

    The minimiser of ``||w - a b||^2`` over signs b and a scale a (XNOR-Net, Rastegari et al.,
    ECCV 2016, section 3.1): where every binarization starts.
    """
    codes = (weight >= 0).to(weight.dtype) * 2 - 1
    return codes, weight.abs().mean(dim=1)
