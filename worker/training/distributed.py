"""One epoch on several processes of one machine, by torchrun.

`train_epoch` starts torchrun with this module as its program and waits for it. Any command may do
the same, on one machine or on many::

    torchrun --nproc-per-node 2 -m worker.training.distributed \\
        --trainer package.module:function --arguments '{"...": 1}' \\
        --epoch 3 --state before.safetensors --result after.safetensors

``function(**arguments)`` gives every process its own, equal `Trainer`. The first process writes the
state after the epoch, and JSON lines to the standard output: ``{"progress", "message", "details"}``
any number of times, then ``{"figures"}``. After an expected failure, any process writes
``{"problem"}``.
"""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from store.errors import BitpressError, JobCrashed, from_problem
from worker.training.lifetime import die_with, parent_of
from worker.training.processes import this_device
from worker.training.trainer import EpochFigures, Progress, Trainer

log = logging.getLogger("worker.training")

_LOGGED = 10_000  # characters of a failed run's output

# How long processes that start wait for one another: a machine may be busy, or stand still.
_READ_TIMEOUT_S = 600


def train_epoch(
    trainer: str,
    arguments: Mapping[str, Any],
    index: int,
    *,
    state: Path | None,
    result: Path,
    processes: int,
    threads: int,
    progress: Progress,
    device: str = "auto",
) -> EpochFigures:
    """Train epoch ``index``, the first being 0, on so many ``processes``.

    ``trainer`` (``module:function``) is called with ``arguments``, JSON values, in every process
    and returns a `Trainer`, equal in each. ``state`` is the file of the state before the epoch,
    None for a new trainer's own; ``result`` is where the state after it is written, and whoever
    needs it whole after a crash lets it be a temporary file and renames it. Each process has
    ``threads`` threads. They meet on ``device``, as `this_device` takes it, which is where their
    trainers have to be. All processes die with the calling thread.

    Raises:
        BitpressError: what the training raised.
        JobCrashed: a process died, or met an error that nobody expected.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
        *("--nproc-per-node", str(processes), "--local-addr", "127.0.0.1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--max-restarts", "0"),
        *("--rdzv-conf", f"read_timeout={_READ_TIMEOUT_S}"),
        # Else torchrun makes a folder for logs below /tmp, and leaves it there.
        *("--log-dir", os.devnull),
        *("--module", __spec__.name, "--trainer", trainer, "--arguments", json.dumps(arguments)),
        *("--epoch", str(index), "--result", str(result), "--caller", str(os.getpid())),
        *("--device", device),
        *(("--state", str(state)) if state is not None else ()),
    ]
    environment = {
        "GLOO_SOCKET_IFNAME": "lo",
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    # The log is one JSON object a line: what torchrun has to say goes into one of them.
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=partial(die_with, os.getpid()),
        )
        try:
            assert process.stdout is not None
            figures = _read(process.stdout, progress)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if figures is None or status != 0:
            errors.seek(0)
            output = errors.read()[-_LOGGED:]
            log.error("training processes failed", extra={"output": output})
            crash = JobCrashed(
                f"A training process stopped unexpectedly (status {status}).",
                remedy="See the worker's log; train on fewer processes if memory ran out.",
            )
            # For whoever sees the exception itself: a problem document has no notes.
            crash.add_note(output)
            raise crash
    return figures


def _read(lines: Any, progress: Progress) -> EpochFigures | None:
    """Follow the output of all processes to its end."""
    figures = None
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # of a library
        if not isinstance(message, dict):
            continue
        if "problem" in message:
            raise from_problem(message["problem"])
        if "figures" in message:
            figures = EpochFigures(**message["figures"])
        elif "progress" in message:
            progress(message["progress"], message["message"], message.get("details"))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Be one of torchrun's processes."""
    options = _options().parse_args(arguments)
    agent = os.getppid()
    die_with(agent)
    # Had torchrun been killed while this process imported torch, another would be the parent now.
    if options.caller is not None and parent_of(agent) not in (options.caller, None):
        os._exit(1)
    device = this_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        _train(options)
    finally:
        dist.destroy_process_group()


def _train(options: argparse.Namespace) -> None:
    first = dist.get_rank() == 0

    def report(fraction: float, message: str, details: Mapping[str, Any] | None = None, /) -> None:
        if first:
            _say(progress=fraction, message=message, details=details)

    try:
        trainer = _trainer(options.trainer)(**json.loads(options.arguments))
        if options.state is not None:
            trainer.load_state(load_file(options.state))
        figures = trainer.epoch(options.epoch, report)
    except BitpressError as error:
        # Whichever process it is: a damaged image is in the share of one only.
        _say(problem=error.problem())
        raise
    if first:
        save_file(trainer.state(), options.result)
    dist.barrier()
    if first:
        _say(figures=asdict(figures))


def _say(**message: object) -> None:
    """Write a line in one piece, as all processes write to the same pipe."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _trainer(target: str) -> Callable[..., Trainer]:
    module, _, name = target.partition(":")
    made: Callable[..., Trainer] = getattr(importlib.import_module(module), name)
    return made


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train one epoch, as a process of torchrun.")
    parser.add_argument("--trainer", required=True, help="module:function that makes a Trainer")
    parser.add_argument("--arguments", default="{}", help="the function's, as a JSON object")
    parser.add_argument("--epoch", type=int, required=True, help="counted from 0")
    parser.add_argument("--state", type=Path, help="state before the epoch")
    parser.add_argument("--result", type=Path, required=True, help="where the state after it goes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--caller", type=int, help="process that torchrun is a child of, or gone")
    return parser


if __name__ == "__main__":
    main()
