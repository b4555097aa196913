from fractions import Fraction

import pytest

from data_pipeline.errors import DatasetError
from data_pipeline.recipe import Recipe


def recipe(**changes):
    made = {
        "name": "r",
        "source": {"kind": "text_tree", "root": "x"},
        "tokenizer": {"vocab_size": 300, "train_bytes": 1},
        "heldout_permille": 0,
        "shard_tokens": 1,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def test_what_is_not_said_has_stated_defaults():
    found = Recipe.parse(recipe())
    assert (found.group_bytes, found.bos, found.exact) == (1 << 30, "none", False)
    assert found.near is found.decontamination is found.mixture is None
    near = Recipe.parse(recipe(dedup={"near": {}})).near
    assert (near.threshold, near.permutations, near.shingle, near.bands, near.rows) == (
        Fraction(4, 5),
        128,
        5,
        16,
        8,
    )


def test_the_identity_leaves_the_name_out_and_nothing_else():
    base = Recipe.parse(recipe())
    assert Recipe.parse(recipe(name="other")).identity == base.identity
    for change in ({"shard_tokens": 2}, {"bos": "none"}, {"dedup": {"exact": True}}):
        assert Recipe.parse(recipe(**change)).identity != base.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, r"either 'source' or 'sources', found neither"),
        ({"sources": [{}]}, r"either 'source' or 'sources', found both"),
        ({"source": None, "sources": []}, "a list of sources"),
        ({"shard_tokens": True}, "shard_tokens >= 1, found True"),
        ({"heldout_permille": "20"}, r"heldout_permille in 0\.\.999, found '20'"),
        ({"group_bytes": 0}, "group_bytes >= 1, found 0"),
        ({"tokenizer": {}}, r"one of the keys \['file', 'hub', 'vocab_size'\]"),
        ({"tokenizer": {"hub": "a/b"}}, r"missing \['revision'\]"),
        ({"tokenizer": {"file": "x", "train_bytes": 3}}, r"unknown \['train_bytes'\]"),
        ({"bos": "always"}, "bos: expected one of"),
        ({"bos": "document"}, r"tokenizer\.bos .* exactly when bos is 'document'"),
        ({"tokenizer": {"file": "x", "bos": 1}}, "exactly when bos is 'document'"),
        ({"dedup": {"exact": 1}}, r"dedup\.exact: expected true or false"),
        ({"dedup": {"fuzzy": True}}, r"unknown \['fuzzy'\]"),
        ({"dedup": {"near": {"threshold": 0.8}}}, "a float has no exact decimal value"),
        ({"dedup": {"near": {"threshold": "1.5"}}}, r"a threshold in \(0, 1\]"),
        ({"dedup": {"near": {"bands": 3}}}, "bands that divide the permutations"),
        ({"decontaminate": {"ngram": 13}}, "either 'source' or 'sources'"),
        ({"decontaminate": {"source": {}, "ngram": 0}}, "ngram in 1"),
        ({"mixture": {"tokens": 5}}, r"missing \['weights'\]"),
        ({"mixture": {"tokens": 5, "weights": {}}}, "a weight for each source"),
        ({"mixture": {"tokens": 5, "weights": {"a": 0.5}}}, "a float has no exact decimal value"),
        ({"mixture": {"tokens": 5, "weights": {"a": "0.0"}}}, "positive weights"),
        ({"mixture": {"tokens": 0, "weights": {"a": "1"}}}, "tokens >= 1"),
    ],
)
def test_bad_values_name_their_place(changes, message):
    with pytest.raises(DatasetError, match=message):
        Recipe.parse(recipe(**changes))
