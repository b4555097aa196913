"""Occurrences are exact: against brute force, at every border, and when hashes collide."""

import numpy as np
import pytest

from analysis import windows
from analysis.windows import Consumed, find_occurrences, window_hashes

SEQ_LEN, LENGTH = 20, 8


class Stream:
    """A stream in memory."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def sequences(self, seq_ids: np.ndarray, seq_len: int) -> np.ndarray:
        return np.stack([self.ids[i * seq_len : i * seq_len + seq_len + 1] for i in seq_ids])


class Order:
    """A fixed permutation, repeated every epoch."""

    def __init__(self, permutation: list[int]) -> None:
        self.permutation = permutation

    def sequences(self, first: int, count: int) -> np.ndarray:
        size = len(self.permutation)
        return np.array([self.permutation[p % size] for p in range(first, first + count)])


def brute_force(consumed: Consumed, window: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for first, ids in consumed.chunks(size=1):
        for column in range(ids.shape[1] - len(window) + 1):
            if (ids[0, column : column + len(window)] == window).all():
                found.append((first, column))
    return found


def consumed_part(positions: int, vocab: int = 2, sequences: int = 12) -> Consumed:
    ids = np.random.RandomState(1).randint(0, vocab, sequences * SEQ_LEN + 1)
    permutation = np.random.RandomState(2).permutation(sequences).tolist()
    return Consumed(Stream(ids), Order(permutation), SEQ_LEN, positions)


@pytest.mark.parametrize("positions", [1, 7, 12, 30])
def test_occurrences_equal_brute_force_over_repeats_and_epochs(positions: int) -> None:
    consumed = consumed_part(positions)
    every = consumed.stream.sequences(np.arange(12), SEQ_LEN)
    wanted = np.concatenate([every[:, c : c + LENGTH] for c in (0, 5, 13)])
    found = find_occurrences(consumed, wanted)
    for number, window in enumerate(wanted):
        mine = found.window == number
        pairs = list(zip(found.position[mine].tolist(), found.column[mine].tolist(), strict=True))
        assert pairs == brute_force(consumed, window)


def test_a_window_across_a_border_is_not_an_occurrence() -> None:
    consumed = Consumed(Stream(np.arange(3 * SEQ_LEN + 1)), Order([0, 1, 2]), SEQ_LEN, 3)
    last_inside = np.arange(SEQ_LEN + 1 - LENGTH, SEQ_LEN + 1)  # uses the one shared id
    across = last_inside + 1
    found = find_occurrences(consumed, np.stack([last_inside, across]))
    assert found.window.tolist() == [0]
    assert (found.position.tolist(), found.column.tolist()) == ([0], [SEQ_LEN + 1 - LENGTH])


def test_equal_windows_both_get_their_occurrences() -> None:
    consumed = consumed_part(12)
    window = consumed.stream.sequences(np.array([3]), SEQ_LEN)[:, :LENGTH]
    found = find_occurrences(consumed, np.concatenate([window, window]))
    first, second = (found.position[found.window == number] for number in (0, 1))
    assert len(first) >= 1
    assert first.tolist() == second.tolist()


def test_collisions_do_not_change_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    consumed = consumed_part(12)
    wanted = consumed.stream.sequences(np.arange(12), SEQ_LEN)[:, :LENGTH]
    expected = find_occurrences(consumed, wanted)

    def few_hashes(ids: np.ndarray, length: int = LENGTH) -> np.ndarray:
        return window_hashes(ids, length) % np.uint64(3)

    monkeypatch.setattr(windows, "window_hashes", few_hashes)
    found = find_occurrences(consumed, wanted)
    assert found.window.tolist() == expected.window.tolist()
    assert found.position.tolist() == expected.position.tolist()
    assert found.column.tolist() == expected.column.tolist()


def test_steps_are_positions_divided_by_the_batch() -> None:
    consumed = Consumed(Stream(np.zeros(3 * SEQ_LEN + 1, int)), Order([0, 1, 2]), SEQ_LEN, 5)
    found = find_occurrences(consumed, np.zeros((1, 16), int))
    # Five windows of 16 zeros in each of the five sequences read, two sequences a step.
    width = SEQ_LEN + 1 - 15
    assert found.steps(0, batch_size=2) == [0] * 2 * width + [1] * 2 * width + [2] * width


def test_hash_depends_on_every_id_and_its_place() -> None:
    ids = np.arange(1, 65)[None, :]
    base = int(window_hashes(ids)[0, 0])
    for place in range(64):
        changed = ids.copy()
        changed[0, place] += 1
        assert int(window_hashes(changed)[0, 0]) != base
    assert int(window_hashes(ids[:, ::-1])[0, 0]) != base


@pytest.mark.parametrize("length", [0, 3, 128])
def test_bad_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        window_hashes(np.zeros((1, 64), int), length)
