"""Products of bits with quantized activations are sums of integers: bit for bit those of NumPy."""

import itertools
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.attributes import Activation
from models.operators import Conv2d, Flatten, Linear, MaxPool2d, Quantize
from models.plan import Plan
from models.quantization import Scale
from models.runtime.levels import fed_levels
from models.runtime.reference import ReferenceRuntime


def integer_levels(x, node):
    """Section 4.4: q - zero, int64."""
    low, step = np.float32(node.low), np.float32(node.step)
    if node.bits == 1:
        q = (x >= low + step / 2).astype(np.int64)
    else:
        q = np.floor((x - low) / step + np.float32(0.5)).clip(0, 2**node.bits - 1).astype(np.int64)
    return q - round(-node.low / node.step)


def integer_sums(node, weight, m):
    """z[k][n] of section 4.2 in int64, of levels ``m (C, H, W)`` or ``(S,)``."""
    if isinstance(node, Linear):
        return np.einsum("kns,s->kn", weight.astype(np.int64), m)
    (py, px), (sy, sx), (dy, dx) = node.padding, node.stride, node.dilation
    padded = np.pad(m, ((0, 0), (py, py), (px, px)))
    kh, kw = node.kernel
    height = (padded.shape[1] - dy * (kh - 1) - 1) // sy + 1
    width = (padded.shape[2] - dx * (kw - 1) - 1) // sx + 1
    bases, filters, channels = weight.shape[:3]
    z = np.zeros((bases, filters, height, width), np.int64)
    for n, i, j in itertools.product(range(filters), range(height), range(width)):
        first = n // (filters // node.groups) * channels
        taps = padded[
            first : first + channels,
            i * sy : i * sy + dy * (kh - 1) + 1 : dy,
            j * sx : j * sx + dx * (kw - 1) + 1 : dx,
        ]
        z[:, n, i, j] = (weight[:, n].astype(np.int64) * taps).sum((1, 2, 3))
    return z


def epilogue(node, z, step, tensors, residual=None):
    """Section 4.4: from sums to the node's value, each operation rounded to float32."""
    columns = (-1,) + (1,) * (z.ndim - 2)
    z = z.astype(np.float32)
    product = z[0]
    if node.base_scale:
        scale = tensors[f"{node.name}.base_scale"]
        product = scale[0].reshape(columns) * z[0]
        for k in range(1, len(z)):
            product = product + scale[k].reshape(columns) * z[k]
    elif node.bases > 1:
        for k in range(1, len(z)):
            product = product + z[k]
    step = np.float32(step)
    if node.affine:
        gain, shift = (row.reshape(columns) for row in tensors[f"{node.name}.affine"])
        y = (gain * step) * product + shift
    else:
        y = step * product
    if residual is not None:
        y = y + residual
    if node.activation is not None:
        y = np.maximum(y, np.float32(0))
    assert y.dtype == np.float32
    return y


def runtime_of(nodes, tensors, shape, **budgets):
    plan = Plan(shape, tuple(nodes), nodes[-1].name)
    # Not an `Artifact`, which is for images of 1 or 3 channels.
    return ReferenceRuntime(SimpleNamespace(plan=plan, tensors=tensors), **budgets)


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.int8), size=shape)


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@st.composite
def convolutions(draw):
    """A quantizer and a convolution behind it, of any geometry and form."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    bases = draw(st.sampled_from([1, 1, 3]))
    levels = draw(st.sampled_from([8, 8, 4, 2, 1]))
    step = draw(st.floats(2**-10, 8, width=32))
    zero = draw(st.integers(0, 2**levels - 1))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    node = Conv2d(
        name="product",
        input="levels",
        channels=groups * draw(st.integers(1, 3)),
        kernel=draw(pair),
        stride=draw(pair),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bases=bases,
        base_scale=draw(st.booleans()),
        affine=draw(st.booleans()),
        activation=draw(st.sampled_from([None, Activation("relu")])),
    )
    low = float(np.float32(-zero) * np.float32(step))
    quantizer = Quantize(name="levels", input="input", bits=levels, low=low, step=step)
    shape = (groups * draw(st.integers(1, 9)), draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    return shape, quantizer, node, draw(st.integers(0, 2**32 - 1))


@contextmanager
def kernels(mkldnn):
    """Let torch take oneDNN's kernels, or its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of settings for graphics cards
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield


@settings(deadline=None, max_examples=150)
@given(convolutions(), st.sampled_from([1, 1 << 20]), st.booleans())
def test_convolution_is_that_of_integers(case, weights_at_once, mkldnn):
    shape, quantizer, node, seed = case
    rng = np.random.default_rng(seed)
    weight = signs(rng, node.bases, node.channels, shape[0] // node.groups, *node.kernel)
    tensors = {
        "product.bits": np.stack([bits.pack(basis) for basis in weight]),
        "product.base_scale": floats(rng, node.bases, node.channels),
        "product.affine": floats(rng, 2, node.channels),
    }
    wanted = {"product.bits"}
    wanted |= {"product.base_scale"} if node.base_scale else set()
    wanted |= {"product.affine"} if node.affine else set()
    runtime = runtime_of(
        [quantizer, node, Flatten(name="flat", input="product")],
        {name: tensors[name] for name in wanted},
        shape,
        weights_at_once=weights_at_once,
    )
    x = floats(rng, 3, *shape) * np.float32(40 * quantizer.step)
    with kernels(mkldnn):
        found = runtime.run(torch.from_numpy(x)).numpy()
    for image, answer in zip(x, found, strict=True):
        z = integer_sums(node, weight, integer_levels(image, quantizer))
        expected = epilogue(node, z, quantizer.step, tensors)
        assert np.array_equal(answer, expected.reshape(-1))


@pytest.mark.parametrize("mkldnn", [True, False])
def test_kernels_that_round_are_not_taken(mkldnn):
    """Of a size and batch for which torch may choose Winograd transforms."""
    rng = np.random.default_rng(1)
    weight = signs(rng, 1, 64, 128, 3, 3)
    quantizer = Quantize(name="q", input="input", bits=8, low=0.0, step=1.0)
    node = Conv2d(name="c", input="q", channels=64, kernel=(3, 3), padding=(1, 1))
    flat = Flatten(name="flat", input="c")
    tensors = {"c.bits": bits.pack(weight[0])[None]}
    runtime = runtime_of([quantizer, node, flat], tensors, (128, 8, 8))
    x = rng.integers(0, 256, (32, 128, 8, 8))
    with kernels(mkldnn):
        found = runtime.run(torch.from_numpy(x.astype(np.float32)))
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weight[0]).double(), padding=1
    )
    assert torch.equal(found.double(), sums.flatten(1))


@pytest.mark.parametrize("inputs", [50, 4608, 70_001])
def test_linear_layer_is_that_of_integers_however_long(inputs):
    rng = np.random.default_rng(inputs)
    weight = signs(rng, 1, 5, inputs)
    weight[0, 0], weight[0, 1] = 1, -1
    scale = Scale.covering(0.0, 255.0)
    quantizer = Quantize(name="q", input="flat", bits=8, low=scale.low, step=scale.step)
    node = Linear(name="l", input="q", channels=5, affine=True)
    tensors = {"l.bits": bits.pack(weight[0])[None], "l.affine": floats(rng, 2, 5)}
    runtime = runtime_of(
        [Flatten(name="flat", input="input"), quantizer, node], tensors, (1, 1, inputs)
    )
    x = np.stack([np.full(inputs, 255), rng.integers(0, 300, inputs)]).astype(np.float32)
    found = runtime.run(torch.from_numpy(x).view(2, 1, 1, inputs)).numpy()
    for image, answer in zip(x, found, strict=True):
        z = integer_sums(node, weight, integer_levels(image, quantizer))
        assert np.array_equal(answer, epilogue(node, z, quantizer.step, tensors))


