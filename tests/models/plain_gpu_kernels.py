"""The steps of a GPU's program as plain torch: what any kernel has to give.

Sums of products are float64; whatever follows them is float32, each operation rounded on its own.
"""

import torch
import torch.nn.functional as F

from models.kernels.image_windows import WHOLE_PIXELS


def signs(words, channels):
    """int32 ``(..., words)`` as float64 -1 and +1, ``(..., channels)``."""
    places = torch.arange(32, dtype=torch.int32)
    bits = (words[..., None] >> places) & 1
    return bits.flatten(-2)[..., :channels].double() * 2 - 1


def packed(numbers):
    """Booleans ``(..., C)`` as int32 words."""
    padded = F.pad(numbers, (0, -numbers.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = (padded.long() << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def finish(y, channels, epilogue, tensors, out):
    """Write to ``out`` what ``epilogue`` makes of float32 ``y``, channels last."""
    if epilogue.affine:
        y = y * tensors.affine[0] + tensors.affine[1]
    elif epilogue.read == "i8" and epilogue.read_levels is not None:
        y = y * torch.tensor(epilogue.read_levels.step)
    finish_numbers(y, channels, epilogue, tensors, out)


def finish_numbers(y, channels, epilogue, tensors, out):
    if epilogue.residual:
        y = y + tensors.residual
    match epilogue.activation and epilogue.activation.kind:
        case "relu":
            y = y.clamp(min=0)
        case "hardtanh":
            y = y.clamp(epilogue.activation.low, epilogue.activation.high)
        case "prelu":
            y = torch.where(y >= 0, y, tensors.slope * y)
    if epilogue.also_levels:
        tensors.also.copy_(kept_levels(y, epilogue.also_levels))
    match epilogue.kept:
        case "i8":
            out.copy_(kept_levels(y, epilogue.kept_levels))
        case "b1":
            sense, threshold = tensors.threshold if epilogue.threshold else (1.0, 0.0)
            out.copy_(packed(sense * y >= threshold))
        case _:
            out.copy_(y)


def kept_levels(y, levels):
    low, step = torch.tensor(levels.low), torch.tensor(levels.step)
    q = ((y - low) / step + 0.5).floor().clamp(0, 2**levels.bits - 1)
    q = (y >= low + step / 2).float() if levels.bits == 1 else q
    return q - 128


class PlainProduct:
    def __init__(self, step):
        self.resident_bytes = step.words.nbytes
        self._shape, self._finish = step.shape, step.finish
        taps = signs(step.words, step.shape.group_channels)
        self._weights = taps.unflatten(2, step.shape.kernel).permute(0, 1, 4, 2, 3)

    def bind(self, x, residual, out, also=None):
        return lambda: self._run(x, residual, out, also)

    def _run(self, x, residual, out, also):
        shape, epilogue, tensors = self._shape, self._finish.epilogue, self._finish.tensors
        match epilogue.read:
            case "b1":
                x = signs(x, shape.in_channels)
            case "i8":
                x = x.double() + 128 - epilogue.read_levels.zero
        rows, columns = shape.padding
        border = (columns, columns, rows, rows)
        maps = F.pad(x.double().permute(0, 3, 1, 2), border, value=float(shape.pad_value))
        total = None
        for basis, weights in enumerate(self._weights):
            z = F.conv2d(maps, weights, None, shape.stride, 0, shape.dilation, shape.groups)
            z = z.permute(0, 2, 3, 1).float()
            if epilogue.base_scale:
                z = z * tensors.base_scale[basis]
            total = z if total is None else total + z
        tensors = type(tensors)(**{**vars(tensors), "residual": residual, "also": also})
        finish(total, shape.filters, epilogue, tensors, out)


class PlainKernels:
    def product(self, step, device):
        return PlainProduct(step)

    def images(self, images, out, levels, windows=WHOLE_PIXELS):
        kept = images if levels is None else kept_levels(images, levels)
        border = (windows.padding, windows.padding)
        rows = F.pad(kept, border, value=windows.outside).unfold(3, windows.columns, windows.stride)
        out.copy_(rows.permute(0, 2, 3, 4, 1).flatten(3))

    def elementwise(self, x, tensors, channels, epilogue, out):
        y = x.float()
        if epilogue.read == "i8":
            levels = epilogue.read_levels
            y = (y + 128) * torch.tensor(levels.step) + torch.tensor(levels.low)
        if epilogue.affine:
            y = y * tensors.affine[0] + tensors.affine[1]
        finish_numbers(y, channels, epilogue, tensors, out)

    def pool(self, x, out, maximum, kernel, stride, padding):
        maps = x.float().permute(0, 3, 1, 2)
        pool = F.max_pool2d if maximum else F.avg_pool2d
        out.copy_(pool(maps, kernel, stride, padding).permute(0, 2, 3, 1))
