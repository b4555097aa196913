"""The teacher-forced labels are those of greedy decoding, and do not depend on the batch."""

import numpy as np
import pytest
import torch

from analysis.score import PREFIX, WINDOW, score_windows
from tests.analysis.tiny import hf_config, new_model, random_ids


@pytest.fixture(scope="module")
def memorized() -> tuple[object, np.ndarray]:
    """A model that has learnt some of 24 random windows by heart, half of them only in part."""
    torch.set_num_threads(1)
    ids = random_ids(0, (24, WINDOW), vocab=64)
    model = new_model(hf_config(32, 2), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    ids_BK = torch.from_numpy(ids)
    half_BK = ids_BK.clone()
    half_BK[12:, 52:] = torch.from_numpy(random_ids(1, (12, WINDOW - 52), vocab=64))
    for _ in range(130):
        loss = model(half_BK, labels=half_BK).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), ids


def greedy(model: object, prompt: np.ndarray) -> np.ndarray:
    """Decode 32 ids one by one, without a cache."""
    ids = torch.from_numpy(prompt)
    with torch.inference_mode():
        for _ in range(WINDOW - PREFIX):
            best = model(ids).logits[:, -1].argmax(-1, keepdim=True)  # type: ignore[operator]
            ids = torch.cat([ids, best], dim=1)
    return ids.numpy()


def test_exact_and_accepted_length_equal_greedy_decoding(
    memorized: tuple[object, np.ndarray],
) -> None:
    model, ids = memorized
    table = score_windows(model, ids)
    same = greedy(model, ids[:, :PREFIX])[:, PREFIX:] == ids[:, PREFIX:]
    assert table["exact"].tolist() == same.all(1).tolist()
    assert table["accepted_len"].tolist() == np.cumprod(same, axis=1).sum(1).tolist()
    assert 0 < table["exact"].sum() < len(table), "the test needs both labels"
    assert table.loc[~table["exact"], "accepted_len"].between(1, 31).any()


def test_exact_is_a_positive_margin(memorized: tuple[object, np.ndarray]) -> None:
    table = score_windows(*memorized)
    assert ((table["min_margin"] > 0) == table["exact"]).all()
    assert ((table["accepted_len"] == 32) == table["exact"]).all()
    assert (table["token_matches"] >= table["accepted_len"]).all()


def test_nll_equals_the_models_own_loss(memorized: tuple[object, np.ndarray]) -> None:
    model, ids = memorized
    labels = torch.from_numpy(ids).clone()
    labels[:, :PREFIX] = -100
    with torch.inference_mode():
        loss = model(torch.from_numpy(ids), labels=labels).loss  # type: ignore[operator]
    assert score_windows(model, ids)["nll_sum"].mean() / 32 == pytest.approx(float(loss), rel=1e-5)


def test_a_windows_numbers_do_not_depend_on_the_others(
    memorized: tuple[object, np.ndarray],
) -> None:
    model, ids = memorized
    whole, part = score_windows(model, ids), score_windows(model, ids[5:6])
    assert part.iloc[0].to_dict() == whole.iloc[5].to_dict()


def test_one_changed_id_breaks_the_label(memorized: tuple[object, np.ndarray]) -> None:
    model, ids = memorized
    exact = score_windows(model, ids)["exact"].to_numpy()
    changed = ids[exact].copy()
    changed[:, 40] = changed[:, 40] % 63 + 1
    table = score_windows(model, changed)
    assert not table["exact"].any()
    assert (table["accepted_len"] == 40 - PREFIX).all()


def test_a_tie_is_not_a_match() -> None:
    model = new_model(hf_config(8, 1), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    table = score_windows(model, random_ids(3, (2, WINDOW)))
    assert (table["min_margin"] == 0).all()
    assert not table["exact"].any()
    assert (table["token_matches"] == 0).all()


def test_windows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        score_windows(None, np.zeros((2, 63), dtype=np.int64))


def test_no_windows_no_rows() -> None:
    assert len(score_windows(None, np.zeros((0, WINDOW), dtype=np.int64))) == 0
