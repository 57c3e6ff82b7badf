"""``bitpress compress``: a checkpoint and a dataset become a compression job."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.client import Client
from client.commands.following import follow
from client.commands.forecast import foresee
from client.commands.options import DEFAULT_URL, Url, Value, names, numbers, pairs, size
from client.errors import BitpressProblem, UnusableFile
from client.progress import TransferProgress
from client.types import CompressSpec, InputShape
from client.upload import dataset_name as name_of_dataset

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def compress(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="File (.safetensors, .pt, .pth, .th), or sha256:... of an earlier upload."
        ),
    ],
    architecture: Annotated[str, typer.Option(help="A registered architecture, such as vgg9.")],
    dataset: Annotated[
        str,
        typer.Option(help="A registered dataset, or a local folder, zip or tar to upload."),
    ],
    name: Annotated[str, typer.Option(help="Name under which the model is published.")],
    architecture_parameter: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the architecture, such as width=0.5; repeatable."),
    ] = None,
    dataset_name: Annotated[
        str | None,
        typer.Option(help="Name for an uploaded dataset.", show_default="from the file's name"),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of the input: 1 or 3.")] = None,
    size_text: Annotated[
        str | None,
        typer.Option("--size", help="Size of the input: PIXELS or HEIGHTxWIDTH, such as 32."),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(help="Pixels of the short side before the centre is cut out, such as 256."),
    ] = None,
    value_range: Annotated[
        str | None, typer.Option(help="What pixels 0 and 255 become, such as 0,1.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean of each channel, such as 0.49,0.48,0.45.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Standard deviation of each channel, such as 0.25,0.24,0.26.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="A method: bwnh, bwn, sq_bwn, ...", show_default="bwnh"),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the method, such as sweeps=10; repeatable."),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="Layer to leave in float; repeatable, or separated by commas."),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(help="Training images that calibrate the layers.")
    ] = None,
    fine_tune_epochs: Annotated[
        int | None, typer.Option(help="Epochs of training after calibration.", show_default="none")
    ] = None,
    fine_tune: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the training, such as optimizer=sgd; repeatable."),
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option(help="Bits of what binary layers are fed: 32 or 8.")
    ] = None,
    activation_scale: Annotated[
        str | None, typer.Option(help="Range of 8-bit activations: mse or minmax.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="The gate: most that the accuracy may fall, such as 0.02.", show_default="no gate"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Commands with the same key queue one job.", show_default="a new one"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the job would come to.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", "--watch", help="Stay until the end, and show what it measures."),
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Compress a checkpoint into a model whose weights are single bits."""
    digest = checkpoint if DIGEST.fullmatch(checkpoint) else None
    file = None if digest else Path(checkpoint)
    if file is not None and not file.is_file():
        raise UnusableFile(f"{checkpoint} is no file, and no digest sha256:<64 hex digits>")
    shape = size(size_text)
    spec = CompressSpec(
        name=name,
        architecture=architecture,
        architecture_parameters=pairs(architecture_parameter or ()) or None,
        checkpoint=digest,
        input=InputShape(
            channels=channels,
            height=shape and shape[0],
            width=shape and shape[1],
            resize=resize,
            value_range=_range(value_range),
            mean=numbers(mean),
            std=numbers(std),
        ),
        dataset=dataset,
        method=_method(method, pairs(parameter or ())),
        keep_float=names(keep_float or ()) or None,
        calibration_images=calibration_images,
        fine_tune=_fine_tune(fine_tune_epochs, pairs(fine_tune or ())),
        activation_bits=activation_bits,
        activation_scale=activation_scale,
        max_accuracy_drop=max_accuracy_drop,
        seed=seed,
    )
    console = Console(stderr=True)
    with Client(url) as client:
        registered, source = _registered(client, dataset, dataset_name)
        spec = spec.model_copy(update={"dataset": registered})
        if dry_run:
            foresee(client, spec, source)
            return
        if source is not None:
            _check(client, spec)
            with TransferProgress(console, f"Uploading {source.name}") as sent:
                client.upload_dataset(source, registered, sent)
        what = "Queueing the job" if file is None else f"Uploading {file.name}"
        with TransferProgress(console, what) as sent:
            job = client.compress(spec, file, sent, idempotency_key=idempotency_key)
        if not wait:
            typer.echo(job.id)
            console.print(
                f"Queued; bitpress jobs {job.id} --watch shows how it goes on",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            return
        follow(client, console, job.id)


def _range(text: str | None) -> tuple[float, float] | None:
    values = numbers(text)
    if values is None:
        return None
    if len(values) != 2:
        raise typer.BadParameter("--value-range takes two numbers, such as 0,1")
    return values[0], values[1]


def _method(name: str | None, parameters: dict[str, Value]) -> dict[str, Value] | None:
    if name is None and not parameters:
        return None
    if "name" in parameters:
        raise typer.BadParameter("choose the method with --method")
    return {"name": name or "bwnh", **parameters}


def _fine_tune(epochs: int | None, parameters: dict[str, Value]) -> dict[str, Value] | None:
    if "epochs" in parameters:
        raise typer.BadParameter("choose the number of epochs with --fine-tune-epochs")
    if epochs is None:
        if parameters:
            raise typer.BadParameter("--fine-tune needs --fine-tune-epochs beside it")
        return None
    return {"epochs": epochs, **parameters}


def _registered(client: Client, dataset: str, name: str | None) -> tuple[str, Path | None]:
    """Return the name of the dataset, and what is to be uploaded under it, where it is to be."""
    source = Path(dataset)
    if not source.exists():
        if "/" in dataset:
            raise UnusableFile(f"{dataset} is no file and no folder")
        return dataset, None
    known = client.known_dataset(source, name)
    if known is not None:
        return known.name, None
    return name or name_of_dataset(source), source


def _check(client: Client, spec: CompressSpec) -> None:
    """Return where nothing but the dataset is wrong: before it is uploaded, which may take long."""
    try:
        client.dry_run(spec)
    except BitpressProblem as refused:
        # That it is not registered is told last.
        if refused.field != "spec.dataset":
            raise
