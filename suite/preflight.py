"""`tripod preflight`: everything that would stop a sweep, found at once and before it starts.

Checks disk and memory against the plan, hours against patience, the devices that the hardware file
promises, library versions against the lock, siblings, the dataset, locks, and computes one mock
quantum of the smallest rung. Reads and computes, writes nothing. A failure says what was expected,
what was found and what to do; a notice is a sentence that stops nothing.

`suite.preflight_refusal` says it to people.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.durable import free_bytes
from suite.config import RunConfig, sibling_differences
from suite.launch import die_with_parent
from suite.numerics import profile_environment
from suite.plan import RungPlan, SuitePlan, plan_of
from suite.plan_hardware import machine_memory
from suite.plan_table import duration, size

if TYPE_CHECKING:
    from suite.sweep import Sweep

# Where the engines compute. A plan for other devices is a plan: a sweep there is refused.
ENGINE_DEVICES = ("cpu",)
_DISK_MARGIN = 1.2
_MAX_WALL_HOURS = 366 * 24.0  # of one rung
_MOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Failure:
    """One reason why a sweep cannot run: which check, for which rungs, and what to do."""

    check: str
    found: str
    remedy: str
    rungs: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({', '.join(self.rungs)})" if self.rungs else ""
        return f"{self.check}{where}: {self.found}\n    {self.remedy}"


def preflight(sweep: Sweep, overrides: list[str] | None = None, mock: bool = True) -> list[Failure]:
    """All failures of a sweep, in the order in which they would be met; empty where it can run.

    Args:
        sweep: the composed suite and its directory, which need not exist.
        overrides: the Hydra overrides that it was composed with; they name the hardware.
        mock: also compute one quantum of the smallest rung that has not begun (seconds).
    """
    if all(_complete(sweep, name) for name in sweep.rungs):
        return []
    plan = plan_of(sweep.rungs, suite_of(sweep), overrides)
    left = {name: rung for name, rung in plan.rungs.items() if not _complete(sweep, name)}
    failures = [
        *check_siblings(sweep.rungs),
        *check_versions(),
        *check_devices(plan),
        *check_memory(plan, left),
        *check_time(left),
        *check_disk(sweep.directory, left),
        *check_data(sweep),
        *check_locks(sweep, list(left)),
    ]
    fresh = {n: rung for n, rung in left.items() if not (sweep.run_dir(n) / "config.json").exists()}
    if mock and not failures:
        failures += check_quantum(fresh)
    return failures


def suite_of(sweep: Sweep) -> str:
    """The name of a composed suite."""
    return next(iter(sweep.rungs.values())).suite.name


def _complete(sweep: Sweep, name: str) -> bool:
    from suite.sweep import is_complete

    return is_complete(sweep.rungs[name], sweep.run_dir(name))


def check_siblings(rungs: Mapping[str, RunConfig]) -> list[Failure]:
    """Rungs differ only in the axes that their suite declares."""
    axes = next(iter(rungs.values())).suite.axes
    lines = sibling_differences({name: c.to_record() for name, c in rungs.items()}, axes)
    return [
        Failure("siblings", line, "make them equal, or declare the key in suite.axes")
        for line in lines
    ]


def check_versions(lock: Path | None = None) -> list[Failure]:
    """The libraries that change bits are those of `requirements.lock`, where it is at hand."""
    path = lock or Path(__file__).resolve().parents[1] / "requirements.lock"
    if not path.exists():
        return []
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE))
    failures = []
    for name in ("torch", "transformers", "numpy"):
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "none"
        if name in pins and found != pins[name]:
            failures.append(
                Failure(
                    "versions",
                    f"{name}: expected {pins[name]}, found {found}",
                    "`make setup` installs the pinned versions",
                )
            )
    return failures


def check_devices(plan: SuitePlan, cuda: Callable[[], int] | None = None) -> list[Failure]:
    """The devices that the hardware file promises are here, and an engine computes on them."""
    from suite.plan_measure import cuda_devices

    kind, count = plan.hardware.device, plan.hardware.count
    failures = []
    if kind == "cuda":
        found = (cuda or cuda_devices)()
        if found < count:
            failures.append(
                Failure(
                    "devices",
                    f"hardware {plan.hardware_name} expects {count} CUDA devices, found {found}",
                    "run it where they are, or name this machine with hardware=cpu",
                )
            )
    if kind not in ENGINE_DEVICES:
        failures.append(
            Failure(
                "engine",
                f"hardware.device={kind}: the engines compute on {', '.join(ENGINE_DEVICES)} only",
                "the plan holds for a later version; today a sweep needs hardware=cpu",
            )
        )
    return failures


def check_memory(plan: SuitePlan, left: Mapping[str, RungPlan]) -> list[Failure]:
    """Every rung fits, laid out as its configuration states."""
    budget = plan.hardware.budget
    large = {name: rung for name, rung in left.items() if not rung.choice.fits}
    failures = []
    if large:
        most = max(rung.choice.memory.peak for rung in large.values())
        failures.append(
            Failure(
                "memory",
                f"up to {size(most)} a rank, {size(budget)} of a device may be planned with",
                "choose larger hardware (hardware=h100x8), or leave these rungs out",
                tuple(large),
            )
        )
    asked: dict[tuple[str, ...], list[str]] = {}
    for name, rung in left.items():
        if rung.choice.fits and rung.choice.overrides:
            asked.setdefault(rung.choice.overrides, []).append(name)
    for words, names in asked.items():
        failures.append(
            Failure(
                "layout",
                f"as configured they need more than {size(budget)} a device",
                f"they fit with {' '.join(words)}: sweep these rungs apart, with these overrides",
                tuple(names),
            )
        )
    if plan.hardware.device == "cpu":
        here = machine_memory()
        needed = max(
            (r.choice.memory.peak * r.choice.split.ranks for r in left.values()), default=0
        )
        if needed > here and not large:
            failures.append(
                Failure(
                    "memory",
                    f"{size(needed)} for all ranks of the largest rung, {size(here)} are here",
                    "use fewer ranks (--ranks), or another machine",
                )
            )
    return failures


def check_time(left: Mapping[str, RungPlan]) -> list[Failure]:
    """No rung takes longer than a year."""
    slow = {name: rung for name, rung in left.items() if rung.wall_hours > _MAX_WALL_HOURS}
    if not slow:
        return []
    first, last = (f(r.wall_hours for r in slow.values()) for f in (min, max))
    span = duration(first) if first == last else f"{duration(first)} to {duration(last)}"
    return [
        Failure(
            "time",
            f"{span} a rung on this hardware, more than a year",
            "choose larger hardware; `tripod plan --measure` replaces the stated speed",
            tuple(slow),
        )
    ]


def check_disk(directory: Path, left: Mapping[str, RungPlan]) -> list[Failure]:
    """The checkpoints that are still to be written fit, with a fifth to spare."""
    needed = sum(rung.storage.local_bytes for rung in left.values())
    place = _existing(directory)
    free = free_bytes(place)
    if free >= _DISK_MARGIN * needed:
        return []
    return [
        Failure(
            "disk",
            f"checkpoints need {size(needed)} and a fifth more, {size(free)} are free at {place}",
            "free some space, name another place with --root, or save fewer (checkpoints.every)",
        )
    ]


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def check_data(sweep: Sweep) -> list[Failure]:
    """The dataset is built, or there is a recipe whose files are at hand."""
    config = next(iter(sweep.rungs.values()))
    directory = sweep.directory / config.data.dir
    if (directory / "index.json").exists():
        return []
    if not config.data.build:
        return [
            Failure(
                "data",
                f"{directory}: expected a dataset, found none, and data.build is empty",
                "build it (`tripod data build`, `tripod data index-megatron`), or state a recipe",
            )
        ]
    return _megatron_files(config)


def _megatron_files(config: RunConfig) -> list[Failure]:
    from data_pipeline.errors import DatasetError
    from data_pipeline.megatron import find_files

    files = config.data.build.get("megatron", {})
    failures = []
    tokenizer = files.get("tokenizer")
    if tokenizer is not None and not Path(tokenizer).is_file():
        failures.append(
            Failure(
                "data",
                f"{tokenizer}: expected the tokenizer of the ids, found no file",
                "download it (docs/pythia.md) and name it: tokenizer=/path/20B_tokenizer.json",
            )
        )
    for part in files.get("parts", []):
        try:
            find_files(part["prefix"])
        except (DatasetError, FileNotFoundError):
            failures.append(
                Failure(
                    "data",
                    f"{part['prefix']}: expected token files (.idx and .bin), found none",
                    "download the set (docs/pythia.md) and name the path: pile=/path/document",
                )
            )
    return failures


def check_locks(sweep: Sweep, names: list[str]) -> list[Failure]:
    """Nobody trains in the run directories."""
    failures = []
    for name in names:
        path = sweep.run_dir(name) / "lock"
        if path.exists() and _is_held(path):
            failures.append(
                Failure(
                    "lock",
                    f"{path} is held by another process",
                    "wait for it or stop it; never delete the file",
                )
            )
    return failures


def _is_held(path: Path) -> bool:
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_quantum(left: Mapping[str, RungPlan]) -> list[Failure]:
    """One forward and backward of the smallest rung, in a process under the run's numerics.

    It fails where a kernel has no deterministic form, the numerics profile does not take, or the
    loss or a gradient is not finite.
    """
    rungs = sorted(left.values(), key=lambda rung: rung.flops)
    if not rungs or rungs[0].step_seconds > _MOCK_SECONDS:
        return []
    config = rungs[0].config
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.json"
        path.write_bytes(config.to_bytes())
        done = subprocess.run(
            [sys.executable, "-m", "suite.preflight_mock", str(path)],
            env=profile_environment(config.numerics.profile),
            capture_output=True,
            text=True,
            preexec_fn=die_with_parent,
            check=False,
        )
    if done.returncode == 0:
        return []
    lines = done.stderr.strip().splitlines()
    return [
        Failure(
            "mock quantum",
            f"one forward and backward failed: {lines[-1] if lines else 'no message'}",
            f"what cannot compute here cannot train here; `python -m suite.train suite="
            f"{config.suite.name} rung={config.rung.name}` shows the whole trace",
            (config.rung.name,),
        )
    ]


def notices() -> list[str]:
    """What is worth knowing and stops nothing."""
    if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"):
        return []
    return ["no C compiler: the quantiser runs in its eager form, with the same bits, slower"]
