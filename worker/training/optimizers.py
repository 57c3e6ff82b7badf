"""Which parameters are trained how: learning rates, weight decay, and what an optimizer keeps."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from worker.training.recipe import Recipe
from worker.training.rules import WeightRule

# Parameters of binary layers whose size differs from layer to layer.
_SCALES = ("scale", "extra_scale")
# A layer of smaller weights is dead.
_LEAST_SIZE = 1e-6

# What each optimizer keeps of every parameter, beside the number of steps.
_SLOTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


class Optimizer:
    """Adam with decoupled weight decay, or SGD with momentum, over a network with binary layers.

    A latent weight l stands for the weight w = s l, s being the layer's mean scale at first. Adam,
    whose steps are as long as the learning rate whatever the gradient, moves latent weights by the
    rule's factor, and scales by shares of s, so that a learning rate means the same in every layer.
    SGD moves all by their gradients, with no factor of the rule's; as dL/dl = s dL/dw, it takes the
    rate over s^2 for w to move as the weight of a float layer of that size would.

    Only the weights of float layers decay: the length of a latent weight says how firm its bit is,
    and scales, biases and batch norm are no weights that could grow without bound.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, rule: WeightRule, *, steps: int = 10_000
    ) -> None:
        """Take the parameters of ``network``, of which bits may turn in so many ``steps``."""
        self._recipe = recipe
        self._parameters = dict(network.named_parameters())
        groups = _groups(network, recipe, rule, steps)
        # One kernel for all elements of a tensor, in place of ten passes over the memory.
        if recipe.optimizer == "adam":
            self._optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        else:
            self._optimizer = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, fused=True)
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Change all parameters by their gradients, and forget these."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on: ``<parameter>/<slot>``."""
        slots = _SLOTS[self._recipe.optimizer]
        return {
            f"{name}/{slot}": self._optimizer.state[parameter][slot]
            for name, parameter in self._parameters.items()
            for slot in slots
            if self._optimizer.state.get(parameter, {}).get(slot) is not None
        }

    def load_state(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go back to a `state` after so many ``steps``."""
        self.steps = steps
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            kept: dict[str, Tensor] = {}
            for slot in _SLOTS[self._recipe.optimizer]:
                if (saved := tensors.get(f"{name}/{slot}")) is not None:
                    # The fused kernels want the parameter's own order in memory.
                    kept[slot] = torch.empty_like(parameter, requires_grad=False).copy_(saved)
            if kept and self._recipe.optimizer == "adam":
                kept["step"] = torch.tensor(float(steps), device=parameter.device)
            if kept:
                self._optimizer.state[parameter] = kept


def _groups(
    network: nn.Module, recipe: Recipe, rule: WeightRule, steps: int
) -> list[dict[str, object]]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in network.modules():
        layer = module if isinstance(module, BinaryConv2d | BinaryLinear) else None
        for name, parameter in module.named_parameters(recurse=False):
            factor, decay = 1.0, 0.0
            if layer is not None and name == "weight":
                factor = _latent_factor(layer, recipe, rule, steps)
            elif layer is not None and name in _SCALES and recipe.optimizer == "adam":
                factor = _size(parameter, otherwise=_size(layer.scale))
            elif name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
                decay = recipe.weight_decay
            if parameter.requires_grad:
                groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _latent_factor(layer: BinaryLayer, recipe: Recipe, rule: WeightRule, steps: int) -> float:
    if recipe.optimizer == "adam":
        return recipe.latent_rate_factor or rule.learning_rate_factor(layer, steps)
    return (recipe.latent_rate_factor or 1.0) / _size(layer.scale) ** 2


def _size(scales: Tensor, otherwise: float = 1.0) -> float:
    """Return the mean magnitude of some scales, and ``otherwise`` where there is none to speak of.

    Adam's steps are as long as the learning rate, whatever the gradient: of a layer whose scales
    are 0.006 a rate of 0.001 would move them by a sixth in every step.
    """
    size = float(scales.detach().abs().mean())
    return size if size >= _LEAST_SIZE else otherwise
