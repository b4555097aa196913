import json
import random
import time

import numpy as np
import pytest

from data_pipeline import fast_tokenizer
from data_pipeline.fast_tokenizer import conformance_texts, encoder_for
from data_pipeline.tokenizer import EOD, EOD_TEXT, Tokenizer, byte_alphabet, train_bpe

TEXTS = [
    f"def f_{k}(x_{k % 7}):\n        return x_{k % 7} * {k * k}  # naïve 数据 {'ab' * (k % 5)}\n"
    f"\t\tIt's we'll\r\n\r\n{' ' * (k % 9)}été {chr(0x3B1 + k % 20)} {k}.{k}e-{k % 9} ___ ///\n"
    for k in range(300)
]
LIKE_NEOX = [" " * length for length in range(24, 1, -1)]
SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2003\u2028\u200b\u3000\ufeff"
MARKS = "'\"<|>_-=/\\#\x00\x1b\x7f½②Ⅷ٣\u0301\u0300\u0323\u093c\u3099가각é数🙂\u200d\U0001f308"


def changed(tokenizer, **parts):
    """The same tokenizer.json with other parts; ``model`` is merged into the model."""
    data = json.loads(tokenizer.data)
    data["model"] |= parts.pop("model", {})
    return Tokenizer(json.dumps(data | parts).encode())


def added(content, index, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"id": index, "content": content, "special": False} | plain | flags


@pytest.fixture(scope="module")
def plain():
    return train_bpe(TEXTS, 700)


@pytest.fixture(scope="module")
def like_neox(plain):
    """NFC and added tokens of 24 to 2 spaces, as in the tokenizer of GPT-NeoX-20B."""
    data = json.loads(plain.data)
    size = plain.vocab_size
    tokens = [added(run, size + place) for place, run in enumerate(LIKE_NEOX)]
    return changed(plain, normalizer={"type": "NFC"}, added_tokens=data["added_tokens"] + tokens)


@pytest.fixture(params=["plain", "like_neox"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def assert_same(tokenizer, texts):
    encoder = encoder_for(tokenizer)
    assert (encoder.engine, encoder.notice) == ("tiktoken", None)
    found, expected = encoder.encode_batch(texts), tokenizer.encode_batch(texts)
    for text, a, b in zip(texts, found, expected, strict=True):
        assert a.dtype == np.uint32
        assert np.array_equal(a, b), repr(text[:200])


def test_every_code_point_alone_and_between_others(tokenizer):
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    assert len(points) == 1_112_064
    texts = ["".join(points[i : i + 512]) for i in range(0, len(points), 512)]
    texts += [" ".join(points[i : i + 512]) for i in range(0, 0x20000, 512)]
    texts += ["a1 ".join(points[i : i + 512]) for i in range(0, 0x20000, 512)]
    assert_same(tokenizer, texts)


def fuzz(seed, count):
    """Strings of mixed pieces: words, digits, spaces of all kinds, marks, any code point."""
    draw = random.Random(seed)

    def piece():
        kind = draw.randrange(9)
        if kind < 3:
            return draw.choice(SPACES[: 1 + draw.randrange(len(SPACES))]) * draw.randint(1, 3)
        if kind == 3:
            return " " * draw.randint(1, 60)
        if kind == 4:
            return draw.choice(MARKS) * draw.randint(1, 3)
        if kind == 5:
            return chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
        if kind == 6:
            return "'" + draw.choice(["s", "S", "t", "re", "ve", "m", "ll", "d", "lL", "sx", ""])
        return draw.choice(["a", "ab", "return", "Été", "12", "7", EOD_TEXT, "x_1", "αβ", "数据"])

    return ["".join(piece() for _ in range(draw.randint(1, 24))) for _ in range(count)]


def test_ids_are_those_of_tokenizers_on_five_thousand_random_strings(tokenizer):
    assert_same(tokenizer, fuzz(1, 5000))


def test_words_that_are_tokens_and_neighbours_that_join_to_one(plain):
    """The core looks whole words up and joins any two neighbours that form a token."""
    alphabet = {char: byte for byte, char in byte_alphabet().items()}
    tokens = [bytes(alphabet[c] for c in t) for t in json.loads(plain.data)["model"]["vocab"]][1:]
    texts = [token.decode("utf-8", "ignore") for token in tokens]
    draw = random.Random(2)
    assert_same(plain, texts + ["".join(draw.choices(texts, k=6)) for _ in range(3000)])


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, " " * 100_000, " " * 600_000 + "x", "\n " * 300_000 + "x", "=" * 100_000,
     "<|endoftext|>" * 10_000, "e\u0301" * 50_000, "🙂" * 50_000, "'" * 100_000],
    ids=["a", "spaces", "spaces-x", "newline-spaces-x", "equals", "eod", "nfd", "emoji", "quotes"],
)  # fmt: skip
def test_long_runs_take_neither_long_nor_the_stack(tokenizer, text):
    start = time.monotonic()
    assert_same(tokenizer, [text])
    assert time.monotonic() - start < 30


