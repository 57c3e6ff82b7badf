"""One training run: epoch after epoch, each of which can be begun anew from the state before it.

What happens in a step depends on the state, the recipe, the seed, the epoch and the step's number,
and on nothing else: whoever loads the state after an epoch goes on exactly as the one who saved it
would have, on the same machine with as many threads.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from models.binarize import (
    Estimator,
    ProgressiveSign,
    sign_clipped,
    sign_polynomial,
    sign_straight_through,
)
from models.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from worker.exact_products import exact_products
from worker.progress import Progress
from worker.training.averaging import MovingAverage
from worker.training.batch_norm import freeze_statistics, reestimate
from worker.training.figures import EpochFigures, Meter
from worker.training.forms import training_form
from worker.training.images import TrainingImages
from worker.training.optimizers import Optimizer
from worker.training.precision import uses_bfloat16
from worker.training.processes import Share, distributed, synchronized, this_device
from worker.training.recipe import EstimatorName, Recipe, check_batch
from worker.training.rules import WeightRule
from worker.training.schedule import learning_rate_factor
from worker.training.stochastic import StochasticQuantizer
from worker.training.teaching import Teaching

# Images from which batch norm is re-estimated: more changes nothing that can be measured.
_REESTIMATION_IMAGES = 5_000

_STUDENT, _AVERAGE, _OPTIMIZER, _STEPS = "student/", "average/", "optimizer/", "steps"


class Trainer:
    """Trains a network, its binary layers by a rule and all others as usual.

    Training takes place in a copy of ``student``. ``teacher`` may be absent: then its weights in
    the loss count as 0. A network without binary layers is trained plainly.
    """

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
        device: torch.device | str | None = None,
    ) -> None:
        """Start the latent weights.

        ``float_weights`` has the full-precision weight of every binary layer, by the layer's name.
        ``device`` is the GPU where there is one, and else the CPU. Where a process group was made
        this is one of its equal processes: see `worker.training.processes`.

        Raises:
            InvalidSpec: there are fewer images than a batch has, or the batch cannot be divided
                among the processes.
        """
        self._share = Share.of_this_process()
        check_batch(recipe, len(images), self._share.world)
        self._images, self._recipe, self._rule, self._seed = images, recipe, rule, seed
        self._device = this_device() if device is None else torch.device(device)
        self._bfloat16 = uses_bfloat16(recipe.precision, self._device)
        self._untrained = student
        self._student = synchronized(training_form(student), self._share, self._device)
        self._student.to(self._device)
        self._layers = _binary_layers(self._student)
        for name, layer in self._layers.items():
            rule.start(layer, float_weights[name].to(self._device), recipe.latent)
        self._estimator = _estimator(recipe.estimator)
        self._stochastic = self._install_quantizers()
        self._teaching = Teaching(self._student, teacher, recipe, self._device, self._bfloat16)
        self._average = (
            MovingAverage(self._student.state_dict(keep_vars=True), recipe.average)
            if recipe.average
            else None
        )
        self._epoch_steps = len(images) // recipe.batch_size
        self._learning_epochs = recipe.epochs - recipe.settle_epochs
        self._learning_steps = self._learning_epochs * self._epoch_steps
        self._optimizer = Optimizer(self._student, recipe, rule, steps=self._learning_steps)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next epoch depends on, as contiguous copies on the CPU."""
        tensors = {_STUDENT + name: tensor for name, tensor in self._student.state_dict().items()}
        if self._average is not None:
            tensors |= {_AVERAGE + name: one for name, one in self._average.tensors.items()}
        tensors |= {_OPTIMIZER + name: one for name, one in self._optimizer.state().items()}
        tensors[_STEPS] = torch.tensor(self._optimizer.steps)
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a `state`."""
        with torch.no_grad():
            for name, tensor in self._student.state_dict(keep_vars=True).items():
                tensor.copy_(tensors[_STUDENT + name])
            if self._average is not None:
                for name, tensor in self._average.tensors.items():
                    tensor.copy_(tensors[_AVERAGE + name])
        slots = {
            name.removeprefix(_OPTIMIZER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_OPTIMIZER)
        }
        self._optimizer.load_state(slots, int(tensors[_STEPS]))

    def epoch(self, index: int, progress: Progress) -> EpochFigures:
        """Train for one epoch, the first being 0.

        ``progress`` takes the fraction of this epoch that is done, and a short message.

        Raises:
            InvalidSpec: the loss is no longer a finite number.
        """
        self._student.train()
        if self._recipe.batch_norm == "frozen":
            freeze_statistics(self._student)
        if index == self._learning_epochs:
            self._settle()
        for layer in self._layers.values():
            layer.weight.requires_grad_(index < self._learning_epochs)
        network = distributed(self._student, self._share)
        meter = Meter(self._epoch_steps, self._recipe.batch_size, self._share, progress)
        devices = [self._device] if self._device.type == "cuda" else []
        with exact_products(), torch.random.fork_rng(devices):
            # For dropout alone: all else has generators of its own.
            torch.manual_seed(_mixed(self._seed, index, self._share.rank))
            batches = self._images.epoch(index, self._recipe.batch_size, **asdict(self._share))
            for number, (inputs, labels) in enumerate(islice(batches, self._epoch_steps)):
                step = index * self._epoch_steps + number
                inputs, labels = self._here(inputs), self._here(labels)
                loss, logits = self._step(network, step, inputs, labels)
                meter.add(loss, logits, labels)
        return meter.figures(self._learning_rate((index + 1) * self._epoch_steps - 1))

    def finished(self) -> nn.Module:
        """Return the network as it is now, in evaluation form, on the CPU; nothing is changed.

        The average is put in the place of the last weights, every rule has finished, and batch norm
        is estimated anew where the recipe says so.
        """
        network = copy.deepcopy(self._untrained).float().to(self._device)
        trained = self._student.state_dict() if self._average is None else self._average.tensors
        network.load_state_dict(trained)
        for layer in _binary_layers(network).values():
            self._rule.finish(layer)
        if self._recipe.batch_norm == "reestimate":
            with exact_products():
                reestimate(network, self._reestimation_inputs())
        return network.to("cpu").eval()

    def _step(
        self, network: nn.Module, step: int, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make one step of the optimizer; return loss and logits (n, K), float32 and detached."""
        self._prepare(step)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        loss, logits = self._teaching.loss(network, inputs, labels)
        torch.autograd.backward(loss)
        self._optimizer.step(self._learning_rate(step))
        with torch.no_grad():
            for layer in self._layers.values():
                if layer.weight.requires_grad:
                    self._rule.after_step(layer)
            if self._average is not None:
                self._average.update(step)
        return loss.detach(), logits.detach()

    def _prepare(self, step: int) -> None:
        """Set how binary a step is, which grows for as long as bits may change."""
        done = min(step / self._learning_steps, 1.0)
        if isinstance(self._estimator, ProgressiveSign):
            self._estimator.progress = done
        if (fractions := self._recipe.binary_fractions) is not None:
            for quantizer in self._stochastic:
                quantizer.step = step
                quantizer.fraction = (*fractions, 1.0)[int(done * len(fractions))]

    def _install_quantizers(self) -> list[StochasticQuantizer]:
        quantizers = []
        for number, layer in enumerate(self._layers.values()):
            layer.quantizer = self._rule.quantizer(layer, self._estimator)
            if self._recipe.binary_fractions is not None:
                stochastic = StochasticQuantizer(layer.quantizer, self._seed, number)
                quantizers.append(stochastic)
                layer.quantizer = stochastic
        return quantizers

    def _settle(self) -> None:
        """Fix the bits; those of the average where there is one, which training then follows."""
        if self._average is not None:
            self._student.load_state_dict(self._average.tensors)

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of a step; the settling epochs have a course of their own."""
        recipe, learning = self._recipe, self._learning_steps
        warmup = recipe.warmup_epochs * self._epoch_steps
        steps = learning
        if step >= learning:
            step, steps = step - learning, recipe.settle_epochs * self._epoch_steps
            warmup = 0.0
        factor = learning_rate_factor(step, steps, warmup, recipe.schedule, recipe.drops)
        return recipe.learning_rate * factor

    def _reestimation_inputs(self) -> Iterator[Tensor]:
        """Yield images of an epoch that is never trained on."""
        count = max(min(_REESTIMATION_IMAGES, len(self._images)) // self._recipe.batch_size, 1)
        batches = self._images.epoch(self._recipe.epochs, self._recipe.batch_size)
        for inputs, _ in islice(batches, count):
            yield self._here(inputs)

    def _here(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, of the CPU, on the device that trains."""
        if self._device.type == "cuda":
            # Else this process would wait, in every step, until the GPU is done with all before it.
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _binary_layers(network: nn.Module) -> dict[str, BinaryLayer]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, BinaryConv2d | BinaryLinear)
    }


def _estimator(name: EstimatorName) -> Estimator:
    if name == "progressive":
        return ProgressiveSign()
    return {
        "plain": sign_straight_through,
        "clipped": sign_clipped,
        "polynomial": sign_polynomial,
    }[name]


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


__all__ = ["EpochFigures", "Progress", "Trainer"]
