"""What the app declares that it answers is what the client reads."""

import pytest
from pydantic import BaseModel

from app import schemas
from client import types

PAIRS = [
    (types.Problem, schemas.Problem),
    (types.Job, schemas.JobAnswer),
    (types.LayerProgress, schemas.LayerLosses),
    (types.ModelReference, schemas.ModelReference),
    (types.Dataset, schemas.DatasetAnswer),
    (types.Accuracy, schemas.Accuracies),
    (types.Size, schemas.Sizes),
    (types.Model, schemas.ModelAnswer),
    (types.InputShape, schemas.InputAnswer),
    (types.Label, schemas.Label),
    (types.Prediction, schemas.Prediction),
    (types.Predictions, schemas.PredictionAnswer),
]


@pytest.mark.parametrize(("read", "answered"), PAIRS)
def test_the_client_reads_every_member(read: type[BaseModel], answered: type[BaseModel]) -> None:
    assert set(read.model_fields) == set(answered.model_fields)


def test_the_client_knows_every_state_of_a_job() -> None:
    assert (
        types.Job.model_fields["state"].annotation
        == schemas.JobAnswer.model_fields["state"].annotation
    )
