"""The forms of one network: to be trained, and to be asked as a teacher.

Networks here are copies, so that a caller's own one stays as it was.
"""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def training_form(network: nn.Module) -> nn.Module:
    """Return a float32 copy in training mode, all of it trainable, ordered for fast convolutions.

    A network that only answers has no parameter with a gradient: its copy has.
    """
    trained = ordered(copy.deepcopy(network).float(), torch.channels_last)
    _overwrite_rectified(trained)
    return trained.train().requires_grad_(True)


def teacher_form(network: nn.Module) -> nn.Module:
    """Return a float32 copy that is asked only, never trained."""
    teacher = copy.deepcopy(network).float().eval()
    _overwrite_rectified(teacher)
    _fold_batch_norm(teacher)
    ordered(teacher, torch.channels_last)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def ordered(network: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay out the weights of all convolutions of ``network`` in a memory order, in place."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return network


def _overwrite_rectified(network: nn.Module) -> None:
    """Let ReLUs overwrite what they are fed, where nothing else can read it.

    That is so behind a batch norm in a mere sequence: batch norm's gradient needs its input only.
    """
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for before, after in pairwise(list(module)):
            if isinstance(after, nn.ReLU) and isinstance(before, nn.BatchNorm1d | nn.BatchNorm2d):
                after.inplace = True


def _fold_batch_norm(network: nn.Module) -> None:
    """Let convolutions do the work of the batch norm behind them, where one follows in a sequence.

    That spares the teacher a seventh of its time.
    """
    for sequence in network.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for number, (before, after) in enumerate(pairwise(list(sequence))):
            if type(before) is nn.Conv2d and type(after) is nn.BatchNorm2d:
                sequence[number] = fuse_conv_bn_eval(before, after)
                sequence[number + 1] = nn.Identity()
