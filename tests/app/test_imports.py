"""What importing the app brings along."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_importing_the_app_brings_nothing_of_the_worker_or_the_client() -> None:
    code = (
        "import sys, app.main;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'app', 'models', 'store', 'worker', 'client', 'benchmarks'}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["app", "models", "store"]
