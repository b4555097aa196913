"""The lm-eval harness over checkpoints: tasks loaded once, weights swapped in place.

Guarantees: the harness's own request cache is never used. Its keys do not name the weights, so with
it a second checkpoint gets the first one's numbers (lm-evaluation-harness#2715, #4063). Every batch
has a fixed size; the items and their order are fixed by the tasks' digest.

Standard errors that need bootstrap resampling are not computed (``bootstrap_iters=0``); intervals
of accuracies are Wilson intervals from the number of items.
"""

import contextlib
import io
import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.eval_tasks import TASKS, EvalTasks

NAME = "lm-eval-0.4.13"
METRICS = {
    "tripod_continuation": ("acc", "acc_mutual_info"),
    "tripod_heldout_ppl": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


@dataclass(frozen=True)
class Harness:
    """The loaded tasks; build one per process with ``load_harness``."""

    tasks: EvalTasks
    task_dict: Any


def load_harness(tasks: EvalTasks) -> Harness:
    """Load the suite's tasks, and no others, into the harness.

    Raises:
        ValueError: the installed harness is not the version that ``NAME`` states.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    if f"lm-eval-{lm_eval.__version__}" != NAME:
        raise ValueError(
            f"expected {NAME}, found lm-eval {lm_eval.__version__}; install requirements.lock"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm-eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(tasks.directory), include_defaults=False)
    return Harness(tasks, manager.load(list(TASKS)))


def evaluate(harness: Harness, lm: Any) -> dict[str, Any]:
    """Run the tasks on the weights that the model holds now.

    Args:
        harness: the tasks.
        lm: a harness model, ``Subject.language_model``.

    Returns:
        The harness's result record, samples included.
    """
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        results = lm_eval_evaluate(
            lm, harness.task_dict, bootstrap_iters=0, log_samples=True, cache_requests=False
        )
    if results is None:
        raise RuntimeError("expected results from lm-eval, found None; run it as one rank")
    return dict(results)


def result_rows(results: dict[str, Any]) -> pd.DataFrame:
    """The harness's record as rows: task, metric, value, n."""
    rows = [
        {
            "task": task,
            "metric": metric,
            "value": float(results["results"][task][f"{metric},none"]),
            "n": len(results["samples"][task]),
        }
        for task in TASKS
        for metric in METRICS[task]
    ]
    return pd.DataFrame(rows)


def public_record(results: dict[str, Any]) -> dict[str, Any]:
    """The part of the harness's record that is kept as JSON.

    Kept: results, configs, versions, n-shot, counts, and per item its document, prompt and target
    hashes with the log-probabilities. Left out: the texts, which are in the task's items.
    """
    keep = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    record = {key: results[key] for key in keep if key in results}
    fields = (
        "doc_id",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "filtered_resps",
        "acc",
        "acc_mutual_info",
    )
    record["samples"] = {
        task: [{key: sample[key] for key in fields if key in sample} for sample in samples]
        for task, samples in results["samples"].items()
    }
    return record
