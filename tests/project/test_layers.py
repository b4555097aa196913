"""Imports walk one way: data and checkpoints stand on the ground, suite and analysis on them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "data_pipeline": set(),
    "checkpoints_manifest": {"data_pipeline"},
    "suite": {"data_pipeline", "checkpoints_manifest"},
    "analysis": {"data_pipeline", "checkpoints_manifest"},
}
# What a checkpoint is needs canonical JSON, durable writes and the digest formulas, no more.
GROUND = {"data_pipeline.canonical", "data_pipeline.durable", "data_pipeline.digests"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_walk_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for module in imported(path):
            top = module.split(".")[0]
            if top in ALLOWED and top != package:
                assert top in ALLOWED[package], f"{path} imports {module}"
                if package == "checkpoints_manifest":
                    assert module in GROUND, f"{path} imports {module}"


def test_digests_and_manifests_need_no_torch_to_read():
    import subprocess
    import sys

    code = (
        "import sys, checkpoints_manifest.manifest, checkpoints_manifest.tensor_digest, "
        "checkpoints_manifest.verify, data_pipeline.index; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
