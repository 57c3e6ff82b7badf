"""What an artifact says of where it comes from."""

import pytest
import torch

from store.specs import parse_spec
from worker.report import provenance

SPEC = parse_spec(
    {
        "name": "digits",
        "architecture": "digits_cnn",
        "checkpoint": "sha256:" + "0" * 64,
        "dataset": "digits",
        "seed": 3,
    }
)


@pytest.mark.parametrize("threads", [1, 2])
def test_provenance_names_all_that_the_bytes_depend_on(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        origin = provenance(SPEC, {"dataset": "sha256:1"})
    finally:
        torch.set_num_threads(before)
    assert origin["threads"] == threads
    assert (origin["seed"], origin["digests"]) == (3, {"dataset": "sha256:1"})
    assert set(origin["versions"]) == {"bitpress", "torch", "numpy"}
    assert origin["spec"]["architecture"] == "digits_cnn"
    assert "checkpoint" not in origin["spec"]
