"""What a layer is fed: its inputs inside a network, as patches at sampled output positions."""

import zlib
from collections.abc import Callable

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


def device_of(network: nn.Module) -> torch.device:
    """Return where ``network`` is: all of its tensors are on one device."""
    return next((one.device for one in network.parameters()), torch.device("cpu"))


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
            network(torch.zeros(1, *input_shape, device=device_of(network)))
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


def filter_rows(layer: Layer, weight: Tensor) -> Tensor:
    """Return filters of the weight's shape as rows (N, S), their columns in the order of `patches`.

    That order has the taps of the kernel outside and the channels inside, since the channels of
    one position lie together in memory then, and patches are copied in long pieces.
    """
    if isinstance(layer, nn.Linear):
        return weight
    return weight.permute(0, 2, 3, 1).flatten(1)


def filters_of(layer: Layer, rows: Tensor) -> Tensor:
    """Undo `filter_rows`: rows (..., N, S) to the shape (..., *weight.shape)."""
    if isinstance(layer, nn.Linear):
        return rows
    taps = (*layer.kernel_size, layer.in_channels)
    return rows.reshape(*rows.shape[:-1], *taps).movedim(-1, -3).contiguous()


def patches(layer: Layer, fed: Tensor, chosen: Tensor) -> Tensor:
    """Return the patches (m, S) of ``fed`` that the layer multiplies with its filters.

    ``chosen`` (m,) int64, where ``fed`` is, numbers the output positions of the batch, image by
    image, row by row.
    Column order is that of `filter_rows`. Zero padding included.
    """
    if isinstance(layer, nn.Linear):
        return fed.reshape(len(fed), -1)[chosen]
    _require_plain(layer)
    height, width = output_positions(layer, fed)
    pad_y, pad_x = _padding(layer)
    padded = nn.functional.pad(fed, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    rows, columns, channels = padded.shape[1:]
    pixels = padded.reshape(-1, channels)
    image, position = chosen // (height * width), chosen % (height * width)
    top = position // width * layer.stride[0]
    left = position % width * layer.stride[1]
    corner = (image * rows + top) * columns + left
    taps = [
        row * layer.dilation[0] * columns + column * layer.dilation[1]
        for row in range(layer.kernel_size[0])
        for column in range(layer.kernel_size[1])
    ]
    found = fed.new_empty(len(chosen), len(taps) * channels)
    for number, tap in enumerate(taps):
        found[:, number * channels : (number + 1) * channels] = pixels[corner + tap]
    return found


def responses(layer: Layer, fed: Tensor) -> Tensor:
    """Return what the layer makes of ``fed``, without its bias: (n, N, H, W), or vectors (n, N)."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(fed.reshape(len(fed), -1), layer.weight)
    _require_plain(layer)
    made: Tensor = layer._conv_forward(fed, layer.weight, None)
    return made


def at_positions(maps: Tensor, chosen: Tensor) -> Tensor:
    """Return the values (m, N) of maps (n, N, H, W), or vectors (n, N), at ``chosen`` positions."""
    if maps.ndim == 4:
        maps = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return maps[chosen]


class PositionSampler:
    """Draws the output positions of a layer that enter its statistics, batch by batch.

    At most about ``positions`` over all ``images``, drawn with ``seed`` and the layer's name so
    that no two layers share a pattern.
    """

    def __init__(self, name: str, images: int, positions: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        self._positions, self._images = positions, images

    def choose(self, batch: int, positions: int) -> tuple[Tensor, ...]:
        """Return numbers of the ``batch * positions`` output positions of a batch, ascending.

        They come in pieces of at most `PATCHES_AT_ONCE`, however large the batch's maps are.
        """
        available = batch * positions
        wanted = -(-self._positions * batch // self._images)
        chosen = torch.arange(available)
        if wanted < available:
            chosen = torch.randperm(available, generator=self._generator)[:wanted].sort().values
        return torch.split(chosen, PATCHES_AT_ONCE)


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
