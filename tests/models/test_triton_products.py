"""Products in Triton's interpreter against plain torch, to the bit where they read levels."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.attributes import Activation
from models.kernels.product_shape import (
    Epilogue,
    Levels,
    ProductShape,
    ProductTensors,
    decoded,
    encoded,
)

pytest.importorskip("triton")

from models.kernels.triton import product_launch
from models.kernels.triton.borders import border_sums
from models.kernels.triton.configurations import (
    Configuration,
    candidates,
    heuristic,
    is_direct,
    is_vector,
    shared_bytes,
)
from models.kernels.triton.launching import launch
from models.kernels.triton.operators import launch_product
from models.kernels.triton.word_order import interleaved, together

cases = runpy.run_path(str(Path(__file__).with_name("product_cases.py")))
random_case, run_case, check_case = (cases[n] for n in ("random_case", "run_case", "check_case"))

RELU = Activation("relu")
BYTES = Levels(8, 0.0, 0.25, 0)
NIBBLES = Levels(4, -0.5, 0.25, 2)
BIT = Levels(1, -0.5, 1.0, None)
KEPT = Levels(8, -4.0, 0.5, 8)

TILES = Configuration(32, 16, 64)
FIRST = Configuration(32, 16, 64, filters_first=True)
SPLIT = Configuration(64, 16, 32, splits=3)
VECTOR = Configuration(32, 8, 64, slices=2, filters_first=True)
DIRECT = Configuration(32, 16, direct=True)

CONVOLUTION = ProductShape(20, 40, (3, 2), (2, 1), (1, 2), (1, 2), in_hw=(6, 5))
LINEAR = ProductShape(150, 40, bases=2)


@pytest.mark.parametrize("read", ["f16", "f32", "i8"])
@pytest.mark.parametrize(
    ("shape", "config"),
    [
        (CONVOLUTION, TILES),
        (CONVOLUTION, SPLIT),
        (LINEAR, FIRST),
        (LINEAR, SPLIT),
        (LINEAR, VECTOR),
        (ProductShape(64, 64, (3, 3), padding=(1, 1), groups=2, in_hw=(3, 4)), FIRST),
        (ProductShape(6, 12, (3, 3), padding=(1, 1), groups=6, in_hw=(4, 4), bases=2), DIRECT),
        (ProductShape(10, 4, (2, 2), (2, 2), groups=2, in_hw=(4, 6)), DIRECT),
    ],
    ids=lambda value: value.kernel if isinstance(value, ProductShape) else None,
)
def test_product_and_all_that_follows(shape, config, read):
    epilogue = Epilogue(
        read,
        "f32",
        NIBBLES if read == "i8" else None,
        base_scale=shape.bases > 1,
        affine=True,
        residual="f32",
        activation=RELU,
    )
    case = random_case(shape, epilogue, 2, seed=5)
    check_case(case, run_case(case, config))


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize("config", [TILES, SPLIT, DIRECT])
@pytest.mark.parametrize(
    "end",
    [
        {"kept": "f16"},
        {"kept": "f16", "activation": Activation("prelu"), "residual": "f16"},
        {"kept": "f32", "activation": Activation("hardtanh", -0.5, 0.75)},
        {"kept": "f32", "also_levels": KEPT, "activation": RELU, "residual": "f32"},
        {"kept": "i8", "kept_levels": KEPT, "affine": True},
        {"kept": "i8", "kept_levels": BIT, "affine": True},
        {"kept": "b1", "affine": True},
        {"kept": "b1", "threshold": True},
    ],
    ids=lambda end: "-".join(map(str, end.values()))[:20],
)
def test_every_way_to_keep_a_result(read, config, end):
    shape = ProductShape(5, 37, (2, 2), in_hw=(3, 4))
    epilogue = Epilogue(read, read_levels=BYTES if read == "i8" else None, **end)
    case = random_case(shape, epilogue, 1, seed=6)
    check_case(case, run_case(case, config))


@pytest.mark.parametrize("config", [TILES, SPLIT, DIRECT])
def test_a_border_of_ones(config):
    shape = ProductShape(3, 33, (3, 3), padding=(2, 1), in_hw=(3, 3), pad_value=1, bases=2)
    case = random_case(shape, Epilogue("f32", "f32", base_scale=True), 2, seed=7)
    check_case(case, run_case(case, config))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_products_of_any_geometry(data):
    def number(low, high):
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    kernel = (number(1, 3), number(1, 3))
    shape = ProductShape(
        groups * number(1, 12),
        groups * number(1, 20),
        kernel,
        (number(1, 3), number(1, 3)),
        (number(0, 2), number(0, 2)),
        (number(1, 2), number(1, 2)),
        groups,
        (number(5, 7), number(5, 7)),
        number(1, 2),
    )
    zero = number(0, 255)
    levels = Levels(8, -zero * 0.125, 0.125, zero)
    read = data.draw(st.sampled_from(["i8", "f16"]))
    epilogue = Epilogue(
        read,
        "f32",
        levels if read == "i8" else None,
        base_scale=data.draw(st.booleans()),
        affine=data.draw(st.booleans()),
    )
    config = data.draw(st.sampled_from([TILES, FIRST, SPLIT, DIRECT][: 3 + (groups > 1)]))
    case = random_case(shape, epilogue, number(1, 2), seed=number(0, 99))
    check_case(case, run_case(case, config))


def test_operators_are_well_formed():
    shape = ProductShape(5, 6, (2, 2), padding=(1, 1), in_hw=(3, 3))
    for read in ("f16", "f32", "i8"):
        epilogue = Epilogue(read, "f32", BYTES if read == "i8" else None, affine=True)
        case = random_case(shape, epilogue, 1, seed=8)
        out = torch.empty(shape.out_shape(1, "f32"))
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            operators = launch_product.__globals__["_OPERATORS"]
            operator = operators[read]
            patch.setitem(operators, read, lambda *given, kept=calls: kept.append(given))
            launch_product(case.x, case.words, case.tensors, shape, epilogue, out, TILES)
        torch.library.opcheck(operator, calls[0])


def test_what_is_refused():
    shape = ProductShape(8, 6, (2, 2), in_hw=(3, 3))
    case = random_case(shape, Epilogue("f16", "f32", affine=True), 1, seed=9)

    def launch(**other):
        given = {"shape": shape, "epilogue": case.epilogue, "tensors": case.tensors}
        given |= {"x": case.x, "out": torch.empty(shape.out_shape(1, "f32"))} | other
        launch_product(words=case.words, config=TILES, **given)

    launch()
    with pytest.raises(ValueError, match="x must be"):
        launch(x=case.x.float())
    with pytest.raises(ValueError, match="contiguous"):
        launch(out=torch.empty(1, 2, 6, 2).transpose(2, 3))
    with pytest.raises(ValueError, match="affine has to be given"):
        launch(tensors=ProductTensors())
    with pytest.raises(ValueError, match="in CUDA"):
        launch(epilogue=Epilogue("b1", "f32"))
    with pytest.raises(ValueError, match="stands for 0"):
        launch(epilogue=Epilogue("i8", "f32", BIT))
    with pytest.raises(ValueError, match="ends within a word"):
        launch(shape=ProductShape(8, 6, groups=2), epilogue=Epilogue("f16", "b1"))
    with pytest.raises(ValueError, match="lack something"):
        launch(
            x=case.x.to(torch.int8),
            epilogue=Epilogue("i8", "f32", BYTES),
            tensors=ProductTensors(),
        )


def test_a_program_leaves_the_words_of_others_alone(monkeypatch):
    shape = ProductShape(32, 192, groups=2, in_hw=(2, 2))
    case = random_case(shape, Epilogue("f16", "b1"), 1, seed=4)
    config = Configuration(128, 16, 32)
    check_case(case, run_case(case, config))
    monkeypatch.setattr(
        product_launch,
        "launch",
        lambda kernel, grid, *given, **more: launch(kernel, (1, 1), *given, **more),
    )  # the first group's program alone
    words = run_case(case, config)
    assert bool((words[..., 3:] == 0x5A5A5A5A).all())
    assert not bool((words[..., :3] == 0x5A5A5A5A).any())


def test_no_images_are_no_work():
    shape = ProductShape(8, 6)
    case = random_case(shape, Epilogue("f16", "f32"), 0, seed=1)
    assert run_case(case, TILES).shape == (0, 1, 1, 6)


def test_word_order_keeps_every_bit():
    words = torch.from_numpy(np.random.default_rng(2).integers(-(2**31), 2**31, size=(3, 5)))
    words = words.to(torch.int32)
    assert torch.equal(interleaved(words, "f32"), words)
    for read in ("f16", "i8"):
        channel = torch.arange(32)
        step = 32 // together(read)
        places = channel % together(read) * step + channel // together(read)
        expected = (words[..., None] >> channel) & 1
        assert torch.equal((interleaved(words, read)[..., None] >> places) & 1, expected)


def test_places_of_a_border_are_few():
    shape = ProductShape(3, 2, (3, 3), padding=(1, 1), in_hw=(50, 60))
    codes = np.ones((2, 3, 3, 3), dtype=np.int8)
    words = torch.from_numpy(bits.repack(bits.pack(codes), codes.shape, 32)).view(1, 2, 9, 1)
    found = border_sums(words, shape, zero=0)
    assert found.offsets.shape == (1, 9, 2)
    inside = found.offsets[0, found.places[20] + found.places[50 + 20]]
    corner = found.offsets[0, found.places[0] + found.places[50]]
    assert inside.tolist() == [128 * 27] * 2
    assert corner.tolist() == [128 * 12] * 2
    assert border_sums(words, shape, zero=None) is None
    assert border_sums(words, shape, zero=128) is None


def test_descriptions_survive_their_text():
    epilogue = Epilogue("i8", "i8", BYTES, NIBBLES, activation=Activation("hardtanh", -1.0, 2.0))
    both = Epilogue("f16", "f32", also_levels=BYTES)
    assert decoded(encoded(CONVOLUTION, both)) == (CONVOLUTION, both)
    assert decoded(encoded(CONVOLUTION, epilogue)) == (CONVOLUTION, epilogue)


def test_descriptions_that_contradict_themselves():
    for wrong in (
        lambda: ProductShape(5, 6, groups=2),
        lambda: ProductShape(5, 6, (3, 3), in_hw=(2, 2)),
        lambda: Epilogue("i8", "f32"),
        lambda: Epilogue("f16", "f32", BYTES),
        lambda: Epilogue("f16", "b1", also_levels=BYTES),
        lambda: Epilogue("f16", "f32", threshold=True),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize("images", [1, 8, 64, 256])
@pytest.mark.parametrize(
    ("capability", "shared"), [((8, 0), 160), ((8, 9), 96), ((9, 0), 220), ((12, 0), 96)]
)
@pytest.mark.parametrize("read", ["f16", "f32", "i8"])
def test_configurations_suit_the_shape(images, capability, shared, read):
    epilogue = Epilogue(read, "b1", BYTES if read == "i8" else None)
    for shape in (
        ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(56, 56)),
        ProductShape(512, 512, (3, 3), padding=(1, 1), in_hw=(7, 7)),
        ProductShape(9216, 4096),
        ProductShape(16, 16, (3, 3), padding=(1, 1), in_hw=(32, 32)),
        ProductShape(3, 64, (7, 7), (2, 2), (3, 3), in_hw=(224, 224)),
        ProductShape(64, 64, (3, 3), groups=64, in_hw=(14, 14)),
    ):
        found = candidates(shape, epilogue, images, capability)
        assert found[0] == heuristic(shape, epilogue, images, capability)
        assert 1 <= len(found) <= 4 and len(set(found)) == len(found)
        pixels = images * shape.out_hw[0] * shape.out_hw[1]
        for config in found:
            assert config.filter_block % 32 == 0  # for signs to fill words
            assert config.channel_block % 32 == 0
            assert config.direct or shared_bytes(config, read) <= shared << 10
            # As many registers a thread for sums as leave room for what is multiplied.
            assert config.filter_block * config.pixel_block <= 128 * 32 * config.warps
            assert config.direct == is_direct(shape)
            assert (config.slices > 1) == is_vector(shape, pixels)
