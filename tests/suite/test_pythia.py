"""Suite `pythia` is Pythia in every number, and its variants differ where they say."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from checkpoints_manifest.schedule import checkpoint_steps
from suite.config import RunConfig, _flatten, sibling_differences
from suite.models import decays
from suite.train import compose, config_dir
from tests.suite.plans import composed, planned

# Model cards and README: (layers, width, heads, peak rate, non-embedding, total) by size.
PUBLISHED = {
    "14m": (6, 128, 4, 1.0e-3, 1_189_888, 14_067_712),
    "31m": (6, 256, 8, 1.0e-3, 4_739_072, 30_494_720),
    "70m": (6, 512, 8, 1.0e-3, 18_915_328, 70_426_624),
    "160m": (12, 768, 12, 6.0e-4, 85_056_000, 162_322_944),
    "410m": (24, 1024, 16, 3.0e-4, 302_311_424, 405_334_016),
    "1b": (16, 2048, 8, 2.5e-4, 805_736_448, 1_011_781_632),
    "1.4b": (24, 2048, 16, 2.0e-4, 1_208_602_624, 1_414_647_808),
    "2.8b": (32, 2560, 32, 1.6e-4, 2_517_652_480, 2_775_208_960),
    "6.9b": (32, 4096, 32, 1.2e-4, 6_444_163_072, 6_857_302_016),
    "12b": (36, 5120, 40, 1.2e-4, 11_327_027_200, 11_846_072_320),
}
SEEDED = ("14m", "31m", "70m", "160m", "410m")


@pytest.mark.parametrize("size", PUBLISHED)
def test_shapes_and_rates_are_the_published_ones(size):
    config = composed("pythia").rungs[f"pythia-{size}"]
    hf, (layers, width, heads, lr, _, _) = config.rung.model.hf, PUBLISHED[size]
    shape = (hf["num_hidden_layers"], hf["hidden_size"], hf["num_attention_heads"])
    assert (*shape, config.rung.lr) == (layers, width, heads, lr)
    assert hf["intermediate_size"] == 4 * width
    assert hf["hidden_act"] == "gelu_pytorch_tanh"
    assert hf["use_parallel_residual"] and not hf["tie_word_embeddings"]
    assert (hf["rotary_pct"], hf["rotary_emb_base"], hf["layer_norm_eps"]) == (0.25, 10000, 1e-5)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    *_, non_embedding, total = PUBLISHED[size]
    ours = planned("pythia").rungs[f"pythia-{size}"].parameters
    theirs = planned("pythia-as-published").rungs
    published = theirs.get(f"pythia-{size}-published") or theirs[f"pythia-{size}"]
    assert published.parameters.total == total
    assert published.parameters.non_embedding == ours.non_embedding == non_embedding
    # 6.9b and 12b were published with more rows, padded by their tensor-parallel degree.
    assert (ours.total == total) is (size not in ("6.9b", "12b"))


def test_one_padded_vocabulary_for_every_rung():
    rows = {c.rung.model.hf["vocab_size"] for c in composed("pythia").rungs.values()}
    assert rows == {50_304} and 50_304 % 128 == 0 and 50_304 - 50_277 < 128


def test_steps_batch_and_tokens():
    for config in composed("pythia").rungs.values():
        assert (config.train.steps, config.data.batch_size, config.data.seq_len) == (
            143_000,
            1024,
            2048,
        )
        assert config.train.steps * config.batch_tokens == 299_892_736_000
        assert config.train.warmup_steps == 1430


def test_the_154_checkpoints():
    config = composed("pythia").rungs["pythia-14m"]
    expected = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 143_001, 1000)]
    assert list(checkpoint_steps(dict(config.checkpoints), config.train.steps)) == expected
    assert len(expected) == 154


def test_optimizer_and_its_groups():
    train = composed("pythia").rungs["pythia-12b"].train
    assert (train.beta1, train.beta2, train.eps) == (0.9, 0.95, 1e-8)
    assert (train.weight_decay, train.clip, train.min_lr_ratio) == (0.1, 1.0, 0.1)
    from suite.families import FAMILIES
    from suite.models import empty_model

    hf = composed("pythia").rungs["pythia-14m"].rung.model.hf
    named = dict(empty_model(FAMILIES["gpt_neox"], hf, "meta").named_parameters())
    undecayed = {name.rsplit(".", 2)[-1] for name, p in named.items() if not decays(name, p)}
    assert all(p.dim() == 1 for name, p in named.items() if not decays(name, p))
    assert {"weight", "bias"} == undecayed  # of LayerNorms, and biases
    assert decays("gpt_neox.embed_in.weight", named["gpt_neox.embed_in.weight"])


def test_the_schedule_that_was_used_and_a_clean_one():
    assert composed("pythia").rungs["pythia-1b"].train.schedule == "pythia-v1"
    mapping = compose("pythia", "pythia-1b", ["train=pythia-clean"])
    clean = RunConfig.from_mapping(mapping)
    assert clean.train.schedule == "cosine-v1"
    differing = sibling_differences(
        {"used": composed("pythia").rungs["pythia-1b"].to_record(), "clean": clean.to_record()}, ()
    )
    assert [line.split(":")[0] for line in differing] == ["train.schedule"]


def test_declared_deviations_are_exactly_those_of_the_resolved_configurations():
    stated = OmegaConf.load(f"{config_dir()}/suite/pythia-as-published.yaml").deviations
    here, there = composed("pythia").rungs, composed("pythia-as-published").rungs
    for name, config in there.items():
        ours = _flatten(here[name.removesuffix("-published")].to_record())
        theirs = _flatten(config.to_record())
        differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert differing - {"suite.name", "rung.name"} == set(stated.get(name, {})), name


def test_deduplicated_rungs_differ_in_their_data_alone():
    here, there = composed("pythia").rungs, composed("pythia-deduped").rungs
    for name, config in there.items():
        ours, theirs = (c.to_record() for c in (here[name.removesuffix("-deduped")], config))
        lines = sibling_differences({"a": ours, "b": theirs}, ("suite.name", "rung.name"))
        assert lines == []
        assert "deduped" in config.data.build["megatron"]["parts"][0]["prefix"]


def test_seeds_of_the_polypythias_change_what_they_name():
    rungs = composed("polypythias").rungs
    assert len(rungs) == 5 * 9 + 6
    original = composed("pythia").rungs
    for size in SEEDED:
        for seed in range(1, 10):
            config = rungs[f"pythia-{size}-seed{seed}"]
            assert (config.rung.seeds.init, config.data.seed) == (seed, seed)
            assert config.rung.model == original[f"pythia-{size}"].rung.model
            assert config.rung.lr == original[f"pythia-{size}"].rung.lr
    for seed in (1, 2, 3):
        data, weight = (rungs[f"pythia-160m-{k}-seed{seed}"] for k in ("data", "weight"))
        assert (data.rung.seeds.init, data.data.seed) == (1234, seed)
        assert (weight.rung.seeds.init, weight.data.seed) == (seed, 1234)
    assert {c.data.order for c in rungs.values()} == {"neox-v1"}


def test_orders_are_compared_within_a_declared_data_seed(tmp_path):
    """Only where the suite's file declares the axis: elsewhere another seed is a failure."""
    from suite.verify_order import by_declared_seed

    def written(suite, name, seed):
        config = composed(suite).rungs[name]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=seed))
        run_dir = tmp_path / suite / name
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_bytes(config.to_bytes())
        return run_dir

    one, two = (written("polypythias", f"pythia-14m-seed{s}", s) for s in (1, 2))
    again = written("polypythias", "pythia-31m-seed1", 1)
    assert by_declared_seed([one, two, again]) == {1: [one, again], 2: [two]}
    plain = [written("smoke", name, seed) for seed, name in enumerate(composed("smoke").rungs)]
    assert by_declared_seed(plain) == {None: plain}


