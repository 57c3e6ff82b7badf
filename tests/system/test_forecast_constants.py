"""What a forecast repeats of the worker, which the app may not import, is the same there."""

import pytest

from app import forecast
from store import job_cost
from worker import accumulation, calibration_images, data, forms, frontier, latency


@pytest.mark.parametrize(
    ("foreseen", "done"),
    [
        (job_cost.LATENCY_TURNS, latency.TURNS),
        (job_cost.LATENCY_PAUSE_S, latency.PAUSE_S),
        (job_cost.LATENCY_TURN_S, latency.TURN_S),
        (job_cost.LATENCY_RUNS, latency.MOST_RUNS_PER_TURN),
        (job_cost.LATENCY_LEAST_RUNS, latency.LEAST_RUNS_PER_TURN),
        (job_cost.LATENCY_SLOW_TURN_S, latency.SLOW_TURN_S),
        (job_cost.FRONTIER_BYTES, frontier.MOST_BYTES),
        (job_cost.SAMPLES_PER_PRODUCT, 2 * accumulation.SAMPLES_PER_PRODUCT),
        (job_cost.BATCH_IMAGES, forms._MOST_IMAGES_PER_BATCH),
        (job_cost.BATCH_IMAGES, calibration_images.MOST_IMAGES_PER_BATCH),
        (job_cost.BATCH_PIXELS, forms._PIXELS_PER_BATCH),
        (forecast._HELD_OUT, data._HELD_OUT),
        (forecast._HELD_OUT_OF_TRAIN, data._HELD_OUT_OF_TRAIN),
    ],
)
def test_a_forecast_rests_on_what_the_worker_does(foreseen: float, done: float) -> None:
    assert foreseen == done
