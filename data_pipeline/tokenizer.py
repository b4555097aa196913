"""Text to ids and back: the tokenizer trained here, or any Hugging Face ``tokenizer.json``.

Guarantees: encoding never produces the end-of-document id or the beginning-of-document id: their
literal text in a document is ordinary text (a file for which that cannot be had is refused).
Where the file has no normaliser and is byte-level, decoding gives back the exact bytes
(``is_exact``). Training depends on the multiset of texts and the vocabulary size only, not on
their order, the number of threads or the run. That holds for the one configuration used here (all
256 bytes in the alphabet, no prefix or suffix symbols, no ``limit_alphabet``, no minimum
frequency); other trainers of the same library are not deterministic. A trained tokenizer has
``<|endoftext|>`` as id 0.

Does not guarantee: the same vocabulary from another version of ``tokenizers``. Ship the file.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipeline.canonical import sha256_hex
from data_pipeline.errors import DatasetError

EOD = 0
EOD_TEXT = "<|endoftext|>"
MIN_VOCAB = 257
_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
_UTF8_BYTES = [*range(0xC0), *range(0xC2, 0xF5)]

# Fixed for ever: a library that gives other ids for it encodes differently, whatever its version.
CONFORMANCE_TEXT = (
    "def f(x, *, n=10):\n\treturn [x_i ** 2 for x_i in range(n)]  # 3.14159e-05\r\n\r\n\n"
    "It's we're I'VE they'll don't 'quoted' \"double\"  two   three    four \t tab\x0b\x0c end \n "
    "Grüße, naïve café (NFC) vs cafe\u0301 (NFD); Ελληνικά, кириллица, עברית, العربية, हिन्दी, ไทย, "
    "中文字符, かな交じり文, 한국어, 🙂 "
    "\U0001f469\u200d\U0001f4bb \U0001f3f3\ufe0f\u200d\U0001f308 ½ ② Ⅷ ٣ "
    "\u00a0\u2003\u200b\ufeff\x00\x1f\x7f\u0085\u2028 <|endoftext|> <|endoftext|><| endoftext |> "
    "0 00 000 1234567890 1,234.5 ____ ---- #### \\n \\u00e9 snake_case camelCase SCREAMING_CASE "
    "https://example.org/a/b?c=d&e=%20#f aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"
)


class Tokenizer:
    """A tokenizer whose text never contains the marks of documents."""

    def __init__(
        self, data: bytes, eod: int | str = EOD_TEXT, bos: int | str | None = None
    ) -> None:
        """Read the bytes of a ``tokenizer.json``.

        Args:
            data: The file.
            eod: Id or text of the token that closes every document.
            bos: Id or text of the token that begins every document, or None.

        Raises:
            DatasetError: Not a tokenizer; a mark that it does not have; one token for both marks;
                or a mark that encoding its literal text produces.
        """
        self.data = data
        try:
            self._hf = HFTokenizer.from_str(data.decode("utf-8"))
        except Exception as error:
            raise DatasetError(
                f"tokenizer.json: expected a Hugging Face tokenizer, found {str(error)[:200]!r}; "
                "use the tokenizer.json the dataset was built with"
            ) from error
        self._hf.encode_special_tokens = True  # a special string in a text is ordinary text
        self._hf.no_truncation()
        self._hf.no_padding()
        vocabulary = self._hf.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.eod = self._mark(eod, "end-of-document")
        self.bos = None if bos is None else self._mark(bos, "beginning-of-document")
        if self.eod == self.bos:
            raise DatasetError(
                f"tokenizer.json: expected two tokens to begin and to end a document, found id "
                f"{self.eod} for both; declare bos: none"
            )

    @classmethod
    def load(
        cls, path: str | Path, eod: int | str = EOD_TEXT, bos: int | str | None = None
    ) -> "Tokenizer":
        """Read a ``tokenizer.json``; arguments and errors as the constructor."""
        return cls(Path(path).read_bytes(), eod, bos)

    def _mark(self, token: int | str, role: str) -> int:
        number = self._hf.token_to_id(token) if isinstance(token, str) else token
        text = None if number is None or number < 0 else self._hf.id_to_token(number)
        if number is None or text is None:
            raise DatasetError(
                f"tokenizer.json: expected a token {token!r} to be the {role} mark, found none "
                f"among {self.vocab_size} ids; declare the id or the text of one that is there"
            )
        if number in self._hf.encode(text, add_special_tokens=False).ids:
            raise DatasetError(
                f"tokenizer.json: expected the text {text!r} to be ordinary text, found that it "
                f"encodes to the {role} mark {number}; mark the token as special in the file"
            )
        return int(number)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of one text, without any mark."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text; the interpreter lock is released while encoding."""
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    @cached_property
    def normalisation(self) -> str:
        """What encoding does to a text first: ``none``, or the names of the normalisers in order.

        A step that puts a space before the text counts: ``prefix-space``.
        """
        data = json.loads(self.data)
        names = [str(step["type"]) for step in _steps(data, "normalizer")]
        if any(step.get("add_prefix_space") for step in _steps(data, "pre_tokenizer")):
            names.append("prefix-space")
        return "+".join(names) or "none"

    @cached_property
    def is_exact(self) -> bool:
        """Whether decoding the ids of any text gives back its exact bytes."""
        return self.normalisation == "none" and self._is_byte_level

    def is_exact_for(self, text: str) -> bool:
        """Whether it is known, without decoding, that the ids of a text give back its exact bytes.

        So for every text where ``is_exact``, and for ASCII where nothing but the Unicode normal
        forms is applied, which leave it as it is (UAX #15).
        """
        forms = self.normalisation.split("+")
        return self.is_exact or (
            text.isascii() and self._is_byte_level and {*forms} <= _UNICODE_FORMS
        )

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether every id stands for fixed bytes, and every byte of UTF-8 has an id."""
        data = json.loads(self.data)
        steps = [step["type"] for step in _steps(data, "pre_tokenizer")]
        return (
            isinstance(self._hf.model, models.BPE)
            and "ByteLevel" in steps
            and [step["type"] for step in _steps(data, "decoder")] == ["ByteLevel"]
            and not data["model"].get("unk_token")
            and {byte_alphabet()[byte] for byte in _UTF8_BYTES} <= self._hf.get_vocab().keys()
        )

    def decode_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> bytes:
        """Return the bytes of ids; a mark decodes to its literal text.

        They are the exact bytes of the text where ``is_exact``; else those of the text that the
        tokenizer made of it.

        Raises:
            ValueError: An id outside the vocabulary.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(
                f"expected ids in [0, {self.vocab_size}), found {int(ids.min())}.."
                f"{int(ids.max())}; use the tokenizer of this dataset"
            )
        if not self._is_byte_level:
            return self._hf.decode(ids.tolist(), skip_special_tokens=False).encode("utf-8")
        return b"".join(map(self._bytes_of_id.__getitem__, ids.tolist()))

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        to_byte = {char: byte for byte, char in byte_alphabet().items()}
        added = {number: token.content for number, token in self._added.items()}
        table = []
        for number in range(self.vocab_size):
            token = "" if number in added else self._hf.id_to_token(number) or ""
            if any(char not in to_byte for char in token):
                raise DatasetError(
                    f"tokenizer.json: expected a byte-level token for id {number}, found {token!r};"
                    " list it under added_tokens"
                )
            content = added.get(number, "").encode("utf-8")
            table.append(content or bytes(to_byte[char] for char in token))
        return table

    @property
    def _added(self) -> dict[int, Any]:
        return dict(self._hf.get_added_tokens_decoder())

    def conformance_sha256(self) -> str:
        """SHA-256 of the ids (little-endian uint32) of ``CONFORMANCE_TEXT``.

        It notices a library that reads the same file differently; the file's own digest names it.
        """
        return sha256_hex(self.encode(CONFORMANCE_TEXT).astype("<u4").tobytes())


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: Training texts, in any order.
        vocab_size: Exact number of ids, at least 257 (256 bytes and the end-of-document mark).

    Raises:
        ValueError: ``vocab_size`` is below 257, or the texts have too few pairs to reach it.
    """
    if vocab_size < MIN_VOCAB:
        raise ValueError(f"expected vocab_size >= {MIN_VOCAB}, found {vocab_size}")
    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        special_tokens=[EOD_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    hf.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(hf.to_str(pretty=False).encode("utf-8"))
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"expected vocab_size {vocab_size}, found {tokenizer.vocab_size} after training; "
            "give more text or ask for a smaller vocabulary"
        )
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Read a ``tokenizer.json``; see ``Tokenizer``."""
    return Tokenizer.load(path)


def _steps(data: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of a part of the file, a ``Sequence`` opened."""
    plural = {"pre_tokenizer": "pretokenizers", "decoder": "decoders", "normalizer": "normalizers"}
    step = data.get(part)
    if step is None:
        return []
    return list(step[plural[part]]) if step["type"] == "Sequence" else [step]


def byte_alphabet() -> dict[int, str]:
    """The GPT-2 table from bytes to printable characters (Radford et al. 2019, ``encoder.py``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(rest)}
