"""docs/FORMAT.md is enough: one prediction from an artifact file with NumPy alone.

The reader below knows the page and nothing else; it uses no part of bitpress. Slow and literal
on purpose: loops stand where the page has sums.
"""

import copy
import itertools
import json
import struct

import numpy as np
import pytest
import torch

from models import artifact as artifacts
from models import bits
from models.artifact import Artifact
from models.attributes import Activation
from models.layers import BinaryLayer
from models.operators import (
    Activate,
    Add,
    Affine,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    PadChannels,
    Quantize,
    SignPack,
    Subsample,
)
from models.plan import Plan
from models.preprocessing import InputSpec, normalise
from models.quantization import Scale, quantize_inputs
from models.runtime import load

# --- The reader: sections 1 to 5 of the page ------------------------------------------------------


def read_file(data):
    """Section 1 and 2: the metadata, and the tensors by name."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start = 8 + length
    metadata = json.loads(header.pop("__metadata__")["bitpress"])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = {"F32": "<f4", "U8": "u1"}[entry["dtype"]]
        raw = data[start + begin : start + end]
        tensors[name] = np.frombuffer(raw, dtype).reshape(entry["shape"])
    return metadata, tensors


def to_input(pixels, spec):
    """Section 3: uint8 (H, W, C) to float32 (C, H, W)."""
    low, high = spec["value_range"]
    p = pixels.astype(np.float64)
    x = (low + (high - low) * p / 255 - np.array(spec["mean"])) / np.array(spec["std"])
    return x.astype(np.float32).transpose(2, 0, 1)


def signs_of(row, channels, height, width):
    """Section 4.1: one filter's weights (C, kh, kw) from its bytes."""
    weights = np.empty((channels, height, width))
    for c, ky, kx in itertools.product(range(channels), range(height), range(width)):
        j = (ky * width + kx) * channels + c
        weights[c, ky, kx] = 1 if row[j // 8] & (1 << (j % 8)) else -1
    return weights


def window_count(length, kernel, stride, padding, dilation=1):
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def bordered(x, padding, value):
    rows, columns = padding
    return np.pad(x, ((0, 0), (rows, rows), (columns, columns)), constant_values=value)


def pool(x, node, border, combine):
    (kh, kw), (sy, sx) = node["kernel"], node["stride"]
    py, px = node.get("padding", [0, 0])
    padded = bordered(x, (py, px), border)
    y = np.empty(
        (len(x), window_count(x.shape[1], kh, sy, py), window_count(x.shape[2], kw, sx, px))
    )
    for i, j in itertools.product(range(y.shape[1]), range(y.shape[2])):
        window = padded[:, i * sy : i * sy + kh, j * sx : j * sx + kw]
        y[:, i, j] = combine(window.reshape(len(x), -1))
    return y


def broadcast(per_channel, x):
    return np.asarray(per_channel, np.float64).reshape(-1, *[1] * (x.ndim - 1))


def activate(x, activation, tensors, name):
    """Section 4.3."""
    if activation is None:
        return x
    if activation["kind"] == "relu":
        return np.maximum(x, 0)
    if activation["kind"] == "hardtanh":
        return np.minimum(np.maximum(x, activation["low"]), activation["high"])
    assert activation["kind"] == "prelu"
    return np.where(x >= 0, x, broadcast(tensors[name + ".slope"], x) * x)


def quantized(node, x):
    """q of section 4.2, binary32."""
    low, step = np.float32(node["low"]), np.float32(node["step"])
    x = x.astype(np.float32)
    if node["bits"] == 1:
        return (x >= low + step / 2).astype(np.float32)
    return np.clip(np.floor((x - low) / step + np.float32(0.5)), 0, 2 ** node["bits"] - 1)


def zero_of(node, quantizer):
    """Section 4.4: k where ``node`` computes with the integers q - k of ``quantizer``, or None."""
    border = node.get("pad_value", 0) == 1 and node.get("padding", [0, 0]) != [0, 0]
    if quantizer["op"] != "quantize" or node.get("weight", "bits") != "bits" or border:
        return None
    low, step = np.float32(quantizer["low"]), np.float32(quantizer["step"])
    k = round(-float(low) / float(step))
    whole = 0 <= k < 2 ** quantizer["bits"] and np.float32(k) * step == -low
    return k if whole else None


def integer_product(node, quantizer, k, values, tensors):
    """Section 4.4: in binary32 but for the sums."""
    name, step = node["name"], np.float32(quantizer["step"])
    m = quantized(quantizer, values[quantizer["input"]]).astype(np.int64) - k
    z = sums(node, m, tensors).astype(np.float32)
    product = np.float32(0)
    for basis, part in enumerate(z):
        if node.get("base_scale"):
            scale = tensors[name + ".base_scale"][basis]
            part = scale.reshape(-1, *[1] * (part.ndim - 1)) * part
        product = product + part
    if node.get("affine"):
        gain, shift = (
            row.reshape(-1, *[1] * (product.ndim - 1)) for row in tensors[name + ".affine"]
        )
        r = (gain * step) * product + shift
    else:
        r = step * product
    if node.get("residual") is not None:
        r = r + values[node["residual"]].astype(np.float32)
    return activate(r.astype(np.float64), node.get("activation"), tensors, name)


def product(node, x, tensors):
    """Sum over the bases of base scale times weights times x."""
    z = sums(node, x, tensors)
    if node.get("base_scale"):
        scale = tensors[node["name"] + ".base_scale"]
        z = z * scale.reshape(*scale.shape, *[1] * (z.ndim - 2))
    return z.sum(axis=0)


def sums(node, x, tensors):
    """z of section 4.2, for every basis: weights times x."""
    name, count = node["name"], node["channels"]
    if node["op"] == "linear":
        channels, kernel, groups = len(x), (1, 1), 1
        x = x.reshape(-1, 1, 1)
    else:
        groups, kernel = node.get("groups", 1), tuple(node["kernel"])
        channels = x.shape[0] // groups
    if node.get("weight", "bits") == "float":
        weights = tensors[name + ".weight"].reshape(1, count, channels, *kernel)
    else:
        rows = tensors[name + ".bits"]
        weights = np.array([[signs_of(row, channels, *kernel) for row in base] for base in rows])
    (sy, sx), (dy, dx) = node.get("stride", [1, 1]), node.get("dilation", [1, 1])
    py, px = node.get("padding", [0, 0])
    padded = bordered(x, (py, px), node.get("pad_value", 0))
    height = window_count(x.shape[1], kernel[0], sy, py, dy)
    width = window_count(x.shape[2], kernel[1], sx, px, dx)
    z = np.zeros((len(weights), count, height, width), padded.dtype)
    for k, n, i, j in itertools.product(
        range(len(weights)), range(count), range(height), range(width)
    ):
        first = n // (count // groups) * channels
        taps = padded[
            first : first + channels,
            i * sy : i * sy + dy * (kernel[0] - 1) + 1 : dy,
            j * sx : j * sx + dx * (kernel[1] - 1) + 1 : dx,
        ]
        z[k, n, i, j] = (weights[k, n].astype(padded.dtype) * taps).sum()
    return z[..., 0, 0] if node["op"] == "linear" else z


def compute(node, values, tensors, nodes):
    """Section 4.2: the value of one node; ``nodes`` are those before it, by name."""
    op, name = node["op"], node["name"]
    if op in ("add", "concat"):
        sources = [values[source] for source in node["inputs"]]
        if op == "concat":
            return np.concatenate(sources)
        return activate(sources[0] + sources[1], node.get("activation"), tensors, name)
    x = values[node["input"]]
    if op in ("conv2d", "linear"):
        quantizer = nodes.get(node["input"])
        k = None if quantizer is None else zero_of(node, quantizer)
        if k is not None:
            return integer_product(node, quantizer, k, values, tensors)
        y = product(node, x, tensors)
        if node.get("affine"):
            gain, shift = tensors[name + ".affine"]
            y = broadcast(gain, y) * y + broadcast(shift, y)
        if node.get("residual") is not None:
            y = y + values[node["residual"]]
        return activate(y, node.get("activation"), tensors, name)
    if op == "quantize":
        return quantized(node, x) * np.float32(node["step"]) + np.float32(node["low"])
    if op == "sign_pack":
        sense, threshold = np.ones(len(x)), np.zeros(len(x))
        if node.get("per_channel"):
            sense, threshold = tensors[name + ".threshold"]
        return np.where(broadcast(sense, x) * x >= broadcast(threshold, x), 1.0, -1.0)
    if op == "max_pool2d":
        return pool(x, node, -np.inf, lambda windows: windows.max(axis=1))
    if op == "avg_pool2d":
        return pool(x, node, 0, lambda windows: windows.mean(axis=1))
    if op == "affine":
        gain, shift = tensors[name + ".affine"]
        return broadcast(gain, x) * x + broadcast(shift, x)
    if op == "activation":
        return activate(x, node["activation"], tensors, name)
    if op == "subsample":
        rows, columns = node["stride"]
        return x[:, ::rows, ::columns]
    if op == "pad_channels":
        return np.pad(x, ((node.get("before", 0), node.get("after", 0)), (0, 0), (0, 0)))
    assert op == "flatten"
    return x.reshape(-1)


def predict(data, pixels):
    """The label of one image, and the logits."""
    metadata, tensors = read_file(data)
    assert metadata["format"] == 1 and metadata["plan"]["opset"] == 1
    values = {"input": to_input(pixels, metadata["input"]).astype(np.float64)}
    nodes = {}
    for node in metadata["plan"]["nodes"]:
        values[node["name"]] = compute(node, values, tensors, nodes)
        nodes[node["name"]] = node
    logits = values[metadata["plan"]["output"]]
    return metadata["labels"][int(logits.argmax())], logits


# --- Against the reference runtime ----------------------------------------------------------------


def every_operator():
    """An artifact with every operator and every attribute away from its default somewhere."""
    rng = np.random.default_rng(5)
    nodes = (
        Quantize(name="eight", input="input", bits=8, low=-2.0, step=0.0625),
        Conv2d(name="bases", input="eight", channels=6, kernel=(3, 2), stride=(1, 2),
               padding=(2, 1), dilation=(2, 1), groups=3, bases=3, base_scale=True, affine=True,
               activation=Activation("prelu")),
        SignPack(name="signs", input="bases", per_channel=True),
        Conv2d(name="signed", input="signs", channels=6, kernel=(3, 3), padding=(1, 1), pad_value=1,
               residual="bases", activation=Activation("hardtanh", -8.0, 6.5)),
        Conv2d(name="float", input="signed", channels=6, kernel=(1, 1), weight="float"),
        Add(name="sum", inputs=("float", "bases"), activation=Activation("relu")),
        Affine(name="normal", input="sum"),
        Activate(name="active", input="normal", activation=Activation("prelu")),
        PadChannels(name="padded", input="active", before=1, after=2),
        Subsample(name="sampled", input="padded", stride=(2, 3)),
        MaxPool2d(name="max", input="padded", kernel=(3, 2), stride=(2, 3), padding=(1, 1)),
        AvgPool2d(name="mean", input="padded", kernel=(3, 2), stride=(2, 3), padding=(1, 1)),
        Concat(name="joined", inputs=("max", "sampled", "mean")),
        Quantize(name="one", input="joined", bits=1, low=-0.5, step=1.5),
        Flatten(name="flat", input="one"),
        SignPack(name="bits", input="flat"),
        Linear(name="hidden", input="bits", channels=9, affine=True, activation=Activation("relu")),
        Linear(name="logits", input="hidden", channels=4, weight="float", affine=True),
    )  # fmt: skip
    plan = Plan((3, 7, 6), nodes, "logits")
    tensors = {}
    for name, spec in plan.tensors.items():
        if name.endswith("bits"):
            tensors[name] = rng.integers(0, 256, size=spec.shape, dtype=np.uint8)
        else:
            tensors[name] = rng.normal(size=spec.shape).astype(np.float32)
    tensors["signs.threshold"][0] = [1, -1, 0, 1, -1, 1]
    for node in nodes:
        if f"{node.name}.bits" in tensors:
            rows, shape = tensors[f"{node.name}.bits"], node.weight_shape(plan.source_shapes(node))
            used = int(np.prod(shape[1:])) % 8
            if used:
                rows[..., -1] &= (1 << used) - 1
            assert bits.padding_is_zero(rows, shape)
    spec = InputSpec(3, 7, 6, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), (-0.5, 1.0))
    return Artifact(plan, tensors, spec, ("a", "b", "c", "d"), {}, {})


