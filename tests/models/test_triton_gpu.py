"""The Triton kernels on an NVIDIA GPU: against float64, to the bit for levels, and in a graph."""

import logging
import random
import runpy
from pathlib import Path

import pytest
import torch

from models.attributes import Activation
from models.kernels.product_shape import Epilogue, Levels, ProductShape, ProductTensors

pytest.importorskip("triton")

from models.kernels.triton import operators, tuning
from models.kernels.triton.configurations import Configuration, candidates, heuristic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]

cases = runpy.run_path(str(Path(__file__).with_name("product_cases.py")))
random_case, run_case, check_case = (cases[n] for n in ("random_case", "run_case", "check_case"))
PLAIN = runpy.run_path(str(Path(__file__).with_name("plain_gpu_kernels.py")))["PlainKernels"]()

SEED = random.SystemRandom().randrange(2**31)  # other numbers each time

BYTES = Levels(8, -0.75, 0.25, 3)
KEPT = Levels(8, -4.0, 0.5, 8)
RELU = Activation("relu")


@pytest.fixture(autouse=True)
def _poisoned_memory_and_a_known_seed():
    """Fill what ``torch.empty`` gives, parts of sums too, with what is no number."""
    logging.warning("random numbers of the seed %d", SEED)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SHAPES = {
    "3x3": ProductShape(64, 96, (3, 3), padding=(1, 1), in_hw=(14, 14)),
    "strided": ProductShape(64, 128, (3, 3), (2, 2), (1, 1), in_hw=(15, 13)),
    "1x1": ProductShape(256, 64, in_hw=(7, 7)),
    "odd": ProductShape(37, 45, (3, 2), (1, 2), (1, 2), (2, 1), in_hw=(9, 11)),
    "two bases": ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(8, 8), bases=2),
    "groups": ProductShape(64, 128, (3, 3), padding=(1, 1), groups=2, in_hw=(8, 8)),
    "depthwise": ProductShape(48, 48, (3, 3), padding=(1, 1), groups=48, in_hw=(9, 9)),
    "border of ones": ProductShape(32, 64, (3, 3), padding=(1, 1), in_hw=(8, 8), pad_value=1),
    "linear": ProductShape(1000, 200),
}


@pytest.mark.parametrize(
    ("name", "read"),
    [(name, "f16") for name in SHAPES]
    + [(name, "i8") for name in SHAPES if name != "border of ones"]
    + [("3x3", "f32"), ("border of ones", "f32")],
)
def test_products(name, read):
    shape = SHAPES[name]
    epilogue = Epilogue(
        read,
        "f32",
        BYTES if read == "i8" else None,
        also_levels=KEPT,
        base_scale=shape.bases > 1,
        affine=True,
        residual="f32",
        activation=RELU,
    )
    case = random_case(shape, epilogue, 3, seed=SEED)
    config = heuristic(shape, epilogue, 3, torch.cuda.get_device_capability())
    check_case(case, run_case(case, config, "cuda"))


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize(
    "shape", [SHAPES["3x3"], ProductShape(3, 64, (7, 7), (2, 2), (3, 3), in_hw=(32, 32))], ids=str
)
def test_tiles_that_suit_many_images(shape, read):
    epilogue = Epilogue(read, "f16", BYTES if read == "i8" else None, affine=True)
    case = random_case(shape, epilogue, 3, seed=SEED)
    capability = torch.cuda.get_device_capability()
    possible = {
        config
        for images in (1, 64)
        for config in candidates(shape, epilogue, images, capability)[:3]
    }
    for config in possible:
        check_case(case, run_case(case, config, "cuda"))


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize("images", [1, 7, 16])
def test_linear_layers_of_few_images(read, images):
    shape = ProductShape(9216, 512)
    epilogue = Epilogue(read, "f32", BYTES if read == "i8" else None, affine=True)
    case = random_case(shape, epilogue, images, seed=SEED)
    check_case(case, run_case(case, heuristic(shape, epilogue, images), "cuda"))


TILES = [
    Configuration(64, 64, 64, stages=2),
    Configuration(64, 128, 64, filters_first=True, stages=4),
    Configuration(128, 64, 64, filters_first=True, warps=8),
    Configuration(32, 16, 64, splits=4),
    Configuration(32, 16, direct=True),
]
ENDS = [
    {"kept": "f16", "activation": Activation("prelu"), "residual": "f16"},
    {"kept": "f32", "activation": Activation("hardtanh", -0.5, 0.75)},
    {"kept": "i8", "kept_levels": KEPT, "affine": True},
    {"kept": "i8", "kept_levels": Levels(1, -0.5, 1.0, None), "affine": True},
    {"kept": "b1", "threshold": True},
]


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize(
    ("config", "end"),
    [(config, ENDS[-1]) for config in TILES] + [(TILES[1], end) for end in ENDS[:-1]],
    ids=str,
)
def test_every_way_to_keep_a_result(read, config, end):
    epilogue = Epilogue(read, read_levels=BYTES if read == "i8" else None, **end)
    case = random_case(SHAPES["3x3"], epilogue, 2, seed=SEED)
    check_case(case, run_case(case, config, "cuda"))


