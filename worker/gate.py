"""The accuracy gate: what a packed network may lose on the validation images, and what it does.

It compares the plain difference of two accuracies, because that is what a person who names a limit
has in mind. How far the difference may be due to which images happened to be held out, its standard
error says; the verdict does not look at it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from worker.agreement import agreement
from worker.answers import Labels, answers_of
from worker.evaluation import Logits


@dataclass(frozen=True)
class Gate:
    """What the gate saw.

    Attributes:
        max_accuracy_drop: what the job's specification allows, in 0..1.
        images: how many validation images there are.
        full_precision, packed: share of them that was answered rightly, in 0..1.
        drop: the first less the second; negative where the packed network is better.
        standard_error: of ``drop``, from the answers to the same images (`Agreement`).
        passed: ``drop`` is not more than is allowed.
    """

    max_accuracy_drop: float
    images: int
    full_precision: float
    packed: float
    drop: float
    standard_error: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return the report's ``gate`` member."""
        return asdict(self)


def judge(max_accuracy_drop: float, before: Logits, after: Logits, labels: Labels) -> Gate:
    """Judge the answers ``after`` compression by those ``before``; logits are float32 ``(N, K)``.

    A drop that is exactly what is allowed passes: it is counted in images and divided once, so that
    3 of 150 images is 0.02 to the last bit.

    Raises:
        ValueError: the three are not of one length, or are empty.
    """
    found = agreement(answers_of(before), answers_of(after), labels)
    images = len(labels)
    drop = (found.lost - found.gained) / images
    return Gate(
        max_accuracy_drop=max_accuracy_drop,
        images=images,
        full_precision=(found.both_right + found.lost) / images,
        packed=(found.both_right + found.gained) / images,
        drop=drop,
        standard_error=found.standard_error,
        passed=drop <= max_accuracy_drop,
    )
