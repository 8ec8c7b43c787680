"""What is in `clusters/` is what shells, schedulers and the apps take, and starts runs as docs/clusters.md says."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pretrain
import pytest
import yaml
from launching import CLUSTERS, edited
from settings import ask
from starting import ROOT
from torch.distributed.run import get_args_parser

from omni_mesh import resolve_mesh

SCRIPTS = sorted(CLUSTERS.glob("*.sh"))
MANIFESTS = sorted(CLUSTERS.glob("*.yaml"))
RANKS = 16
"""Of each run here: two hosts of eight GPUs."""


class Strict(yaml.SafeLoader):
    """A reader that refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice, at {node.start_mark}: {keys}"
        return super().construct_mapping(node, deep)


def read(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(), Strict))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(path: Path) -> None:
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def mesh_ranks(words: list[str]) -> int:
    """The ranks that the app is asked for, by its own reading of `words`."""
    assert words[0] == "apps/pretrain.py"
    config = ask(pretrain.Config, pretrain.__doc__, args=words[1:])
    assert config.out.is_absolute() and config.data[0].startswith("/shared/")
    return resolve_mesh(config.mesh, RANKS).world


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_runs_is_parsed_by_the_app_and_has_the_ranks_that_it_starts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = dict(re.findall(r"^(\w+)=(.+)$", path.read_text(), re.MULTILINE))
    words = [*shlex.split(settings["RUN"].strip("()")), "--out", settings["OUT"], "--leave-code", "85"]
    assert mesh_ranks(words) == RANKS
    text = path.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\d+)$", text, re.MULTILINE))
    if asked:
        assert int(asked["nodes"]) * int(asked["ntasks-per-node"]) == RANKS
        assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    else:
        assert (settings["HOSTS"], settings["RANKS"]) == ("2", "gpu")


STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$FOLDER/asked"
case $(basename "$0")-$1-$2 in
    scontrol-show-hostnames) printf 'first\\nsecond\\n' ;;
    scontrol-show-job) echo "JobId=1 JobState=$STATE Reason=None" ;;
    srun-* | python-*)
        echo "$MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK $OMP_NUM_THREADS" >> "$FOLDER/env"
        code=$(sed -n "$(wc -l < "$FOLDER/env")p" "$FOLDER/codes")
        [[ $code == wait ]] || exit "$code"
        sleep 100 & echo $! > "$FOLDER/rank"
        wait $!
        exit 85 ;;
    scancel-*) kill -TERM "$(cat "$FOLDER/rank")" ;;
