"""What a run reads, in one value: everything that C_{-1} names, and where to find it.

Reading.of_run(Path("runs/nano/nano-1m")).reader().ids(step=7)
"""

import json
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.batches import BatchReader
from data_pipeline.errors import DatasetError
from data_pipeline.order import NAME


@dataclass(frozen=True)
class Reading:
    """A dataset (directory or URL), S, B, the order and its seed, and an overlay's file if any."""

    dataset: str
    seq_len: int
    batch_size: int
    seed: int
    order: str = NAME
    overlay: Path | None = None

    @classmethod
    def of_run(cls, run_dir: str | Path) -> "Reading":
        """Read it from a run's ``config.json``; ``data.dir`` is relative to the suite directory.

        Raises:
            DatasetError: No run there, or a configuration that does not name its order.
        """
        run_dir = Path(run_dir).resolve()
        path = run_dir / "config.json"
        try:
            data = json.loads(path.read_bytes())["data"]
            return cls(
                dataset=str((run_dir.parent / data["dir"]).resolve()),
                seq_len=data["seq_len"],
                batch_size=data["batch_size"],
                seed=data["seed"],
                order=data["order"],
                overlay=overlay_file(run_dir.parent, data["overlay"]),
            )
        except FileNotFoundError:
            raise DatasetError(f"{run_dir}: expected a run, found no config.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path}: expected the order of a run, found {error!r}") from error

    def reader(self) -> BatchReader:
        """Open it; errors as of ``BatchReader``."""
        return BatchReader(
            self.dataset, self.seq_len, self.batch_size, self.seed, self.order, self.overlay
        )

    def chain_start(self) -> bytes:
        """C_{-1}; opens the dataset for its digest."""
        return self.reader().chain_start()


def overlay_file(suite_dir: Path, digest: str | None) -> Path | None:
    """Where a suite keeps the overlay with this digest: ``overlays/<digest>.json``."""
    return None if digest is None else suite_dir / "overlays" / f"{digest}.json"
