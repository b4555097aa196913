import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.permutation import MAX_SIZE, Permutation

SEED = bytes(32)


def scalar(x: int, n: int, seed: bytes, epoch: int) -> int:
    """The specification read aloud, with Python integers and nothing shared with the package."""
    b = max(2, (n - 1).bit_length())
    w = -(-b // 2)
    keys = []
    for r in range(8):
        name = b"prp/feistel/v1\0" + seed
        name += n.to_bytes(8, "little") + epoch.to_bytes(8, "little") + r.to_bytes(4, "little")
        keys.append(int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))
    while True:
        left, right = x >> w, x % (1 << w)
        for key in keys:
            z = right ^ key
            z ^= z >> 30
            z = z * 0xBF58476D1CE4E5B9 % 2**64
            z ^= z >> 27
            z = z * 0x94D049BB133111EB % 2**64
            z ^= z >> 31
            left, right = right, left ^ (z >> (64 - w))
        x = (right << w) | left
        if x < n:
            return x


POWERS = [2**k for k in range(1, 18)]
SIZES = sorted({1, 3, 100, 124, 1000, *POWERS, *(p - 1 for p in POWERS), *(p + 1 for p in POWERS)})
sizes = st.integers(1, MAX_SIZE) | st.sampled_from(SIZES)
seeds = st.binary(min_size=32, max_size=32)
epochs = st.integers(0, 2**64 - 1)


def test_published_vectors():
    big = Permutation(1_000_003, SEED, 0)
    assert big.forward([0, 1, 2, 1_000_002]).tolist() == [144748, 570942, 591206, 32647]
    expected = [77, 39, 19, 62, 4, 7, 98, 103, 114, 44, 33, 72]
    assert Permutation(124, SEED, 0).forward(np.arange(12)).tolist() == expected


@pytest.mark.parametrize(
    ("n", "epoch", "first_five"),
    [
        (1, 0, [0]),
        (2, 0, [1, 0]),
        (5, 0, [0, 2, 3, 4, 1]),
        (16, 0, [13, 11, 7, 8, 5]),
        (17, 0, [9, 12, 4, 16, 5]),
        (124, 1, [31, 34, 49, 117, 111]),
        (65_537, 0, [24198, 11278, 49101, 40011, 58919]),
        (1_000_003, 1, [272104, 823000, 770520, 114476, 766151]),
    ],
)
def test_vectors_of_the_specification_page(n, epoch, first_five):
    assert Permutation(n, SEED, epoch).forward(np.arange(min(n, 5))).tolist() == first_five


@pytest.mark.parametrize("n", SIZES)
def test_bijection_and_inverse_at_powers_of_two_and_beside_them(n):
    permutation = Permutation(n, SEED, 1)
    everything = np.arange(n, dtype=np.uint64)
    image = permutation.forward(everything)
    assert np.array_equal(np.bincount(image.astype(np.int64), minlength=n), np.ones(n))
    assert np.array_equal(permutation.inverse(image), everything)


@settings(max_examples=60, deadline=None)
@given(n=sizes, seed=seeds, epoch=epochs, data=st.data())
def test_agrees_with_a_scalar_reading_of_the_specification(n, seed, epoch, data):
    xs = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
    permutation = Permutation(n, seed, epoch)
    found = permutation.forward(np.array(xs, dtype=np.uint64))
    assert found.tolist() == [scalar(x, n, seed, epoch) for x in xs]
    assert permutation.inverse(found).tolist() == xs


def test_every_part_of_the_key_matters():
    base = Permutation(1000, SEED, 0).forward(np.arange(1000)).tolist()
    assert Permutation(1000, SEED, 1).forward(np.arange(1000)).tolist() != base
    assert Permutation(1000, b"\1" + SEED[1:], 0).forward(np.arange(1000)).tolist() != base
    assert Permutation(1001, SEED, 0).forward(np.arange(1000)).tolist() != base


def test_the_shape_and_the_way_of_asking_do_not_matter():
    permutation = Permutation(200_000, SEED, 0)
    whole = permutation.forward(np.arange(200_000))
    square = permutation.forward(np.arange(200_000, dtype=np.int32).reshape(400, 500))
    assert np.array_equal(square.reshape(-1), whole)
    assert [int(permutation.forward(x)) for x in (0, 70_000, 199_999)] == [
        int(whole[x]) for x in (0, 70_000, 199_999)
    ]
    assert permutation.forward([]).size == 0


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, (1 << 14) + 1, (1 << 17) + 3])
@pytest.mark.parametrize("n", [(1 << 18) + 1, 300_000, 1 << 18, (1 << 62) - 5])
def test_the_number_of_elements_asked_for_at_once_changes_nothing(n, count):
    """Below, at and beyond the sizes at which the computation is cut or done in Python."""
    permutation = Permutation(n, SEED, 3)
    xs = np.arange(count, dtype=np.uint64) + np.uint64(n - (1 << 17) - 3)
    image = permutation.forward(xs)
    places = sorted({0, count // 2, count - 1, min(count - 1, 1 << 14)})
    assert [int(image[k]) for k in places] == [scalar(int(xs[k]), n, SEED, 3) for k in places]
    assert np.array_equal(permutation.inverse(image), xs)


def test_neighbours_are_spread():
    """A weak network leaves structure; the mean distance of neighbours is n/3 without any."""
    n = 1 << 16
    image = Permutation(n + 1, SEED, 0).forward(np.arange(n)).astype(np.int64)
    assert abs(np.abs(np.diff(image)).mean() / n - 1 / 3) < 0.01
    low_bits = np.histogram2d(np.arange(n) % 16, image % 16, bins=16)[0]
    chi2 = ((low_bits - n / 256) ** 2 / (n / 256)).sum() / 225
    assert 0.6 < chi2 < 1.5


@pytest.mark.parametrize(
    ("n", "seed", "epoch"),
    [(0, SEED, 0), (MAX_SIZE + 1, SEED, 0), (5, b"short", 0), (5, SEED, -1), (5, SEED, 2**64)],
)
def test_bad_keys_are_refused(n, seed, epoch):
    with pytest.raises(ValueError, match="expected"):
        Permutation(n, seed, epoch)


@pytest.mark.parametrize("x", [5, -1, [0, 9], 1.0, 2**63])
def test_values_outside_the_domain_are_refused(x):
    with pytest.raises(ValueError, match="expected integers in"):
        Permutation(5, SEED, 0).forward(x)
