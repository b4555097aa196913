"""One mock quantum, as a process of its own: `python -m suite.preflight_mock CONFIG.json`.

It ends with an error where the numerics profile does not take, a kernel has no deterministic form,
the model cannot be built, or the loss or a gradient of random ids is not finite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from suite.config import RunConfig
from suite.numerics import apply_determinism, check_environment, numerics_record


def mock_quantum(config: RunConfig) -> float:
    """The loss of one quantum of random ids, after its backward.

    Raises:
        NumericsError: this process cannot keep the run's numerics.
        FloatingPointError: the loss or a gradient is not finite.
    """
    import torch

    from suite.loss import quantum_loss
    from suite.models import build_model

    check_environment(numerics_record(config.numerics.profile, config.numerics.precision, "none"))
    model = build_model(config.rung.model, config.rung.seeds.init)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(config.rung.model.hf["vocab_size"])
    shape = (config.numerics.quantum, config.data.seq_len + 1)
    ids = torch.randint(0, vocabulary, shape, generator=generator)
    with model.dropout_context.at(config.rung.seeds.dropout, 0):  # type: ignore[operator, union-attr]
        loss = quantum_loss(model, ids, config.numerics).objective
        loss.backward()  # type: ignore[no-untyped-call]
    tensors = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise FloatingPointError(
            "the loss or a gradient of random ids is not finite; look at the initialisation "
            "and the precision of this rung"
        )
    return float(loss.detach())


def main(arguments: list[str]) -> int:
    """The mock quantum of one configuration file, as a process of its own."""
    apply_determinism()
    mock_quantum(RunConfig.from_mapping(json.loads(Path(arguments[0]).read_text())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
