"""Batch norm's running statistics, estimated again where the layers before it have changed."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from store.errors import InvalidSpec
from worker.activations import Layer, execution_order
from worker.calibration_images import CalibrationImages
from worker.exact_products import exact_products
from worker.frontier import Frontier
from worker.progress import Progress


def norms_behind(network: nn.Module, name: str, input_shape: tuple[int, int, int]) -> list[str]:
    """Return the batch norms that are executed after layer ``name`` and before the next layer."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    order = execution_order(network, input_shape, kinds)
    found = []
    for behind in order[order.index(name) + 1 :]:
        if isinstance(network.get_submodule(behind), Layer):
            break
        found.append(behind)
    return found


def recalibrate_batch_norm(
    network: nn.Module, images: CalibrationImages, progress: Progress
) -> dict[str, Tensor]:
    """Re-estimate the running statistics of every batch norm of ``network``, in place.

    One batch norm after the other, in the order of execution, gets mean and variance of what it is
    fed over all images, those before it being done: the result does not depend on batches. Returns
    the new buffers by name, on the CPU.

    Raises:
        InvalidSpec: a batch norm sees a single value per channel, of which there is no variance.
    """
    names = execution_order(network, images.spec.shape, (nn.BatchNorm1d, nn.BatchNorm2d))
    return estimate_norms(network, names, Frontier(images.batches), progress)


def estimate_norms(
    network: nn.Module, names: list[str], frontier: Frontier, progress: Progress
) -> dict[str, Tensor]:
    """Give the batch norms ``names`` the mean and variance of what they are fed, in place.

    Returns the new buffers by name, on the CPU.
    """
    buffers: dict[str, Tensor] = {}
    with torch.inference_mode(), exact_products():
        for done, name in enumerate(names):
            progress(done / len(names), f"{name}: re-estimating batch norm")
            norm = network.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = _moments(fed.input for fed in frontier.inputs(network, name))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            buffers[f"{name}.running_mean"] = norm.running_mean.to("cpu", copy=True)
            buffers[f"{name}.running_var"] = norm.running_var.to("cpu", copy=True)
    return buffers


def load_norms(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Give the batch norms of ``network`` the running statistics of `estimate_norms`.

    Raises:
        ValueError: the network has no buffer of that name.
    """
    loaded = network.load_state_dict(dict(buffers), strict=False)
    if loaded.unexpected_keys:
        raise ValueError(f"there is no {', '.join(loaded.unexpected_keys)}")


def _moments(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance per channel over maps (n, C, ...), in float64.

    The means and squared deviations of the parts are combined (Chan, Golub and LeVeque, 1979), as
    the difference of two large sums would lose what is left of them.
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    for part in maps:
        rows = part.transpose(0, 1).flatten(1).double()
        added = rows.shape[1]
        part_mean = rows.mean(dim=1)
        shift = part_mean - mean
        squares = squares + (rows - part_mean[:, None]).square().sum(dim=1)
        squares = squares + shift.square() * (count * added / (count + added))
        count += added
        mean = mean + shift * (added / count)
    if count < 2:
        raise InvalidSpec(
            "Batch-norm statistics need at least two images.",
            field="spec.calibration_images",
            remedy="Ask for more calibration images, or set recalibrate_batch_norm to never.",
        )
    return mean, squares / (count - 1)
