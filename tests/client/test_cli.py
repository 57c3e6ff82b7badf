import json
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import cli
from client.upload import dataset_upload
from store.specs import parse_spec

Run = Callable[..., int]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "vgg9_cifar10.safetensors").write_bytes(b"weights")
    return str(tmp_path / "vgg9_cifar10.safetensors")


@pytest.fixture
def accepting(
    service: Any,
    job_record: Callable[..., Any],
    dataset_record: Callable[..., Any],
    report_document: dict[str, Any],
    answer_problem: Callable[..., Any],
) -> Any:
    """A service that takes everything and succeeds after one look."""
    service.answers |= {
        "GET /datasets": (200, {"datasets": []}),
        "POST /datasets": lambda request: (201, dataset_record(name=request.parts[0][2].decode())),
        "POST /compress": (202, job_record()),
        "POST /compress?dry_run=true": answer_problem(
            422, "invalid-spec", "Not valid", "There is no such dataset.", field="spec.dataset"
        ),
        "GET /jobs/job-1": [
            (200, job_record(state="running", stage="calibrate", step="[features.0]")),
            (200, job_record(state="succeeded", model={"name": "vgg9", "version": 4})),
        ],
        "GET /jobs/job-1/report": (200, report_document),
    }
    return service


def sent_spec(service: Any) -> Any:
    """Return the specification that was posted, as the service itself reads it."""
    (request,) = service.asked("POST /compress")
    return parse_spec(request.parts[0][2])


def test_the_documented_command_works_word_for_word(
    run: Run, accepting: Any, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "cifar10-jpeg.tar.xz"
    archive.write_bytes(b"an archive")
    command = (
        f"compress {checkpoint} --architecture vgg9 --mean 0.4914,0.4822,0.4465 "
        f"--std 0.2470,0.2435,0.2616 --dataset {archive} --name vgg9 --wait"
    )
    assert run(*command.split()) == 0
    assert accepting.asked("POST /datasets")[0].parts == [
        ("name", None, b"cifar10-jpeg"),
        ("archive", "cifar10-jpeg.tar.xz", b"an archive"),
    ]
    assert sent_spec(accepting) == parse_spec(
        {
            "name": "vgg9",
            "architecture": "vgg9",
            "dataset": "cifar10-jpeg",
            "input": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
        }
    )
    assert accepting.asked("POST /compress")[0].parts[1] == (
        "checkpoint",
        "vgg9_cifar10.safetensors",
        b"weights",
    )
    output = capsys.readouterr()
    table = [line.split() for line in output.out.splitlines()]
    assert "vgg9, version 4" in output.out
    assert ["│", "accuracy", "│", "75.00%", "│", "62.50%", "│"] in table
    assert ["│", "bytes", "│", "4,000,000", "│", "125,000", "│"] in table
    assert ["│", "ratio", "│", "│", "32.0", "│"] in table
    assert ["│", "seconds", "of", "work", "│", "│", "2.2", "│"] in table
    assert "calibrate [features.0]" in output.err


def test_every_part_of_the_specification_has_an_option(
    run: Run, accepting: Any, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"compress {checkpoint} --architecture resnet20 --architecture-parameter shortcut=B "
        "--architecture-parameter width=0.5 --dataset pets --name r20 --channels 1 --size 28x32 "
        "--value-range=-1,1 --mean 0.5 --std 0.25 --method bwnh --parameter sweeps=3 "
        "--parameter scale=false --parameter ridge=1e-3 --parameter target=binarized "
        "--keep-float conv1,linear --keep-float layer1.0.conv1 --calibration-images 64 --seed 7 "
        "--resize 40 --activation-bits 8 --activation-scale minmax --fine-tune-epochs 4 "
        "--fine-tune optimizer=sgd "
        "--fine-tune binary_fractions=0.5,0.75,1 --fine-tune drops=[0.5] --fine-tune average=0.9"
    )
    assert run(*command.split()) == 0
    assert sent_spec(accepting) == parse_spec(
        {
            "name": "r20",
            "architecture": "resnet20",
            "architecture_parameters": {"shortcut": "B", "width": 0.5},
            "dataset": "pets",
            "input": {
                "channels": 1,
                "height": 28,
                "width": 32,
                "resize": 40,
                "value_range": [-1, 1],
                "mean": [0.5],
                "std": [0.25],
            },
            "method": {
                "name": "bwnh",
                "sweeps": 3,
                "scale": False,
                "ridge": 1e-3,
                "target": "binarized",
            },
            "keep_float": ["conv1", "linear", "layer1.0.conv1"],
            "calibration_images": 64,
            "fine_tune": {
                "epochs": 4,
                "optimizer": "sgd",
                "binary_fractions": [0.5, 0.75, 1],
                "drops": [0.5],
                "average": 0.9,
            },
            "activation_bits": 8,
            "activation_scale": "minmax",
            "seed": 7,
        }
    )
    assert not accepting.asked("POST /datasets")
    assert capsys.readouterr().out == "job-1\n"


def test_what_fine_tuning_gained_is_shown(
    run: Run,
    accepting: Any,
    checkpoint: str,
    report_document: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    report_document["accuracy"] |= {"fine_tuned": 0.7, "packed_float_activations": 0.65}
    arguments = ["compress", checkpoint, "--architecture=a", "--dataset=pets", "--name=n"]
    assert run(*arguments, "--fine-tune-epochs=2", "--wait") == 0
    assert sent_spec(accepting).fine_tune.epochs == 2
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "accuracy", "│", "75.00%", "│", "62.50%", "│"] in table
    assert ["│", "-", "calibrated", "only", "│", "│", "50.00%", "│"] in table
    assert ["│", "-", "fine-tuned", "│", "│", "70.00%", "│"] in table
    assert ["│", "-", "float", "activations", "│", "│", "65.00%", "│"] in table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fine-tune=average=0.9"], "--fine-tune-epochs"),
        (["--fine-tune-epochs=1", "--fine-tune=epochs=2"], "--fine-tune-epochs"),
    ],
)
def test_the_number_of_epochs_has_an_option_of_its_own(
    run: Run, accepting: Any, checkpoint: str, options: list[str], words: str, capsys: Any
) -> None:
    arguments = ["compress", checkpoint, "--architecture=a", "--dataset=pets", "--name=n"]
    assert run(*arguments, *options) == 2
    assert words in capsys.readouterr().err
    assert not accepting.asked("POST /compress")


