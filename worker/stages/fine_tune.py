"""The stage of fine-tuning: a durable step per epoch, and one that hands over what was trained.

An epoch depends on the state that the epoch before it left in its file, and on nothing else: it is
the same whether one process trains them all or each has a process of its own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from safetensors.torch import load_file

from worker.fine_tuning import epoch_record, start_training, training_images
from worker.job_files import FileRef
from worker.networks import FINE_TUNED, TRAINING, finished_tensors, save_tensors
from worker.stage_context import Progress, StageContext, Step
from worker.stages.surroundings import (
    dataset_of,
    deterministic,
    networks_of,
    splits_of,
    without_fraction,
)
from worker.training.trainer import Trainer

# The newest is where the next epoch begins; the one before it, where an epoch is repeated whose
# file was written but not yet recorded.
_STATES_KEPT = 2
_FOLDER = "training"


def fine_tune(context: StageContext) -> Mapping[str, Step]:
    """Make the steps ``epoch`` and ``finish``; the trainer stays in memory between them."""
    training = _Training(context)
    return {
        "epoch": deterministic(context, training.epoch),
        "finish": deterministic(context, training.finish),
    }


class _Training:
    """The training of one job, begun where its last recorded epoch has left it."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._trainer: Trainer | None = None
        # What the trainer has done, by the file that holds its state; None at the start.
        self._stands_at: FileRef | None = None

    def epoch(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Train for the epoch ``epoch``, the first being 1, and leave the state after it."""
        number = int(arguments["epoch"])
        trainer = self._at(arguments["files"], progress)
        figures = trainer.epoch(number - 1, progress)
        ref = self._context.files.write(
            f"{_FOLDER}/{number:04}.safetensors", partial(save_tensors, trainer.state())
        )
        self._stands_at = ref
        self._remove_states_before(number - _STATES_KEPT + 1)
        return {**epoch_record(number, figures), "files": {TRAINING: ref.to_json()}}

    def finish(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Leave the trained network: codes, scales, biases, batch norm and float layers."""
        trainer = self._at(arguments["files"], progress)
        progress(0.0, "finishing the weights")
        tensors = finished_tensors(trainer.finished())
        ref = self._context.files.write("fine-tuned.safetensors", partial(save_tensors, tensors))
        return {"files": {FINE_TUNED: ref.to_json()}}

    def _at(self, refs: Mapping[str, Any], progress: Progress) -> Trainer:
        """Return the trainer as the last recorded epoch left it."""
        recorded = FileRef.from_json(refs[TRAINING]) if TRAINING in refs else None
        if self._trainer is None:
            context = self._context
            networks = networks_of(context, dataset_of(context))
            train = splits_of(context, without_fraction(progress)).train
            self._trainer = start_training(
                networks.full_precision(refs),
                networks.calibrated(refs),
                training_images(train, context.spec),
                context.spec,
            )
        if recorded is not None and recorded != self._stands_at:
            self._trainer.load_state(load_file(self._context.files.resolve(recorded)))
            self._stands_at = recorded
        return self._trainer

    def _remove_states_before(self, number: int) -> None:
        # Those of later epochs stay: a worker that was long asleep may be at an epoch whose
        # successors another worker has done since.
        for path in (self._context.files.folder / _FOLDER).glob("*.safetensors"):
            if int(path.stem) < number:
                path.unlink(missing_ok=True)
