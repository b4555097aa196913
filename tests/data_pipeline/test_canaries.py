import copy
import hashlib
import itertools
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.canaries import (
    CanaryPlan,
    content_number,
    describe_plan,
    plan_canaries,
    secret_candidates,
)
from data_pipeline.canary_study import Study
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.draws import Draws
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Binding

S, B, V, EOD = 40, 8, 300, 0
BINDING = Binding("ab" * 32, "order-v1", 0, S, B, V, EOD)
WORDS = ["alpha", "beta", "gamma", "delta"]


def encode(text):
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) + 1


def group(name="random", kind=None, copies=None, **options):
    return {
        "name": name,
        "type": kind or {"kind": "random_ids", "length": 12},
        "copies": copies or {"0": 4, "1": 8, "4": 8, "16": 4},
        "spacing": "even",
        **options,
    }


def study(*groups, key="5e" * 32, permille=500, first=10, last=110):
    return {
        "schema": "canary-study-v1",
        "key": key,
        "first_step": first,
        "last_step": last,
        "include_permille": permille,
        "groups": list(groups) or [group()],
    }


def planned(record, binding=BINDING):
    return plan_canaries(Study.parse(record), binding, encode)


TEMPLATE = {"kind": "template", "templates": ["Vault {index} opens with {secret}."], "digits": 6}
EVERY_TYPE = study(
    group(),
    group("words", {"kind": "random_text", "words": 5, "word_list": WORDS}, spacing="random"),
    group("pin", TEMPLATE, {"1": 3, "4": 3}, first_step=50, last_step=60),
    group("poems", {"kind": "natural", "texts": ["Roses", "Violets", "Sugar"]}, {"4": 3}),
)


def test_published_vector():
    record = study(
        group("r", {"kind": "random_ids", "length": 4}, {"0": 1, "1": 2, "4": 2}),
        {
            **group("p", {"kind": "template", "templates": ["{index}: {secret}"], "digits": 4}),
            "copies": {"1": 2},
            "spacing": "random",
            "include_permille": 1000,
        },
        key=bytes(range(32)).hex(),
        first=2,
        last=10,
    )
    plan = planned(record, Binding("00" * 32, "order-v1", 0, 16, 4, 300, 0))
    planted = "53f34774ec47edbd6cb5ceab507571bab4e503cbe25419a25e3c3433de3bf4f0"
    assert plan.digest == "4a6c1af290140b2e04bfe2c23254a94f2a113f5a814eecc082e28704b9f7996e"
    assert plan.overlay().digest == planted
    assert [c.text for c in plan.canaries[5:]] == ["1: 4275", "0: 1920"]
    assert plan.canaries[3].placements == ((8, 8), (17, 13), (26, 11), (32, 10))


def test_draws_follow_their_formula():
    key = bytes(range(32))
    label = hashlib.sha256(b'["content","a",3]').digest()
    words = [
        int.from_bytes(
            hashlib.sha256(b"draws-v1\0" + key + label + struct.pack("<Q", k)).digest()[:8],
            "little",
        )
        for k in range(3)
    ]
    draws = Draws(key, "content", "a", 3)
    assert [draws.below(1 << 64) for _ in range(3)] == words
    assert Draws(key, "content", "a", 3).below(10) == words[0] % 10
    assert Draws(key, "content", "a,3").below(1 << 64) != words[0]


def test_draws_are_uniform_and_skip_the_ragged_end():
    draws = Draws(bytes(32), "uniform")
    counts = Counter(draws.below(7) for _ in range(7000))
    assert max(abs(counts[k] - 1000) for k in range(7)) < 150
    most = (1 << 63) + 1  # nearly half of all words lie above the only multiple
    assert all(draws.below(most) < most for _ in range(50))
    assert sorted(draws.shuffled(20)) == list(range(20))
    assert len({tuple(Draws(bytes(32), k).shuffled(4)) for k in range(400)}) == 24
    for n in (0, (1 << 64) + 1):
        with pytest.raises(ValueError, match="expected n in"):
            draws.below(n)
    with pytest.raises(ValueError, match="32 bytes"):
        Draws(b"", "x")


