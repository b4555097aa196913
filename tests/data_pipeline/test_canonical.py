import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex

text = st.text(st.characters(codec="utf-8"), max_size=8)
leaves = st.none() | st.booleans() | st.integers() | text
records = st.recursive(
    leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(text, x, max_size=4), max_leaves=12
)


def test_published_vector():
    record = {"b": [1, True, None], "a": {"é": "数\n"}, "": (2**70,)}
    expected = '{"":[1180591620717411303424],"a":{"é":"数\\n"},"b":[1,true,null]}'
    assert canonical_json(record) == expected.encode()


@given(records)
def test_reading_and_writing_again_gives_the_same_bytes(record):
    data = canonical_json(record)
    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(st.text("abé数"), st.integers()))
def test_the_order_in_which_keys_were_set_does_not_matter(record):
    backwards = dict(reversed(list(record.items())))
    assert canonical_json(record) == canonical_json(backwards)


@pytest.mark.parametrize(
    "record", [1.0, float("nan"), {"a": [{"b": 0.5}]}, {1: "a"}, {"a": b"x"}, {"a": {1, 2}}]
)
def test_floats_other_keys_and_other_types_are_refused(record):
    with pytest.raises(TypeError, match=r"canonical JSON"):
        canonical_json(record)


def test_the_message_says_where_the_float_is():
    with pytest.raises(TypeError, match=r"0\.5 at \$\.a\[1\]\.b"):
        canonical_json({"a": [0, {"b": 0.5}]})


def test_a_lone_surrogate_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        canonical_json("\ud800")


def test_file_and_bytes_have_one_digest(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_hex(data) == hashlib.sha256(data).hexdigest()
