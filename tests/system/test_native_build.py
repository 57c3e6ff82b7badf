"""The CPU engine's library: how it is built and installed, and its own tests in C++."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from models import kernels
from models.runtime.native import library

ROOT = Path(__file__).parents[2]
# CMake and ninja come with the development tools, where the system has none.
TOOLS = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
needs_tools = pytest.mark.skipif(
    not (COMPILER and shutil.which("cmake", path=TOOLS)), reason="needs a C++ compiler and CMake"
)


def ran(*command: str | Path, **environment: str) -> str:
    """Return what ``command`` prints; its last lines are shown where it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": TOOLS, "CMAKE_GENERATOR": "Ninja", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-40:])
    return done.stdout


@pytest.fixture(scope="module")
def build() -> Path:
    """Build library and check programs where a second run finds them done."""
    folder = ROOT / "build/check"
    ran("cmake", "-S", ROOT, "-B", folder, "-DBITPRESS_BUILD_CHECK=ON", "-DBITPRESS_SANITIZE=")
    ran("cmake", "--build", folder, "--parallel")
    return folder


def symbols(*arguments: str | Path) -> list[tuple[str, str]]:
    """Return the kind and name of what is defined in a file, as nm has them."""
    listed = ran("nm", "--defined-only", "--demangle", *arguments).splitlines()
    found = [re.fullmatch(r"[0-9a-f]+ (\S) (.*)", line) for line in listed]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names as GNU ld has them")
def test_the_library_shows_its_c_interface_and_nothing_else(build: Path) -> None:
    library = build / kernels.LIBRARY_NAME
    header = (ROOT / "models/kernels/cpu/abi.h").read_text()
    declared = set(re.findall(r"^BP_API [^(]*?(bp_\w+)\(", header, flags=re.MULTILINE))
    assert {name for _, name in symbols("--dynamic", library)} == declared


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names as GNU ld has them")
def test_no_code_of_an_instruction_set_can_stand_in_for_other_code(build: Path) -> None:
    # The linker takes any one of several functions of one name, were it one that needs AVX-512.
    for folder in build.glob("CMakeFiles/kernels_*.dir"):
        isa = folder.name.removeprefix("kernels_").removesuffix(".dir")
        for file in folder.rglob("*.o"):
            for kind, name in symbols(file):
                assert kind not in "WVu", f"{file.name}: {name} is shared with other files"
                if kind in "TDBR":
                    assert re.search(isa, name, re.IGNORECASE), f"{file.name}: {name}"


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(platform.machine() != "x86_64", reason="has instruction sets of x86")
def test_all_instruction_sets_are_built_in(build: Path) -> None:
    folders = {folder.name for folder in build.glob("CMakeFiles/kernels_*.dir")}
    assert folders == {f"kernels_{isa}.dir" for isa in ("portable", "avx2", "avx512")}


@pytest.mark.slow
@needs_tools
def test_every_kernel_equals_the_reference(build: Path) -> None:
    said = ran(build / "tests/native/check_kernels", "--cases", "400")
    assert re.search(r"^portable: 400 cases, .* as they should be$", said, flags=re.MULTILINE)


@pytest.mark.slow
@needs_tools
def test_a_damaged_program_is_refused_or_harmless(build: Path) -> None:
    said = ran(build / "tests/native/check_damage", "--cases", "5000", "--seed", "7")
    assert "5000 damaged programs" in said


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sanitizers as on Linux")
def test_the_library_is_clean_under_sanitizers_and_valgrind() -> None:
    said = ran("tests/native/sanitize", SCALE="10")
    assert "== address" in said and "== threads" in said and "== valgrind" in said
    there = shutil.which("valgrind") is not None
    assert ("valgrind found nothing" in said) == there
    assert ("SKIPPED: there is no valgrind" in said) != there


@needs_compiler
def test_an_install_where_there_is_a_compiler_brings_the_library() -> None:
    assert kernels.library_path() is not None
    native = library()
    assert native is not None, "the library that is installed is not that of these sources"
    assert native.kernel_sets()


@pytest.mark.slow
@needs_tools
def test_an_install_without_a_compiler_succeeds_without_the_library(tmp_path: Path) -> None:
    sources, target, tools = tmp_path / "sources", tmp_path / "target", tmp_path / "tools"
    sources.mkdir()
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, sources)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("app", "client", "models", "store", "worker"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    # All that the build can find on its path: CMake and what it builds with.
    tools.mkdir()
    for name in ("cmake", "ninja", "make"):
        if found := shutil.which(name, path=TOOLS):
            (tools / name).symlink_to(Path(found).resolve())
    ran(
        *(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--target", target, sources),
        PATH=str(tools),
        CXX=str(tmp_path / "no-such-compiler"),
    )
    assert (target / "models/kernels/__init__.py").is_file()
    assert not list(target.rglob("*.so"))
    assert not list(target.rglob("*.cpp"))
    asked = "import sys; sys.path[:0] = sys.argv[1:]; from models import kernels as k; "
    said = ran(sys.executable, "-S", "-c", f"{asked}print(k.library_path())", target)
    assert said == "None\n"


def test_of_two_libraries_the_later_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, installed = tmp_path / "sources", tmp_path / "installed"
    monkeypatch.setattr(kernels, "__path__", [str(installed), str(sources)])
    assert kernels.library_path() is None
    for seconds, folder in ((1000, sources), (2000, installed)):
        folder.mkdir()
        (folder / kernels.LIBRARY_NAME).touch()
        os.utime(folder / kernels.LIBRARY_NAME, (seconds, seconds))
        assert kernels.library_path() == folder / kernels.LIBRARY_NAME
    os.utime(sources / kernels.LIBRARY_NAME, (3000, 3000))
    assert kernels.library_path() == sources / kernels.LIBRARY_NAME
