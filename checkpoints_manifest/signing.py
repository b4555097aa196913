"""Signatures over a run's ledger with OpenSSF model-signing: who stands for it.

The ledger's last record covers every file, root and link before it, so a signature over
`manifest.jsonl` signs the run; `tripod verify checkpoints` then says whether the files are the
signed ones. The signature, a Sigstore bundle with an in-toto statement, lies beside the ledger as
`manifest.jsonl.sig` and can be checked with `model_signing verify key` alone. A ledger that grew
must be signed again. Keys: elliptic curve, PEM. Needs the extra `[signing]`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from checkpoints_manifest.errors import CheckpointError
from data_pipeline.durable import write_bytes

LEDGER, SIGNATURE = "manifest.jsonl", "manifest.jsonl.sig"
_INSTALL = "install it with `pip install 'tripod-suite[signing]'`"


def sign_ledger(run_dir: Path, private_key: Path, password: str | None = None) -> Path:
    """Signs the ledger of a run as it stands now.

    Args:
        run_dir: holds `manifest.jsonl`.
        private_key: PEM file.
        password: of the key, where it has one.

    Returns:
        The signature's path; an older signature is replaced.

    Raises:
        CheckpointError: no ledger, or a key that cannot be used.
        RuntimeError: model-signing is not installed.
    """
    config = _module("model_signing.signing").Config()
    ledger = _ledger(run_dir)
    temporary = run_dir / f".{SIGNATURE}.tmp"
    try:
        config.use_elliptic_key_signer(private_key=private_key, password=password)
        config.sign(ledger, temporary)
        write_bytes(run_dir / SIGNATURE, temporary.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{ledger} could not be signed with {private_key}: {error}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return run_dir / SIGNATURE


def verify_signature(run_dir: Path, public_key: Path) -> None:
    """Checks the signature over the ledger.

    Raises:
        CheckpointError: no signature, another key, or a ledger that changed or grew since.
        RuntimeError: model-signing is not installed.
    """
    config = _module("model_signing.verifying").Config()
    ledger, signature = _ledger(run_dir), run_dir / SIGNATURE
    if not signature.is_file():
        raise CheckpointError(f"{signature} is missing; sign the run with `tripod sign`")
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
        config.verify(ledger, signature)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{signature} is not a signature over {ledger} by the holder of {public_key} "
            f"({error}); a ledger that grew since it was signed must be signed again"
        ) from error


def _ledger(run_dir: Path) -> Path:
    ledger = run_dir / LEDGER
    if not ledger.is_file() or not ledger.stat().st_size:
        raise CheckpointError(f"{ledger} holds no checkpoint; train the run first")
    return ledger


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(f"signing needs model-signing ({error}); {_INSTALL}") from error
