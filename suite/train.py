"""Hydra entry point: `python -m suite.train suite=nano rung=nano-1m`, or a `--multirun` ladder.

Every Hydra feature applies (overrides, `hydra/launcher=joblib`, sweeper parameters, `--cfg job`).
The composed config is turned into frozen dataclasses here, and nothing below sees a `DictConfig`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from suite.config import ConfigError, RunConfig
from suite.launch import RunFailedError, launch
from suite.operation import Operation
from suite.signals import INTERRUPTED, RunInterruptedError


def compose(suite: str, rung: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Composes `sweeps/` for one rung, as `python -m suite.train` would.

    Raises:
        hydra.errors.HydraException: an unknown suite, rung or key; lists the names that exist.
    """
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        names = [f"suite={suite}", f"rung={rung}", *(overrides or [])]
        composed = hydra.compose("config", overrides=names)
    return to_mapping(composed)


def config_dir() -> str:
    """The absolute path of `sweeps/`."""
    return str(Path(__file__).resolve().parents[1] / "sweeps")


def suite_names() -> list[str]:
    """Suites that exist."""
    return sorted(path.stem for path in (Path(config_dir()) / "suite").glob("*.yaml"))


def declared_axes(suite: str) -> tuple[str, ...]:
    """Keys in which rungs of a suite may differ, as its file says; none for an unknown suite."""
    path = Path(config_dir()) / "suite" / f"{suite}.yaml"
    return tuple(OmegaConf.load(path).suite.axes) if path.exists() else ()


def to_mapping(config: DictConfig) -> dict[str, Any]:
    """Plain nested mappings of a composed config, interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(container, dict):
        raise ConfigError(
            f"expected a mapping at the root of the configuration, found {container!r}"
        )
    return {str(key): value for key, value in container.items()}


@hydra.main(  # type: ignore[untyped-decorator]
    version_base="1.3", config_path="../sweeps", config_name="config"
)
def main(config: DictConfig) -> None:
    """Trains the rung that the command line names, continuing what is in its directory."""
    mapping = to_mapping(config)
    root = Path(mapping["root"]).resolve()
    # Building first fills in the index digest, which is part of the run's identity.
    from suite.data import ensure_dataset

    run = ensure_dataset(RunConfig.from_mapping(mapping), root)
    operation = Operation.of_composed(mapping)
    run_dir, accept = root / run.suite.name / run.rung.name, tuple(mapping["accept"])
    try:
        launch(run, run_dir, accept=accept, operation=operation)
    except (ConfigError, RunFailedError) as error:
        raise SystemExit(f"tripod: {error}") from error
    except RunInterruptedError as error:
        print(f"tripod: {error}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


if __name__ == "__main__":
    main()
