"""Rank, number of ranks and meeting point, from what torchrun and srun put into the environment."""

import pytest

from suite.placement import PlacementError, first_host, placement

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NODELIST": "gpu[003-004],gpu9",
}  # fmt: skip


def test_alone_without_a_launcher():
    assert (placement({}).rank, placement({}).world) == (0, 1)


def test_torchrun_says_everything():
    found = placement(TORCHRUN)
    assert (found.rank, found.world, found.local_rank) == (5, 8, 1)
    assert (found.address, found.port, found.launcher) == ("node1", 29400, "torchrun")
    assert placement(found.environment()) == found


def test_a_task_of_srun_is_a_rank_and_all_meet_at_the_first_host():
    found = placement(SRUN)
    assert (found.rank, found.world, found.local_rank) == (9, 16, 1)
    assert (found.address, found.launcher) == ("gpu003", "srun")
    others = [placement({**SRUN, "SLURM_PROCID": str(rank)}) for rank in range(16)]
    assert {(other.address, other.port) for other in others} == {("gpu003", found.port)}
    assert 20_000 <= found.port < 40_000


def test_two_jobs_or_steps_do_not_meet_on_one_port():
    ports = {
        placement({**SRUN, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step}).port
        for job, step in (("4711", "2"), ("4711", "3"), ("4712", "2"))
    }
    assert len(ports) == 3


def test_a_meeting_point_that_the_user_names_counts():
    found = placement({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6000"})
    assert (found.address, found.port) == ("10.0.0.1", 6000)


def test_torchrun_inside_srun_counts():
    assert placement({**SRUN, **TORCHRUN}).launcher == "torchrun"


def test_a_command_in_a_batch_script_is_no_rank():
    batch = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}
    assert placement(batch).world == 1


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused_by_name(name):
    half = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(PlacementError, match=f"torchrun set no {name}"):
        placement(half)


def test_a_rank_outside_its_group_is_refused():
    with pytest.raises(PlacementError, match=r"expected a rank in \[0, 8\), found 8"):
        placement({**TORCHRUN, "RANK": "8"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("gpu[7]", "gpu7"),
        ("rack1-gpu[03,05]-ib,x", "rack1-gpu03-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_what_is_no_node_list_is_refused():
    with pytest.raises(PlacementError, match="set MASTER_ADDR"):
        first_host("[1-2]")
