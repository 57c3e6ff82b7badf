"""Whatever the CPU engine is handed, it answers or says what is wrong: it never crashes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.runtime import native

ROOT = Path(__file__).parents[2]
LIBRARY = native.library()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native library was not built")


@pytest.mark.parametrize(
    ("what", "seeds"), [("artifacts", range(600)), ("programs", range(10_000, 14_000))]
)
def test_damage_is_refused_or_harmless(what, seeds):
    """In a process of its own, whose last words are the seed that it died of."""
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("damaged_programs.py")),
            what,
            str(seeds.start),
            str(seeds.stop),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout)
    assert counts["ran"] > len(seeds) / 10 and counts["refused"] > len(seeds) / 10
