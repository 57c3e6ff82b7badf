"""What the app declares that it answers is what the client reads, its problems included."""

from typing import Any

import pytest
from pydantic import BaseModel

from app.main import create_app
from app.openapi import describe
from app.problem_types import JOB_ENDS, PROBLEM_TYPES
from client import errors, types

SCHEMAS: dict[str, Any] = describe(create_app())["components"]["schemas"]
READ: dict[str, type[BaseModel]] = {
    "Problem": types.Problem,
    "JobAnswer": types.Job,
    "JobList": types.JobPage,
    "LayerLosses": types.LayerProgress,
    "EpochFigures": types.EpochProgress,
    "ModelReference": types.ModelReference,
    "DatasetAnswer": types.Dataset,
    "DatasetDetail": types.DatasetDetail,
    "ImageSizes": types.ImageSizes,
    "ImageSize": types.ImageSize,
    "Accuracies": types.Accuracy,
    "Sizes": types.Size,
    "ModelAnswer": types.Model,
    "VersionAnswer": types.ModelVersion,
    "LatencyAnswer": types.Latency,
    "GateAnswer": types.Gate,
    "InputAnswer": types.InputShape,
    "AliasList": types.Aliases,
    "AliasAnswer": types.AliasSet,
    "Label": types.Label,
    "Prediction": types.Prediction,
    "PredictionAnswer": types.Predictions,
    "Forecast": types.Forecast,
    "ForecastLayer": types.ForecastLayer,
    "ForecastBasis": types.ForecastBasis,
    "Health": types.Health,
}
# Read as a plain mapping, or as the list in them, or as a `Problem`, which has more members.
ELSEWHERE = {"DatasetList", "ModelList", "VersionList", "Fault", "ForecastImages"}


@pytest.mark.parametrize("name", READ)
def test_the_client_reads_every_member(name: str) -> None:
    assert set(READ[name].model_fields) == set(SCHEMAS[name]["properties"])


@pytest.mark.parametrize("name", READ)
def test_the_client_insists_on_nothing_that_may_be_missing_or_null(name: str) -> None:
    for member, field in READ[name].model_fields.items():
        if field.is_required():
            assert member in SCHEMAS[name].get("required", [member]), member
            options = SCHEMAS[name]["properties"][member].get("anyOf", ())
            assert {"type": "null"} not in options, member


def test_the_client_reads_every_answer() -> None:
    sent = {"AliasRequest", "CompressSpec", "InputShape", "FineTuning", "PredictionRequest"}
    sent |= {name for name in SCHEMAS if name.endswith(("Parameters", "Registration"))}
    assert set(SCHEMAS) - sent == set(READ) | ELSEWHERE


def test_the_client_knows_every_state_of_a_job() -> None:
    states = SCHEMAS["JobAnswer"]["properties"]["state"]["enum"]
    assert set(types.Job.model_fields["state"].annotation.__args__) == set(states)  # type: ignore[union-attr]


def classes(root: type[errors.BitpressProblem]) -> list[type[errors.BitpressProblem]]:
    return [root, *(one for child in root.__subclasses__() for one in classes(child))]


def test_every_type_of_problem_has_its_class_and_every_class_its_type() -> None:
    found = [code for kind in classes(errors.BitpressProblem) for code in kind.codes]
    assert len(found) == len(set(found))
    # No answer to a request: a job's artifact is the service's own.
    assert set(found) == set(PROBLEM_TYPES) - {"invalid-artifact"}
    ends = {code for kind in classes(errors.JobFailed) for code in kind.codes}
    assert ends == JOB_ENDS
