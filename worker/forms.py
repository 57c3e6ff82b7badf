"""The forms that a network takes on its way into an artifact, measured on the same images."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from models.layers import BinaryConv2d, BinaryLinear
from models.preprocessing import InputSpec
from worker.data import ImageSet
from worker.evaluation import Logits, Predict, Progress, predict_logits

# Bounds the activation maps of an evaluation. Of 32 x 32 pixels 100 images are fastest: larger
# batches no longer fit into the processor's caches.
_PIXELS_PER_BATCH = 1_000_000
_MOST_IMAGES_PER_BATCH = 100


def channels_last(network: nn.Module) -> Predict:
    """Return ``network``, which is changed in place, as a function that computes channels last.

    That layout is the one torch's convolutions are fastest in on a CPU: a quarter less time for
    VGG-9, the same sums in another order.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        # Not by network.to(), which takes the five dimensions of several bases for a volume's.
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def predict(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(images.contiguous(memory_format=torch.channels_last))
        return logits

    return predict


def without_rounding(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` whose binary layers take their inputs as they are."""
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            layer.input_quantizer = None
    return copied


def logits_of_forms(
    forms: Mapping[str, Predict], images: ImageSet, spec: InputSpec, progress: Progress
) -> dict[str, Logits]:
    """Run every form over the images, each an equal share of the progress.

    Raises:
        InvalidCheckpoint: a form answers with numbers that are not finite.
    """
    batch = min(max(_PIXELS_PER_BATCH // (spec.height * spec.width), 1), _MOST_IMAGES_PER_BATCH)
    logits: dict[str, Logits] = {}
    for index, (form, predict) in enumerate(forms.items()):

        def report(fraction: float, message: str, index: int = index) -> None:
            progress((index + fraction) / len(forms), message)

        logits[form] = predict_logits(
            predict,
            images,
            spec,
            report,
            batch_images=batch,
            network=form.replace("_", " ") + " network",
        )
    return logits
