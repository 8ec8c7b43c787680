"""Laws of joining a world: who this process is, where it lives, and that it leaves."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh, world_size
from omni_mesh.started import Place, find_place
from omni_mesh.world import pick_device

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", **MASTER}
STARTERS = {"RANK", "WORLD_SIZE", "SLURM_STEP_ID"}


@pytest.fixture(autouse=True)
def plainly_started(monkeypatch):
    """As if nobody had started the tests as a rank."""
    for name in TORCHRUN | SLURM:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("env", [TORCHRUN, SLURM, SLURM | TORCHRUN])
def test_a_started_rank_finds_its_place(env):
    assert find_place(env) == Place(rank=5, size=8, local_rank=1)


def test_torchrun_inside_slurm_wins():
    assert find_place(SLURM | TORCHRUN | {"RANK": "3"}) == Place(rank=3, size=8, local_rank=1)


def test_a_plain_process_a_batch_script_and_a_slurm_shell_are_no_ranks():
    assert find_place({}) is None
    assert find_place({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}) is None
    assert find_place(SLURM | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize("env", [TORCHRUN, SLURM])
def test_every_missing_variable_is_named(env):
    for name in env.keys() - STARTERS - {"SLURM_NTASKS"}:
        with pytest.raises(ValueError, match=f"but {name} is not set"):
            find_place({key: value for key, value in env.items() if key != name})
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT are not set"):
        find_place({key: value for key, value in env.items() if key not in MASTER})


def test_half_of_a_place_is_refused():
    with pytest.raises(ValueError, match="started by torchrun, but WORLD_SIZE, LOCAL_RANK are not set"):
        find_place({"RANK": "0", **MASTER})


def test_a_rank_lives_on_its_own_gpu_or_on_the_cpu():
    assert pick_device(None, 3, 8) == torch.device("cuda", 3)
    assert pick_device(None, 3, 0) == pick_device("cpu", 3, 8) == torch.device("cpu")


def test_a_rank_without_a_gpu_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r'rank 2 needs a GPU.*shows 2. Start at most 2 .*join with device="cpu"'):
        pick_device(None, 2, 2)
    with pytest.raises(ValueError, match="this machine shows 0"):
        pick_device("cuda", 0, 0)
    with pytest.raises(ValueError, match='device=\'cuda:1\': ranks live on "cuda" or on "cpu"'):
        pick_device("cuda:1", 1, 2)


def test_a_plain_process_is_a_world_of_one():
    assert world_size() is None
    with join_world(device="cpu") as world:
        assert (world.rank, world.local_rank, world.size, world.device) == (0, 0, 1, torch.device("cpu"))
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        x = torch.ones(2)
        dist.all_reduce(x, group=mesh.params.get_group("fsdp"))
        assert x.tolist() == [1, 1]


def test_a_world_is_left_whether_it_ends_well_or_not():
    with join_world(device="cpu"):
        assert dist.is_initialized()
    assert not dist.is_initialized()
    with pytest.raises(ZeroDivisionError), join_world(device="cpu") as world:
        _ = world.rank / 0
    assert not dist.is_initialized()


def test_a_started_rank_joins_the_world_of_the_environment(monkeypatch):
    for name, value in (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    assert world_size() == 1
    with join_world(device="cpu") as world:
        assert (world.rank, world.size, dist.get_backend()) == (0, 1, "gloo")


def test_slurm_alone_is_enough_to_join(monkeypatch):
    # A world of two in which the other never comes: joining gives up, which proves that size and rank were understood.
    for name, value in (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    assert world_size() == 2
    with pytest.raises(dist.DistStoreError, match="1/2 clients joined"), join_world(device="cpu", timeout_s=1):
        raise AssertionError("joined alone")


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_a_second_world_of_a_process_remembers_nothing_of_the_first():
    """What torch remembers of a mesh must not answer for an equal one of another world, whose groups have new names."""
    for before in range(2):
        with join_world(device="cpu"):
            for _ in range(before):
                dist.new_group([0])
            mesh = make_mesh(resolve_mesh(MeshConfig(), 1), device_type="cpu").experts["efsdp", "ep"]
            tensor = distribute_tensor(torch.ones(2, 2), mesh, [Shard(1), Shard(0)], src_data_rank=None)
            assert torch.equal(tensor.detach().full_tensor(), torch.ones(2, 2))
            assert tensor.detach().device_mesh.get_group("ep").group_name == mesh.get_group("ep").group_name
