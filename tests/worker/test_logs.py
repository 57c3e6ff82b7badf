"""Whatever speaks in the process of a stage speaks about its job."""

import json
import subprocess
import sys
from pathlib import Path

from store.specs import parse_spec
from worker.settings import WorkerSettings
from worker.stage_server import context_json

REPOSITORY = Path(__file__).parents[2]
# A library, a warning of Python, and a thread that knows of no context.
PROGRAM = """
import json, logging, sys, threading, warnings
from worker.stage_server import read_context
read_context(json.load(sys.stdin))
logging.getLogger("some.library").warning("cannot read /srv/data/x")
warnings.warn("beware")
thread = threading.Thread(target=logging.getLogger("worker.x").info, args=("in a thread",))
thread.start()
thread.join()
"""


def test_every_line_of_a_stage_has_its_job(tmp_path: Path) -> None:
    spec = parse_spec(
        {
            "name": "m",
            "architecture": "vgg9",
            "checkpoint": "sha256:" + "0" * 64,
            "dataset": "d",
        }
    )
    context = context_json("0" * 32, spec.model_dump(), WorkerSettings(data_dir=tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        input=json.dumps(context),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["cannot read [path]", "beware", "in a thread"]
    assert {line["job"] for line in lines} == {"0" * 32}
    assert str(tmp_path) not in ran.stderr
