"""Byte-level BPE: training that gives the same vocabulary every time, and lossless encoding.

Guarantees: training depends on the multiset of texts and the vocabulary size only, not on their
order, the number of threads or the run. That holds for the one configuration used here (all 256
bytes in the alphabet, no prefix or suffix symbols, no ``limit_alphabet``, no minimum frequency);
other trainers of the same library are not deterministic. Id 0 is ``<|endoftext|>``, the
end-of-document mark. Encoding never produces it: the literal string in a text is ordinary text.
Decoding gives back the exact bytes.

Does not guarantee: the same vocabulary from another version of ``tokenizers``. Ship the file.
"""

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
    """A byte-level BPE tokenizer whose text never contains special tokens."""

    def __init__(self, data: bytes) -> None:
        """Read the bytes of a ``tokenizer.json``.

        Raises:
            DatasetError: Not a tokenizer, not byte-level BPE, or id 0 is not ``<|endoftext|>``.
        """
        self.data = data
        try:
            self._hf = HFTokenizer.from_str(data.decode("utf-8"))
        except Exception as error:
            raise DatasetError(
                f"tokenizer.json: expected a Hugging Face tokenizer, found {str(error)[:200]!r}; "
                "use the tokenizer.json the dataset was built with"
            ) from error
        if self._hf.token_to_id(EOD_TEXT) != EOD or not isinstance(self._hf.model, models.BPE):
            raise DatasetError(
                f"tokenizer.json: expected BPE with id {EOD} for {EOD_TEXT!r}, found "
                f"{type(self._hf.model).__name__} with {self._hf.token_to_id(EOD_TEXT)}; "
                "train it with data_pipeline.tokenizer.train_bpe"
            )
        self._hf.encode_special_tokens = True  # a special string in a text is ordinary text
        self._hf.no_truncation()
        self._hf.no_padding()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a ``tokenizer.json``."""
        return cls(Path(path).read_bytes())

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end-of-document mark included."""
        return int(self._hf.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of one text, without any end-of-document mark."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text; the interpreter lock is released while encoding."""
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> bytes:
        """Return the exact bytes of ids; the end-of-document mark decodes to its literal text.

        Raises:
            ValueError: An id outside the vocabulary.
        """
        table = self._bytes_of_id
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
            raise ValueError(
                f"expected ids in [0, {len(table)}), found {int(ids.min())}..{int(ids.max())}; "
                "use the tokenizer of this dataset"
            )
        return b"".join(map(table.__getitem__, ids.tolist()))

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        to_byte = {char: byte for byte, char in byte_alphabet().items()}
        table = [EOD_TEXT.encode()]
        for index in range(1, self.vocab_size):
            token = self._hf.id_to_token(index)
            if token is None or any(char not in to_byte for char in token):
                raise DatasetError(
                    f"tokenizer.json: expected a byte-level token for id {index}, found {token!r}; "
                    "added tokens other than the end-of-document mark are not supported"
                )
            table.append(bytes(to_byte[char] for char in token))
        return table

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


def byte_alphabet() -> dict[int, str]:
    """The GPT-2 table from bytes to printable characters (Radford et al. 2019, ``encoder.py``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(rest)}