@pytest.mark.parametrize(
    "epilogue",
    [
        Epilogue("f32", "f16", affine=True, residual="f32", activation=RELU),
        Epilogue("f32", "i8", kept_levels=KEPT, residual="f32"),
        Epilogue("i8", "f32", BYTES, affine=True),
        Epilogue("f32", "b1", threshold=True),
    ],
    ids=lambda epilogue: f"{epilogue.read}-{epilogue.kept}",
)
@pytest.mark.parametrize("channels", [5, 128])
def test_numbers_are_finished_to_the_bit(epilogue, channels):
    torch.manual_seed(SEED)
    x = torch.randn(3, 9, 7, channels)
    x = (40 * x).round().clamp(-128, 127).to(torch.int8) if epilogue.read == "i8" else x
    tensors = ProductTensors(
        affine=torch.randn(2, channels) if epilogue.affine else None,
        threshold=torch.randn(2, channels).sign() if epilogue.threshold else None,
        residual=torch.randn(3, 9, 7, channels) if epilogue.residual else None,
    )
    shape = ProductShape(channels, channels, in_hw=(9, 7)).out_shape(3, epilogue.kept)
    out, expected = (torch.full(shape, 77, dtype=operators.KINDS[epilogue.kept]) for _ in range(2))
    moved = {name: t if t is None else t.cuda() for name, t in vars(tensors).items()}
    on_gpu = out.cuda()
    operators.launch_elementwise(x.cuda(), ProductTensors(**moved), channels, epilogue, on_gpu)
    PLAIN.elementwise(x, tensors, channels, epilogue, expected)
    assert torch.equal(on_gpu.cpu(), expected)


@pytest.mark.parametrize("maximum", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pools(maximum, dtype):
    torch.manual_seed(SEED)
    x = torch.randn(2, 9, 8, 70).to(dtype)
    out, expected = (torch.full((2, 5, 4, 70), 77, dtype=dtype) for _ in range(2))
    on_gpu = out.cuda()
    operators.launch_pool(x.cuda(), on_gpu, maximum, (3, 3), (2, 2), (1, 1))
    PLAIN.pool(x, expected, maximum, (3, 3), (2, 2), (1, 1))
    assert torch.equal(on_gpu.cpu(), expected)


def test_a_choice_is_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))
    shape = ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(8, 8))
    case = random_case(shape, Epilogue("f16", "f32"), 4, seed=SEED)
    monkeypatch.setattr(tuning, "candidates", lambda *given: candidates(*given)[:2])
    out = torch.empty(shape.out_shape(4, "f32"), device="cuda")
    given = (case.x.cuda(), case.words.cuda(), ProductTensors(), shape, case.epilogue, out)
    chosen = tuning.choose(*given, measure=True)
    assert len(list(tmp_path.glob("gpu-kernels-*.json"))) == 1
    assert tuning.choose(*given, measure=False) == chosen
    check_case(case, run_case(case, chosen, "cuda"))


def test_a_graph_computes_what_launches_do():
    shape = ProductShape(128, 64, (3, 3), padding=(1, 1), in_hw=(8, 8))
    case = random_case(shape, Epilogue("f16", "f32"), 2, seed=SEED)
    out = torch.empty(shape.out_shape(2, "f32"), device="cuda")
    x, words = case.x.cuda(), case.words.cuda()
    config = Configuration(64, 32, 64, splits=4)  # with memory of its own, from the graph's pool
    given = (x, words, ProductTensors(), shape, case.epilogue, out, config)
    operators.launch_product(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operators.launch_product(*given)
    for seed in (SEED + 1, SEED + 2):
        case = random_case(shape, case.epilogue, 2, seed=seed)
        x.copy_(case.x)
        words.copy_(case.words)
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        check_case(case, out.cpu())


def test_operators_are_well_formed():
    case = random_case(SHAPES["1x1"], Epilogue("f16", "f32"), 1, seed=SEED)
    out = torch.empty(SHAPES["1x1"].out_shape(1, "f32"), device="cuda")
    text = operators.encoded(SHAPES["1x1"], case.epilogue)
    config = operators._packed(Configuration())
    absent = [None] * 8
    torch.library.opcheck(
        operators._OPERATORS["f16"], (case.x.cuda(), case.words.cuda(), out, *absent, text, config)
    )
