"""The stage of fine-tuning: a durable step per epoch, and one that hands over what was trained.

An epoch depends on the state that the epoch before it left in its file, and on nothing else: it is
the same whether one process trains them all or each has a process of its own. With several training
processes, torchrun starts them anew for each epoch, which costs seconds.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from models.quantization import quantize_inputs
from worker.activation_ranges import activation_scales
from worker.fine_tuning import (
    arithmetic_of,
    epoch_record,
    start_training,
    trained_split,
    training_images,
)
from worker.job_files import FileRef
from worker.networks import ACTIVATIONS, FINE_TUNED, TRAINING, finished_tensors, save_tensors
from worker.stage_context import Progress, StageContext, Step
from worker.stage_server import context_json, read_context
from worker.stages.surroundings import (
    calibration_images_of,
    dataset_of,
    deterministic,
    device_of,
    networks_of,
    splits_of,
    without_fraction,
)
from worker.training.distributed import train_epoch
from worker.training.trainer import EpochFigures, Trainer

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


def trainer_of(job: str) -> Trainer:
    """Return the trainer of one of torchrun's processes; ``job`` is the file of `_describe`."""
    described = json.loads(Path(job).read_text())
    context = read_context(described["context"])
    return _new_trainer(
        context, described["files"], lambda _fraction, _message, _details=None: None
    )


class _Training:
    """The training of one job, begun where its last recorded epoch has left it."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._trainer: Trainer | None = None
        # What the trainer has done, by the file that holds its state; None at the start.
        self._stands_at: FileRef | None = None

    def epoch(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Train for the epoch ``epoch``, the first being 1, and leave the state after it."""
        number, refs = int(arguments["epoch"]), arguments["files"]
        together = self._context.settings.training_processes > 1
        train = self._on_processes if together else self._in_this_process
        figures, ref = train(number, refs, progress)
        self._remove_states_before(number - _STATES_KEPT + 1)
        arithmetic = arithmetic_of(self._context.spec, device_of(self._context))
        record = {**epoch_record(number, figures), **arithmetic}
        return {**record, "files": {TRAINING: ref.to_json()}}

    def finish(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Leave the trained network: codes, scales, biases, batch norm and float layers."""
        trainer = self._at(arguments["files"], progress)
        progress(0.0, "finishing the weights")
        network = trainer.finished()
        if ACTIVATIONS in arguments["files"]:
            self._choose_levels_again(network, progress)
        tensors = finished_tensors(network)
        ref = self._context.files.write("fine-tuned.safetensors", partial(save_tensors, tensors))
        return {"files": {FINE_TUNED: ref.to_json()}}

    def _choose_levels_again(self, network: nn.Module, progress: Progress) -> None:
        """Fit the levels of activations, in place, to what the trained layers are fed."""
        images = calibration_images_of(self._context, progress)
        choice = self._context.spec.activation_scale
        scales = activation_scales(network.to(device_of(self._context)), images, choice, progress)
        quantize_inputs(network.to("cpu"), scales)

    def _in_this_process(
        self, number: int, refs: Mapping[str, Any], progress: Progress
    ) -> tuple[EpochFigures, FileRef]:
        trainer = self._at(refs, progress)
        figures = trainer.epoch(number - 1, progress)
        ref = self._context.files.write(
            _state_name(number), lambda path: save_tensors(trainer.state(), path)
        )
        self._stands_at = ref
        return figures, ref

    def _on_processes(
        self, number: int, refs: Mapping[str, Any], progress: Progress
    ) -> tuple[EpochFigures, FileRef]:
        context, figures = self._context, []
        job = context.files.write(f"{_FOLDER}/job.json", partial(_describe, context, refs))
        state = _recorded(refs)
        processes = context.settings.training_processes

        def train(result: Path) -> None:
            figures.append(
                train_epoch(
                    f"{__name__}:{trainer_of.__name__}",
                    {"job": str(context.files.resolve(job))},
                    number - 1,
                    state=None if state is None else context.files.resolve(state),
                    result=result,
                    processes=processes,
                    threads=max(context.settings.worker_threads // processes, 1),
                    device=context.settings.device,
                    progress=progress,
                )
            )

        ref = context.files.write(_state_name(number), train)
        return figures[0], ref

    def _at(self, refs: Mapping[str, Any], progress: Progress) -> Trainer:
        """Return the trainer as the last recorded epoch left it."""
        if self._trainer is None:
            self._trainer = _new_trainer(self._context, refs, progress)
        recorded = _recorded(refs)
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


def _new_trainer(context: StageContext, refs: Mapping[str, Any], progress: Progress) -> Trainer:
    networks = networks_of(context, dataset_of(context))
    train = trained_split(splits_of(context, without_fraction(progress)), context.spec)
    return start_training(
        networks.full_precision(refs),
        networks.calibrated(refs),
        training_images(train, context.spec),
        context.spec,
        device=device_of(context),
    )


def _describe(context: StageContext, refs: Mapping[str, Any], path: Path) -> None:
    """Write what `trainer_of` reads: a file, as a command line has no room for every job."""
    described = context_json(context.job_id, context.spec.model_dump(mode="json"), context.settings)
    path.write_text(json.dumps({"context": described, "files": dict(refs)}))


def _recorded(refs: Mapping[str, Any]) -> FileRef | None:
    """Return the state that the last recorded epoch has left."""
    return FileRef.from_json(refs[TRAINING]) if TRAINING in refs else None


def _state_name(number: int) -> str:
    return f"{_FOLDER}/{number:04}.safetensors"