def test_gpt_neox_20b_has_its_published_count():
    assert planned("gpt-neox-20b").rungs["gpt-neox-20b"].parameters.total == 20_554_567_680


@pytest.mark.parametrize(
    ("suite", "largest", "hardware", "hours"),
    [("pythia-1gpu", "pythia-410m", "h100x1", 24.0),
     ("pythia-laptop", "pythia-laptop-1m", "laptop", 1.0)],
)  # fmt: skip
def test_scaled_ladders_keep_pythias_ratios(suite, largest, hardware, hours):
    plan = planned(suite, hardware)
    rung, pythia = plan.rungs[largest], planned("pythia").rungs["pythia-12b"]
    ratio = pythia.tokens / pythia.parameters.non_embedding
    assert rung.tokens / rung.parameters.non_embedding == pytest.approx(ratio, rel=0.025)
    assert len(rung.storage.steps) == 154
    train = rung.config.train
    assert train.warmup_steps / train.steps == pytest.approx(0.01, rel=0.03)
    assert sum(r.wall_hours for r in plan.rungs.values()) == pytest.approx(hours, rel=0.3)


def test_rates_of_the_laptop_ladder_follow_inverse_width_v1():
    rungs = composed("pythia-laptop").rungs.values()
    assert {c.rung.lr * c.rung.model.hf["hidden_size"] for c in rungs} == {0.256}


def test_architectures_of_one_size_match_on_one_order():
    plan = planned("modern")
    data = {str(c.to_record()["data"]) for c in composed("modern").rungs.values()}
    assert len(data) == 1
    for size in ("70m", "160m", "410m", "1b"):
        ours = plan.rungs[f"pythia-{size}"]
        for family in ("llama", "mixtral", "mamba"):
            other = plan.rungs[f"{family}-{size}"]
            active = other.parameters.active - other.parameters.embedding
            assert other.parameters.embedding == ours.parameters.embedding
            assert active == pytest.approx(ours.parameters.non_embedding, rel=0.08)
            assert other.config.rung.lr == ours.config.rung.lr


def test_published_files_are_indexed_where_they_lie_with_their_tokenizer(tmp_path):
    """The recipe of suite `pythia`, on small files of the published form."""
    import numpy as np

    from data_pipeline.datasets import open_index, open_stream
    from data_pipeline.megatron import write_megatron
    from data_pipeline.orders import open_order
    from data_pipeline.tokenizer import train_bpe
    from suite.data import build

    rows = np.random.RandomState(0).randint(1, 257, (6, 2049)).astype("<u2")
    write_megatron(tmp_path / "document", list(rows), "uint16")
    tokenizer = train_bpe(["some text"], 257)
    (tmp_path / "t.json").write_bytes(tokenizer.data)
    words = [f"pile={tmp_path}/document", f"tokenizer={tmp_path}/t.json"]
    config = RunConfig.from_mapping(compose("pythia", "pythia-14m", words))
    build(config.data.build, tmp_path / "data", workers=1)
    index = open_index(tmp_path / "data")
    assert index.tokenizer().data == tokenizer.data
    order = open_order("preshuffled-v1", open_stream(tmp_path / "data"), 2048, 1234)
    assert (order.rows(order.sequences(2, 1))[0] == rows[2]).all()
