"""lm-eval over checkpoints: swapped weights equal a fresh load, nothing is kept across weights."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis import eval_tasks, evals
from analysis.eval_tasks import ItemSizes, continuation_items, ppl_items, write_tasks
from analysis.rungs import AnalysisError, SuiteDir
from analysis.subject import EVAL_BATCH, Subject
from data_pipeline.canonical import sha256_hex

SIZES = ItemSizes(continuation=8, ppl=4, ppl_chars=100)


@pytest.fixture(scope="module")
def suite(trained: Path) -> SuiteDir:
    return SuiteDir.load(trained)


@pytest.fixture(scope="module")
def harness(suite: SuiteDir) -> evals.Harness:
    return evals.load_harness(write_tasks(suite, SIZES))


@pytest.fixture(scope="module")
def documents(suite: SuiteDir) -> list[tuple[str, str]]:
    return eval_tasks.heldout_texts(suite)


def log_probabilities(results: dict[str, Any]) -> list[Any]:
    return [
        sample["filtered_resps"] for task in eval_tasks.TASKS for sample in results["samples"][task]
    ]


def test_swapped_weights_equal_a_fresh_load_bit_for_bit(
    suite: SuiteDir, harness: evals.Harness
) -> None:
    from lm_eval.models.huggingface import HFLM

    rung = suite.rungs[-1]
    subject = Subject(rung)
    evals.evaluate(harness, subject.language_model)  # step 0 first, so that a cache could be filled
    subject.load(rung.checkpoints[-1])
    swapped = evals.evaluate(harness, subject.language_model)
    snapshot = rung.checkpoints[-1].weights.parent
    fresh = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(snapshot).eval(),
        tokenizer=AutoTokenizer.from_pretrained(snapshot),
        batch_size=EVAL_BATCH,
    )
    expected = evals.evaluate(harness, fresh)
    assert log_probabilities(swapped) == log_probabilities(expected)
    assert evals.result_rows(swapped).equals(evals.result_rows(expected))


def test_two_checkpoints_give_different_scores(suite: SuiteDir, harness: evals.Harness) -> None:
    rung = suite.rungs[-1]
    subject = Subject(rung)
    first = evals.evaluate(harness, subject.language_model)
    subject.load(rung.checkpoints[-1])
    last = evals.evaluate(harness, subject.language_model)
    pairs = zip(log_probabilities(first), log_probabilities(last), strict=True)
    assert all(a != b for a, b in pairs)
    bits = [
        evals.result_rows(r).set_index("metric").loc["bits_per_byte", "value"]
        for r in (first, last)
    ]
    assert bits[1] < bits[0]


def test_perplexity_of_an_excerpt_equals_the_models_loss(
    suite: SuiteDir, harness: evals.Harness, documents: list[tuple[str, str]]
) -> None:
    """The harness scores each excerpt after one end-of-document mark: recompute it by hand."""
    import math

    import torch

    subject = Subject(suite.rungs[0])
    results = evals.evaluate(harness, subject.language_model)
    total_nats = total_bytes = 0.0
    for item in ppl_items(documents, SIZES):
        ids = [0, *subject.tokenizer(item["text"])["input_ids"]]
        with torch.inference_mode():
            logits = subject.model(torch.tensor([ids[:-1]])).logits[0].double()
        total_nats -= float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum())
        total_bytes += len(str(item["text"]).encode())
    found = results["results"]["tripod_heldout_ppl"]["bits_per_byte,none"]
    assert found == pytest.approx(total_nats / total_bytes / math.log(2), rel=1e-5)


def test_rows_and_record_name_every_metric(suite: SuiteDir, harness: evals.Harness) -> None:
    results = evals.evaluate(harness, Subject(suite.rungs[0]).language_model)
    rows = evals.result_rows(results)
    assert rows["n"].tolist() == [8, 8, 4, 4, 4]
    expected = ["acc", "acc_mutual_info", "word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert rows["metric"].tolist() == expected
    record = evals.public_record(results)
    assert len(record["samples"]["tripod_continuation"]) == 8
    assert "doc" not in record["samples"]["tripod_continuation"][0]


def test_items_are_fair(documents: list[tuple[str, str]]) -> None:
    texts = dict(documents)
    items = continuation_items(documents, SIZES)
    assert len(items) == 8
    assert len({item["label"] for item in items}) > 1
    for item in items:
        choices, truth = item["choices"], item["choices"][item["label"]]  # type: ignore[index,call-overload]
        assert len(set(choices)) == 4
        assert {len(choice) for choice in choices} == {SIZES.choice_chars}
        assert item["context"] + truth in texts[item["document"]]  # type: ignore[index,operator]
        wrong = [choice for choice in choices if choice != truth]
        assert not any(item["context"] + choice in texts[item["document"]] for choice in wrong)  # type: ignore[index,operator]
        assert all(choice[0].isspace() for choice in choices)


def test_items_follow_the_text_and_the_sizes_only(suite: SuiteDir) -> None:
    tasks = write_tasks(suite, SIZES)
    before = {path.name: path.read_bytes() for path in tasks.directory.iterdir() if path.is_file()}
    assert write_tasks(suite, SIZES) == tasks
    assert before == {
        path.name: path.read_bytes() for path in tasks.directory.iterdir() if path.is_file()
    }
    assert write_tasks(suite, ItemSizes(continuation=9, ppl=4)).digest != tasks.digest
    assert tasks.directory.name == tasks.digest[:16]
    assert len(sha256_hex(b"")) == len(tasks.digest)


def test_too_little_text_is_named() -> None:
    with pytest.raises(AnalysisError, match="heldout_permille"):
        continuation_items([("only", "word " * 400)], SIZES)
    with pytest.raises(AnalysisError, match="found none"):
        ppl_items([("short", "word")], SIZES)


def test_another_harness_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, suite: SuiteDir
) -> None:
    import lm_eval

    monkeypatch.setattr(lm_eval, "__version__", "0.4.99")
    with pytest.raises(ValueError, match=r"expected lm-eval-0\.4\.13, found lm-eval 0\.4\.99"):
        evals.load_harness(write_tasks(suite, SIZES))
