"""A stage that tells much and fast; imported by the stage's child process."""

from collections.abc import Mapping
from typing import Any

from worker.stage_context import Progress, StageContext, Step


def tell(context: StageContext) -> Mapping[str, Step]:
    def tell(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        for number in range(arguments["events"]):
            details = {"event": "sweep", "layer": "conv1", "sweep": number, "loss": 0.5}
            progress(0.5, f"sweep {number}", details)
            progress(0.5, "busy", {"images_per_second": float(number)})
        return {}

    return {"tell": tell}
