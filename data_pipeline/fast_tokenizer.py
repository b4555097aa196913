"""The ids of ``tokenizers``, four to six times faster: tiktoken's core with the same vocabulary.

Guarantees: ``encode_batch`` returns exactly the ids of ``Tokenizer.encode_batch``. A vocabulary is
converted only where both engines must agree: byte-level BPE whose merges are numbered in the order
they apply, no dropout, no byte fallback, the GPT-2 pre-tokenisation, no normaliser or NFC, and no
added tokens other than special ones and runs of spaces (GPT-NeoX). Then they agree because

- a merge in ``tokenizers`` applies by its place in the list, in tiktoken by the id of its result,
  and both are the same order;
- tiktoken joins any two neighbours whose bytes form a token. When all lower merges are done, two
  such neighbours are the pair that the token was made of, if that token's bytes alone encode to it.
  That is checked for every token of the vocabulary, which also covers tiktoken's short cut for
  whole words;
- text is normalised by ``tokenizers``' own NFC before either reads it.

On top of that the two are compared on a conformance text whenever an encoder is made. Whatever does
not map, or differs, is encoded by ``tokenizers``: same ids, and ``notice`` says why it is slower.
A special string in a text is ordinary text, as in ``tokenizer.py``.

Does not guarantee: anything about decoding, which stays with ``Tokenizer``.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import normalizers

from data_pipeline.tokenizer import CONFORMANCE_TEXT, Tokenizer, byte_alphabet

Ids = npt.NDArray[np.uint32]

# The GPT-2 pattern (Radford et al. 2019, ``encoder.py``), possessive where that changes nothing.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
_PATTERN = _WORDS + r"|\s++$|\s+(?!\S)|\s"
# With added tokens of 2..k spaces, ``tokenizers`` first cuts a text at every run of spaces (longest
# token first) and splits what lies between on its own: white space then holds no two spaces in a
# row, and a run of them ends a piece as the end of the text does.
_PATTERN_SPACES = (
    r" {2,LONGEST}+|" + _WORDS + r"|(?:[^\S ]| (?! ))++(?=\z|  )|(?:(?:[^\S ]| (?! ))(?=\s))++|\s"
)
_NO_SPECIALS: frozenset[str] = frozenset()


class _DoesNotMap(Exception):
    """Why a vocabulary is left to ``tokenizers``."""


class Encoder:
    """Text to ids, by the fastest engine that gives the ids of ``tokenizers``.

    ``engine`` is "tiktoken" or "tokenizers"; ``notice`` is None for the former and for the latter
    says in a sentence why, to be shown to the user.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Convert the vocabulary and compare; see ``encoder_for``."""
        self._tokenizer = tokenizer
        self._fast: Callable[[str], Ids] | None = None
        self.engine = "tokenizers"
        self.notice: str | None = None
        try:
            fast = _convert(json.loads(tokenizer.data))
            _compare(fast, tokenizer)
        except _DoesNotMap as reason:
            self.notice = (
                f"tokenizer.json: {reason}; encoding with tokenizers, which gives the same ids "
                "several times more slowly"
            )
        else:
            self._fast, self.engine = fast, "tiktoken"

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of every text, without any end-of-document mark.

        The interpreter lock is released while encoding. The arrays may be read-only.

        Args:
            texts: Any number of texts of any length.

        Returns:
            One uint32 array [ids] for each text.

        Raises:
            ValueError, TypeError: A text with a lone surrogate, which no UTF-8 text has.
        """
        if self._fast is None:
            return self._tokenizer.encode_batch(texts)
        return [self._encode(text, self._fast) for text in texts]

    def _encode(self, text: str, fast: Callable[[str], Ids]) -> Ids:
        try:
            return fast(text)
        except UnicodeEncodeError:
            raise
        except ValueError:
            # tiktoken's regular expressions give up on some hundred thousand spaces in a row.
            return self._tokenizer.encode(text)


def encoder_for(tokenizer: Tokenizer) -> Encoder:
    """Return the fastest encoder that gives the ids of ``tokenizer``."""
    return Encoder(tokenizer)


def _convert(data: Mapping[str, Any]) -> Callable[[str], Ids]:
    """Build the function from a text to its ids from a parsed ``tokenizer.json``."""
    _check_model(data["model"])
    _check_pre_tokenizer(data["pre_tokenizer"])
    normalise = _normaliser(data["normalizer"])
    specials, spaces = _added(data["added_tokens"])
    ranks = _ranks(data["model"], specials, reachable=_reachable(data))
    pattern = _PATTERN
    if spaces:
        pattern = _PATTERN_SPACES.replace("LONGEST", str(max(spaces)))
        # Their own ids: no other token with two spaces in a row can arise between the runs.
        taken = {token for token in ranks if b"  " in token}
        ranks = {token: rank for token, rank in ranks.items() if token not in taken}
        ranks |= {b" " * length: index for length, index in spaces.items()}
    name, index = next(iter(specials.items()), ("<|endoftext|>", max(ranks.values()) + 1))
    core = tiktoken.Encoding(
        "tripod", pat_str=pattern, mergeable_ranks=ranks, special_tokens={name: index}
    )

    def encode(text: str) -> Ids:
        return core.encode_to_numpy(
            normalise(text), allowed_special=_NO_SPECIALS, disallowed_special=_NO_SPECIALS
        )

    return encode


def _check_model(model: Mapping[str, Any]) -> None:
    expected = {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "byte_fallback": False,
    }
    for key, value in expected.items():
        found = model.get(key, value)
        # An empty affix is none; a dropout of 0 drops nothing.
        if found != value and (found or value):
            raise _DoesNotMap(f"model.{key}: expected {value!r}, found {found!r}")


