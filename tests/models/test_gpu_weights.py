"""Weights in the order of the GPU's kernels: the same bits as `models.bits.repack` lays them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.runtime import gpu_weights
from models.runtime.gpu_weights import tap_words

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 5), st.sampled_from([1, 31, 32, 33, 64, 100])),
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64]), st.just(3), st.just(3)),
)


def packed(shape, bases, seed):
    codes = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (bases, *shape))
    return torch.from_numpy(np.stack([bits.pack(basis) for basis in codes]))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 3), st.integers(0, 99), st.sampled_from([1, 100, 1 << 22]))
def test_every_tap_begins_a_new_word(shape, bases, seed, at_once):
    rows = packed(shape, bases, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_weights, "_WEIGHTS_AT_ONCE", at_once)
        words = tap_words(rows, shape)
    assert words.dtype == torch.int32
    wanted = np.stack([bits.repack(basis.numpy(), shape, 32) for basis in rows])
    assert np.array_equal(words.numpy(), wanted)


def test_bits_of_other_weights_are_refused():
    with pytest.raises(ValueError, match="row_bytes"):
        tap_words(torch.zeros(2, 3, 4, dtype=torch.uint8), (4, 32))
    with pytest.raises(ValueError, match="padding bit"):
        tap_words(torch.full((1, 1, 1), 255, dtype=torch.uint8), (1, 7))
