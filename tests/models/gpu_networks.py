"""Networks that the tests of the runtime ``cuda`` share, with random bits, and images for them."""

import numpy as np
import torch

from models import bits, registry
from models.layers import BinaryConv2d, BinaryLinear
from models.operators import Conv2d, Flatten, Linear, MaxPool2d, SignPack
from models.plan import Plan
from models.quantization import Scale, quantize_inputs


def network(name, shape, parameters, randomise, binarize, keep_float=()):
    """One of the zoo for images of ``shape (C, H, W)``."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        channels, height, width = shape
        net = registry.build(
            name, channels=channels, height=height, width=width, classes=10, parameters=parameters
        ).eval()
    randomise(net)
    binarize(net, keep_float)
    return net


def images(shape, count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, *shape))).float()


def quantize_activations(net, x):
    """Round what every binary layer is fed to 8 bits, over the range that it sees on ``x``."""
    scales = {}
    layers = {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    }

    def observe(name):
        def hook(layer, inputs):
            scales[name] = Scale.covering(inputs[0].min().item(), inputs[0].max().item())

        return hook

    hooks = [layer.register_forward_pre_hook(observe(name)) for name, layer in layers.items()]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    quantize_inputs(net, scales)


def sign_network():
    """A plan of bits by bits, with tensors of small whole numbers: the sums are exact."""
    nodes = (
        SignPack(name="s0", input="input"),
        Conv2d(name="one", input="s0", channels=34, kernel=(3, 3), padding=(1, 1), pad_value=1),
        SignPack(name="s1", input="one", per_channel=True),
        MaxPool2d(name="pool", input="s1", kernel=(2, 2), stride=(2, 2)),
        Conv2d(name="two", input="pool", channels=32, kernel=(3, 3), padding=(1, 1), affine=True),
        SignPack(name="s2", input="two"),
        Conv2d(name="three", input="s2", channels=40, kernel=(3, 3), padding=(1, 1)),
        SignPack(name="s3", input="three", per_channel=True),
        Flatten(name="flat", input="s3"),
        Linear(name="fc", input="flat", channels=4, affine=True),
    )
    plan = Plan((5, 6, 6), nodes, "fc")
    rng = np.random.default_rng(5)
    tensors = {}
    layers = {node.name: node for node in nodes}
    for name, spec in plan.tensors.items():
        if spec.dtype == "F32":
            tensors[name] = rng.integers(-1, 2, spec.shape).astype(np.float32)
            continue
        layer = layers[name.removesuffix(".bits")]
        shape = layer.weight_shape(plan.source_shapes(layer))
        tensors[name] = bits.pack(rng.choice(np.array([-1, 1], np.int8), shape))[None]
    return plan, tensors