def test_a_literal_end_of_text_is_ordinary_text(tokenizer):
    [ids] = encoder_for(tokenizer).encode_batch([f"a{EOD_TEXT}b{EOD_TEXT}"])
    assert EOD not in ids.tolist()
    assert np.array_equal(ids, tokenizer.encode(f"a{EOD_TEXT}b{EOD_TEXT}"))


def test_nothing_gives_nothing(tokenizer):
    assert encoder_for(tokenizer).encode_batch([]) == []
    assert encoder_for(tokenizer).encode_batch([""])[0].size == 0


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises((ValueError, TypeError)):
        encoder_for(tokenizer).encode_batch(["a\ud800"])


def merges(tokenizer):
    return json.loads(tokenizer.data)["model"]["merges"]


def swapped(tokenizer):
    """Two merges in another order than their ids."""
    pairs = merges(tokenizer)
    return changed(tokenizer, model={"merges": [*pairs[:-2], pairs[-1], pairs[-2]]})


def extra_token(tokenizer):
    """A token in the vocabulary that no merge makes: tiktoken would use it for the whole word."""
    vocab = json.loads(tokenizer.data)["model"]["vocab"]
    return changed(tokenizer, model={"vocab": vocab | {"zqzq": len(vocab)}})


def unreachable(tokenizer):
    """Last merge (b, cd) although bc joins first: (b, c), (c, d), (b, cd). bcd encodes to bc d."""
    vocab = json.loads(tokenizer.data)["model"]["vocab"]
    letters = {char: rank for char, rank in vocab.items() if len(char) == 1 or char == EOD_TEXT}
    size = len(letters)
    more = {"bc": size, "cd": size + 1, "bcd": size + 2}
    pairs = [["b", "c"], ["c", "d"], ["b", "cd"]]
    return changed(tokenizer, model={"vocab": letters | more, "merges": pairs})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swapped, "expected an id above"),
        (extra_token, "expected bytes or a merge, found 'zqzq'"),
        (unreachable, "expected 'bcd' to encode to itself"),
        (lambda t: changed(t, model={"dropout": 0.1}), "model.dropout"),
        (lambda t: changed(t, normalizer={"type": "NFKC"}), "normalizer: expected none or NFC"),
        (lambda t: changed(t, normalizer={"type": "Lowercase"}), "normalizer"),
        (lambda t: changed(t, pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (lambda t: changed(t, pre_tokenizer=None), "pre_tokenizer"),
        (
            lambda t: changed(t, pre_tokenizer=json.loads(t.data)["pre_tokenizer"]
                              | {"add_prefix_space": True}),
            "add_prefix_space",
        ),
        (
            lambda t: changed(t, added_tokens=json.loads(t.data)["added_tokens"]
                              + [added("hello", t.vocab_size)]),
            "no added tokens but runs of spaces",
        ),
        (
            lambda t: changed(t, added_tokens=json.loads(t.data)["added_tokens"]
                              + [added("   ", t.vocab_size)]),
            r"expected added runs of 2, 3, \.\. spaces, found lengths \[3\]",
        ),
    ],
)  # fmt: skip
def test_what_does_not_map_is_encoded_by_tokenizers_with_a_notice(plain, change, reason):
    other = change(plain)
    encoder = encoder_for(other)
    assert encoder.engine == "tokenizers"
    assert encoder.notice is not None and "same ids" in encoder.notice
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(encoder.notice)
    if "dropout" in encoder.notice:  # no two encodings are alike then
        return
    texts = [*fuzz(3, 50), "bcd zqzq hello    x", TEXTS[0]]
    for found, expected in zip(encoder.encode_batch(texts), other.encode_batch(texts), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(r"\s+(?!\S)|\s", r"\s+"), (r" ?\p{N}++|", ""), (r"\p{L}", "[A-Za-z]")],
)
def test_a_difference_on_the_conformance_text_is_noticed(plain, monkeypatch, right, wrong):
    assert right in fast_tokenizer._PATTERN
    pattern = fast_tokenizer._PATTERN.replace(right, wrong)
    monkeypatch.setattr(fast_tokenizer, "_PATTERN", pattern)
    encoder = encoder_for(plain)
    assert encoder.engine == "tokenizers"
    assert encoder.notice is not None and "tiktoken differs from id" in encoder.notice
    assert np.array_equal(encoder.encode_batch([TEXTS[0]])[0], plain.encode(TEXTS[0]))


def test_conformance_texts_hold_every_category_and_control_character():
    import unicodedata

    everything = "".join(conformance_texts())
    assert {unicodedata.category(c) for c in set(everything)} == {
        unicodedata.category(chr(c)) for c in range(0x110000)
    } - {"Cs"}
    assert {chr(c) for c in range(32)} <= set(everything)
