"""DeepSpeed's configuration, derived from ours, and what is refused with the reason.

Every number in it comes from `RunConfig`; nothing is written by hand twice. What cannot be vouched
for is refused before anything is computed. docs/deepspeed.md says what each layout promises.
"""

from __future__ import annotations

from typing import Any

from suite.config import ConfigError, RunConfig
from suite.engine_record import ELASTIC, FIXED_LAYOUT, promise_of

# Families that are tested, by what is promised, and with tensor parallelism.
FAMILIES = {
    ELASTIC: ("gpt_neox", "llama", "mixtral", "mamba"),
    FIXED_LAYOUT: ("gpt_neox", "llama"),
    "tensor": ("gpt_neox",),
}
PRECISIONS = ("fp32", "bf16-params")

# Settings that may be passed through. At a fixed layout they are part of what the bits depend on,
# so they are recorded; with the integer reduction they change none.
OPTIONS = (
    "allgather_bucket_size",
    "reduce_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
)
REFUSED = {
    "overlap_comm": "gradients are reduced on another stream while the backward pass still "
    "writes; a race there changes bits without an error (DeepSpeed #8061, GPT-NeoX #1004)",
    "communication_data_type": "the type in which gradients are added is part of the numerics: "
    "int64 where the engine is elastic, fp32 elsewhere",
    "round_robin_gradients": "it reorders parameters, and the canonical state could not be "
    "gathered",
    "zero_quantized_weights": "weights would be rounded on the wire",
    "zero_quantized_gradients": "gradients would be rounded on the wire",
    "zero_hpz_partition_size": "a second partition of the weights is not part of the state",
    "fp16": "a dynamic loss scale skips updates by what it met before, which no checkpoint of "
    "ours holds; use numerics.precision=bf16-params",
    "amp": "use numerics.precision=bf16-params",
    "gradient_clipping": "train.clip is the one place that says it",
    "gradient_accumulation_steps": "it follows from data.batch_size, numerics.quantum and ranks",
    "train_batch_size": "data.batch_size is the one place that says it",
}


def refusals(config: RunConfig) -> list[str]:
    """Why this run cannot be computed by DeepSpeed under our promises; empty where it can."""
    engine, found = config.engine, []
    for key in engine.options:
        if key in REFUSED:
            found.append(f"engine.options.{key}: {REFUSED[key]}")
        elif key not in OPTIONS:
            found.append(f"engine.options.{key} is not known; allowed: {', '.join(OPTIONS)}")
    found += _model_refusals(config)
    if config.numerics.precision not in PRECISIONS:
        found.append(
            f"numerics.precision={config.numerics.precision!r}: DeepSpeed keeps bf16 weights "
            f"beside fp32 ones rather than autocast; allowed: {', '.join(PRECISIONS)}"
        )
    if engine.zero_stage == 0 and config.numerics.precision == "bf16-params":
        found.append("engine.zero_stage=0: DeepSpeed has no fp32 master weights there; use 1")
    if engine.zero_stage == 0 and (engine.offload_optimizer or engine.tensor_parallel > 1):
        found.append("engine.zero_stage=0: offload and tensor parallelism need at least 1")
    return found


def _model_refusals(config: RunConfig) -> list[str]:
    engine, model, found = config.engine, config.rung.model, []
    layout = "tensor" if engine.tensor_parallel > 1 else promise_of(engine)
    if model.family not in FAMILIES[layout]:
        found.append(
            f"rung.model.family={model.family!r}: with this layout of DeepSpeed only "
            f"{', '.join(FAMILIES[layout])} is tested; use engine.name=reference"
        )
    if engine.tensor_parallel > 1:
        found += [
            f"rung.model.hf.{key}={model.hf[key]!r}: masks are keyed by element of whole "
            "activations, of which tensor parallelism computes a part; set it to 0.0"
            for key in ("hidden_dropout", "attention_dropout")
            if model.hf.get(key)
        ]
        if model.vocab_padding_multiple > 1:
            found.append(
                f"rung.model.vocab_padding_multiple={model.vocab_padding_multiple}: not tested "
                "with tensor parallelism; set it to 1"
            )
    return found


def layout_refusals(config: RunConfig, world: int) -> list[str]:
    """Why this run cannot be computed on `world` ranks; empty where it can."""
    tensor, heads = config.engine.tensor_parallel, config.rung.model.hf.get("num_attention_heads")
    if world % tensor:
        return [f"{world} ranks are not a multiple of engine.tensor_parallel={tensor}"]
    found = []
    if tensor > 1 and heads is not None and int(heads) % tensor:
        found.append(f"num_attention_heads={heads} is not a multiple of tensor_parallel={tensor}")
    data_ranks = world // tensor
    if promise_of(config.engine) != ELASTIC and config.num_quanta % data_ranks:
        found.append(
            f"{config.num_quanta} quanta on {data_ranks} data-parallel ranks: ZeRO-"
            f"{config.engine.zero_stage} communicates at every quantum, so each rank needs the "
            "same number; choose a number of ranks that divides the quanta"
        )
    return found


def check_supported(config: RunConfig, world: int) -> None:
    """Refuses what DeepSpeed cannot compute under our promises.

    Raises:
        ConfigError: every reason at once.
    """
    if config.engine.name != "deepspeed":
        return
    found = refusals(config) + layout_refusals(config, world)
    if found:
        raise ConfigError("the DeepSpeed engine refuses this run:\n  " + "\n  ".join(found))


def deepspeed_config(config: RunConfig, world: int) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Elastic: one micro-batch a "step" of DeepSpeed's counter, no clipping; quanta are counted,
    reduced and clipped by us. Fixed layout: DeepSpeed counts, reduces and clips.

    Args:
        config: the run.
        world: ranks in all.
    """
    engine, elastic = config.engine, promise_of(config.engine) == ELASTIC
    data_ranks = world // engine.tensor_parallel
    zero: dict[str, Any] = {"stage": engine.zero_stage, "overlap_comm": False, **engine.options}
    if engine.zero_stage == 3:
        # Its own linear layer adds the bias after rounding: another model in bf16 than the one
        # that the checkpoint is published as.
        zero["memory_efficient_linear"] = False
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.numerics.quantum,
        "gradient_accumulation_steps": 1 if elastic else config.num_quanta // data_ranks,
        "gradient_clipping": 0.0 if elastic else config.train.clip,
        "zero_optimization": zero,
        "bf16": _bf16(config),
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # adamw-v1 is ours; DeepSpeed knows its own optimizers by name.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if engine.tensor_parallel > 1:
        derived["tensor_parallel"] = {"autotp_size": engine.tensor_parallel}
    return derived


def _bf16(config: RunConfig) -> dict[str, bool]:
    if config.numerics.precision != "bf16-params":
        return {"enabled": False}
    # Otherwise a NaN in the gradients would reach the weights.
    return {"enabled": True, "check_grad_overflow": True}
