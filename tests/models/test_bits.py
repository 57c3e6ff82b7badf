"""The bit contract: layout on disk and in words, and the plain products of bits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits

quick = settings(deadline=None, max_examples=60)

conv_shapes = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 3), st.integers(1, 3))
linear_shapes = st.tuples(st.integers(1, 6), st.integers(1, 200))
shapes = conv_shapes | linear_shapes
seeds = st.integers(0, 2**32 - 1)


def random_codes(shape, seed):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=shape)


def test_sign_of_zero_is_plus_one():
    values = np.array([-2.0, -1e-45, -0.0, 0.0, 3.0], dtype=np.float32)
    assert bits.sign(values).tolist() == [-1, -1, 1, 1, 1]


def test_example_of_the_format_page():
    codes = np.array([[[[1, 1]], [[-1, 1]], [[-1, -1]]]], dtype=np.int8)  # (1, 3, 1, 2)
    assert bits.pack(codes).tolist() == [[0b00011001]]


def test_every_bit_stands_where_the_contract_says():
    filters, channels, height, width = shape = (2, 5, 2, 3)
    for n, c, ky, kx in itertools.product(*map(range, shape)):
        codes = np.full(shape, -1, dtype=np.int8)
        codes[n, c, ky, kx] = 1
        place = (ky * width + kx) * channels + c
        expected = np.zeros((filters, -(-channels * height * width // 8)), dtype=np.uint8)
        expected[n, place // 8] = 1 << (place % 8)
        assert np.array_equal(bits.pack(codes), expected)


@quick
@given(shapes, seeds)
def test_unpack_gives_back_what_was_packed(shape, seed):
    codes = random_codes(shape, seed)
    packed = bits.pack(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (shape[0], bits.row_bytes(shape))
    assert bits.padding_is_zero(packed, shape)
    assert np.array_equal(bits.unpack(packed, shape), codes)


@quick
@given(shapes, seeds, st.sampled_from([32, 64]))
def test_words_hold_each_tap_with_zero_padding(shape, seed, word_bits):
    codes = random_codes(shape, seed)
    words = bits.repack(bits.pack(codes), shape, word_bits)
    taps = shape[2:] if len(shape) == 4 else (1, 1)
    channels = shape[1]
    assert words.dtype == (np.int32 if word_bits == 32 else np.int64)
    assert words.shape == (shape[0], taps[0] * taps[1], -(-channels // word_bits))
    for n, tap in itertools.product(range(shape[0]), range(words.shape[1])):
        held = sum(
            int(word) % 2**word_bits << (word_bits * i) for i, word in enumerate(words[n, tap])
        )
        ky, kx = divmod(tap, taps[1])
        row = codes[n, :, ky, kx] if len(shape) == 4 else codes[n]
        assert held == sum(1 << c for c in range(channels) if row[c] == 1)


@quick
@given(linear_shapes, seeds)
def test_activations_are_packed_as_a_tap_of_weights_is(shape, seed):
    codes = random_codes(shape, seed)
    weights = bits.repack(bits.pack(codes), shape, 64)
    assert np.array_equal(bits.pack_words(codes, 64), weights[:, 0])


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1, 1), (2, 3, 3, 3)])
def test_set_padding_bit_is_rejected(shape):
    packed = bits.pack(np.ones(shape, dtype=np.int8))
    packed[-1, -1] |= 0x80
    assert not bits.padding_is_zero(packed, shape)
    with pytest.raises(ValueError, match="padding bit"):
        bits.unpack(packed, shape)


@pytest.mark.parametrize(
    "codes", [np.zeros((2, 3)), np.full((2, 3), 2), np.full((2, 3), np.nan), np.ones(3)]
)
def test_only_signs_can_be_packed(codes):
    with pytest.raises(ValueError, match="codes must be"):
        bits.pack(codes)


def test_packed_bytes_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match="packed must be"):
        bits.unpack(np.zeros((2, 2), np.uint8), (2, 5))
    with pytest.raises(ValueError, match="32 or 64"):
        bits.repack(np.zeros((2, 1), np.uint8), (2, 5), 16)


@quick
@given(st.integers(1, 150), seeds)
def test_product_of_real_inputs_equals_brute_force(inputs, seed):
    rng = np.random.default_rng(seed)
    x, codes = rng.normal(size=(4, inputs)), random_codes((3, inputs), seed)
    expected = np.array([[sum(w * v for w, v in zip(c, r, strict=True)) for c in codes] for r in x])
    assert np.allclose(bits.dot_w1a32(x, bits.pack(codes)), expected, rtol=1e-12, atol=1e-12)


@quick
@given(st.integers(1, 150), st.sampled_from([1, 2, 4, 8]), seeds)
def test_product_by_bit_planes_equals_brute_force(inputs, activation_bits, seed):
    x = np.random.default_rng(seed).integers(0, 2**activation_bits, size=(4, inputs))
    codes = random_codes((3, inputs), seed)
    product = bits.dot_w1ak(x, bits.pack(codes), activation_bits)
    assert np.array_equal(product, x @ codes.astype(np.int64).T)


def test_inputs_beyond_their_bits_are_rejected():
    packed = bits.pack(np.ones((1, 2), np.int8))
    for x in ([[0, 4]], [[-1, 0]]):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            bits.dot_w1ak(np.array(x), packed, 2)


@quick
@given(st.integers(1, 200), st.sampled_from([32, 64]), seeds)
def test_xnor_and_and_forms_equal_brute_force(inputs, word_bits, seed):
    a, b = random_codes((4, inputs), seed), random_codes((3, inputs), seed + 1)
    words_a, words_b = bits.pack_words(a, word_bits), bits.pack_words(b, word_bits)
    expected = a.astype(np.int64) @ b.astype(np.int64).T
    assert np.array_equal(bits.dot_w1a1_xnor(words_a, words_b, inputs), expected)
    assert np.array_equal(bits.dot_w1a1_and(words_a, words_b, inputs), expected)


@pytest.mark.parametrize("value", [-1, 1])
def test_all_equal_signs(value):
    a, b = np.full((1, 65), value), np.full((1, 65), -value)
    words_a, words_b = bits.pack_words(a), bits.pack_words(b)
    assert bits.dot_w1a1_xnor(words_a, words_b, 65) == [[-65]]
    assert bits.dot_w1a1_and(words_a, words_a, 65) == [[65]]


@quick
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_popcount_counts_the_sign_bit_too(values):
    words = np.array(values, dtype=np.int64)
    assert bits.popcount(words).tolist() == [(value % 2**64).bit_count() for value in values]