def test_a_digest_stands_for_an_earlier_upload(run: Run, accepting: Any) -> None:
    digest = "sha256:" + "a" * 64
    assert run("compress", digest, "--architecture=a", "--dataset=pets", "--name=n") == 0
    assert sent_spec(accepting).checkpoint == digest
    assert len(accepting.asked("POST /compress")[0].parts) == 1


def test_a_folder_that_is_registered_is_not_sent(
    run: Run, accepting: Any, dataset_record: Callable[..., Any], checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "pets/cat").mkdir(parents=True)
    (tmp_path / "pets/cat/1.png").write_bytes(b"image")
    folder = tmp_path / "pets"
    known = dataset_record(name="animals", archive_digest=dataset_upload(folder).digest())
    accepting.answers["GET /datasets"] = (200, {"datasets": [known]})
    arguments = ["compress", checkpoint, "--architecture=a", f"--dataset={folder}", "--name=n"]
    assert run(*arguments) == 0
    assert sent_spec(accepting).dataset == "animals"
    assert not accepting.asked("POST /datasets")


def test_an_uploaded_dataset_gets_the_name_that_was_asked_for(
    run: Run, accepting: Any, checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "images.zip").write_bytes(b"an archive")
    source = f"--dataset={tmp_path / 'images.zip'}"
    arguments = ["compress", checkpoint, "--architecture=a", source, "--name=n"]
    assert run(*arguments, "--dataset-name=mine") == 0
    assert sent_spec(accepting).dataset == "mine"