def test_only_bits_right_behind_a_quantizer_compute_with_integers():
    eight = {"bits": 8, "low": -0.75, "step": 0.25}
    nodes = [
        Quantize(name="q", input="input", **eight),
        Conv2d(name="bits", input="q", channels=4, kernel=(3, 3), padding=(1, 1), residual="q"),
        Conv2d(name="float", input="q", channels=4, kernel=(1, 1), weight="float", residual="bits"),
        MaxPool2d(name="pool", input="q", kernel=(1, 1), stride=(1, 1)),
        Conv2d(name="behind", input="pool", channels=4, kernel=(1, 1), residual="float"),
        Conv2d(name="ones", input="q", channels=4, kernel=(3, 3), padding=(1, 1), pad_value=1,
               residual="behind"),
        Quantize(name="uneven", input="ones", bits=8, low=-0.7, step=0.25),
        Conv2d(name="last", input="uneven", channels=4, kernel=(1, 1)),
        Flatten(name="flat", input="last"),
    ]  # fmt: skip
    assert set(fed_levels(Plan((4, 5, 5), tuple(nodes), "flat"))) == {"bits"}
    rng = np.random.default_rng(0)
    tensors = {
        f"{node.name}.bits": bits.pack(signs(rng, 4, 4, *node.kernel))[None]
        for node in nodes
        if isinstance(node, Conv2d) and node.weight == "bits"
    }
    tensors["float.weight"] = floats(rng, 4, 4, 1, 1)
    x = torch.from_numpy(floats(rng, 6, 4, 5, 5))
    found = runtime_of(nodes, tensors, (4, 5, 5)).run(x)

    # The same with real numbers all along, in float64.
    def quantized(values, low, step):
        return low + step * ((values - low) / step + 0.5).floor().clamp(0, 255)

    def convolved(name, values, **geometry):
        node = next(node for node in nodes if node.name == name)
        if node.weight == "bits":
            rows = tensors[f"{name}.bits"][0]
            weight = torch.from_numpy(bits.unpack(rows, (4, 4, *node.kernel)))
        else:
            weight = torch.from_numpy(tensors[f"{name}.weight"])
        return torch.nn.functional.conv2d(values, weight.double(), **geometry)

    q = quantized(x.double(), -0.75, 0.25)
    y = convolved("bits", q, padding=1) + q
    y = convolved("float", q) + y
    y = convolved("behind", q) + y
    y = convolved("ones", torch.nn.functional.pad(q, (1, 1, 1, 1), value=1.0)) + y
    y = convolved("last", quantized(y, -0.7, 0.25)).flatten(1)
    # Steps of a quarter are exact but for the float layer: a rounding may go the other way there.
    assert ((found.double() - y).abs() < 1e-4).double().mean() > 0.99


def test_answer_does_not_depend_on_the_batch():
    """Integer sums are exact, so images cannot influence each other in the last bit either."""
    rng = np.random.default_rng(3)
    weight = signs(rng, 1, 8, 64, 3, 3)
    nodes = [
        Quantize(name="q", input="input", bits=8, low=-12.8, step=0.1),
        Conv2d(name="c", input="q", channels=8, kernel=(3, 3), affine=True),
        Flatten(name="flat", input="c"),
    ]
    tensors = {"c.bits": bits.pack(weight[0])[None], "c.affine": floats(rng, 2, 8)}
    x = torch.from_numpy(floats(rng, 7, 64, 6, 6))
    runtime = runtime_of(nodes, tensors, (64, 6, 6))
    whole = runtime.run(x)
    assert torch.equal(torch.cat([runtime.run(image[None]) for image in x]), whole)
    cut = runtime_of(nodes, tensors, (64, 6, 6), weights_at_once=1, activation_bytes=1)
    assert torch.equal(cut.run(x), whole)
