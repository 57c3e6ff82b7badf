"""Joining a network's simple operations into a plan's operators.

A framework's graph has one operation per line: product, batch norm, sum, activation. A plan does
all four in one node, ``activation(affine(product) + residual)``, so that a runtime touches each
value once. `fuse` finds these chains.

A *draft* is a node still in the making: the operator, and its tensors under their suffixes. All
per-channel factors stay float64 until they are complete; `models.lowering` rounds them once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.attributes import Activation
from models.operators import Activate, Add, Affine, Conv2d, Linear, Operator, Quantize, Subsample

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Draft:
    """An operator and its tensors by suffix; ``codes`` (int8) stand for ``bits`` to be packed."""

    operator: Operator
    arrays: Arrays

    @property
    def name(self) -> str:
        return self.operator.name


def renamed(operator: Operator, names: Mapping[str, str]) -> Operator:
    """Return ``operator`` with its own name and those of its sources replaced by ``names``."""
    changes: dict[str, Any] = {}
    for attribute in fields(operator):
        value = getattr(operator, attribute.name)
        if attribute.name in ("name", "input", "residual") and value is not None:
            changes[attribute.name] = names.get(value, value)
        elif attribute.name == "inputs":
            changes[attribute.name] = tuple(names.get(item, item) for item in value)
    return replace(operator, **changes)


def without_dead(drafts: Sequence[Draft], output: str) -> list[Draft]:
    """Return the drafts that ``output`` depends on, in order."""
    needed = {output}
    alive = []
    for draft in reversed(drafts):
        if draft.name in needed:
            needed |= set(draft.operator.sources)
            alive.append(draft)
    return alive[::-1]


def without_repeated_quantizers(drafts: Sequence[Draft]) -> list[Draft]:
    """Return the drafts without those that quantize a value as an earlier one does already.

    So it is where two layers are fed the same value, as at the start of a residual block that
    changes the size. The one that makes the network's output is not repeated: where nothing is
    dead, all other drafts lead to what it reads.
    """
    kept: list[Draft] = []
    first: dict[Operator, str] = {}
    same: dict[str, str] = {}
    for draft in drafts:
        operator = renamed(draft.operator, same)
        if isinstance(operator, Quantize):
            name = first.setdefault(replace(operator, name=""), operator.name)
            if name != operator.name:
                same[operator.name] = name
                continue
        kept.append(Draft(operator, draft.arrays))
    return kept


def fuse(drafts: Sequence[Draft], output: str) -> tuple[list[Draft], str]:
    """Return fewer drafts that compute the same, and the new name of ``output``.

    ``drafts`` are in order and none is dead. An operation joins the one that makes its operand
    only where nothing else reads that operand.
    """
    readers = Counter(source for draft in drafts for source in draft.operator.sources)
    readers[output] += 1
    made: dict[str, Draft] = {}  # in order
    aliases: dict[str, str] = {}
    for draft in drafts:
        draft = Draft(renamed(draft.operator, aliases), draft.arrays)
        joined = _join(draft, made, readers)
        if joined is None:
            made[draft.name] = draft
        else:
            made[joined.name] = joined
            aliases[draft.name] = joined.name
            readers[joined.name] = readers[draft.name]
    return list(made.values()), aliases.get(output, output)


def _join(draft: Draft, made: dict[str, Draft], readers: Counter[str]) -> Draft | None:
    """Return the draft that takes ``draft`` in, under its old name, or None.

    Where the taker has to move behind the other operand, it is removed from ``made`` first, so
    that it is put back at the end.
    """
    operator = draft.operator
    if isinstance(operator, Add):
        return _join_sum(operator, made, readers)
    taker = made.get(operator.sources[0])
    if taker is None or readers[taker.name] != 1:
        return None
    match operator:
        case Affine():
            return _with_affine(taker, draft.arrays["affine"])
        case Activate():
            return _with_activation(taker, operator.activation, draft.arrays)
        case Subsample():
            if isinstance(taker.operator, Subsample):
                stride = _times(taker.operator.stride, operator.stride)
                return Draft(replace(taker.operator, stride=stride), {})
    return None


def _with_affine(taker: Draft, affine: NDArray[np.float64]) -> Draft | None:
    """Compose ``g * (g' x + t') + t`` where ``taker`` ends in an affine map."""
    operator = taker.operator
    if isinstance(operator, Conv2d | Linear):
        if operator.residual is not None or operator.activation is not None:
            return None
    elif not isinstance(operator, Affine):
        return None
    gain, shift = taker.arrays["affine"]
    composed = np.stack([affine[0] * gain, affine[0] * shift + affine[1]])
    return Draft(operator, {**taker.arrays, "affine": composed})


def _with_activation(taker: Draft, activation: Activation, arrays: Arrays) -> Draft | None:
    operator = taker.operator
    if not isinstance(operator, Conv2d | Linear | Add) or operator.activation is not None:
        return None
    return Draft(replace(operator, activation=activation), {**taker.arrays, **arrays})


def _join_sum(operator: Add, made: dict[str, Draft], readers: Counter[str]) -> Draft | None:
    """Let a product take the sum in: the operand computed later where it can, else the other."""
    order = {name: position for position, name in enumerate(made)}
    operands = sorted(operator.inputs, key=lambda name: order.get(name, -1))
    for name, other in ((operands[1], operands[0]), (operands[0], operands[1])):
        taker = made.get(name)
        if taker is None or readers[name] != 1 or name == other:
            continue
        product = taker.operator
        if (
            isinstance(product, Conv2d | Linear)
            and product.residual is None
            and product.activation is None
        ):
            if order.get(other, -1) > order[name]:
                # Nothing but this sum reads the product, so it can wait for the other operand.
                del made[name]
            residual = replace(product, residual=other, activation=operator.activation)
            return Draft(residual, taker.arrays)
    return None


def _times(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return (first[0] * second[0], first[1] * second[1])
