"""The CUDA sources as machine code, which needs no GPU: what compiles, and to what."""

import itertools
import re
import sys
from pathlib import Path

import pytest

from models.attributes import Activation
from models.kernels.cuda import compilation
from models.kernels.cuda.compilation import PROGRAMS, architecture, cubin, program_text
from models.kernels.cuda.configurations import (
    MIDDLE,
    NARROW,
    TILES,
    WIDE,
    Popcount,
    Tiles,
    blocks,
    candidates,
    heuristic,
)
from models.kernels.cuda.constants import product_constants
from models.kernels.product_shape import Epilogue, Levels, ProductShape
from store.errors import Unavailable

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="there is no NVRTC")
pytest.importorskip("cuda.core", reason="there is no cuda-core")

ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
SHAPE = ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(56, 56))
EPILOGUES = {
    "b1": Epilogue("b1", "b1", affine=True, residual="f16", threshold=True),
    "i8": Epilogue(
        "b1", "i8", kept_levels=Levels(8, 0.0, 0.1, 0), affine=True, activation=Activation("prelu")
    ),
}
COUNT = "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc"


def text_of(configuration, kept="b1"):
    name = "tensor_product" if isinstance(configuration, Tiles) else "popcount_product"
    return program_text(name, product_constants(SHAPE, EPILOGUES[kept], configuration))


def assembled(text, arch):
    """Return the PTX of a program and what the assembler says of its registers."""
    error, program = nvrtc.nvrtcCreateProgram(text.encode(), b"program.cu", 0, [], [])
    options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = writable(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = writable(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx[:size].decode(), log[:size].decode()


def writable(size):
    """Return bytes that C may write to: of a single byte Python has but one object for all."""
    return b" " * (size + 1)


def test_every_source_is_part_of_a_program_and_includes_nothing():
    sources = {path.name for path in Path(compilation.__file__).parent.glob("*.cu")}
    assert sources == set(itertools.chain(*PROGRAMS.values()))
    for name in PROGRAMS:
        assert "#include" not in program_text(name, {})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_program_compiles_to_machine_code(arch):
    for text in (text_of(NARROW), text_of(Popcount())):
        assert compilation.compiled(text, arch).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("arch", "tiles"), [("sm_80", MIDDLE), ("sm_90a", MIDDLE), ("sm_90a", WIDE)], ids=str
)
def test_tensor_cores_count_bits_and_registers_suffice(arch, tiles):
    ptx, log = assembled(text_of(tiles, "i8"), arch)
    steps = tiles.stage_words // 8 // tiles.sum_warps
    rows = tiles.tile_pixels // 16 // tiles.pixel_warps
    columns = tiles.tile_filters // 8 // tiles.filter_warps
    # One column more: of ones, which counts the signs' own bits.
    assert ptx.count(COUNT) == steps * rows * (columns + 1)
    assert ptx.count("ldmatrix.sync.aligned.m8n8.x4.shared.b16") == steps * (rows + columns // 2)
    assert "cp.async.ca.shared.global" in ptx and "cp.async.wait_group" in ptx
    assert "0 bytes spill stores, 0 bytes spill loads" in log and "__local_depot" not in ptx
    assert_rounds_one_by_one(ptx)


def test_wide_maps_are_copied_16_bytes_at_a_time():
    shape = ProductShape(256, 64, (3, 3), padding=(1, 1), in_hw=(14, 14))
    constants = product_constants(shape, EPILOGUES["b1"], NARROW)
    ptx, _ = assembled(program_text("tensor_product", constants), "compute_80")
    assert "cp.async.cg.shared.global" in ptx and "cp.async.ca.shared.global" not in ptx


def test_the_other_kernel_does_without_tensor_cores():
    ptx, log = assembled(text_of(Popcount(), "i8"), "sm_100")
    assert "popc.b32" in ptx
    assert not re.search(r"\b(mma|wgmma|ldmatrix|cp\.async)\b", ptx)
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    assert_rounds_one_by_one(ptx)


def assert_rounds_one_by_one(ptx):
    assert "mul.rn.f32" in ptx and "add.rn.f32" in ptx and "div.rn.f32" in ptx
    assert "fma.rn" not in ptx


def constants_of(channels):
    return product_constants(ProductShape(channels, 32), Epilogue("b1", "f32"), Popcount())


def test_a_program_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))
    code = cubin("popcount_product", constants_of(32), "sm_80")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "compiled", lambda *_: pytest.fail("compiled twice"))
        assert cubin("popcount_product", constants_of(32), "sm_80") == code
    (entry,) = (tmp_path / "cubins").iterdir()
    assert entry.read_bytes().endswith(code)


def test_another_program_is_another_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "compiled", lambda text, arch: (text + arch).encode())
    wanted = list(itertools.product((32, 33), ("sm_80", "sm_90a")))
    made = {cubin("popcount_product", constants_of(one), arch) for one, arch in wanted}
    assert len(made) == len(list((tmp_path / "cubins").iterdir())) == len(wanted)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, None], ids=["empty", "noise", "one bit"])
def test_a_damaged_entry_is_compiled_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "compiled", lambda *_: b"machine code")
    assert cubin("popcount_product", {}, "sm_80") == b"machine code"
    (entry,) = (tmp_path / "cubins").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert cubin("popcount_product", {}, "sm_80") == b"machine code"
    assert entry.read_bytes() == whole


def test_without_a_place_for_the_cache_it_compiles_every_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(compilation, "compiled", lambda *_: b"machine code")
    assert cubin("popcount_product", {}, "sm_80") == b"machine code"


def test_what_is_missing_is_named(monkeypatch):
    for name in ("cuda.core", "cuda.core.experimental"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match="cuda-core"):
        compilation.compiled("", "sm_80")


def test_architectures_are_named_as_the_compiler_names_them():
    assert [architecture(one) for one in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))] == [
        "sm_80", "sm_89", "sm_90a", "sm_100", "sm_120",
    ]  # fmt: skip


def test_tensor_cores_are_taken_where_they_know_bits_and_words_are_whole():
    odd = ProductShape(48 * 2, 64, groups=2)
    for capability in ((8, 0), (8, 9), (9, 0)):
        assert candidates(SHAPE, capability) == TILES
        assert candidates(odd, capability) == (Popcount(),)
    for capability in ((7, 5), (10, 0), (12, 0)):
        assert candidates(SHAPE, capability) == (Popcount(),)


@pytest.mark.parametrize("images", [1, 2, 8, 64])
def test_tiles_are_the_largest_that_keep_a_device_busy(images):
    small = ProductShape(512, 512, (3, 3), padding=(1, 1), in_hw=(7, 7))
    for shape in (SHAPE, small):
        found = heuristic(shape, images, (9, 0), 132)
        larger = TILES[: TILES.index(found)]
        assert all(blocks(shape, images, one) < 264 for one in larger)
        assert found == NARROW or blocks(shape, images, found) >= 264
