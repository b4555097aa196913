"""Run by torchrun in test_deepspeed.py: engines side by side, a digest for each.

`elastic`: the reference and DeepSpeed engines on one recipe, and DeepSpeed's own float reduction as
the control. `fixed DIRECTORY`: every fixed layout, uninterrupted, stopped after two updates (the
state goes into DIRECTORY, or is continued from there when it is filled), and with a gradient that
is not finite.
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from suite.comm import Group, join_group, leave_group
from suite.config import EngineConfig
from suite.engine_record import EngineError
from suite.engines import make_engine
from suite.numerics import apply_determinism
from suite.quantise import NonFiniteGradientError
from tests.suite.family_scenarios import EVERYTHING
from tests.suite.rank_scenarios import batch_of, config_for, state_digest
from tests.suite.tiny_families import HF, family_config, train

UPDATES, STOP = 3, 2
# V = 8, so that 3 ranks get unequal shares; float reduction needs equal ones: V = 12.
UNEQUAL, EQUAL = 3, 2
# ZeRO-3 and then tensor parallelism last: DeepSpeed keeps some of them for the process's lifetime.
LAYOUTS = {
    "zero2": {"zero_stage": 2},
    "zero1-offload": {"zero_stage": 1, "offload_optimizer": True},
    "zero2-offload": {"zero_stage": 2, "offload_optimizer": True},
    "zero3": {"zero_stage": 3},
    "zero3-offload": {"zero_stage": 3, "offload_optimizer": True},
    "zero1-tensor": {"zero_stage": 1, "tensor_parallel": 2},
    "zero2-tensor": {"zero_stage": 2, "tensor_parallel": 2},
    "zero3-tensor": {"zero_stage": 3, "tensor_parallel": 2},
}
IN_FP32_TOO = ("zero2", "zero3", "zero2-tensor")


def on_deepspeed(config, **settings):
    return dataclasses.replace(config, engine=EngineConfig(name="deepspeed", **settings))


def trained(engine, first=1, last=UPDATES):
    """Trains and returns norms and how often clipping fired."""
    norms, clipped = [], 0
    for update in range(first, last + 1):
        batch = batch_of(update)
        result = engine.step(update, 1e-2, lambda a, b, batch=batch: batch[a:b])
        norms.append(result.grad_norm)
        clipped += result.clip_coef < 1
    return norms, clipped


def elastic(group: Group) -> dict[str, object]:
    found: dict[str, object] = {}
    for precision, stages in (("bf16-params", (1,)), ("fp32", (0, 1))):
        config = config_for(precision, UNEQUAL)
        reference = make_engine(config, group)
        found[f"norms-{precision}"], found[f"clipped-{precision}"] = trained(reference)
        found[f"reference-{precision}"] = state_digest(reference)
        for stage in stages:
            engine = make_engine(on_deepspeed(config, zero_stage=stage), group)
            trained(engine, last=STOP)
            state = engine.state()
            trained(engine, STOP + 1)
            found[f"zero{stage}-{precision}"] = state_digest(engine)
            found[f"bypassed-{stage}-{precision}"] = bypassed(engine)
            engine.close()
            reference = make_engine(config, group)
            reference.load_state(*state)
            trained(reference, STOP + 1)
            found[f"handed-over-{stage}-{precision}"] = state_digest(reference)
    for family in HF:
        precision = "fp32" if family == "mamba" else "bf16-params"
        config = family_config(family, precision=precision, **EVERYTHING)
        for name, engine_config in (("reference", config), ("zero1", on_deepspeed(config))):
            engine = make_engine(engine_config, group)
            train(engine)
            found[f"{name}-{family}"] = state_digest(engine)
    engine = make_engine(on_deepspeed(config_for("bf16-params", EQUAL), zero_stage=2), group)
    trained(engine)
    found["float-sum"] = state_digest(engine)
    return found


def bypassed(engine) -> str:
    """What becomes of an update in which DeepSpeed does not call what we put in its place."""
    before = state_digest(engine)
    engine.engine.allreduce_gradients = lambda: None
    try:
        trained(engine, UPDATES + 1, UPDATES + 1)
    except EngineError as error:
        unchanged = state_digest(engine) == before
        return f"{'nothing changed' if unchanged else 'CHANGED'}: {error}"
    return "not noticed"


def fixed(group: Group, directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for precision in ("bf16-params", "fp32"):
        found[f"norms-{precision}"] = trained(make_engine(config_for(precision), group))[0]
    for name, settings in LAYOUTS.items():
        if name == "zero3":
            found["zero3-llama"] = llama_again(group)
        for precision in ("bf16-params", "fp32") if name in IN_FP32_TOO else ("bf16-params",):
            config = on_deepspeed(config_for(precision), **settings)
            found[f"{name}-{precision}"] = layout(config, group, directory / f"{name}-{precision}")
    return found


def llama_again(group: Group) -> list[str]:
    """ZeRO-3 of another family, twice: V = 10 quanta of one row, dropout and padding on."""
    digests = []
    for _ in range(2):
        config = family_config("llama", precision="bf16-params", quantum=1)
        engine = make_engine(on_deepspeed(config, zero_stage=3), group)
        train(engine)
        digests.append(state_digest(engine))
        engine.close()
    return digests


def layout(config, group: Group, directory: Path) -> dict[str, object]:
    again = directory.exists()
    engine = make_engine(config, group)
    norms, clipped = trained(engine)
    whole = state_digest(engine)
    stopped = "" if again else non_finite(engine)
    engine.close()
    engine = make_engine(config, group)
    if again:
        engine.load_state(
            load_file(directory / "weights"), load_file(directory / "moments")
        )  # fmt: skip
    else:
        trained(engine, last=STOP)
        weights, moments = engine.state()
        if group.rank == 0:
            directory.mkdir()
            save_file(weights, directory / "weights")
            save_file(moments, directory / "moments")
    trained(engine, STOP + 1)
    resumed = state_digest(engine)
    engine.close()
    return {
        "promise": engine.promise, "norms": norms, "clipped": clipped,
        "whole": whole, "resumed": resumed, "non-finite": stopped,
    }  # fmt: skip


def non_finite(engine) -> str:
    """What becomes of an update with an infinite gradient on the last data-parallel rank."""
    before = state_digest(engine)
    parameter = next(iter(engine._parameters.values()))
    last = engine.group.world // engine.config.engine.tensor_parallel - 1
    scale = float("inf") if engine._data_rank() == last else 1.0
    handle = parameter.register_hook(lambda grad: grad * scale)
    try:
        trained(engine, UPDATES + 1, UPDATES + 1)
    except NonFiniteGradientError as error:
        unchanged = state_digest(engine) == before
        return f"{'nothing changed' if unchanged else 'CHANGED'}: {error}"
    finally:
        handle.remove()
    return "not noticed"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    apply_determinism()
    group = join_group()
    chosen = elastic(group) if sys.argv[1] == "elastic" else fixed(group, Path(sys.argv[2]))
    if group.rank == 0:
        print(json.dumps({"threads": torch.get_num_threads(), **chosen}), flush=True)
    group.barrier()
    leave_group()
