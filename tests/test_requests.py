"""Whatever is wrong with a request is told before anything starts: all of it at once, with numbers and the remedy."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import infer
import pytest
import tyro
from decide import cut_rows, decide
from disk import size_of
from limits import LIMITS, check_numbers, flat_values
from preflight import check_restarts
from ranks import Run
from request import Config, MixConfig
from room import offload_problems
from torch import nn
from training import SMALL, train, write_family
from watch import what_next

from omni_data import Packing, read_tokenizer
from omni_mesh import MeshConfig, MeshSpec
from omni_models import BalanceConfig, build_model, read_config
from omni_parallel import AdamWConfig, RecomputeConfig

PRETRAIN = Path(__file__).parent.parent / "apps" / "pretrain.py"


def complaint(config: Config, ranks: int = 1) -> str:
    with pytest.raises(ValueError) as told:
        decide(config, ranks)
    return str(told.value)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    message = complaint(
        replace(
            SMALL,
            model="qwen3-8bb",
            data=(str(tmp_path / "none.jsonl"),),
            tokenizer=str(tmp_path / "nowhere"),
            warmup=99,
            mesh=MeshConfig(shard=3, sp=2),
        ),
        4,
    )
    for part in (
        "this run cannot start:",
        "no preset (did you mean qwen3-8b?)",
        "none.jsonl: no such file",
        f"there is no directory {tmp_path / 'nowhere'}",
        "warmup=99 steps must be at least 0 and fewer than the run's total=10",
        "shard=3 x sp=2 makes 6 ranks, but the world has 4",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("mesh", "ranks", "parts"),
    [
        (MeshConfig(shard=3), 4, ["shard=3 makes 3 ranks, but the world has 4", "shard=4"]),
        (MeshConfig(replicate=3), 4, ["3 does not divide the 4 ranks"]),
        (MeshConfig(tp=2), 2, ["tp=2: tensor parallelism is not built yet"]),
        (MeshConfig(ep=2), 2, ["ep=2, but the model has no experts to spread: leave ep at 1"]),
        (MeshConfig(shard=3, ep=2), 3, ["ep=2 does not divide shard x cp x sp x tp = 3"]),
        (MeshConfig(pp=2), 2, ["pp=2: pipeline parallelism is not built yet"]),
        (MeshConfig(cp=2), 2, ["cp=2: context parallelism is not built yet"]),
        (MeshConfig(shard=0), 2, ["shard=0: an axis is at least 1"]),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(mesh: MeshConfig, ranks: int, parts: list[str]) -> None:
    message = complaint(replace(SMALL, mesh=mesh), ranks)
    assert all(part in message for part in parts)


def test_experts_that_cannot_be_spread_or_balanced_are_told_before_anything_starts(tmp_path: Path) -> None:
    odd = Path(write_family("qwen3_moe", tmp_path))
    fields = json.loads((odd / "config.json").read_text())
    few = fields | {"num_experts": 3, "moe_intermediate_size": 30}
    (odd / "config.json").write_text(json.dumps(few | {"num_experts_per_tok": 5}))
    config = replace(SMALL, model=str(odd), tokenizer="bytes", mesh=MeshConfig(shard=2, ep=2))
    message = complaint(replace(config, balance=BalanceConfig(loss=-1, rate=0.1)), 2)
    for part in (
        "ep=2 does not divide the 3 experts: choose ep among 1, 3",
        "have a width of 30: grouped matrix products in torch.float32 need multiples of 4",
        "balance loss=-1: must be a number of at least 0",
        "balance rate=0.1 moves biases of routers, of which qwen3_moe has none: use balance.loss",
        "num_experts_per_tok=5 chooses more experts than the 3 there are: lower it",
    ):
        assert part in message
    message = complaint(replace(config, experts="eager"), 2)
    assert "experts=eager keeps all experts on every rank" in message
    message = complaint(replace(config, experts="eager", mesh=MeshConfig(shard=2, ep=-1)), 2)
    assert "experts=eager keeps all experts on every rank" in message
    (odd / "config.json").write_text(json.dumps(fields | {"moe_intermediate_size": 36, "hidden_size": 68}))
    message = complaint(replace(config, mesh=MeshConfig(shard=10, ep=2)), 10)
    assert "experts of shape [72, 68] do not divide over the efsdp=5 ranks that share each" in message
    (odd / "config.json").write_text(json.dumps(few))
    told = decide(replace(config, mesh=MeshConfig(shard=2)), 2).told()
    assert "experts   3, 2 a token, eager" in told


def test_a_head_count_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    directory = Path(write_family("llama", tmp_path))
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 8, "num_key_value_heads": 3}))
    message = complaint(replace(SMALL, model=str(directory), tokenizer="bytes"))
    assert "num_attention_heads=8 does not divide by num_key_value_heads=3" in message
    (directory / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 5, "num_key_value_heads": 5}))
    message = complaint(replace(SMALL, model=str(directory), tokenizer="bytes"))
    assert "hidden size (64) is not a multiple of the number of attention heads (5)" in message


@pytest.mark.parametrize(
    ("changes", "ranks", "part"),
    [
        ({"batch": 10}, 4, "--batch 10 rows do not divide among 4 ranks: use a multiple of 4"),
        ({"micro": 5}, 1, "--micro 5 does not divide the 12 rows of each rank in --batch 12"),
        ({"virtual_shards": 7}, 2, "--virtual-shards 7 do not divide among 2 ranks: use 8"),
        ({"seq_len": 1}, 1, "--seq-len 1 must be at least 2"),
        ({"stop_after": 0}, 1, "--stop-after 0 must be at least 1"),
        ({"attention": "varlen", "dtype": "float32"}, 1, "varlen attention needs bf16 or fp16 on CUDA"),
        ({"attention": "cudnn", "dtype": "float32"}, 1, "cudnn attention needs bf16 or fp16 on a GPU"),
        (
            {"attention": "flex", "recompute": RecomputeConfig(every=1, keep="attention")},
            1,
            "recompute keep=attention watches each operator, and torch compiles nothing that is watched, as flex",
        ),
        ({"compile": True, "linear": "fp8"}, 1, "compile with linear=fp8: layers that share an input know it by being"),
        ({"compile": True, "offload": True}, 1, "compile with offload: what a compiled block keeps may be part of a"),
        (
            {"compile": True, "recompute": RecomputeConfig(every=1, keep="matmuls")},
            1,
            "compile with recompute keep=matmuls: to know what to keep, each operator is watched",
        ),
        ({"out": Path("/proc/nope")}, 1, "nothing can be written into --out /proc/nope"),
        ({"save_to": "/proc/nope"}, 1, "nothing can be written into --save-to /proc/nope"),
        ({"save_to": "file:///proc/nope"}, 1, "nothing can be written into --save-to /proc/nope"),
        ({"save_to": "memory://run"}, 1, "--save-to memory://run is the memory of this process, and checkpoints would"),
        ({"out": Path("s3://bucket/run")}, 1, "a run needs a directory, for its metrics and its lock. Give its"),
        ({"out": Path("s3://bucket/run")}, 1, "checkpoints alone to storage: --save-to s3://bucket/run"),
        ({"save_every": 0}, 1, "--save-every 0 must be at least 1"),
        ({"keep": 0}, 1, "--keep 0 must be at least 1"),
        ({"steps": 0}, 1, "--steps 0 must be at least 1"),
        ({"recompute": RecomputeConfig(-2)}, 1, "recompute every=-2"),
        ({"optim": AdamWConfig(offload=True)}, 1, "--optim.offload: on a CPU moments are in memory of the host"),
        ({"weights": "nowhere"}, 1, "no directory 'nowhere'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, object], ranks: int, part: str) -> None:
    config = replace(SMALL, mesh=MeshConfig(shard=ranks), **changes)  # pyright: ignore[reportArgumentType]
    assert part in complaint(config, ranks)


ODD = {
    "lr": ("inf", "nan", "-1", "-inf"),
    "betas": ("nan", "1.0", "-0.1", "inf"),
    "eps": ("0", "inf", "nan"),
    "weight_decay": ("inf", "nan", "-0.1"),
    "max_norm": ("nan", "0", "-inf"),
}


def test_moments_that_this_machine_cannot_hold_are_refused() -> None:
    model, asked = nn.Linear(1000, 999), AdamWConfig(offload=True)
    model.bias.requires_grad_(False)
    narrow = replace(asked, state_dtype="bfloat16")
    kinds = ((asked, MeshSpec(replicate=8), 7_992_000, 4), (narrow, MeshSpec(shard=3), 1_332_000, 3))
    for optim, spec, each, ranks in kinds:
        enough = ranks * each * 10 // 9
        assert offload_problems(optim, model, spec, "cuda", free=enough, gpus=4) == []
        (told,) = offload_problems(optim, model, spec, "cuda", free=enough - 2, gpus=4)
        assert told.startswith(f"--optim.offload pins {size_of(each)} for each of {ranks} ranks of this machine, which")
        assert "of which a tenth has to stay" in told
    assert offload_problems(AdamWConfig(), model, MeshSpec(), "cuda", free=0, gpus=8) == []


def test_narrow_moments_are_told(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run")
    assert "moments" not in decide(config, 1).told()
    assert "; moments in bfloat16" in decide(replace(config, optim=AdamWConfig(state_dtype="bfloat16")), 1).told()


def test_no_number_that_is_not_finite_or_out_of_range_is_accepted_and_each_is_told_by_its_flag() -> None:
    for flag, values in ODD.items():
        for value in map(float, values):
            given = (0.9, value) if flag == "betas" else value
            message = complaint(replace(SMALL, optim=replace(SMALL.optim, **{flag: given})))
            assert f"--optim.{flag.replace('_', '-')} {value} must be " in message
    message = complaint(
        replace(
            SMALL,
            **{
                "optim": replace(SMALL.optim, lr=inf, eps=nan),
                "timeout_s": inf,
                "seed": -1,
                "packing": Packing(max_len=0),
            },
            **{"mix": MixConfig(weights=("inf",)), "balance": BalanceConfig(loss=nan, rate=inf)},
        )
    )
    for part in (
        "--optim.lr inf must be a finite number",
        "--optim.eps nan must be a finite number",
        "--timeout-s inf must be a finite number",
        "--seed -1 must be at least 0",
        "--packing.max-len 0 must be at least 1",
        "--balance.loss nan must be a finite number",
        "--balance.rate inf must be a finite number",
        "weight inf must be numbers that are not negative",
    ):
        assert part in message
    check_numbers(replace(SMALL, optim=replace(SMALL.optim, max_norm=inf, lr=0.0, betas=(0.0, 0.0))))


def test_every_limit_is_of_a_setting() -> None:
    assert LIMITS.keys() <= flat_values(asdict(Config())).keys()


def test_where_checkpoints_go_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    for to in (str(tmp_path / "disk"), f"file://{tmp_path}/storage"):
        decide(replace(SMALL, out=tmp_path / "run", save_to=to), 1)
    assert not list(tmp_path.iterdir())


def test_a_record_without_the_field_is_refused_by_file_line_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"txt": "hello", "id": 3}\n')
    message = complaint(replace(SMALL, data=(str(path),)))
    assert f"{path}:1" in message
    assert "'text'" in message
    assert "txt" in message


def test_a_wrong_line_is_reported_by_file_line_and_column(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "hello"}\n{"text": "bro ken}\n')
    with pytest.raises(AssertionError, match=r"d\.jsonl:2:1\d"):
        run(train, 1, replace(SMALL, data=(str(path),), out=tmp_path / "run"))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = Path(write_family("llama", tmp_path))
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"vocab_size": 200}))
    message = complaint(replace(SMALL, model=str(directory), tokenizer="bytes"))
    assert "tokenizer bytes has 257 tokens" in message
    assert "embeddings for 200" in message


def test_weights_of_another_model_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    build_model(read_config(write_family("llama", tmp_path))).save_pretrained(tmp_path / "hf")
    message = complaint(replace(SMALL, weights=str(tmp_path / "hf")))
    assert "these weights are not those of this model" in message
    assert f"is to fill --model tiny: to train what it holds, say --model {tmp_path / 'hf'} too." in message
    assert "missing: model.layers.0.self_attn.q_norm.weight" in message


def test_a_checkpoint_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=1)
    run(train, 1, config)
    message = complaint(replace(config, model=write_family("llama", tmp_path), tokenizer="bytes"))
    assert "step-00000001 cannot be continued by" in message
    assert "another model" in message
    files = sorted(path.name for path in config.out.rglob("*"))
    assert "step-00000001" in files


def test_token_ids_beyond_the_vocabulary_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": [1, 2, 999]}) + "\n")
    with pytest.raises(AssertionError, match="token id 999 is beyond the vocabulary of 272 tokens"):
        run(train, 1, replace(SMALL, data=(str(path),), out=tmp_path / "run"))


def test_the_command_line_names_the_nearest_flag_and_tells_problems_without_a_traceback(tmp_path: Path) -> None:
    def ask(*flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(PRETRAIN), "--out", str(tmp_path), *flags], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, told = ask("--stesp", "3")
    assert code == 2
    assert "--steps" in told
    code, told = ask("--cp", "2", "--model", "tinny")
    assert code == 2
    assert "cp=2: context parallelism is not built yet" in told
    assert "did you mean tiny?" in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("--stesp", "--steps"),
        ("--shrad", "--shard"),
        ("--optim.lrr", "--optim.lr"),
        ("--mix.epoch", "--mix.epochs"),
        ("--packing.cost.sqare", "--packing.cost.square"),
        ("--recompute.evry", "--recompute.every"),
    ],
)
def test_an_unknown_flag_of_any_depth_is_an_error_with_the_nearest(
    asked: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        tyro.cli(Config, args=[asked, "3"])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert asked in told and f"{nearest} " in told


def test_a_number_with_an_exponent_is_a_float_and_a_count_is_none() -> None:
    assert tyro.cli(Config, args=["--optim.lr", "1e-5"]).optim.lr == 1e-5
    assert isinstance(tyro.cli(Config, args=["--optim.lr", "1"]).optim.lr, float)
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--steps", "1e3"])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7, 8, 16, 64, 1000])
def test_any_number_of_ranks_can_share_a_step_that_nobody_sized(ranks: int) -> None:
    batch, micro, virtual_shards = cut_rows(Config(), {}, ranks)
    assert batch % ranks == virtual_shards % ranks == 0
    assert 12 <= batch < 12 + ranks
    assert micro * ranks == batch


def test_a_model_that_packed_rows_would_get_wrong_is_refused_before_anything_starts(tmp_path: Path) -> None:
    directory = Path(write_family("llama", tmp_path))
    for fields, part in (
        ({"model_type": "bloom", "n_head": 4}, "bloom cannot be trained exactly yet: it does not call transformers'"),
        ({"model_type": "mamba"}, "mamba cannot be trained exactly yet: MambaBlock"),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1.0}}, "nope"),
    ):
        config = json.loads((directory / "config.json").read_text()) | fields
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(json.dumps(config))
        assert part in complaint(replace(SMALL, model=str(tmp_path / "other"), tokenizer="bytes"))


def test_kernels_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    gemma = write_family("gemma2", tmp_path)
    message = complaint(replace(SMALL, model=gemma, tokenizer="bytes", attention="sdpa", loss="chunked"))
    assert "sdpa attention has no softcap, which gemma2 asks for: use eager" in message
    assert "gemma2 changes its logits after the head (final_logit_softcapping): use the full loss" in message


def test_code_of_a_model_directory_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass C: pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}))
    assert str(tmp_path) in complaint(replace(SMALL, model=str(tmp_path), tokenizer="bytes"))
    assert not canary.exists()


def test_code_beside_a_model_that_is_known_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a known kind that trains and answers, whose directory names code for each of its parts."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    directory, canary = Path(write_family("llama", tmp_path)), tmp_path / "canary"
    classes = {"AutoConfig": "C", "AutoModel": "M", "AutoModelForCausalLM": "M", "AutoTokenizer": "T"}
    (directory / "evil.py").write_text(
        f"open({str(canary)!r}, 'w')\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
    )
    code = {"auto_map": {part: f"evil.{name}" for part, name in classes.items()}}
    read_tokenizer("bytes").save(directory)
    build_model(read_config(str(directory))).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(directory / "model.safetensors")
    for name, fields in (
        ("config.json", code),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}),
    ):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    decide(replace(SMALL, model=str(directory), weights=str(directory), out=tmp_path / "run"), 1)
    told = decide(replace(SMALL, model=str(directory), out=tmp_path / "run"), 1).told()
    assert f"random weights of seed 0; --weights {directory} would start from those there" in told
    infer.main(infer.Config(str(directory), tokens=1))
    assert not canary.exists()


@pytest.mark.parametrize("flag", ["model", "weights", "tokenizer"])
def test_what_looks_like_a_path_is_refused_at_once_and_the_hub_by_how_to_fetch(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fetched = "network, fetch it: uv run apps/download.py runs/mine"
    assert fetched in complaint(replace(SMALL, **{flag: "runs/mine"}))
    (tmp_path / "runs").mkdir()
    told = complaint(replace(SMALL, **{flag: "runs/mine"}))
    assert "there is no runs/mine, and runs is a directory here" in told and "apps/download.py runs/mine" in told
    assert "the same with --to models/mine, and copy that folder" in told
    assert "apps/download.py" not in complaint(replace(SMALL, **{flag: "./mine"}))
    (tmp_path / "runs" / "mine").mkdir()
    told = complaint(replace(SMALL, **{flag: "./runs/mien"}))
    assert "there is no directory ./runs/mien (did you mean runs/mine?)" in told and "Presets" not in told


def test_a_row_count_that_the_new_ranks_cannot_share_is_told_first() -> None:
    with pytest.raises(ValueError, match="has read 30 rows, which 4 ranks cannot have shared evenly: continue on"):
        cut_rows(replace(SMALL, batch=12), {"rows": 30, "virtual_shards": 240}, 4)


def test_tiles_are_refused_where_there_is_nothing_to_tile_and_told_where_there_is(tmp_path: Path) -> None:
    message = complaint(replace(SMALL, model=write_family("qwen3_moe", tmp_path), tokenizer="bytes", tile_mlp=64))
    assert "tile=64, but no module in the blocks is known to be a feed-forward" in message
    assert "--tile-mlp -1 must be at least 0." in complaint(replace(SMALL, tile_mlp=-1))
    run = decide(replace(SMALL, tile_mlp=64), 1)
    assert "4 feed-forward modules in tiles of 64 tokens" in run.told()
    assert "tiles" not in decide(SMALL, 1).told()


def test_keeping_the_outputs_of_attention_needs_an_attention_kernel(tmp_path: Path) -> None:
    recompute = RecomputeConfig(every=1, keep="attention")
    assert "eager attention is no kernel" in complaint(replace(SMALL, attention="eager", recompute=recompute), 1)
    decide(replace(SMALL, attention="eager", out=tmp_path, recompute=replace(recompute, keep="matmuls")), 1)


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_ranks_that_another_started_are_not_promised_to_be_started_again(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    again = replace(SMALL, max_restarts=2)
    check_restarts(again)
    names = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    }
    for name, value in zip(names[by], "121", strict=True):
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "1")
    check_restarts(SMALL)
    with pytest.raises(
        ValueError, match=r"--max-restarts 2 is for ranks that this command starts(.|\n)*give it to torchrun"
    ):
        check_restarts(again)


def test_the_hint_at_your_data_keeps_the_model_its_tokenizer_and_the_mesh() -> None:
    def hint(**asked: Any) -> str:
        return what_next(replace(Config(), **asked), 200, since=1).splitlines()[-1].split("pretrain.py ")[1]

    assert hint() == "--data my.jsonl --out runs/mine"
    assert hint(model="qwen3-0.6b", tokenizer="Qwen/Qwen3-0.6B", mesh=MeshConfig(shard=2, sp=2)) == (
        "--model qwen3-0.6b --tokenizer Qwen/Qwen3-0.6B --shard 2 --sp 2 --data my.jsonl --out runs/mine"
    )
    assert hint(model="my models/x", weights="w", seq_len=64).startswith(
        "--model 'my models/x' --weights w --seq-len 64"
    )


def test_a_run_whose_data_ended_says_what_has_more_and_one_that_was_asked_to_leave_goes_on() -> None:
    def hint(*, left: bool, **mix: Any) -> str:
        config = replace(SMALL, data=("web", "code"), mix=MixConfig(**mix))
        return what_next(config, 3, since=0, left=left).splitlines()[2].removeprefix("  go on      ")

    through = "the data are through: the same command with"
    assert hint(left=False, epochs=(1, 4)) == f"{through} --mix.epochs 2 8, or with --mix.until all"
    assert hint(left=False, epochs=(1, 4), until="all") == f"{through} --mix.epochs 2 8"
    assert hint(left=True, epochs=(1, 4)) == "the same command again"


def test_a_finished_run_says_that_nothing_was_left_to_train() -> None:
    told = what_next(replace(SMALL, out=Path("runs/mine"), steps=12), 12, since=12).splitlines()[1]
    assert told == "nothing was left to train: runs/mine stands at step 12, the last. What next:"