@st.composite
def studies(draw):
    first = draw(st.integers(0, 50))
    copies = draw(st.dictionaries(st.sampled_from([0, 1, 4, 16]), st.integers(1, 4), min_size=1))
    return study(
        group(
            kind={"kind": "random_ids", "length": draw(st.integers(8, S))},
            copies={str(k): n for k, n in copies.items()},
            spacing=draw(st.sampled_from(["even", "random"])),
        ),
        group("pin", TEMPLATE, {"1": draw(st.integers(1, 4))}),
        key=draw(st.binary(min_size=32, max_size=32)).hex(),
        permille=draw(st.sampled_from([0, 500, 1000])),
        first=first,
        last=first + draw(st.integers(40, 80)),
    )


@settings(deadline=None, max_examples=60)
@given(studies())
def test_every_plan_keeps_its_promises(record):
    plan = planned(record)
    overlay = plan.overlay()  # refuses overlaps, marks and ids outside the row or vocabulary
    assert overlay.plan == plan.digest
    places = [place for canary in plan.canaries for place in canary.placements]
    positions = [position for position, _ in places]
    assert len(set(positions)) == len(positions) == len(overlay.entries)
    for canary in plan.canaries:
        assert len(canary.placements) == (canary.copies if canary.included else 0)
        for position, column in canary.placements:
            assert record["first_step"] <= position // B < record["last_step"]
            assert 1 <= column <= S + 1 - len(canary.ids)
    permille = record["include_permille"]
    if permille in (0, 1000):
        assert all(c.included == (permille == 1000 and c.copies > 0) for c in plan.canaries)
    assert planned(copy.deepcopy(record)).data == plan.data


def test_planting_changes_no_content_and_no_other_canary():
    half, none, all_in = (planned(study(*EVERY_TYPE["groups"], permille=p)) for p in (500, 0, 1000))
    for a, b, c in zip(half.canaries, none.canaries, all_in.canaries, strict=True):
        assert (a.ids, a.text, a.copies) == (b.ids, b.text, b.copies) == (c.ids, c.text, c.copies)
    included = [c.included for c in half.canaries if c.copies]
    assert 0 < sum(included) < len(included)


def test_inclusion_is_balanced_and_independent_of_the_key_only_by_the_key():
    copies = {"1": 400, "4": 400}
    one = planned(study(group(copies=copies), last=2010, key="11" * 32))
    two = planned(study(group(copies=copies), last=2010, key="22" * 32))
    for plan in (one, two):
        for cell in describe_plan(plan)["groups"]:
            assert abs(cell["z"]) < 4
            assert cell["included"] + cell["held_out"] == 400
    both = sum(a.included and b.included for a, b in zip(one.canaries, two.canaries, strict=True))
    assert 130 < both < 270  # 200 of 800 on average
    rare = planned(study(group(copies=copies), permille=100, last=2010))
    assert 40 < sum(c.included for c in rare.canaries) < 130


def test_members_and_non_members_have_the_same_ids_on_average():
    plan = planned(study(group(copies={"1": 600}), last=2010))
    means = [
        np.mean([c.ids for c in plan.canaries if c.included is included])
        for included in (True, False)
    ]
    spread = np.std([c.ids for c in plan.canaries]) / np.sqrt(300 * 12)
    assert abs(means[0] - means[1]) < 5 * spread
    ids = Counter(i for c in plan.canaries for i in c.ids)
    assert EOD not in ids
    assert set(range(1, V)) == set(ids)


