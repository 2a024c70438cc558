"""A training job for an existing scheduler: the same module under torchrun on several nodes. Imports no torch.

    python -m workers.training.manifests jobset|trainjob|slurm SPEC.json --nodes 4 --ranks-per-node 8 [--image …] [--claim …] [--name …]

All nodes must see the spec's folders under the same paths: a shared file system, or on Kubernetes a ReadWriteMany claim that is
mounted at their common parent. deploy/training/README.md tells the rest.
"""

import argparse
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from workers.protocol import JobError
from workers.training.launcher import MODULE, torchrun_options
from workers.training.spec import TrainSpec

PORT = 29400  # torchrun's own default for its rendezvous
DEFAULT_IMAGE = "dsportal:latest"
DEFAULT_CLAIM = "dsportal-shared"
SPEC_FOLDER = "/etc/dsportal"
SPEC_FILE = f"{SPEC_FOLDER}/spec.json"
TRAINER_API = "trainer.kubeflow.org/v1alpha1"
MOST_NAME = 40  # Kubernetes adds to it, and ends at 63


@dataclass(frozen=True)
class Fleet:
    """Where a job is to run."""

    nodes: int
    ranks_per_node: int
    name: str = "train"
    image: str = DEFAULT_IMAGE
    claim: str = DEFAULT_CLAIM  # the PersistentVolumeClaim that holds the spec's folders
    cpus: int = 0  # of a node, for all of its ranks; 0: the spec's threads
    memory_gib: int = 16  # of a node
    hours: int = 24

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.ranks_per_node < 1:
            raise JobError("A job needs at least one node and one rank on each.")
        if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{MOST_NAME - 2}}}[a-z0-9])?", self.name):
            raise JobError(f"The name {self.name!r} is none that Kubernetes takes: at most {MOST_NAME} of a-z, 0-9 and -, a letter first.")

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


def for_fleet(spec: TrainSpec, fleet: Fleet) -> TrainSpec:
    """The spec with the fleet's ranks and as many examples a step, as far as its accumulation steps allow. JobError where it is none."""
    examples = spec.micro_batch * spec.accum_steps * spec.world_size
    accum = max(1, examples // (spec.micro_batch * fleet.world_size))
    values = spec.model_dump(exclude_unset=True) | {"world_size": fleet.world_size, "accum_steps": accum}
    if fleet.cpus:
        values["threads"] = fleet.cpus
    try:
        return TrainSpec.model_validate(values)
    except ValidationError as error:
        why = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise JobError(f"{fleet.nodes} nodes of {fleet.ranks_per_node} ranks do not suit this job: {why}.") from error


def command(fleet: Fleet, endpoint: str, run_id: str, spec_path: str) -> list[str]:
    return [
        "python", "-m", "torch.distributed.run", "--nnodes", str(fleet.nodes), *torchrun_options(fleet.ranks_per_node),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", run_id, "-m", MODULE, spec_path,
    ]  # fmt: skip


def jobset(spec: TrainSpec, fleet: Fleet) -> str:
    """A JobSet of one Indexed Job, a pod for each node, and the ConfigMap with the spec. YAML, two documents."""
    wanted = for_fleet(spec, fleet)
    endpoint = f"{fleet.name}-ranks-0-0.{fleet.name}:{PORT}"  # the first pod, by the name that JobSet's headless service gives it
    container = {
        "name": "ranks", "image": fleet.image, "command": command(fleet, endpoint, fleet.name, SPEC_FILE), "env": _ENVIRONMENT,
        "ports": [{"name": "rendezvous", "containerPort": PORT}], "resources": _resources(wanted, fleet), "volumeMounts": _mounts(wanted),
    }  # fmt: skip
    job = {"parallelism": fleet.nodes, "completions": fleet.nodes, "completionMode": "Indexed", **_job(container, fleet)}
    documents = [
        _config_map(wanted, fleet),
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": fleet.name},
            "spec": {"failurePolicy": _RESTARTS, "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": job}}]},
        },
    ]  # fmt: skip
    return yaml.safe_dump_all(documents, sort_keys=False, width=1000)


def trainjob(spec: TrainSpec, fleet: Fleet) -> str:
    """A TrainJob of Kubeflow Trainer 2, the TrainingRuntime it refers to, and the ConfigMap with the spec. YAML, three documents.

    The runtime is one of its own, so that nothing but the controller need be installed: it says what is mounted, which a TrainJob
    cannot in all versions. The controller sets PET_MASTER_ADDR and PET_MASTER_PORT in the container called node.
    """
    wanted = for_fleet(spec, fleet)
    container = {"name": "node", "image": fleet.image, "env": _ENVIRONMENT, "volumeMounts": _mounts(wanted)}
    node = {
        "name": "node", "replicas": 1,
        "template": {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, "spec": _job(container, fleet)},
    }  # fmt: skip
    runtime = {
        "apiVersion": TRAINER_API, "kind": "TrainingRuntime",
        "metadata": {"name": fleet.name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": fleet.nodes, "torch": {}},
            "template": {"spec": {"failurePolicy": _RESTARTS, "replicatedJobs": [node]}},
        },
    }  # fmt: skip
    job = {
        "apiVersion": TRAINER_API, "kind": "TrainJob", "metadata": {"name": fleet.name},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": fleet.name},
            "trainer": {
                "image": fleet.image, "command": command(fleet, "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", fleet.name, SPEC_FILE),
                "numNodes": fleet.nodes, "numProcPerNode": fleet.ranks_per_node, "resourcesPerNode": _resources(wanted, fleet),
            },
        },
    }  # fmt: skip
    return yaml.safe_dump_all([_config_map(wanted, fleet), runtime, job], sort_keys=False, width=1000)


