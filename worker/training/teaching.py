"""The loss: what the labels say, and what the full-precision network says."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.training.distillation import (
    BlockResults,
    block_names,
    feature_distance,
    logit_distance,
)
from worker.training.forms import teacher_form
from worker.training.precision import product_precision
from worker.training.processes import Share
from worker.training.recipe import Recipe


class Teaching:
    """Computes the loss of a batch.

    ``(1 - d) CE(labels) + d T^2 KL(teacher || student) + f features``, with the recipe's
    ``distillation`` d, ``temperature`` T and ``feature_distillation`` f.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        recipe: Recipe,
        device: torch.device,
        bfloat16: bool,
    ) -> None:
        """Take ``student`` as it is; ``teacher`` is copied, and left out where nothing asks it."""
        self._recipe = recipe
        self._device, self._bfloat16 = device, bfloat16
        self._share = Share.of_this_process()
        self._distillation = recipe.distillation if teacher is not None else 0.0
        self._features = recipe.feature_distillation if teacher is not None else 0.0
        self._teacher: nn.Module | None = None
        names = block_names(student) if self._features else []
        if not names:
            self._features = 0.0  # a network of one block has nothing to be compared in between
        if teacher is not None and (self._distillation or self._features):
            self._teacher = teacher_form(teacher).to(device)
            if names:
                self._wanted = BlockResults(self._teacher, names)
                self._found = BlockResults(student, names)

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a float32 scalar, and the student's logits (n, K), float32.

        ``network`` is the student, or what is called in its place. ``inputs`` is float32
        (n, C, H, W), channels last; ``labels`` int64 (n,).
        """
        wanted = self._ask(inputs)
        with product_precision(self._device, self._bfloat16):
            logits = network(inputs).float()
        loss = torch.zeros((), device=self._device)
        if self._distillation < 1.0:
            smoothing = self._recipe.label_smoothing
            error = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            loss = loss + (1.0 - self._distillation) * error
        if wanted is not None and self._distillation:
            distance = logit_distance(logits, wanted, self._recipe.temperature)
            loss = loss + self._distillation * distance
        if self._features:
            found, aimed_at = self._found.take(), self._wanted.take()
            loss = loss + self._features * feature_distance(found, aimed_at, self._share)
        return loss, logits

    def _ask(self, inputs: Tensor) -> Tensor | None:
        """Return the teacher's logits (n, K), float32."""
        if self._teacher is None:
            return None
        with torch.no_grad(), product_precision(self._device, self._bfloat16):
            wanted: Tensor = self._teacher(inputs)
        return wanted.float()
