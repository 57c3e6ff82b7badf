"""Plans drawn at random: any operator behind any other, as lowering would never have it."""

from math import prod

import numpy as np

from models import bits
from models.attributes import Activation
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
from store.errors import InvalidArtifact


class RandomPlan:
    """A plan grown node by node.

    ``rounded``: every product of bits reads a quantizer with a level for 0, and there are no float
    weights, so that the result is determined to the bit. Otherwise quantizers need not have that
    level, and a border may be of ones; but they round only what is ``exact``, made without sums of
    real numbers, so that no order of adding decides between two levels.
    """

    def __init__(self, seed, *, rounded, nodes=10, most_channels=12):
        self.rng = np.random.default_rng(seed)
        self.rounded = rounded
        self.most_channels = most_channels
        size = self.rng.integers(1, 10, 2)
        self.nodes, self.tensors = [], {}
        self.shapes = {"input": (int(self.rng.integers(1, most_channels)), *map(int, size))}
        self.unread = {"input"}
        self.exact = {"input"}
        while len(self.nodes) < nodes:
            self.grow()
        self.close()
        self.plan = Plan(self.shapes["input"], tuple(self.nodes), self.nodes[-1].name)

    def one_in(self, count):
        return bool(self.rng.integers(count) == 0)

    def number(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def pair(self, low, high):
        return (self.number(low, high), self.number(low, high))

    def floats(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def name(self):
        return f"n{len(self.nodes)}"

    def pick(self, wanted=lambda shape: True):
        """A value, rather one that nobody reads yet; None where there is none such."""
        found = [name for name, shape in self.shapes.items() if wanted(shape)]
        fresh = [name for name in found if name in self.unread]
        pool = fresh if fresh and not self.one_in(3) else found
        return pool[self.rng.integers(len(pool))] if pool else None

    def add(self, node, **tensors):
        """Take ``node``, unless it does not fit what it reads."""
        try:
            shape = node.output_shape([self.shapes[source] for source in node.sources])
        except InvalidArtifact:
            return False
        if prod(shape) > 6000:
            return False
        self.nodes.append(node)
        self.tensors |= {f"{node.name}.{suffix}": array for suffix, array in tensors.items()}
        self.shapes[node.name] = shape
        self.unread -= {*node.sources}
        self.unread.add(node.name)
        sums = isinstance(node, Conv2d | Linear) and not self.rounded
        if not sums and self.exact.issuperset(node.sources):
            self.exact.add(node.name)
        return True

    def activation(self):
        kinds = [None, Activation("relu"), Activation("hardtanh", -0.5, 1.25), Activation("prelu")]
        return kinds[self.rng.integers(4)]

    def slope(self, activation, channels):
        if activation is None or activation.kind != "prelu":
            return {}
        return {"slope": self.floats(channels)}

    def quantized(self, source):
        """A quantizer of ``source``: a new one, or one that is there."""
        for node in self.nodes:
            if isinstance(node, Quantize) and node.input == source and not self.one_in(4):
                return node.name
        levels = [8, 8, 8, 4, 2, 1][self.rng.integers(6)]
        step = float(np.float32(2.0 ** self.rng.uniform(-4, -1) * 64 / 2**levels))
        zero = self.number(0, 2**levels - 1) if self.one_in(2) else 0
        if not self.rounded and self.one_in(2):
            zero += 0.3  # no level stands for 0
        low = float(np.float32(-zero) * np.float32(step))
        node = Quantize(name=self.name(), input=source, bits=levels, low=low, step=step)
        self.add(node)
        return node.name

    def grow(self):
        [self.product, self.product, self.product, self.pool, self.pool, self.elementwise,
         self.join, self.rearrange, self.sum][self.rng.integers(9)]()  # fmt: skip

    def product(self):
        source = self.pick()
        while isinstance(self.made_by(source), Quantize):
            source = self.made_by(source).input
        rounds = self.rounded or (source in self.exact and not self.one_in(3))
        shape = self.shapes[source]
        weight = "bits" if self.rounded or not self.one_in(3) else "float"
        bases = 1 if weight == "float" else [1, 1, 2, 3][self.rng.integers(4)]
        activation = self.activation()
        form = {
            "weight": weight,
            "bases": bases,
            "base_scale": weight == "bits" and self.one_in(2),
            "affine": not self.one_in(4),
            "activation": activation,
        }
        groups = 1
        if len(shape) == 3:
            groups = [g for g in (1, 2, 3, 4) if shape[0] % g == 0][-1] if self.one_in(2) else 1
        channels = groups * self.number(1, max(1, self.most_channels // groups))
        if len(shape) == 3 and shape[1:] != (1, 1) and self.one_in(4):
            flat = Flatten(name=self.name(), input=source)
            self.add(flat)
            source, shape, groups = flat.name, self.shapes[flat.name], 1
        if rounds:
            source = self.quantized(source)
        name = self.name()
        if len(shape) == 1:
            node = Linear(name=name, input=source, channels=channels, **form)
            weights = (channels, shape[0])
        else:
            kernel = [(1, 1), (3, 3), self.pair(1, 4)][self.rng.integers(3)]
            node = Conv2d(
                name=name, input=source, channels=channels, kernel=kernel, groups=groups,
                stride=self.pair(1, 2), dilation=self.pair(1, 2), padding=self.pair(0, 3),
                pad_value=0 if self.rounded else self.number(0, 1), **form,
            )  # fmt: skip
            weights = (channels, shape[0] // groups, *kernel)
        tensors = self.slope(activation, channels)
        if weight == "float":
            tensors["weight"] = self.floats(*weights)
        else:
            codes = self.rng.choice(np.array([-1, 1], np.int8), size=(bases, *weights))
            tensors["bits"] = np.stack([bits.pack(basis) for basis in codes])
        if form["base_scale"]:
            tensors["base_scale"] = self.floats(bases, channels)
        if form["affine"]:
            tensors["affine"] = self.floats(2, channels)
            tensors["affine"][0] /= prod(weights[1:]) ** 0.5
        residual = self.pick(lambda shape: shape == self.result_of(node))
        if residual is not None and self.one_in(2):
            node = type(node)(**{**vars(node), "residual": residual})
        self.add(node, **tensors)

    def made_by(self, value):
        return next((node for node in self.nodes if node.name == value), None)

    def result_of(self, node):
        try:
            return node.output_shape([self.shapes[node.input]])
        except InvalidArtifact:
            return None

    def pool(self):
        source = self.pick(lambda shape: len(shape) == 3)
        kernel = self.pair(1, 3)
        kind = MaxPool2d if self.rng.integers(3) else AvgPool2d
        padding = tuple(self.number(0, edge // 2) for edge in kernel)
        if source is not None:
            self.add(
                kind(name=self.name(), input=source, kernel=kernel, stride=self.pair(1, 2),
                     padding=padding)
            )  # fmt: skip

    def elementwise(self):
        source, name = self.pick(), self.name()
        channels = self.shapes[source][0]
        match self.rng.integers(4 if self.rounded or source in self.exact else 2):
            case 0:
                self.add(Affine(name=name, input=source), affine=self.floats(2, channels))
            case 1:
                activation = self.activation() or Activation("relu")
                node = Activate(name=name, input=source, activation=activation)
                self.add(node, **self.slope(activation, channels))
            case 2:
                self.quantized(source)
            case 3:
                per_channel = self.one_in(2)
                threshold = self.floats(2, channels)
                threshold[0] = np.sign(threshold[0].round())
                node = SignPack(name=name, input=source, per_channel=per_channel)
                self.add(node, **({"threshold": threshold} if per_channel else {}))

    def join(self):
        first = self.pick()
        size = self.shapes[first][1:]
        others = [self.pick(lambda shape: shape[1:] == size) for _ in range(self.number(0, 2))]
        self.add(Concat(name=self.name(), inputs=(first, *others)))

    def rearrange(self):
        source = self.pick(lambda shape: len(shape) == 3)
        match self.rng.integers(3) if source is not None else 3:
            case 0:
                self.add(Subsample(name=self.name(), input=source, stride=self.pair(1, 3)))
            case 1:
                before, after = self.pair(0, 2)
                self.add(PadChannels(name=self.name(), input=source, before=before, after=after))
            case 2:
                self.add(Flatten(name=self.name(), input=source))

    def sum(self):
        first = self.pick()
        second = self.pick(lambda shape: shape == self.shapes[first])
        activation = self.activation()
        node = Add(name=self.name(), inputs=(first, second), activation=activation)
        self.add(node, **self.slope(activation, self.shapes[first][0]))

    def close(self):
        """Bring all that nobody reads into one result: a value as it is, or vectors joined."""
        if len(self.unread) == 1 and "input" not in self.unread:
            return
        vectors = []
        for name in sorted(self.unread):
            if len(self.shapes[name]) == 3:
                flat = Flatten(name=self.name(), input=name)
                self.nodes.append(flat)
                self.shapes[flat.name] = flat.output_shape([self.shapes[name]])
                name = flat.name
            vectors.append(name)
        self.nodes.append(Concat(name=self.name(), inputs=tuple(vectors)))


def random_plan(seed, *, rounded, nodes=10, most_channels=12):
    """Return a plan and its tensors."""
    drawn = RandomPlan(seed, rounded=rounded, nodes=nodes, most_channels=most_channels)
    return drawn.plan, drawn.tensors
