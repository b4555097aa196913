"""The build of a dataset as tasks: one Hydra job a shard group, on whatever launcher there is.

    python -m suite.build_data suite=nano stage=plan
    python -m suite.build_data --multirun suite=nano stage=survey 'group=range(0,8)' \
        hydra/launcher=submitit_slurm
    python -m suite.build_data suite=nano stage=prepare
    python -m suite.build_data --multirun suite=nano stage=encode 'group=range(0,8)' ...
    python -m suite.build_data suite=nano stage=finish

`tripod data build SUITE --launcher joblib` runs the five in turn. The result is the one of a build
in one process, byte for byte; every stage does only what is missing.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from data_pipeline.build import (
    build_group,
    finish_build,
    plan_groups,
    prepare_build,
    survey_group,
)
from suite.config import ConfigError
from suite.launch import die_with_parent
from suite.train import to_mapping

STAGES = ("plan", "survey", "prepare", "encode", "finish")


def run_stage(mapping: dict[str, Any]) -> None:
    """Runs one stage of the build of one suite.

    Args:
        mapping: the composed configuration: `root`, `suite`, `data`, `stage`, `group`, `workers`.

    Raises:
        ConfigError: an unknown stage, or a stage that needs a group and got none.
    """
    stage, group, workers = mapping["stage"], mapping["group"], mapping["workers"]
    recipe = dict(mapping["data"]["build"])
    out = Path(mapping["root"]).resolve() / mapping["suite"]["name"] / mapping["data"]["dir"]
    if stage not in STAGES:
        raise ConfigError(f"stage={stage!r} is not known; allowed: {', '.join(STAGES)}")
    if stage in ("survey", "encode") and group is None:
        raise ConfigError(f"stage={stage} needs a group: group=0, or 'group=range(0,N)' to sweep")
    out.parent.mkdir(parents=True, exist_ok=True)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # joblib's workers call theirs "loky", a name that processes started from them do not know.
        multiprocessing.set_start_method("spawn", force=True)
    if stage == "plan":
        groups = plan_groups(recipe)
        print(f"{len(groups)} groups, {sum(g.size for g in groups):,} bytes", flush=True)
    elif stage == "survey":
        survey_group(recipe, out, group, workers, say)
    elif stage == "prepare":
        prepare_build(recipe, out, say)
    elif stage == "encode":
        build_group(recipe, out, group, workers, say)
    else:
        finish_build(recipe, out, say)


def build_with_launcher(
    suite: str, root: Path, launcher: str, workers: int, recipe: dict[str, Any]
) -> None:
    """Runs all stages of a suite's build, the two that go by groups through a Hydra launcher.

    Args:
        suite: its name.
        root: directory that holds the suites.
        launcher: `basic`, `joblib`, `submitit_local` or `submitit_slurm`.
        workers: processes of one task.
        recipe: the suite's `data.build`.

    Raises:
        RuntimeError: a stage stopped; its reason is above.
    """
    count = len(plan_groups(recipe))
    for stage in STAGES[1:]:
        words = [f"suite={suite}", f"stage={stage}", f"root={root.resolve()}", f"workers={workers}"]
        if stage in ("survey", "encode"):
            by_group = [f"group=range(0,{count})", f"hydra/launcher={launcher}"]
            words = ["--multirun", *words, *by_group]
        command = [sys.executable, "-m", "suite.build_data", *words]
        done = subprocess.run(command, preexec_fn=die_with_parent, check=False)
        if done.returncode:
            raise RuntimeError(
                f"stage {stage} stopped with status {done.returncode} (reason above); the same "
                "command carries on"
            )


def say(line: str) -> None:
    """Prints a line of progress."""
    print(f"data: {line}", flush=True)


@hydra.main(  # type: ignore[untyped-decorator]
    version_base="1.3", config_path="../sweeps", config_name="build"
)
def main(config: DictConfig) -> None:
    """Runs the stage that the command line names."""
    run_stage(to_mapping(config))


if __name__ == "__main__":
    main()
