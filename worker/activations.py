"""What a layer is fed: its inputs inside a network, as patches at sampled output positions."""

import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from store.errors import InvalidSpec

Layer = nn.Conv2d | nn.Linear

# Bounds the memory that patches take: up to kh * kw times as much as the maps they come from.
PATCHES_AT_ONCE = 8192


class _Reached(Exception):
    """Ends a forward pass as soon as the wanted layer has been fed."""

    def __init__(self, fed: Tensor) -> None:
        super().__init__()
        self.fed = fed


def input_of(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return what layer ``name`` is fed for ``images`` (n, C, H, W); nothing behind it is computed.

    Raises:
        InvalidSpec: the layer is not reached by a forward pass.
    """

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    hook = network.get_submodule(name).register_forward_pre_hook(stop)
    try:
        network(images)
    except _Reached as reached:
        return reached.fed
    finally:
        hook.remove()
    raise InvalidSpec(
        f"Layer {name} takes no part in the network's forward pass.",
        field="spec.keep_float",
        remedy=f"Keep {name} in float.",
    )


def layer_order(network: nn.Module, input_shape: tuple[int, int, int]) -> list[str]:
    """Return the names of all convolutions and linear layers in the order of execution.

    ``input_shape`` is (C, H, W). The network must be in evaluation mode.
    """
    return execution_order(network, input_shape, (nn.Conv2d, nn.Linear))


def execution_order(
    network: nn.Module, input_shape: tuple[int, int, int], kinds: tuple[type[nn.Module], ...]
) -> list[str]:
    """Return the names of the modules of some ``kinds`` in the order of execution."""
    order: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            order.append(name)

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def output_positions(layer: Layer, fed: Tensor) -> tuple[int, int]:
    """Return (height, width) of the layer's output for the input ``fed`` (n, C, H, W) or (n, S)."""
    if isinstance(layer, nn.Linear):
        return 1, 1
    padding, kernel = _padding(layer), layer.kernel_size
    height, width = (
        (fed.shape[2 + axis] + 2 * padding[axis] - layer.dilation[axis] * (kernel[axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def patches(layer: Layer, fed: Tensor, chosen: Tensor) -> Tensor:
    """Return the patches (m, S) of ``fed`` that the layer multiplies with its flattened filters.

    ``chosen`` (m,) int64 numbers the output positions of the batch, image by image, row by row.
    Column order is that of ``weight.reshape(N, S)``. Zero padding included.
    """
    if isinstance(layer, nn.Linear):
        return fed.reshape(len(fed), -1)[chosen]
    _require_plain(layer)
    height, width = output_positions(layer, fed)
    pad_y, pad_x = _padding(layer)
    windows = nn.functional.pad(fed, (pad_x, pad_x, pad_y, pad_y))
    for axis in (0, 1):
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        windows = windows.unfold(2 + axis, reach, layer.stride[axis])
    windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]
    image, position = chosen // (height * width), chosen % (height * width)
    return windows[image, :, position // width, position % width].flatten(1)


def sampled_patches(
    layer: Layer,
    networks: Sequence[nn.Module],
    name: str,
    batches: Callable[[], Iterator[Tensor]],
    images: int,
    *,
    positions: int,
    seed: int,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield, piece by piece, the patches (m, S) of layer ``name`` in each of ``networks``.

    The same output positions are taken in every network, at most about ``positions`` over all
    ``images``, drawn with ``seed`` and the layer's name so that no two layers share a pattern.
    A piece has at most `PATCHES_AT_ONCE` rows, however large the batch's maps are.
    """
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    for batch in batches():
        fed = [input_of(network, name, batch) for network in networks]
        height, width = output_positions(layer, fed[0])
        available = len(batch) * height * width
        wanted = -(-positions * len(batch) // images)
        chosen = torch.arange(available)
        if wanted < available:
            chosen = torch.randperm(available, generator=generator)[:wanted].sort().values
        for piece in torch.split(chosen, PATCHES_AT_ONCE):
            yield tuple(patches(layer, one, piece) for one in fed)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer.padding, str):
        raise InvalidSpec(
            f"A convolution uses padding={layer.padding!r}, which calibration does not read.",
            field="spec.architecture",
            remedy="Give the padding as numbers.",
        )
    return layer.padding[0], layer.padding[1]


def _require_plain(layer: nn.Conv2d) -> None:
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise InvalidSpec(
            "Calibration reads convolutions with one group and zero padding only.",
            field="spec.keep_float",
            remedy="Keep the grouped or otherwise padded convolutions in float.",
        )
