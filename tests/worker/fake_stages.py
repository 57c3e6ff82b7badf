"""Stages that do nothing but behave: what they do is said in the job's architecture_parameters.

Imported by the stage's child process, found through PYTHONPATH.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.artifacts import ARTIFACT, PREDICTIONS
from store.errors import CheckpointMismatch, InvalidCheckpoint, TooLarge
from worker.job_files import FileRef
from worker.stage_context import Progress, StageContext, Step

LAYERS = ["first", "second", "third"]


def behave(how: str) -> None:
    """Meet the fate ``how``."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        os._exit(3)
    elif how == "unexpected":
        raise ZeroDivisionError("/secret/path")
    elif how == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")
    elif how == "gpu memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    elif how == "disk":
        raise OSError(28, "No space left on device", "/secret/path")
    elif how == "invalid":
        raise InvalidCheckpoint("NaN in conv1.weight.", field="checkpoint", remedy="Train again.")
    elif how == "mismatch":
        raise CheckpointMismatch("conv1.weight is missing.", field="checkpoint", remedy="Rename.")
    elif how == "large":
        raise TooLarge("It takes too long.", field="checkpoint", remedy="Use safetensors.")
    elif how == "hang":
        threading.Event().wait()


def _step(context: StageContext, name: str) -> None:
    fate = context.spec.architecture_parameters.get(name)
    if fate == "gate":
        # Goes on when the test says so; the first line tells it who waits.
        folder = Path(str(context.spec.architecture_parameters["gate"]))
        (folder / f"waiting-{name}-{os.getpid()}").touch()
        while not (folder / f"open-{name}").exists():
            threading.Event().wait(0.01)
    elif fate in ("once", "full once"):
        # Fails, but not when it is tried again.
        failed = Path(str(context.spec.architecture_parameters["once"])) / f"failed-{name}"
        if not failed.exists():
            failed.touch()
            behave("killed" if fate == "once" else "disk")
    elif fate == "write":
        # A file that is never finished.
        context.files.write(f"{name}.half", _begin)
    elif fate is not None:
        behave(str(fate))


def _begin(path: Path) -> None:
    path.write_bytes(b"begun")
    threading.Event().wait()


def prepare(context: StageContext) -> Mapping[str, Step]:
    def prepare(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        progress(0.5, "reading")
        _step(context, "prepare")
        model = context.files.write("model.safetensors", lambda path: _fill(path, b"model"))
        return {"layers": LAYERS, "files": {"model": model.to_json()}}

    return {"prepare": prepare}


def calibrate(context: StageContext) -> Mapping[str, Step]:
    def layer(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        name = arguments["name"]
        for role in ("model", *(f"layer:{done}" for done in LAYERS[: LAYERS.index(name)])):
            context.files.resolve(FileRef.from_json(arguments["files"][role]))
        for sweep in (0, 1):
            details = {"event": "sweep", "layer": name, "base": 1, "sweep": sweep, "loss": 0.5}
            progress(0.5, f"sweep {sweep} of {name}", details)
        _step(context, name)
        ref = context.files.write(f"layers/{name}.safetensors", lambda p: _fill(p, name.encode()))
        return {"name": name, "losses": [1.0, 0.5], "files": {f"layer:{name}": ref.to_json()}}

    def batch_norm(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        ref = context.files.write("batch-norm.safetensors", lambda path: _fill(path, b"norm"))
        return {"files": {"batch_norm": ref.to_json()}}

    def activations(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        ref = context.files.write("activations.safetensors", lambda path: _fill(path, b"scales"))
        return {"files": {"activations": ref.to_json()}}

    return {"layer": layer, "batch_norm": batch_norm, "activations": activations}


def fine_tune(context: StageContext) -> Mapping[str, Step]:
    def epoch(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        number = arguments["epoch"]
        if number > 1:
            before = arguments["files"]["training"]
            assert before["path"].endswith(f"/training/{number - 1:04}.safetensors")
            context.files.resolve(FileRef.from_json(before))
        progress(0.5, f"step 5 of 10 of epoch {number}")
        _step(context, f"epoch{number}")
        ref = context.files.write(f"training/{number:04}.safetensors", lambda p: _fill(p, b"state"))
        return {
            "epoch": number,
            "loss": 1 / number,
            "train_accuracy": 0.5,
            "images_per_second": 100.0,
            "learning_rate": 0.001,
            "device": "cpu",
            "products": "float32",
            "files": {"training": ref.to_json()},
        }

    def finish(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        context.files.resolve(FileRef.from_json(arguments["files"]["training"]))
        ref = context.files.write("fine-tuned.safetensors", lambda path: _fill(path, b"tuned"))
        return {"files": {"fine_tuned": ref.to_json()}}

    return {"epoch": epoch, "finish": finish}


def pack(context: StageContext) -> Mapping[str, Step]:
    def pack(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        _step(context, "pack")
        ref = context.files.write("packed.safetensors", lambda path: _fill(path, b"packed"))
        return {"files": {"packed": ref.to_json()}}

    return {"pack": pack}


def evaluate(context: StageContext) -> Mapping[str, Step]:
    def evaluate(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        _step(context, "evaluate")

        def write(name: str, content: bytes) -> dict[str, str]:
            return context.files.write(name, lambda path: _fill(path, content)).to_json()

        measured = {
            "schema": 1,
            "layers": arguments["layers"],
            "epochs": arguments["epochs"],
            "seed": context.spec.seed,
        }
        gate = context.spec.architecture_parameters.get("drop")
        return {
            "gate": None if gate is None else _gate(float(str(gate))),
            "files": {
                "artifact": write(f"staged/{ARTIFACT}", b"artifact"),
                "predictions": write(f"staged/{PREDICTIONS}", b"{}"),
                "measured": write("measured.json", json.dumps(measured).encode()),
            },
        }

    return {"evaluate": evaluate}


def _gate(drop: float) -> dict[str, Any]:
    """What is measured where a drop of 0.01 is allowed."""
    return {
        "max_accuracy_drop": 0.01,
        "images": 4000,
        "full_precision": 0.9,
        "packed": 0.9 - drop,
        "drop": drop,
        "passed": drop <= 0.01,
    }


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def probe(context: StageContext) -> Mapping[str, Step]:
    """Steps for the tests of the stage process itself."""
    calls: list[str] = []

    def fate(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        progress(0.25, "on my way")
        behave(arguments["fate"])
        return {}

    def count(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        calls.append("count")
        return {"calls": len(calls), "pid": os.getpid(), "echo": dict(arguments)}

    def surroundings(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return {
            "threads": os.environ["OMP_NUM_THREADS"],
            "database_url": context.settings.database_url,
            "environment": dict(os.environ),
            "data_dir": str(context.settings.data_dir),
            "log_level": logging.getLogger().level,
        }

    def gated_progress(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Report, then wait until the worker has passed the report on."""
        progress(0.25, "first")
        while not Path(arguments["until"]).exists():
            threading.Event().wait(0.01)
        return {}

    return {
        "fate": fate,
        "count": count,
        "surroundings": surroundings,
        "gated_progress": gated_progress,
    }
