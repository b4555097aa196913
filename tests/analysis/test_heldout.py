"""Held-out loss against the model's own loss, and its bytes against the text."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.heldout import heldout_loss, heldout_rows
from analysis.rungs import AnalysisError, SuiteDir
from analysis.subject import Subject
from data_pipeline.shards import TokenStream


def test_loss_equals_the_models_own(trained: Path) -> None:
    suite = SuiteDir.load(trained)
    subject, rows = Subject(suite.rungs[-1]), heldout_rows(suite, count=21)  # not a batch multiple
    ids = torch.from_numpy(rows.ids)
    with torch.inference_mode():
        logits = subject.model(ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert heldout_loss(subject.model, rows)["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_bits_per_byte_counts_the_bytes_of_the_text(trained: Path) -> None:
    suite = SuiteDir.load(trained)
    subject, rows = Subject(suite.rungs[0]), heldout_rows(suite)
    targets = rows.ids[:, 1:].ravel()
    text = subject.tokenizer.decode(targets[targets != 0], clean_up_tokenization_spaces=False)
    assert rows.text_bytes == len(text.encode())  # the fixture's text is ASCII
    result = heldout_loss(subject.model, rows)
    nats = result["loss"] * result["target_tokens"]
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / rows.text_bytes)


def test_an_untrained_model_knows_nothing_and_training_helps(trained: Path) -> None:
    rung = SuiteDir.load(trained).rungs[-1]
    subject, rows = Subject(rung), heldout_rows(SuiteDir.load(trained))
    before = heldout_loss(subject.model, rows)["loss"]
    subject.load(rung.checkpoints[-1])
    assert before == pytest.approx(math.log(subject.model.config.vocab_size), abs=0.15)
    assert heldout_loss(subject.model, rows)["loss"] < before - 1


def test_rows_are_of_the_heldout_split_and_fixed(trained: Path) -> None:
    suite = SuiteDir.load(trained)
    rows = heldout_rows(suite, count=4)
    stream = TokenStream(suite.dataset, "heldout").read(0, rows.ids.shape[1])
    assert np.array_equal(rows.ids[0], stream)
    assert heldout_rows(suite, count=4).digest == rows.digest
    assert heldout_rows(suite, count=5).digest != rows.digest


def test_no_heldout_text_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenStream, "num_sequences", lambda self, seq_len: 0)
    with pytest.raises(AnalysisError, match="heldout_permille"):
        heldout_rows(SuiteDir.load(trained))
