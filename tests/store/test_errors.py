import pickle

import pytest

from store import errors
from store.errors import BitpressError, InvalidDataset, InvalidInput, from_problem


def every_error() -> list[type[BitpressError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, BitpressError)]


def test_codes_and_titles_are_unique() -> None:
    kinds = every_error()
    assert len(kinds) >= 14
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert len({kind.title for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("kind", every_error())
def test_every_error_survives_its_problem_document_and_pickling(kind: type[BitpressError]) -> None:
    error = kind("what happened", field="spec.name", remedy="do this")
    for copy in (from_problem(error.problem()), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert (copy.detail, copy.field, copy.remedy) == ("what happened", "spec.name", "do this")
        assert str(copy) == "what happened"


def test_unknown_members_are_left_out_of_the_problem() -> None:
    assert InvalidDataset("why").problem() == {
        "type": "urn:bitpress:problem:invalid-dataset",
        "title": "The dataset cannot be used",
        "detail": "why",
    }


@pytest.mark.parametrize("problem", [{}, {"type": "about:blank", "detail": "x"}, {"type": None}])
def test_a_foreign_problem_gives_the_root_of_the_tree(problem: dict[str, object]) -> None:
    assert type(from_problem(problem)) is BitpressError


def test_the_tree_is_the_one_drawn_in_the_module() -> None:
    drawn = {word for line in (errors.__doc__ or "").splitlines() for word in line.split()}
    assert {kind.__name__ for kind in every_error()} <= drawn
    assert issubclass(errors.CheckpointMismatch, errors.InvalidCheckpoint)
    assert issubclass(errors.InvalidCheckpoint, InvalidInput)
