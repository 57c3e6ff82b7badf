"""The forms that a network takes on its way into an artifact, measured on the same images."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from models.layers import BinaryConv2d, BinaryLinear
from models.preprocessing import InputSpec
from worker.activations import device_of
from worker.data import ImageSet
from worker.evaluation import Logits, Predict, batch_logits
from worker.exact_products import exact_products
from worker.progress import ImageRate, Progress

# Bounds the activation maps of an evaluation. Of 32 x 32 pixels 100 images are fastest: larger
# batches no longer fit into the processor's caches.
_PIXELS_PER_BATCH = 1_000_000
_MOST_IMAGES_PER_BATCH = 100


def channels_last(network: nn.Module) -> Predict:
    """Return ``network``, which is changed in place, as a function that computes channels last.

    That layout is the one torch's convolutions are fastest in on a CPU: a quarter less time for
    VGG-9, the same sums in another order. The function takes images from the CPU and brings its
    answers back there, wherever the network is.
    """
    device = device_of(network)
    for tensor in (*network.parameters(), *network.buffers()):
        # Not by network.to(), which takes the five dimensions of several bases for a volume's.
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def predict(images: torch.Tensor) -> torch.Tensor:
        fed = images.to(device).contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = network(fed)
        return logits.to("cpu")

    return predict


def without_rounding(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` whose binary layers take their inputs as they are."""
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            layer.input_quantizer = None
    return copied


def batch_images(spec: InputSpec) -> int:
    """Return how many images of this size are measured at a time."""
    return min(max(_PIXELS_PER_BATCH // (spec.height * spec.width), 1), _MOST_IMAGES_PER_BATCH)


def logits_of_forms(
    forms: Mapping[str, Predict], images: ImageSet, spec: InputSpec, progress: Progress
) -> dict[str, Logits]:
    """Run every form over the images; return float32 logits ``(N, K)`` by form.

    Each batch goes through all forms before the next is read: of a dataset that is too large to be
    kept decoded, every image is decoded once, not once for each form.

    Raises:
        InvalidCheckpoint: a form answers with numbers that are not finite.
    """
    most = batch_images(spec)
    found: dict[str, list[Logits]] = {form: [] for form in forms}
    done, rate = 0, ImageRate(len(images))
    with torch.inference_mode(), exact_products():
        for batch in images.batches(spec, most):
            for form, predict in forms.items():
                network = form.replace("_", " ") + " network"
                found[form].append(batch_logits(predict, batch, images, done, network))
            done += len(batch)
            message = f"answers to {done:,} of {len(images):,} images"
            progress(done / len(images), message, {"forms": [*forms], **rate.details(done)})
    return {form: np.concatenate(answers) for form, answers in found.items()}
