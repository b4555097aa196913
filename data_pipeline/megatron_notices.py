"""What users of Megatron files must know and the files do not say, as plain sentences."""

from data_pipeline.megatron_index import MegatronIndex

_PYTHIA_EOD = (
    "Of Pythia's published sets: its README says that a mark separates documents, users found no "
    "id 0 at all in the deduplicated preshuffled set, and the others are unverified"
)


def describe_megatron(index: MegatronIndex) -> list[str]:
    """Return the notices for a dataset, to be shown wherever its batches are.

    They say what is unknown about end-of-document marks, what an item is, and what several epochs
    in one shuffle mean.
    """
    return [*_eod(index), *_items(index), *_epochs(index)]


def _eod(index: MegatronIndex) -> list[str]:
    policy, eod = index.data["eod_policy"], index.eod
    counted = ""
    if eod is not None:
        marks = sum(part["eod_count"] for part in index.data["parts"])
        closing = sum(part["eod_closing"] for part in index.data["parts"])
        items = sum(part["items"] for part in index.data["parts"])
        counted = (
            f" Here id {eod} occurs {marks:,} times and closes {closing:,} of {items:,} items."
        )
    if policy == "unknown":
        return [
            "EOD unknown: nothing declares whether a mark closes each document; do not count on "
            f"it.{counted} {_PYTHIA_EOD}."
        ]
    if policy == "none":
        return [
            "No EOD: no mark stands between documents; the text of neighbours runs together, and "
            f"document borders cannot be found from the ids.{counted}"
        ]
    return []


def _items(index: MegatronIndex) -> list[str]:
    if index.plan is None:
        return [
            "Items are sequences in reading order, not documents: which documents they hold, and "
            "where these come from, is not recorded; nothing in the files proves that a model was "
            "trained on them."
        ]
    return ["Sources unknown: items carry a number, no text digest and no source name."]


def _epochs(index: MegatronIndex) -> list[str]:
    plan = index.plan
    if plan is None:
        return []
    notices = []
    weights, neox = index.weights, index.data["neox"]
    for number, part in enumerate(index.data["parts"]):
        epochs = neox["epochs"][number]
        if epochs < 2:
            continue
        text = (
            f"Part {part['name']!r}: E = {epochs} epochs in one joint shuffle: there is no clean "
            "first epoch, and documents come again from the start."
        )
        if plan.num_samples is not None:
            share = weights[number] / sum(weights) if plan.split is None else 1.0
            read = min(1.0, plan.num_samples * share / neox["samples"][number])
            text += f" After {plan.num_samples:,} samples {_times_seen(read, epochs)}."
        notices.append(text)
    return notices


def _times_seen(read: float, epochs: int) -> str:
    """Expected shares of documents read 0, 1 and at least 2 times, when each slot is read alike."""
    never = (1 - read) ** epochs
    once = epochs * read * (1 - read) ** (epochs - 1)
    more = 1 - never - once
    return (
        f"about {never:.1%} of the documents have been read 0 times, {once:.1%} once and "
        f"{more:.1%} at least twice"
    )
