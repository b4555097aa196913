import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.canonical import sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.tokenizer import CONFORMANCE_TEXT, EOD, EOD_TEXT, Tokenizer, load, train_bpe

TEXTS = [
    f"def f_{k}(x_{k % 7}):\n    return x_{k % 7} * {k * k}  # naïve 数据 {'ab' * (k % 5)}\n"
    for k in range(300)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 400)


TRAIN = """
import sys
from data_pipeline.tokenizer import train_bpe
texts = [line.replace("\\\\n", "\\n") for line in sys.stdin.read().split("\\n")]
tokenizer = train_bpe(texts, 400)
from data_pipeline.canonical import sha256_hex
print(sha256_hex(tokenizer.data), tokenizer.conformance_sha256())
"""


def test_training_gives_the_same_bytes_with_one_thread_and_with_two():
    results = set()
    for threads, parallel in (("1", "true"), ("2", "true"), ("2", "false")):
        result = subprocess.run(
            [sys.executable, "-c", TRAIN],
            input="\n".join(text.replace("\n", "\\n") for text in TEXTS * 20),
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        )
        results.add(result.stdout)
    assert len(results) == 1


def test_training_does_not_depend_on_the_order_of_the_texts(tokenizer):
    assert train_bpe(TEXTS[::-1], 400).data == tokenizer.data


def test_other_text_gives_another_tokenizer(tokenizer):
    other = train_bpe([text.replace("return", "yield ") for text in TEXTS], 400)
    assert other.data != tokenizer.data
    assert other.conformance_sha256() != tokenizer.conformance_sha256()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_every_text_comes_back_byte_for_byte_and_holds_no_mark(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert EOD not in ids


def test_the_literal_mark_in_a_text_is_ordinary_text(tokenizer):
    text = f"a{EOD_TEXT}b {EOD_TEXT}"
    ids = tokenizer.encode(text)
    assert EOD not in ids
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode_bytes(np.array([EOD])) == EOD_TEXT.encode()


def test_batches_and_single_texts_give_the_same_ids(tokenizer):
    batch = tokenizer.encode_batch([*TEXTS, ""])
    assert all(np.array_equal(a, tokenizer.encode(b)) for a, b in zip(batch, TEXTS, strict=False))
    assert batch[-1].tolist() == []


def test_the_conformance_text_reaches_many_kinds_of_bytes(tokenizer):
    assert EOD not in tokenizer.encode(CONFORMANCE_TEXT)
    assert tokenizer.decode_bytes(tokenizer.encode(CONFORMANCE_TEXT)) == CONFORMANCE_TEXT.encode()
    digest = "7b4bef7cbde831da82f3398c6d9940f3a43f0f750be8f7c25e96d75af5b8977b"
    assert sha256_hex(CONFORMANCE_TEXT.encode()) == digest


def test_a_file_behaves_like_what_was_trained(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.data)
    again = load(tmp_path / "tokenizer.json")
    assert again.vocab_size == 400
    assert again.conformance_sha256() == tokenizer.conformance_sha256()
    assert json.loads(again.data)["added_tokens"][0]["id"] == EOD


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for ids in ([400], [-1]):
        with pytest.raises(ValueError, match=r"expected ids in \[0, 400\)"):
            tokenizer.decode_bytes(np.array(ids))


@pytest.mark.parametrize(
    ("size", "message"), [(256, "vocab_size >= 257"), (5000, "found .* after")]
)
def test_impossible_vocabularies_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(TEXTS[:3], size)


@pytest.mark.parametrize("data", [b"{}", b"\xff", b'{"version":"1.0","added_tokens":[]}'])
def test_a_file_that_is_no_tokenizer_is_refused(data):
    with pytest.raises(DatasetError, match=r"tokenizer\.json: expected"):
        Tokenizer(data)