_RESTARTS = {"maxRestarts": 3}  # a lost node fails the Job; the set starts it anew, and the run goes on from its checkpoint
_ENVIRONMENT = [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "PYTHONUNBUFFERED", "value": "1"}]


def _resources(spec: TrainSpec, fleet: Fleet) -> dict[str, Any]:
    amounts: dict[str, Any] = {"cpu": str(fleet.cpus or spec.threads), "memory": f"{fleet.memory_gib}Gi"}
    if spec.device == "cuda":
        amounts["nvidia.com/gpu"] = str(fleet.ranks_per_node)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _mounts(spec: TrainSpec) -> list[dict[str, Any]]:
    return [
        {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        {"name": "shared", "mountPath": _common_parent(spec)},
        {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - where NCCL and gloo exchange within a node
    ]


def _job(container: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {"name": "spec", "configMap": {"name": f"{fleet.name}-spec"}},
            {"name": "shared", "persistentVolumeClaim": {"claimName": fleet.claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {"backoffLimit": 0, "activeDeadlineSeconds": fleet.hours * 3600, "template": {"spec": pod}}


def _config_map(spec: TrainSpec, fleet: Fleet) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{fleet.name}-spec"}, "data": {"spec.json": _json(spec)}}


def slurm(spec: TrainSpec, fleet: Fleet) -> str:
    """An sbatch script: one torchrun a node, the spec within."""
    wanted = for_fleet(spec, fleet)
    options = {
        "job-name": fleet.name, "nodes": fleet.nodes, "ntasks-per-node": 1, "cpus-per-task": fleet.cpus or wanted.threads,
        "mem": f"{fleet.memory_gib}G", "time": f"{fleet.hours}:00:00",
    }  # fmt: skip
    if wanted.device == "cuda":
        options["gpus-per-node"] = fleet.ranks_per_node
    line = shlex.join(command(fleet, "ENDPOINT", "RUN", "SPEC"))
    for word, variable in (("ENDPOINT", f'"$first:{PORT}"'), ("RUN", '"$SLURM_JOB_ID"'), ("SPEC", '"$spec"')):
        line = line.replace(f" {word}", f" {variable}")
    header = "\n".join(f"#SBATCH --{name}={value}" for name, value in options.items())
    return f"""#!/bin/bash
{header}
#SBATCH --requeue
set -euo pipefail

work={shlex.quote(str(wanted.work_folder))}
mkdir -p "$work"
spec="$work/spec-$SLURM_JOB_ID.json"
cat > "$spec" <<'SPEC_JSON'
{_json(wanted)}
SPEC_JSON

# sed reads to the end: head would leave early, and its pipe would end the job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
# A job that is requeued goes on from its checkpoint.
srun --kill-on-bad-exit=1 {line}
"""


def _json(spec: TrainSpec) -> str:
    return spec.model_dump_json(exclude_unset=True, indent=1)


def _common_parent(spec: TrainSpec) -> str:
    folders = [spec.dataset_folder, spec.output_folder, spec.work_folder, *([spec.parent_folder] if spec.parent_folder else [])]
    if not all(folder.is_absolute() for folder in folders):
        raise JobError("The spec's folders must be absolute paths: each node mounts them under the same ones.")
    parent = os.path.commonpath(folders)
    if parent == "/":
        raise JobError("The spec's folders have no common parent that a claim could be mounted at. Put them under one.")
    return parent


SCHEDULERS: dict[str, Callable[[TrainSpec, Fleet], str]] = {"jobset": jobset, "trainjob": trainjob, "slurm": slurm}
SUFFIXES = {"jobset": "yaml", "trainjob": "yaml", "slurm": "sbatch"}


def main() -> None:
    parser = argparse.ArgumentParser(description="A training job for Kubernetes (JobSet, Kubeflow Trainer) or Slurm.")
    parser.add_argument("kind", choices=list(SCHEDULERS))
    parser.add_argument("spec", type=Path)
    for name, default in (("nodes", 1), ("ranks-per-node", 1), ("cpus", 0), ("memory-gib", 16), ("hours", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, text in (("name", "train"), ("image", DEFAULT_IMAGE), ("claim", DEFAULT_CLAIM)):
        parser.add_argument(f"--{name}", default=text)
    given = vars(parser.parse_args())
    kind, path = given.pop("kind"), given.pop("spec")
    try:
        text = SCHEDULERS[kind](TrainSpec.model_validate_json(path.read_bytes()), Fleet(**given))
    except JobError as error:
        parser.error(str(error))
    print(text, end="")  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