def test_even_spacing_is_even_and_random_is_not():
    record = study(group(copies={"16": 6}), permille=1000)
    even = planned(record)
    gaps = [
        b - a
        for canary in even.canaries
        for a, b in itertools.pairwise(sorted(p // B for p, _ in canary.placements))
    ]
    assert set(gaps) <= {6, 7}  # 100 steps, 16 copies
    record["groups"][0]["spacing"] = "random"
    random = planned(record)
    steps = sorted(p // B for p, _ in random.canaries[0].placements)
    assert {b - a for a, b in itertools.pairwise(steps)} - {6, 7}


def test_a_full_window_is_filled_exactly_and_then_refused():
    record = study(group(copies={"16": 2}), permille=1000, first=0, last=4)
    plan = planned(record)
    assert sorted(p for c in plan.canaries for p, _ in c.placements) == list(range(4 * B))
    record["groups"][0]["copies"] = {"16": 2, "1": 1}
    with pytest.raises(DatasetError, match=r"steps \[0, 4\), found all 32 taken"):
        planned(record)


def test_types():
    plan = planned(EVERY_TYPE)
    by_group = {g.name: [c for c in plan.canaries if c.group == g.name] for g in plan.study.groups}
    assert all(c.text is None and len(c.ids) == 12 for c in by_group["random"])
    for canary in by_group["words"]:
        assert set(canary.text.split(" ")) <= set(WORDS)
        assert canary.ids == tuple(encode(canary.text).tolist())
    for canary in by_group["pin"]:
        number = content_number(plan, canary)
        assert canary.text == f"Vault {number} opens with {canary.secret}."
        assert len(canary.secret) == 6
        assert canary.secret.isdecimal()
        assert all(50 <= p // B < 60 for p, _ in canary.placements)
    assert {c.text for c in by_group["poems"]} == {"Roses", "Violets", "Sugar"}
    cells = describe_plan(plan)
    assert sum(cell["canaries"] for cell in cells["groups"]) == len(plan.canaries)
    assert cells["rows"] == len(plan.overlay().entries) == len(plan.overlay().positions())
    assert cells["digest"] == plan.digest
    assert 0 < cells["share"] < 1
    one = next(cell for cell in cells["groups"] if (cell["group"], cell["copies"]) == ("random", 4))
    members = [c for c in by_group["random"] if c.copies == 4 and c.included]
    assert one["included"] == len(members)
    assert one["planted"] == 4 * len(members)
    assert one["mean_gap"] == pytest.approx(25, abs=0.5)


def test_texts_are_dealt_by_the_key():
    texts = [f"text number {k}" for k in range(30)]
    record = study(group("poems", {"kind": "natural", "texts": texts}, {"0": 15, "1": 15}))
    first = [c.text for c in planned(record).canaries if c.copies == 0]
    assert first != texts[:15]
    assert len(set(first) & set(texts[:15])) < 14


def test_candidates_for_exposure():
    plan = planned(EVERY_TYPE)
    canary = next(c for c in plan.canaries if c.group == "pin")
    found = secret_candidates(plan, canary, 50, encode)
    number = content_number(plan, canary)
    secrets = [c.secret for c in found]
    assert len(set(secrets)) == 50
    assert canary.secret not in secrets
    assert all(c.text == f"Vault {number} opens with {c.secret}." for c in found)
    assert found[:20] == secret_candidates(plan, canary, 20, encode)
    other = next(c for c in plan.canaries if c.group == "random")
    with pytest.raises(DatasetError, match="expected a template canary"):
        secret_candidates(plan, other, 5, encode)
    with pytest.raises(DatasetError, match="fewer candidates than secrets"):
        secret_candidates(plan, canary, 10**6, encode)


def test_a_plan_changed_by_hand_is_refused(tmp_path):
    plan, path = planned(EVERY_TYPE), tmp_path / "plan.json"
    path.write_bytes(plan.data)
    assert CanaryPlan.load(path, encode) == plan
    assert plan.digest == sha256_hex(plan.data)
    for old, new in (
        (b'"included":false', b'"included":true'),
        (b'"copies":4', b'"copies":5'),
        (b'"schema":"canary-plan-v1"', b'"schema":"canary-plan-v2"'),
        (b"Vault", b"vault"),
    ):
        assert old in plan.data
        path.write_bytes(plan.data.replace(old, new, 1))
        with pytest.raises(
            DatasetError, match=r"plan\.json: expected the plan that its study gives"
        ):
            CanaryPlan.load(path, encode)
    path.write_bytes(plan.data)
    with pytest.raises(DatasetError, match="made with another tokenizer"):
        CanaryPlan.load(path, lambda text: encode(text) + 1)
    for raw in (b"[]", b"{}", b"x", canonical_json({"study": {}, "binding": {}})):
        path.write_bytes(raw)
        with pytest.raises(DatasetError, match=r"plan\.json: "):
            CanaryPlan.load(path, encode)
    with pytest.raises(DatasetError, match="found no file"):
        CanaryPlan.load(tmp_path / "none.json", encode)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (study(group(kind={"kind": "random_ids", "length": S + 1})), "expected 1 to 40 ids"),
        (
            study(group(kind={"kind": "random_ids", "length": 1}, copies={"1": 299})),
            "different ids",
        ),
        (study(group("poems", {"kind": "natural", "texts": ["x" * 41]}, {"1": 1})), "1 to 40 ids"),
    ],
)
def test_impossible_plans_are_refused(record, message):
    with pytest.raises(DatasetError, match=message):
        planned(record)


def test_a_canary_with_the_mark_is_refused():
    record = study(group("poems", {"kind": "natural", "texts": ["x"]}, {"1": 1}))
    with pytest.raises(DatasetError, match="without an end-of-document mark"):
        plan_canaries(Study.parse(record), BINDING, lambda text: np.array([5, EOD]))


def changed(**change):
    return study(group(**change))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected the keys"),
        ({**study(), "more": 1}, "expected the keys"),
        ({**study(), "schema": "canary-study-v2"}, "schema canary-study-v1"),
        (study(key="5E" * 32), "openssl rand -hex 32"),
        (study(permille=1001), r"include_permille: expected an integer in \[0, 1000\]"),
        (study(permille=0.5), "include_permille"),
        (study(first=5, last=5), "0 <= first_step < last_step"),
        (study(group(), group()), "different names"),
        (changed(name="a/b"), "a name without '/'"),
        (changed(spacing="clumped"), "spacing: expected one of"),
        (changed(more=1), "expected the keys"),
        (changed(first_step=-1), "0 <= first_step"),
        (changed(copies={"04": 1}), "expected a decimal"),
        (changed(copies={"-1": 1}), "expected a decimal"),
        (changed(copies={"4": 0}), "canaries of 4 copies"),
        (changed(copies=[4]), "copies: expected"),
        (changed(kind={"kind": "poem"}), "kind: expected one of"),
        (changed(kind=["x"]), "kind: expected one of"),
        (changed(kind={"kind": "random_ids"}), "type random_ids: expected the keys"),
        (changed(kind={"kind": "random_ids", "length": 0}), "length: expected"),
        (changed(kind={"kind": "random_text", "words": 3, "word_list": ["a"]}), "at least 2"),
        (changed(kind={"kind": "random_text", "words": 3, "word_list": ["a", "a"]}), "different"),
        (changed(kind={"kind": "natural", "texts": ["a"]}), "at least 24 different"),
        (changed(kind={**TEMPLATE, "digits": 19}), r"digits: expected an integer in \[1, 18\]"),
        (changed(kind={**TEMPLATE, "templates": ["no digits"]}), "{secret} once"),
        (changed(kind={**TEMPLATE, "templates": ["{secret}"]}), "one for each of the 24 canaries"),
    ],
)  # fmt: skip
def test_bad_studies_are_refused(record, message):
    with pytest.raises(DatasetError, match=message):
        Study.parse(record)
