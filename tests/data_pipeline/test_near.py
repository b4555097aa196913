import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.near import near_duplicates, signatures
from data_pipeline.recipe import NearRule
from data_pipeline.words import ngram_hashes, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick—brown FOX's 3rd.", ["the", "quick", "brown", "fox", "s", "3rd"]),
        ("naïve Ünïcode Привет, мир!", ["naïve", "Ünïcode", "Привет", "мир"]),
        ("数据集 and かな。한국어", ["数", "据", "集", "and", "か", "な", "한국어"]),
        ("a\u00a0b\u2003c «d» “e” ，f：", ["a", "b", "c", "d", "e", "f"]),
        ("x_1 = y-2 \u0000\n", ["x", "1", "y", "2"]),
        ("", []),
    ],
)
def test_words_follow_the_code_points(text, expected):
    assert words(text) == expected


def test_the_hash_of_an_ngram_is_the_polynomial_of_the_specification():
    import hashlib

    digests = [hashlib.blake2b(w.encode(), digest_size=8).digest() for w in ("a", "b", "c")]
    h = [int.from_bytes(digest, "little") for digest in digests]
    m = 0x9E3779B97F4A7C15
    assert ngram_hashes(["a", "b", "c"], 2).tolist() == [
        (h[0] * m + h[1]) % 2**64,
        (h[1] * m + h[2]) % 2**64,
    ]
    assert ngram_hashes(["a"], 2).tolist() == []
    with pytest.raises(ValueError, match="n >= 1"):
        ngram_hashes(["a"], 0)


@given(tokens=st.lists(st.text(min_size=1, max_size=3), max_size=30), n=st.integers(1, 6))
def test_equal_runs_have_equal_hashes_and_others_differ(tokens, n):
    hashes = ngram_hashes(tokens, n).tolist()
    runs = [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]
    assert len(set(hashes)) == len(set(runs))
    assert len(dict(zip(runs, hashes, strict=True))) == len(set(runs))


def documents(count: int, share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Two lists of words, of which ``share`` of the first is replaced in the second."""
    draw = random.Random(seed)
    first = [f"w{draw.randrange(10**9)}" for _ in range(count)]
    cut = round(count * share)
    return first, [f"x{k}" for k in range(cut)] + first[cut:]


def test_agreement_of_signatures_estimates_the_share_of_common_shingles():
    rule = NearRule(permutations=1024, bands=1, shingle=1)
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        rows = signatures(documents(2_000, share), rule)
        expected = (1 - share) / (1 + share)
        assert abs(float((rows[0] == rows[1]).mean()) - expected) < 0.06


SIGNATURES = [
    [614469857, 284386803, 1540178327, 920380763, 3429543576, 2362568584, 450053442, 696607825],
    [3452214094, 3575145518, 4258076037, 39866495, 4238417091, 4192853097, 3589267789, 2686351875],
    [0, 0, 0, 0, 0, 0, 0, 0],
]

VECTOR = """
from data_pipeline.near import signatures
from data_pipeline.recipe import NearRule
rule = NearRule(permutations=8, bands=1)
print(signatures([list("abcdefghij"), ["one", "two"], []], rule).tolist())
"""


def test_signatures_are_the_same_in_every_process():
    """Fixed for ever: another version of the library that computes others must not go unseen."""
    found = {
        subprocess.run(
            [sys.executable, "-c", VECTOR],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert found == {f"{SIGNATURES}\n"}


def pairs(rows: list[list[int]], **rule: object) -> list[tuple[int, int]]:
    table = np.array(rows, dtype=np.uint32)
    defaults = {"threshold": Fraction(1, 2), "permutations": table.shape[1], "bands": 2}
    return list(near_duplicates(table, np.arange(len(rows)), NearRule(**defaults | rule)))


def test_documents_of_a_bucket_are_joined_only_when_they_agree_often_enough():
    a, b = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 9, 9, 9]
    c = [1, 2, 3, 4, 5, 6, 9, 9]
    assert pairs([a, b, c]) == [(1, 0), (2, 0)]
    assert pairs([a, c, b], threshold=Fraction(3, 4)) == [(1, 0)]  # c does not lead
    assert pairs([a, b, c], threshold=Fraction(3, 4)) == [(1, 0), (2, 0)]  # by way of c
    assert pairs([b, a, c], threshold=Fraction(3, 4)) == [(1, 0), (2, 0)]
    assert pairs([a, b, c], threshold=Fraction(1)) == []


def test_documents_without_a_common_band_and_without_words_are_never_joined():
    assert pairs([[1, 2, 3, 4], [1, 9, 3, 9], [0] * 4, [0] * 4]) == []


@given(rows=st.lists(st.lists(st.integers(1, 2), min_size=4, max_size=4), min_size=1, max_size=25))
def test_groups_are_closed_and_keep_their_first_document(rows):
    found = dict(pairs(rows, bands=4))
    assert all(kept < document and kept not in found for document, kept in found.items())
    for k, row in enumerate(rows):
        first = rows.index(row)
        assert found.get(k, k) == found.get(first, first)  # equal documents share a group
