"""DeepSpeed's configuration derives from ours, refuses what it cannot keep, and may be missing."""

import dataclasses
import subprocess
import sys

import pytest

from suite.comm import Group
from suite.config import ConfigError, EngineConfig, RunConfig
from suite.deepspeed_config import OPTIONS, REFUSED, check_supported, deepspeed_config
from suite.engine_record import EngineError
from suite.engines import make_engine
from suite.launch import launch
from suite.train import compose
from tests.suite.tiny_families import family_config

OVERRIDES = ["numerics.quantum=7", "data.batch_size=91", "train.clip=0.375"]


def config_with(precision="bf16-params", overrides=(), **settings):
    names = [*OVERRIDES, f"numerics.precision={precision}", *overrides]
    config = RunConfig.from_mapping(compose("smoke", "smoke-60k", names))
    return dataclasses.replace(config, engine=EngineConfig(name="deepspeed", **settings))


def numbers(value, path=""):
    """Every number in nested mappings, by dotted path."""
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            found |= numbers(item, f"{path}.{key}" if path else key)
        return found
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {path: value} if is_number else {}


def test_every_number_comes_from_our_configuration():
    options = {"reduce_bucket_size": 1234, "sub_group_size": 5678}
    config = config_with(zero_stage=3, tensor_parallel=2, options=options)
    engine = config.engine
    assert numbers(deepspeed_config(config, 26)) == {
        "train_micro_batch_size_per_gpu": config.numerics.quantum,
        "gradient_accumulation_steps": config.num_quanta // (26 // engine.tensor_parallel),
        "gradient_clipping": config.train.clip,
        "zero_optimization.stage": engine.zero_stage,
        "zero_optimization.reduce_bucket_size": options["reduce_bucket_size"],
        "zero_optimization.sub_group_size": options["sub_group_size"],
        "tensor_parallel.autotp_size": engine.tensor_parallel,
    }


def test_in_an_elastic_layout_deepspeed_neither_counts_nor_clips():
    derived = deepspeed_config(config_with(zero_stage=1), 2)
    assert numbers(derived) == {
        "train_micro_batch_size_per_gpu": 7,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization.stage": 1,
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_could_change_bits_unseen_is_off_on_every_layout(stage):
    derived = deepspeed_config(config_with(zero_stage=stage, offload_optimizer=True), 1)
    assert derived["zero_optimization"]["overlap_comm"] is False
    assert derived["communication_data_type"] == "fp32"
    assert derived["data_types"] == {"grad_accum_dtype": "fp32"}
    assert derived["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert deepspeed_config(config_with("fp32", zero_stage=stage), 1)["bf16"] == {"enabled": False}


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_option_says_why(key):
    with pytest.raises(ConfigError) as caught:
        check_supported(config_with(options={key: True}), 1)
    assert f"engine.options.{key}: {REFUSED[key]}" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (config_with(options={"bucket": 3}), 1, ["engine.options.bucket is not known", OPTIONS[0]]),
        (config_with("bf16"), 1, ["numerics.precision='bf16'", "bf16-params"]),
        (config_with(zero_stage=0), 1, ["engine.zero_stage=0", "no fp32 master weights"]),
        (config_with("fp32", zero_stage=0, offload_optimizer=True), 1, ["engine.zero_stage=0"]),
        (config_with(zero_stage=2), 2, ["13 quanta on 2 data-parallel ranks", "ZeRO-2"]),
        (config_with(tensor_parallel=2), 3, ["3 ranks", "engine.tensor_parallel=2"]),
        (config_with(tensor_parallel=3), 3, ["num_attention_heads=4", "tensor_parallel=3"]),
    ],
)
def test_what_cannot_be_vouched_for_is_refused_with_the_reason(config, world, words):
    with pytest.raises(ConfigError, match="the DeepSpeed engine refuses this run") as caught:
        check_supported(config, world)
    for word in words:
        assert word in str(caught.value)


def test_all_reasons_come_at_once_and_before_any_process_or_file(tmp_path):
    config = config_with("bf16", options={"overlap_comm": True})
    with pytest.raises(ConfigError) as caught:
        launch(config, tmp_path / "run", ranks=1)
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "run").exists()


def test_uneven_shares_are_fine_where_integers_are_reduced():
    check_supported(config_with(zero_stage=1), 5)
    check_supported(dataclasses.replace(config_with("bf16"), engine=EngineConfig()), 5)


@pytest.mark.parametrize(
    ("family", "settings", "world"),
    [
        ("mixtral", {"zero_stage": 2}, 1),
        ("mamba", {"zero_stage": 3}, 1),
        ("llama", {"tensor_parallel": 2}, 2),
    ],
)
def test_a_family_that_a_layout_is_not_tested_with_is_refused(family, settings, world):
    engine = EngineConfig(name="deepspeed", **settings)
    config = dataclasses.replace(family_config(family), engine=engine)
    with pytest.raises(ConfigError, match=rf"family='{family}'.*engine\.name=reference"):
        check_supported(config, world)
    check_supported(dataclasses.replace(config, engine=EngineConfig(name="deepspeed")), world)


def test_tensor_parallelism_refuses_what_it_would_compute_in_parts():
    engine = EngineConfig(name="deepspeed", tensor_parallel=2)
    config = dataclasses.replace(family_config("gpt_neox"), engine=engine)
    with pytest.raises(ConfigError) as caught:
        check_supported(config, 2)
    for word in ("hidden_dropout=0.1", "attention_dropout=0.1", "vocab_padding_multiple=16"):
        assert word in str(caught.value)


def test_mamba_has_no_bf16_parameters():
    with pytest.raises(ConfigError, match="reference kernels of mamba"):
        family_config("mamba", precision="bf16-params")


def test_without_deepspeed_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(EngineError, match=r"needs DeepSpeed.*make setup.*engine\.name=ref"):
        make_engine(config_with(), Group(0, 1))


def test_without_deepspeed_the_reference_engine_trains(tmp_path):
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from suite.comm import Group\n"
        "from suite.engines import make_engine\n"
        "import suite.worker, suite.replay_worker, suite.launch\n"
        "from tests.suite.rank_scenarios import config_for, run\n"
        "print(len(run(make_engine(config_for('fp32'), Group(0, 1)), range(1, 2))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr[-2000:]