def _check_pre_tokenizer(found: Mapping[str, Any] | None) -> None:
    kind = found or {}
    plain = not kind.get("add_prefix_space", True) and kind.get("use_regex", True)
    if kind.get("type") != "ByteLevel" or not plain:
        raise _DoesNotMap(
            "pre_tokenizer: expected ByteLevel with use_regex and without add_prefix_space, found "
            f"{found}"
        )


def _normaliser(found: Mapping[str, Any] | None) -> Callable[[str], str]:
    if found is None:
        return str
    if found != {"type": "NFC"}:
        raise _DoesNotMap(f"normalizer: expected none or NFC, found {found}")
    nfc = normalizers.NFC()  # not unicodedata: another version of Unicode composes other characters
    return lambda text: text if text.isascii() else nfc.normalize_str(text)


def _added(tokens: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[int, int]]:
    """Return special tokens (text to id) and added runs of spaces (length to id)."""
    specials = {token["content"]: token["id"] for token in tokens if token["special"]}
    others = [token for token in tokens if not token["special"]]
    spaces = {len(token["content"]): token["id"] for token in others}
    for token in others:
        exact = not (token["single_word"] or token["lstrip"] or token["rstrip"])
        if token["content"].strip(" ") or not exact:
            raise _DoesNotMap(f"expected no added tokens but runs of spaces, found {token}")
    if sorted(spaces) != list(range(2, len(others) + 2)):
        raise _DoesNotMap(f"expected added runs of 2, 3, .. spaces, found lengths {sorted(spaces)}")
    return specials, spaces


def _reachable(data: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a test: does this token's text alone, without added tokens, encode to the token?"""
    model = HFTokenizer.from_str(json.dumps({**data, "added_tokens": []})).model
    return lambda token: [piece.value for piece in model.tokenize(token)] == [token]


def _ranks(
    model: Mapping[str, Any], specials: Mapping[str, int], reachable: Callable[[str], bool]
) -> dict[bytes, int]:
    """Return the bytes and id of every token, checked to be single bytes and ordered merges."""
    to_byte = {char: byte for byte, char in byte_alphabet().items()}
    vocab = {token: rank for token, rank in model["vocab"].items() if token not in specials}
    last, merged = -1, set()
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank = vocab.get(left + right, -1)
        if rank <= last:
            raise _DoesNotMap(
                f"merge {left!r} {right!r}: expected an id above {last}, found {rank}"
            )
        last = rank
        merged.add(left + right)
    ranks = {}
    for token, rank in vocab.items():
        if any(char not in to_byte for char in token) or not (token in merged or len(token) == 1):
            raise _DoesNotMap(f"token {rank}: expected bytes or a merge, found {token!r}")
        if not reachable(token):
            raise _DoesNotMap(f"token {rank}: expected {token!r} to encode to itself")
        ranks[bytes(to_byte[char] for char in token)] = rank
    missing = sorted(set(range(256)) - _NEVER_IN_UTF8 - {t[0] for t in ranks if len(t) == 1})
    if missing:
        raise _DoesNotMap(f"expected a token for every byte of UTF-8, found none for {missing}")
    return ranks


_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def _compare(fast: Callable[[str], Ids], tokenizer: Tokenizer) -> None:
    """Refuse a conversion that encodes the conformance texts to other ids."""
    texts = conformance_texts()
    for text, expected in zip(texts, tokenizer.encode_batch(texts), strict=True):
        found = fast(text)
        if not np.array_equal(found, expected):
            place = _first_difference(found, expected)
            raise _DoesNotMap(
                f"tiktoken differs from id {place} of the conformance text {text[:40]!r}: expected "
                f"{expected[place : place + 4].tolist()}, found {found[place : place + 4].tolist()}"
            )


def _first_difference(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if different.size else size


@lru_cache(maxsize=1)
def conformance_texts() -> tuple[str, ...]:
    """Texts that tell two pre-tokenisers apart, about 200 kB.

    The first and last character of every run of code points with one general category, each beside
    letters, digits, marks and spaces; runs of white space of every kind; contractions; long runs.
    """
    spaces = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u2028\u200b\u3000\ufeff"
    runs = [a * i + b * j + end for a in spaces for b in " \n\t" for i, j, end in _RUNS]
    controls = "".join(f"x{chr(c)}1 {chr(c)}{chr(c)}" for c in range(32))
    words = " ".join(f"I'{w} i'{w.upper()} ''{w} '{w}x" for w in _ENDINGS)
    long = ["a" * 3000, "ab" * 2000, " " * 3000, " " * 3000 + "x", "\n" * 999 + "é", "=" * 2500]
    borders = "".join(f"a{c}1{c} {c}{c}!{c}  {c}\n" for c in _category_borders())
    return (CONFORMANCE_TEXT, "", "".join(runs), *runs, controls, words, *long, borders)


_ENDINGS = ("s", "t", "re", "ve", "m", "ll", "d", "sd")
_RUNS = ((1, 0, "x"), (1, 1, "x"), (2, 1, "7"), (1, 2, "!"), (3, 3, ""), (1, 25, "x"), (2, 50, ""))


def _category_borders() -> Iterator[str]:
    """Yield the first and last code point of every run with one category, surrogates left out."""
    previous = ""
    for point in range(0x110000):
        category = unicodedata.category(chr(point))
        if category != previous:
            yield from (chr(p) for p in (point - 1, point) if p >= 0 and not 0xD800 <= p < 0xE000)
        previous = category
