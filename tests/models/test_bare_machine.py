"""`models` and the numerical half of `worker` run where nothing but torch and its kin is installed.

A GPU machine brings its own torch. What must run there may import the standard library, torch,
numpy, safetensors, pillow, the error tree, and each other; tests that need a GPU pytest as well.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {"torch", "numpy", "safetensors", "PIL", "triton", "cuda"}
PARTS = [
    "models",
    "worker/methods",
    "worker/activation_ranges.py",
    "worker/calibration.py",
    "worker/training",
    "benchmarks/gpu.py",
    "benchmarks/gpu_check.py",
    "benchmarks/gpu_measuring",
]
PROJECT = ("models", "worker", "benchmarks")


def sources():
    for part in PARTS:
        path = ROOT / part
        yield from path.rglob("*.py") if path.is_dir() else [path] * path.exists()


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def local_imports(start):
    """All modules of the project that ``start`` reaches, itself included."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_names(path):
            parts = name.split(".")
            for stem in (parts, parts[:-1]):
                candidate = ROOT.joinpath(*stem)
                for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                    if stem and file.is_file():
                        waiting.append(file)
    return found


def imported_names(path):
    """Every dotted name that ``path`` imports, those inside of functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(sources()), ids=module_name)
def test_module_reaches_for_nothing_else(path):
    for file in local_imports(path):
        for name in imported_names(file):
            top = name.split(".")[0]
            allowed = top in sys.stdlib_module_names or top in LIBRARIES or top in PROJECT
            assert allowed or name.startswith("store.errors"), f"{module_name(file)}: {name}"


BLOCKED_INTERPRETER = """
import importlib, sys

def installed(name):
    return name in sys.stdlib_module_names or name in allowed

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top == "store" and name not in ("store", "store.errors"):
            raise ImportError(f"{name} is blocked")
        if not installed(top):
            raise ImportError(f"{name} is blocked")

names = sys.argv[1:]
# What torch, numpy and pillow import for themselves is there on any machine that has them.
import numpy, PIL.Image, safetensors.numpy, safetensors.torch, torch, torch.export
allowed = {name.partition(".")[0] for name in sys.modules}
allowed |= {"models", "worker", "benchmarks", "store", "torch", "numpy", "safetensors", "PIL"}
allowed |= {"triton", "cuda"}
allowed -= {"pydantic", "pydantic_core", "dbos", "fastapi", "httpx", "sqlalchemy", "yaml"}
sys.meta_path.insert(0, Blocker())
for name in names:
    importlib.import_module(name)
unwanted = {"pydantic", "dbos", "fastapi", "httpx", "sqlalchemy", "uvicorn", "store.specs"}
print(sorted(unwanted & set(sys.modules)))
"""


def test_everything_imports_where_all_else_is_blocked():
    names = sorted(map(module_name, sources()))
    assert {"models.runtime", "models.lowering", "models.artifact", "benchmarks.gpu"} <= set(names)
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED_INTERPRETER, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_blocker_blocks():
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED_INTERPRETER, "store.specs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 1
    assert "store.specs is blocked" in result.stderr


# pytest with its own plugins alone, behind the same blocker; what it needs itself it has imported.
BLOCKED_TESTS = (
    BLOCKED_INTERPRETER.partition("names = ")[0]
    + """
import numpy, PIL.Image, pytest, safetensors.numpy, safetensors.torch, torch, torch.export
allowed = {name.partition(".")[0] for name in sys.modules}
allowed |= {"models", "worker", "benchmarks", "store", "triton", "cuda", "conftest", "tests"}
sys.meta_path.insert(0, Blocker())
sys.exit(pytest.main(sys.argv[1:]))
"""
)


def test_tests_that_need_a_gpu_are_collected_where_all_else_is_blocked():
    from benchmarks.gpu_check import ROOT as checked
    from benchmarks.gpu_check import tests_command

    assert checked == ROOT
    # What the command runs, but for the interpreter: it only shows what it would run.
    _, _, _, *arguments = tests_command(ROOT / "tests")
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED_TESTS, *arguments, "--collect-only"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_a_gpu_trains_what_a_cpu_trains" in result.stdout
