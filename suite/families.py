"""The model families: stock `transformers` causal LMs, and what the trainer must know about each.

A family is data: class names, which matrices write to the residual stream, where dropout sits, what
bounds the context, what its configuration may not ask for. Everything is checked before a model is
built; `transformers` and torch are imported only then, so a configuration is composed without them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class FamilyError(ValueError):
    """A model configuration that a family cannot have: names the key, the value and the remedy."""


@dataclass(frozen=True)
class Family:
    """One architecture of `transformers`.

    Attributes:
        name: `model_type` of `transformers`.
        config_class: name of its configuration class.
        model_class: name of its causal LM.
        initialisations: the named initialisations that are defined for it.
        residual: endings of the stored names of the matrices that write to the residual stream.
        attention: `_attn_implementation` without dropout; None where there is no attention.
        hidden_dropout: keys of `hf` that set dropout on hidden states.
        attention_dropout: keys of `hf` that set dropout on attention probabilities.
        context: key of `hf` that bounds the sequence length; None where nothing does.
        required: keys of `hf` that a published revision states for transformers 4 and 5.
        legacy: keys that the configuration class of transformers 5 takes but does not declare.
        fixed: keys of `hf` that may only have this value, because another would draw from the
            device's generator or leave the reference kernels.
        kernels: packages that would silently replace the reference kernels where installed.
    """

    name: str
    config_class: str
    model_class: str
    residual: tuple[str, ...]
    initialisations: tuple[str, ...] = ("small-wang-v1", "scaled-normal-v1")
    attention: str | None = "sdpa"
    hidden_dropout: tuple[str, ...] = ()
    attention_dropout: tuple[str, ...] = ("attention_dropout",)
    context: str | None = "max_position_embeddings"
    required: tuple[str, ...] = ("rope_theta",)
    legacy: tuple[str, ...] = ("rope_theta",)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kernels: tuple[str, ...] = ()

    @property
    def dropout_keys(self) -> tuple[str, ...]:
        """Every key of `hf` that is a dropout probability."""
        return self.hidden_dropout + self.attention_dropout


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="gpt_neox",
            config_class="GPTNeoXConfig",
            model_class="GPTNeoXForCausalLM",
            residual=("attention.dense.weight", "dense_4h_to_h.weight"),
            hidden_dropout=("hidden_dropout",),
            required=("rotary_pct", "rotary_emb_base"),
            legacy=("rotary_pct", "rotary_emb_base"),
        ),
        Family(
            name="llama",
            config_class="LlamaConfig",
            model_class="LlamaForCausalLM",
            residual=("self_attn.o_proj.weight", "mlp.down_proj.weight"),
        ),
        Family(
            name="mixtral",
            config_class="MixtralConfig",
            model_class="MixtralForCausalLM",
            residual=("self_attn.o_proj.weight", ".w2.weight"),
            required=("rope_theta", "num_experts_per_tok", "router_aux_loss_coef"),
            # Jitter multiplies by uniform draws of the device's generator.
            fixed={"router_jitter_noise": 0.0},
        ),
        Family(
            name="mamba",
            config_class="MambaConfig",
            model_class="MambaForCausalLM",
            residual=("mixer.out_proj.weight",),
            initialisations=("mamba-v1",),
            attention=None,
            attention_dropout=(),
            context=None,
            required=(),
            legacy=(),
            fixed={"use_mambapy": False},
            kernels=("mamba_ssm", "causal_conv1d"),
        ),
    )
}


def problems(family: Family, hf: Mapping[str, Any]) -> list[str]:
    """What a family refuses in `hf`, one line each; empty when nothing."""
    needed = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    lines = [
        f"{key} is missing: the published configuration must state it"
        for key in needed + family.required
        if key not in hf
    ]
    lines += [
        f"{key}: only the unscaled rotary embedding is exported to both generations of "
        f"transformers; state {', '.join(family.required) or 'no rotary embedding'} instead"
        for key in ("rope_parameters", "rope_scaling")
        if key in hf
    ]
    for key in ("hidden_dropout", "attention_dropout"):
        value = hf.get(key, 0.0)
        if value and key not in family.dropout_keys:
            lines.append(f"{key}={value!r}: {family.name} has no such dropout; leave it out")
        elif not 0.0 <= value < 1.0:
            lines.append(f"{key}={value!r}: expected a probability in [0, 1)")
    lines += [
        f"{key}={hf[key]!r}: only {value!r} keeps the exact step for {family.name}"
        for key, value in family.fixed.items()
        if hf.get(key, value) != value
    ]
    return lines


def hf_config(family: Family, hf: Mapping[str, Any]) -> Any:
    """The `transformers` configuration object of a family.

    Raises:
        FamilyError: a key that the architecture does not have (`transformers` would keep it and
            ignore it), or kernels installed that would replace the reference ones.
    """
    import transformers

    kind = getattr(transformers, family.config_class)
    known = {field.name for field in dataclasses.fields(kind)} | set(family.legacy)
    unknown = sorted(set(hf) - known)
    if unknown:
        raise FamilyError(
            f"rung.model.hf.{unknown[0]}: {family.config_class} has no such key; it has: "
            f"{', '.join(sorted(known))}"
        )
    found = [name for name in family.kernels if importlib.util.find_spec(name)]
    if found:
        raise FamilyError(
            f"{family.name} is trained with the reference kernels of transformers, but {found[0]} "
            f"is installed and would replace them with other bits; uninstall it"
        )
    config = kind(**dict(hf))
    config.use_cache = False
    if family.attention is not None:
        config._attn_implementation = family.attention
    config._experts_implementation = "eager"  # the default depends on the device and its kernels
    return config