def test_a_refusal_is_printed_with_field_and_remedy(
    run: Run,
    accepting: Any,
    answer_problem: Callable[..., Any],
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepting.answers["POST /compress"] = answer_problem(
        422,
        "invalid-spec",
        "The job specification is not valid",
        "There is no [such] architecture.",
        field="spec.architecture",
        remedy="Use one of: vgg9",
    )
    assert run("compress", checkpoint, "--architecture=x", "--dataset=pets", "--name=n") == 1
    assert capsys.readouterr().err.endswith(
        "error: The job specification is not valid\n"
        "  detail: There is no [such] architecture.\n"
        "  field: spec.architecture\n"
        "  remedy: Use one of: vgg9\n"
    )


def test_a_job_that_fails_is_a_failure(
    run: Run,
    accepting: Any,
    job_record: Callable[..., Any],
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault = {"type": "t", "title": "Unfit", "detail": "Three keys are missing.", "remedy": "Look."}
    accepting.answers["GET /jobs/job-1"] = (200, job_record(state="failed", problem=fault))
    arguments = ["compress", checkpoint, "--architecture=x", "--dataset=pets", "--name=n"]
    assert run(*arguments, "--wait") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith("error: Unfit\n  detail: Three keys are missing.\n  remedy: Look.\n")


def test_ctrl_c_leaves_the_job_and_says_so(
    run: Run, accepting: Any, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    # Where the tests run in the background of a script, the shell has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(request: Any) -> Any:
        signal.pthread_kill(main_thread, signal.SIGINT)
        return accepting.answers["POST /compress"]

    accepting.answers["GET /jobs/job-1"] = interrupt
    arguments = ["compress", checkpoint, "--architecture=x", "--dataset=pets", "--name=n"]
    try:
        assert run(*arguments, "--wait") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err
    assert "The job goes on. bitpress jobs job-1 --watch shows it again" in told
    assert "bitpress jobs job-1 --cancel ends it" in told


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--mean=a,b", "not a list of numbers"),
        ("--std=nan", "not finite"),
        ("--size=big", "not a size"),
        ("--value-range=1", "two numbers"),
        ("--parameter=sweeps", "key=value"),
        ("--parameter=name=bwn", "--method"),
        ("--channels=three", "--channels"),
    ],
)
def test_a_malformed_option_is_refused_before_anything_is_sent(
    run: Run,
    service: Any,
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
    option: str,
    message: str,
) -> None:
    arguments = ["compress", checkpoint, "--architecture=a", "--dataset=pets", "--name=n", option]
    assert run(*arguments) == 2
    plain = re.sub(r"[^\w\-= ]+", " ", capsys.readouterr().err)
    assert message in re.sub(r" +", " ", plain.replace("\n", " "))
    assert not service.received


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "missing.pth", "--architecture=a", "--dataset=d", "--name=n"], "missing.pth"),
        (["predict", "missing.png", "--model=m"], "missing.png"),
    ],
)
def test_a_missing_file_is_named(
    run: Run, service: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not service.received


def test_a_missing_dataset_path_is_named(
    run: Run, service: Any, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compress", checkpoint, "--architecture=a", "--dataset=no/such.zip", "--name=n"]
    assert run(*arguments) == 1
    assert "no/such.zip" in capsys.readouterr().err
    assert not service.received


def predicting(service: Any) -> None:
    """Let the service answer ``dog`` for every image but the one that holds ``bad``."""

    def answer(request: Any) -> Any:
        images = [(file, data) for name, file, data in request.parts if name == "images"]
        top = [
            {"label": "dog", "index": 1, "probability": 0.75},
            {"label": "cat", "index": 0, "probability": 0.25},
        ]
        (top_k,) = (int(data) for name, _, data in request.parts if name == "top_k")
        error = {"type": "t", "title": "Unusable", "detail": "This is no image."}
        predictions = [
            {"filename": file, "error": error} if data == b"bad" else {"top": top[:top_k]}
            for file, data in images
        ]
        return 200, {"model": "pets", "version": 1, "predictions": predictions}

    service.answers["POST /predict"] = answer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/1.JPG", "a/3.webp", "a/notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path / "images"


def test_predict_prints_a_line_for_each_image(
    run: Run, service: Any, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicting(service)
    assert run("predict", str(images), str(images / "a/notes.txt"), "--model", "pets") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{images}/a/3.webp\tdog\t0.7500",
        f"{images}/b/1.JPG\tdog\t0.7500",
        f"{images}/b/2.png\tdog\t0.7500",
        f"{images}/a/notes.txt\tdog\t0.7500",
    ]


def test_predict_as_json_has_labels_and_errors(
    run: Run, service: Any, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicting(service)
    (images / "a/3.webp").write_bytes(b"bad")
    command = ["predict", str(images), "--model=pets", "--version=1", "--top-k=2", "--json"]
    assert run(*command) == 1
    output = capsys.readouterr()
    first, second, _ = (json.loads(line) for line in output.out.splitlines())
    assert first["image"] == f"{images}/a/3.webp"
    assert first["error"]["detail"] == "This is no image."
    assert [label["label"] for label in second["top"]] == ["dog", "cat"]
    assert "1 of the images could not be used" in output.err


def test_a_bad_image_that_travels_alone_is_one_line_too(
    run: Run,
    service: Any,
    images: Path,
    answer_problem: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = answer_problem(422, "invalid-image", "Unusable", "This is no image.")
    service.answers["POST /predict"] = refused
    assert run("predict", str(images / "b/1.JPG"), "--model=pets") == 1
    output = capsys.readouterr()
    assert output.out == f"{images}/b/1.JPG\terror: This is no image.\n"
    service.answers["POST /predict"] = answer_problem(404, "not-found", "Not found", "No model.")
    assert run("predict", str(images / "b/1.JPG"), "--model=pets") == 1
    assert "No model." in capsys.readouterr().err


def test_many_images_travel_in_batches_and_stay_in_order(
    run: Run, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicting(service)
    paths = [tmp_path / f"{number:03}.png" for number in range(70)]
    for path in paths:
        path.write_bytes(path.name.encode())
    assert run("predict", str(tmp_path), "--model", "pets") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(path) for path in paths
    ]
    assert len(service.asked("POST /predict")) == 3


def test_large_images_travel_in_smaller_batches(run: Run, service: Any, tmp_path: Path) -> None:
    predicting(service)
    for number in range(3):
        with (tmp_path / f"{number}.png").open("wb") as file:
            file.truncate(5 << 20)
    assert run("predict", str(tmp_path), "--model", "pets") == 0
    assert len(service.asked("POST /predict")) == 3


def test_nobody_listening_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bitpress", "predict", str(images), "--model=m", "--url=http://127.0.0.1:1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: No service answers at http://127.0.0.1:1")


def test_a_mistake_is_told_before_a_dataset_is_sent(
    run: Run,
    accepting: Any,
    answer_problem: Callable[..., Any],
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepting.answers["POST /compress?dry_run=true"] = answer_problem(
        422, "invalid-spec", "Not valid", "No such network.", field="spec.architecture"
    )
    (tmp_path / "images.zip").write_bytes(b"an archive")
    source = f"--dataset={tmp_path / 'images.zip'}"
    assert run("compress", checkpoint, "--architecture=vgg10", source, "--name=n") == 1
    assert "No such network." in capsys.readouterr().err
    assert not accepting.asked("POST /datasets")
    assert not accepting.asked("POST /compress")


FORECAST = {
    "architecture": "vgg9",
    "layers": [
        {
            "name": "features.0",
            "kind": "conv2d",
            "shape": [64, 3, 3, 3],
            "weights": 1728,
            "binary": True,
            "bits": 3,
            "packed_bytes": 1152,
        }
    ],
    "parameters": 4_700_000,
    "float_bytes": 19_092_264,
    "packed_bytes": 631_912,
    "compression_ratio": 30.2,
    "seconds": {"prepare": 2.0, "calibrate": 30.5},
    "total_seconds": 32.5,
    "memory_bytes": 3 << 30,
    "basis": {
        "threads": 2,
        "multiply_accumulates_per_second": 1e11,
        "multiply_accumulates_per_image": 6e8,
        "runtime": "cpu",
        "assumptions": ["Nobody else works here."],
    },
}


def test_a_dry_run_prints_what_is_foreseen_and_sends_no_file(
    run: Run, accepting: Any, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    accepting.answers["POST /compress?dry_run=true"] = (200, FORECAST)
    arguments = ["compress", checkpoint, "--architecture=vgg9", "--dataset=pets", "--name=n"]
    assert run(*arguments, "--dry-run", "--max-accuracy-drop=0.02") == 0
    (request,) = accepting.asked("POST /compress?dry_run=true")
    ((name, _, spec),) = request.parts
    assert name == "spec"
    assert parse_spec(spec).max_accuracy_drop == 0.02
    assert not accepting.asked("POST /compress")
    printed = capsys.readouterr().out
    for words in ("features.0", "64 x 3 x 3 x 3", "19,092,264 before, 631,912 after", "30.2"):
        assert words in printed
    for words in ("32.5 (prepare 2.0, calibrate 30.5)", "3,072 MiB", "- Nobody else works here."):
        assert words in printed


def test_a_dry_run_says_whether_the_checkpoint_was_read(
    run: Run, accepting: Any, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    accepting.answers["POST /compress?dry_run=true"] = (200, FORECAST)
    others = ["--architecture=vgg9", "--dataset=pets", "--name=n", "--dry-run"]
    assert run("compress", checkpoint, *others) == 0
    assert "The checkpoint itself was not read." in capsys.readouterr().out
    # The service looks at one that it has.
    assert run("compress", "sha256:" + "a" * 64, *others) == 0
    assert "was not read" not in capsys.readouterr().out


def test_a_dry_run_before_the_dataset_is_there_says_what_is_in_order_and_how_to_send_it(
    run: Run, accepting: Any, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my images.zip").write_bytes(b"an archive")
    arguments = ["compress", checkpoint, "--architecture=vgg9", "--name=n", "--dry-run"]
    assert run(*arguments, f"--dataset={tmp_path / 'my images.zip'}") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "The specification is in order so far; the checkpoint itself was not read." in output.err
    assert f"bitpress datasets my-images --add '{tmp_path / 'my images.zip'}'" in output.err
    assert "There is no such dataset." not in output.err
    assert not accepting.asked("POST /datasets")


def test_a_dry_run_does_not_answer_for_another_dataset_of_the_name(
    run: Run,
    accepting: Any,
    dataset_record: Callable[..., Any],
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepting.answers["POST /compress?dry_run=true"] = (200, FORECAST)
    accepting.answers["GET /datasets"] = (200, {"datasets": [dataset_record(name="digits")]})
    source = tmp_path / "images.zip"
    source.write_bytes(b"an archive")
    arguments = ["compress", checkpoint, "--architecture=vgg9", "--name=n", "--dry-run"]
    assert run(*arguments, f"--dataset={source}", "--dataset-name=digits") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"The service's dataset digits is not {source}" in output.err
    assert "--dataset-name" in output.err
    assert "--dataset digits" in output.err
    assert not accepting.asked("POST /compress?dry_run=true")


def test_a_key_is_sent_as_it_was_given(run: Run, accepting: Any, checkpoint: str) -> None:
    arguments = ["compress", checkpoint, "--architecture=a", "--dataset=pets", "--name=n"]
    assert run(*arguments, "--idempotency-key=mine") == 0
    (request,) = accepting.asked("POST /compress")
    assert request.headers["idempotency-key"] == "mine"


def test_a_rejected_model_shows_its_gate_and_is_a_failure(
    run: Run,
    accepting: Any,
    job_record: Callable[..., Any],
    report_document: dict[str, Any],
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault = {
        "type": "urn:bitpress:problem:accuracy-gate",
        "title": "The model lost too much accuracy",
        "detail": "It lost 12.5 points, and 1 is allowed.",
        "remedy": "Allow more.",
    }
    report_document |= {
        "gate": {
            "max_accuracy_drop": 0.01,
            "images": 1_000,
            "full_precision": 0.75,
            "packed": 0.625,
            "drop": 0.125,
            "standard_error": 0.01,
            "passed": False,
        },
        "latency": {
            "threads": 1,
            "batch": 1,
            "repeats": 9,
            "packed_ms": 0.25,
            "float_ms": 1.5,
            "speedup": 6.0,
        },
    }
    accepting.answers["GET /jobs/job-1"] = (200, job_record(state="rejected", problem=fault))
    arguments = ["compress", checkpoint, "--architecture=x", "--dataset=pets", "--name=n"]
    assert run(*arguments, "--watch") == 1
    output = capsys.readouterr()
    table = [line.split() for line in output.out.splitlines()]
    assert ["│", "ms", "an", "image", "│", "1.5", "│", "0.25", "│"] in table
    assert "accuracy gate not passed: lost 12.50 points on 1,000" in output.out
    assert output.err.endswith("  remedy: Allow more.\n")