esac
"""


def start(name: str, folder: Path, codes: str, *, state: str = "RUNNING") -> subprocess.Popen[str]:
    """A script of which each start of ranks only ends with the next of `codes`."""
    for program in ("srun", "scontrol", "scancel", "python"):
        (folder / program).write_text(STUB)
        (folder / program).chmod(0o755)
    (folder / "codes").write_text("\n".join(codes.split()))
    settings = {"REPO": str(ROOT), "PYTHON": f"{folder}/python", "OUT": "/out", "RUN": "(app.py --a 'b c')"}
    more = {"PAUSE_S": "0", "HEAD": "localhost:29500"} if name == "torchrun.sh" else {}
    script = edited(name, folder, settings | more | {"RESTARTS": "2"})
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder), "STATE": state}
    env |= {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "6"}
    command = ["bash", script, "--steps", "9"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def asked(folder: Path, program: str) -> list[str]:
    return [line for line in (folder / "asked").read_text().splitlines() if line.startswith(program)]


@pytest.mark.parametrize(
    ("name", "codes", "code", "starts"),
    [
        *((name, codes, code, starts) for name in ("slurm.sh", "torchrun.sh") for codes, code, starts in
          (("0", 0, 1), ("1 137 0", 0, 3), ("1 1 75", 75, 3))),
        ("slurm.sh", "2", 2, 1),
        ("slurm.sh", "1 2", 2, 2),
    ],
)  # fmt: skip
def test_ranks_that_failed_are_started_again_but_not_what_was_refused(
    name: str, codes: str, code: int, starts: int, tmp_path: Path
) -> None:
    job = start(name, tmp_path, codes)
    told, _ = job.communicate(timeout=60)
    assert (job.returncode, told.count("failed with code")) == (code, starts - (code in (0, 2)))
    begun = asked(tmp_path, "srun" if name == "slurm.sh" else "python")
    assert len(begun) == starts
    assert all(" app.py --a b c --out /out " in line and line.endswith(" --steps 9") for line in begun)
    assert name == "torchrun.sh" or not asked(tmp_path, "scontrol requeue")


def test_ranks_of_slurm_meet_at_the_first_host_and_have_the_cores_of_their_task(tmp_path: Path) -> None:
    start("slurm.sh", tmp_path, "0").communicate(timeout=60)
    assert (tmp_path / "env").read_text() == "first 22345 6 6\n"


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", ["scontrol requeue 12345"]), ("CANCELLED", [])])
def test_a_run_that_was_told_to_leave_is_put_into_the_queue_unless_the_job_was_cancelled(
    state: str, requeued: list[str], tmp_path: Path
) -> None:
    job = start("slurm.sh", tmp_path, "85", state=state)
    job.communicate(timeout=60)
    assert (job.returncode, asked(tmp_path, "scontrol requeue"), len(asked(tmp_path, "srun"))) == (85, requeued, 1)


@pytest.mark.parametrize(("name", "number"), [("slurm.sh", signal.SIGUSR1), ("torchrun.sh", signal.SIGTERM)])
def test_a_script_that_is_told_tells_the_ranks_and_waits_for_them(
    name: str, number: signal.Signals, tmp_path: Path
) -> None:
    job = start(name, tmp_path, "wait")
    until = time.monotonic() + 60
    while not ((rank := tmp_path / "rank").exists() and rank.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(number)
    job.communicate(timeout=60)
    assert job.returncode == 85
    assert len(asked(tmp_path, "srun" if name == "slurm.sh" else "python")) == 1
    assert asked(tmp_path, "scancel") == (["scancel --signal=TERM 12345"] if name == "slurm.sh" else [])


POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int, "fsGroupChangePolicy": str},
    "containers": [
        {
            **{"name": str, "image": str, "command": [str], "resources": {"limits": {"nvidia.com/gpu": (str, int)}}},
            "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
            "lifecycle": {"preStop": {"exec": {"command": [str]}}},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [
        {
            **{"name": str, "configMap": {"name": str}, "persistentVolumeClaim": {"claimName": str}},
            "emptyDir": {"medium": str},
        }
    ],
}
JOB = {
    "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": str}},
    "spec": {
        **{"backoffLimit": int, "completions": int, "parallelism": int, "completionMode": str},
        "template": {"spec": POD},
    },
}
SET = {
    "failurePolicy": {"maxRestarts": int},
    "replicatedJobs": [{"name": str, "replicas": int, "template": JOB}],
}
SHAPES = {
    "v1 ConfigMap": {"data": {"run.yaml": str}},
    "jobset.x-k8s.io/v1alpha2 JobSet": {"spec": SET},
    "trainer.kubeflow.org/v1alpha1 TrainJob": {
        "spec": {
            "trainer": {"numNodes": int, "image": str, "resourcesPerNode": {"limits": {"nvidia.com/gpu": int}}},
            "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
        }
    },
    "trainer.kubeflow.org/v1alpha1 TrainingRuntime": {
        "spec": {"mlPolicy": {"numNodes": int, "torch": {}}, "template": {"spec": SET}}
    },
}
"""What of the fields of each kind stands in the manifests, by their definitions. A field of another name is refused by
the server, or dropped."""
TOP = {
    **{"apiVersion": str, "kind": str},
    "metadata": {"name": str, "labels": {"trainer.kubeflow.org/framework": str}}
    | {"annotations": {"omni/image": str, "omni/gpus": str, "omni/disk": str}},
}


def fits(value: Any, shape: Any, where: str) -> None:
    """Fails if `value` has a field, or a type, that is not of `shape`."""
    if isinstance(shape, dict):
        assert isinstance(value, dict) and value.keys() <= shape.keys(), f"{where}: {value}"
        for key, below in value.items():
            fits(below, shape[key], f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, where
        for item in value:
            fits(item, shape[0], where)
    else:
        assert isinstance(value, shape) and (shape is not int or value is not True), f"{where}: {value!r}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_only_fields_that_its_kinds_have(path: Path) -> None:
    for document in read(path):
        kind = f"{document['apiVersion']} {document['kind']}"
        fits(document, TOP | SHAPES[kind], kind)


def find_set(documents: list[dict[str, Any]]) -> Mapping[str, Any]:
    """What makes the hosts."""
    last = documents[-1]["spec"]
    return last["template"]["spec"] if "template" in last else last


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_what_a_manifest_runs_is_parsed_by_torchrun_and_the_app(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings, *_, last = documents = read(path)
    (job,) = find_set(documents)["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    interpreter, module, launcher, *words = container["command"]
    assert (interpreter, module, launcher) == ("python", "-m", "torch.distributed.run")
    names = {one["name"] for one in container["env"]}
    assert {name for word in words for name in re.findall(r"\$\((\w+)\)", word)} <= names
    given = {"NAME": last["metadata"]["name"], "HOSTS": "2", "HOST": "1", "RANKS": "8"}
    words = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], word) for word in words]
    launched = get_args_parser().parse_args(words)
    if job["name"] == "host":
        assert (launched.nnodes, launched.node_rank, launched.nproc_per_node) == ("2", 1, "8")
        assert launched.master_addr == "omni-host-0-0.omni"
        assert job["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) == RANKS
    else:
        trainer = documents[1]["spec"]["trainer"]
        assert trainer["numNodes"] * trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == RANKS
        assert documents[1]["spec"]["runtimeRef"]["name"] == last["metadata"]["name"]
        assert container["name"] == job["name"] == "node", "names by which Trainer finds what it fills in"
    file = tmp_path / "run.yaml"
    file.write_text(settings["data"]["run.yaml"].replace("/omni/", f"{ROOT}/"))
    args = [word.replace("/settings/run.yaml", str(file)) for word in launched.training_script_args]
    assert args[0] == f"--config={file}"
    assert mesh_ranks([launched.training_script, *args]) == RANKS


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_hosts_of_a_manifest_start_once_each_have_what_they_mount_and_time_to_save(path: Path) -> None:
    documents = read(path)
    (job,) = find_set(documents)["replicatedJobs"]
    hosts, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (hosts["backoffLimit"], pod["restartPolicy"]) == (0, "Never"), "all are started again, or none"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["configMap"]["name"] == documents[0]["metadata"]["name"]
    waits = re.fullmatch(r"pkill -TERM -P 1; sleep (\d+)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert waits and 0 < pod["terminationGracePeriodSeconds"] - int(waits[1]) <= 30
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
