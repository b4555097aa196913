"""The numerics guard refuses what would change bits, and names it."""

import pytest

from suite.numerics import (
    NumericsError,
    check_environment,
    check_same,
    numerics_record,
    profile_environment,
)

RECORD = {
    "schema": "numerics-v1",
    "profile": "portable-x86",
    "machine": "x86_64",
    "cpu_capability": "AVX2",
    "threads": 1,
    "torch": "2.13.0",
}


def test_the_same_record_passes():
    check_environment(RECORD)
    check_same(RECORD, dict(RECORD))


def test_other_torch_is_refused_with_both_versions():
    with pytest.raises(NumericsError) as caught:
        check_same(RECORD, {**RECORD, "torch": "2.11.0"})
    assert "torch: expected '2.13.0', found '2.11.0'" in str(caught.value)
    assert "were not touched" in str(caught.value)


def test_other_thread_count_is_refused():
    with pytest.raises(NumericsError, match="expected 1 thread per rank, found 2"):
        check_environment({**RECORD, "threads": 2})


def test_a_profile_that_did_not_take_is_refused():
    with pytest.raises(NumericsError, match="cpu_capability=AVX2, found AVX512"):
        check_environment({**RECORD, "cpu_capability": "AVX512"})
    check_environment({**RECORD, "cpu_capability": "AVX512", "profile": "native"})


def test_a_field_that_appears_or_goes_counts_as_a_difference():
    with pytest.raises(NumericsError, match="mkl: expected None, found 'x'"):
        check_same(RECORD, {**RECORD, "mkl": "x"})


def test_profile_environment_pins_threads_and_instruction_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    portable, native = profile_environment("portable-x86"), profile_environment("native")
    assert portable["OMP_NUM_THREADS"] == native["OMP_NUM_THREADS"] == "1"
    assert portable["ATEN_CPU_CAPABILITY"] == "avx2"
    assert "ATEN_CPU_CAPABILITY" not in native


def test_the_record_of_this_process_is_flat_and_complete():
    record = numerics_record("native", "fp32", "eager")
    assert record["torch"].count(".") == 2
    assert all(isinstance(value, str | int) for value in record.values())
    assert {"transformers", "onednn", "mkl", "threads", "cpu_capability"} <= set(record)
