"""Who may import whom: the rules, and what a process really loads (the app: in tests/app)."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_import_rules_are_kept() -> None:
    lint = Path(sysconfig.get_path("scripts"), "lint-imports")
    ran = run(str(lint), "--no-cache")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 broken" in ran.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("worker.main", ("app", "client", "fastapi", "starlette", "uvicorn", "httpx")),
        ("client.cli", ("app", "worker", "models", "store", "torch", "numpy", "fastapi")),
        ("store.jobs", ("app", "worker", "models", "client", "torch", "fastapi", "httpx")),
    ],
)
def test_a_process_loads_nothing_of_rooms_that_are_none_of_its_business(
    module: str, absent: tuple[str, ...]
) -> None:
    code = (
        f"import sys, {module}\n"
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({absent!r})))"
    )
    ran = run(sys.executable, "-c", code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[]\n"
