"""One training run: epoch after epoch, each of which can be begun anew from the state before it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from worker.training.images import TrainingImages
from worker.training.recipe import Recipe
from worker.training.rules import WeightRule

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch came to: mean loss, share of right answers in 0..1, and the speed."""

    loss: float
    train_accuracy: float
    images_per_second: float
    seconds: float
    learning_rate: float


class Trainer:
    """Trains ``student``; its binary layers by ``rule``, all others as usual."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        images: TrainingImages,
        recipe: Recipe,
        rule: WeightRule,
        *,
        seed: int,
        float_weights: Mapping[str, Tensor],
    ) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next epoch depends on, as contiguous copies."""
        raise NotImplementedError

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a `state`."""
        raise NotImplementedError

    def epoch(self, index: int, progress: Progress) -> EpochFigures:
        """Train for one epoch, the first being 0."""
        raise NotImplementedError

    def finished(self) -> nn.Module:
        """Return a copy in evaluation form: averaged, rules finished, float32."""
        raise NotImplementedError