def with_8_bits(net, make_artifact):
    """The net with activations of 8 bits in front of its binary layers."""
    net = copy.deepcopy(net)
    layers = [name for name, layer in net.named_modules() if isinstance(layer, BinaryLayer)]
    quantize_inputs(net, {name: Scale.covering(-1.5, 4.0) for name in layers})
    return make_artifact(net, (3, 8, 8))


@pytest.mark.parametrize("which", ["every_operator", "lowered", "lowered with 8 bits"])
def test_numpy_alone_gives_the_reference_runtimes_answer(
    which, small_net, small_artifact, make_artifact, tmp_path
):
    if which == "every_operator":
        artifact = every_operator()
    else:
        artifact = small_artifact if which == "lowered" else with_8_bits(small_net, make_artifact)
    path = tmp_path / "artifact"
    artifacts.write(artifact, path)
    rng = np.random.default_rng(2)
    spec = artifact.input
    images = rng.integers(0, 256, (6, spec.height, spec.width, spec.channels), dtype=np.uint8)
    expected = load(artifacts.read(path), "reference").run(normalise(images, spec))
    assert len(torch.unique(expected, dim=0)) > 1
    for pixels, logits in zip(images, expected.numpy(), strict=True):
        label, computed = predict(path.read_bytes(), pixels)
        assert np.allclose(computed, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
        assert label == artifact.labels[logits.argmax()]
