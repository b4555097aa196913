"""The numerics record: everything that is known to change bits, written down and compared.

A run's promise is per record. Continuing under another record is refused with the differing fields
named. On CPU every rank has one thread (bits change with the thread count, not with the rank
count). The profile `portable-x86` pins the instruction set of ATen, oneDNN and MKL to AVX2, so that
any recent x86-64 machine should give the same bits; the libraries read those variables when they
are loaded, so they must be set before torch is imported: `profile_environment`.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_PROFILES: dict[str, dict[str, str]] = {
    "portable-x86": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
    },
    "native": {},
}
_PINNED = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG")
# Extensions that ATen, MKL or oneDNN have kernels of their own for.
_DISPATCHED = (
    "sse4_2", "avx", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "asimdhp", "bf16", "sve", "sve2",
)  # fmt: skip


class NumericsError(RuntimeError):
    """This process cannot keep the run's numerics.

    Says which field, what was expected and what was found.
    """


def profile_environment(profile: str) -> dict[str, str]:
    """The present environment, changed to that of every process that computes under a profile."""
    environment = {key: value for key, value in os.environ.items() if key not in _PINNED}
    environment.update(_ONE_THREAD)
    environment.update(_PROFILES[profile])
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    return environment


def apply_determinism() -> None:
    """Turns on strict determinism in this process; never warn-only."""
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def numerics_record(
    profile: str, precision: str, quantiser: str, device: str = "cpu"
) -> dict[str, Any]:
    """What this process computes with: a flat record of strings and integers (`numerics-v2`).

    Args:
        profile: the profile that the run asks for.
        precision: "fp32" or "bf16".
        quantiser: which form runs here. It is not recorded: both give the same bits, checked at
        every start.
        device: "cpu" or "cuda": where the step is computed.
    """
    del quantiser
    import torch
    import transformers

    return {
        "schema": "numerics-v2",
        "profile": profile,
        "precision": precision,
        "device": device,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": instruction_set(profile),
        "threads": torch.get_num_threads(),
        # The build tag ("+cpu", "+cu130") names which libraries came along, not the CPU kernels.
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        **_libraries(torch.__config__.show()),
        **_kernels(),
        **(_cuda() if device == "cuda" else {}),
        **{name.lower(): os.environ.get(name, "") for name in _PINNED},
    }


def _libraries(build: str) -> dict[str, str]:
    return {
        "blas": _search(r"BLAS_INFO=(\w+)", build),
        "lapack": _search(r"LAPACK_INFO=(\w+)", build),
        "mkl": _search(r"Math Kernel Library Version ([^\n]*?) for", build),
        "onednn": _search(r"MKL-DNN v(\S+)", build),
    }


def _kernels() -> dict[str, str | int]:
    """Which kernels torch may choose, and the modes that they run in."""
    import torch

    cuda: Any = torch.backends.cuda
    backends = ("flash", "mem_efficient", "math", "cudnn")
    enabled = [name for name in backends if getattr(cuda, f"{name}_sdp_enabled")()]
    # No getter for flush-to-zero: a denormal that survives a multiplication shows that it is off.
    denormal = torch.tensor([1e-39], dtype=torch.float32) * torch.ones(1)
    return {
        "attention": "sdpa",
        "sdpa_backends": ",".join(enabled),
        "onednn_enabled": int(bool(torch.backends.mkldnn.enabled)),
        "compile": "eager",
        "deterministic_algorithms": int(torch.are_deterministic_algorithms_enabled()),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "flush_denormal": int(denormal.item() == 0.0),
    }


def _cuda() -> dict[str, str | int]:
    """The device: bits change with its architecture, its number of SMs and its libraries."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device_name": properties.name,
        "device_capability": f"{properties.major}.{properties.minor}",
        "device_multiprocessors": properties.multi_processor_count,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "tf32": int(torch.backends.cuda.matmul.allow_tf32),
        "bf16_reduced_reduction": int(
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
    }


def instruction_set(profile: str, cpuinfo: str | None = None) -> str:
    """What the CPU libraries dispatch on.

    Under `portable-x86` that is pinned; elsewhere it is the vendor and those of `_DISPATCHED` that
    the processor has, because MKL and oneDNN choose kernels by them.

    Args:
        profile: the profile of the run.
        cpuinfo: content of /proc/cpuinfo; read here when None.
    """
    if profile == "portable-x86":
        return "avx2"
    path = Path("/proc/cpuinfo")
    text = cpuinfo if cpuinfo is not None else path.read_text() if path.exists() else ""
    vendor = _search(r"vendor_id\s*:\s*(\S+)", text)
    flags = set(_search(r"(?:flags|Features)\s*:\s*([^\n]*)", text).split())
    return " ".join([vendor, *(flag for flag in _DISPATCHED if flag in flags)])


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else "none"


def check_environment(record: Mapping[str, Any]) -> None:
    """Refuses to compute with more than one thread, or under a profile that did not take.

    Raises:
        NumericsError: with what was expected, what was found and what to do.
    """
    if record["threads"] != 1:
        raise NumericsError(
            f"expected 1 thread per rank, found {record['threads']}: bits change with the thread "
            f"count; "
            "start the run with `tripod train` or `tripod sweep`, which set OMP_NUM_THREADS=1 "
            "(more cores = more ranks)"
        )
    if record["profile"] == "portable-x86":
        expected = {"machine": "x86_64", "cpu_capability": "AVX2"}
        for field, value in expected.items():
            if record[field] != value:
                raise NumericsError(
                    f"profile portable-x86 expects {field}={value}, found {record[field]}; on "
                    f"this machine use "
                    "numerics.profile=native (its digests hold for this kind of machine only)"
                )


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Fields that differ between two numerics records, one line each with both values."""
    return [
        f"{field}: expected {expected.get(field)!r}, found {found.get(field)!r}"
        for field in sorted(set(expected) | set(found))
        if expected.get(field) != found.get(field)
    ]


def check_same(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuses to compute under another numerics record than the one a run was computed under.

    Raises:
        NumericsError: listing every differing field.
    """
    lines = differences(expected, found)
    if lines:
        raise NumericsError(refusal(lines))


def refusal(lines: list[str]) -> str:
    """Why a run is not continued or recomputed under another record, and what to do."""
    return (
        "this run was computed under another numerics record, and continuing would change its "
        "bits:\n  "
        + "\n  ".join(lines)
        + "\nuse the recorded versions and settings (`make setup` installs the pinned ones), or "
        "start a new run in another directory, or train on with --accept-numerics-change, which "
        "the ledger then says from this step on; the checkpoints here were not touched"
    )


def environment_record() -> dict[str, Any]:
    """Where a checkpoint was made.

    Informative, hashed into the manifest, allowed to differ between runs.
    """
    import numpy
    import torch

    return {
        "schema": "environment-v1",
        "python": platform.python_version(),
        "torch_build": str(torch.__version__),
        "numpy": numpy.__version__,
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
    }
