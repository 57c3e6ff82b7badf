"""Training of the network for the digits, in seconds on two cores."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.digits import CLASSES, Digits
from models import registry
from models.preprocessing import InputSpec, normalise

ARCHITECTURE = "digits_cnn"
# Mean and deviation of the pixels of the whole set.
INPUT = InputSpec(channels=1, height=8, width=8, mean=(0.305,), std=(0.376,))

_BATCH_IMAGES = 64
_PEAK_LEARNING_RATE = 0.05
_WEIGHT_DECAY = 5e-4
_LABEL_SMOOTHING = 0.1


def train(
    digits: Digits,
    *,
    seed: int = 0,
    epochs: int = 8,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Module:
    """Return the network trained on ``digits``, in evaluation mode.

    SGD with Nesterov momentum under one cycle of learning rates, label smoothing, and shifts of up
    to one pixel. ``on_epoch`` takes the number of finished epochs and their mean loss.
    """
    torch.manual_seed(seed)
    channels, height, width = INPUT.shape
    network = registry.build(
        ARCHITECTURE,
        channels=channels,
        height=height,
        width=width,
        classes=len(CLASSES),
        parameters={},
    )
    images = normalise(digits.pixels, INPUT)
    labels = torch.from_numpy(digits.labels)
    optimizer = torch.optim.SGD(
        network.parameters(), momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY
    )
    steps = len(images) // _BATCH_IMAGES  # the rest sits out an epoch: no batch norm of few
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _PEAK_LEARNING_RATE, total_steps=epochs * steps
    )
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images))[: steps * _BATCH_IMAGES].view(steps, -1):
            logits = network(_shifted(images[batch]))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        on_epoch(epoch + 1, total / steps)
    return network.eval()


def predict(network: nn.Module, digits: Digits) -> Tensor:
    """Return the class that ``network`` gives each digit, int64 (N,)."""
    with torch.inference_mode():
        logits: Tensor = network(normalise(digits.pixels, INPUT))
        return logits.argmax(dim=1)


def _shifted(images: Tensor) -> Tensor:
    """Move every image (N, C, H, W) by -1, 0 or 1 pixel in both directions, edges repeated."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    top, left = torch.randint(3, (2, count, 1))
    each = torch.arange(count)[:, None, None]
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    return padded.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)
