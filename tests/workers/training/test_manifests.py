"""Manifests for other schedulers: valid by Kubernetes' schemas and by bash, and they start what the launcher starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from workers.protocol import JobError
from workers.training.manifests import Fleet, for_fleet, jobset, slurm, trainjob
from workers.training.spec import TrainSpec

SPEC = TrainSpec.model_validate(
    {
        "dataset_folder": "/shared/dataset", "output_folder": "/shared/run/model", "work_folder": "/shared/run", "preset": "base", "steps": 1000,
        "device": "cuda", "micro_batch": 8, "accum_steps": 64, "zero_stage": 0, "threads": 32,
    }
)  # fmt: skip
FLEET = Fleet(nodes=4, ranks_per_node=8, name="big-run")
DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "training"


def test_a_fleet_takes_the_same_examples_a_step():
    wanted = for_fleet(SPEC, FLEET)
    assert (wanted.world_size, wanted.accum_steps, wanted.micro_batch) == (32, 2, 8)


def test_the_jobset_holds_a_valid_job_and_the_spec_that_it_mounts():
    config, job_set = yaml.safe_load_all(jobset(SPEC, FLEET))
    (replicated,) = job_set["spec"]["replicatedJobs"]
    # JobSet's own schema is not among Kubernetes' own; what it holds is a Job's.
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "ranks"}, **replicated["template"]}
    for document in (config, job):
        kubernetes_validate.validate(document, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], "completion": 1}}, "1.30", strict=True)

    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert TrainSpec.model_validate_json(config["data"]["spec.json"]) == for_fleet(SPEC, FLEET)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 4
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert container["command"][:3] == ["python", "-m", "torch.distributed.run"] and container["command"][-2:] == [
        "workers.training",
        "/etc/dsportal/spec.json",
    ]
    assert "big-run-ranks-0-0.big-run:29400" in container["command"]


def test_the_trainjob_and_its_runtime_are_what_kubeflows_own_models_read():
    config, runtime, job = yaml.safe_load_all(trainjob(SPEC, FLEET))
    kubernetes_validate.validate(config, "1.30", strict=True)

    # They leave aside what they do not know: only what comes back whole was understood whole.
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    misspelt = {**job, "spec": {**job["spec"], "trainers": {}}}
    assert models.TrainerV1alpha1TrainJob.from_dict(misspelt).to_dict() != misspelt

    assert job["spec"]["runtimeRef"] == {
        "apiGroup": runtime["apiVersion"].split("/")[0],
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": node["template"]["spec"]}, "1.30", strict=True
    )
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    assert node["name"] == container["name"] == "node"  # where the controller sets the variables of the rendezvous
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert (
        trainer["command"][-3:] == ["-m", "workers.training", "/etc/dsportal/spec.json"]
        and "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)" in trainer["command"]
    )
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    assert TrainSpec.model_validate_json(config["data"]["spec.json"]) == for_fleet(SPEC, FLEET)


def test_torchrun_takes_the_options():
    from torch.distributed.run import parse_args

    _, job_set = yaml.safe_load_all(jobset(SPEC, FLEET))
    words = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    taken = parse_args(words[3:])
    assert (taken.nnodes, taken.nproc_per_node, taken.max_restarts, taken.module) == ("4", "8", 4, True)
    assert taken.training_script == "workers.training"


def test_the_sbatch_script_is_bash_and_starts_the_run(tmp_path):
    """With commands of Slurm that only say what they were called with."""
    spec = SPEC.model_copy(update={"work_folder": tmp_path / "a run"})
    text = slurm(spec, FLEET)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    assert options == {
        "job-name": "big-run", "nodes": "4", "ntasks-per-node": "1", "cpus-per-task": "32", "mem": "16G", "time": "24:00:00", "gpus-per-node": "8",
    }  # fmt: skip
    assert text.startswith("#!/bin/bash\n#SBATCH") and "#SBATCH" not in text.split("set -euo")[1]
    for name, body in (("scontrol", "echo node7; echo node8"), ("srun", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sbatch"
    script.write_text(text)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[7-8]"}
    said = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "--kill-on-bad-exit=1" and "node7:29400" in said and "77" in said
    written = Path(said[-1])
    assert TrainSpec.model_validate_json(written.read_bytes()) == for_fleet(spec, FLEET)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(JobError, match="at least one node"):
        Fleet(nodes=0, ranks_per_node=1)
    with pytest.raises(JobError, match="none that Kubernetes takes"):
        Fleet(nodes=1, ranks_per_node=1, name="Big_Run")
    with pytest.raises(JobError, match=r"1 nodes of 3 ranks do not suit this job: world_size \(3\) must be a multiple of expert_parallel_size \(2\)"):
        for_fleet(SPEC.model_copy(update={"world_size": 2, "expert_parallel_size": 2}), Fleet(nodes=1, ranks_per_node=3))
    with pytest.raises(JobError, match="common parent"):
        jobset(SPEC.model_copy(update={"dataset_folder": Path("/data/x")}), FLEET)


@pytest.mark.parametrize(("kind", "file"), [("jobset", "jobset.yaml"), ("trainjob", "trainjob.yaml"), ("slurm", "train.sbatch")])
def test_the_examples_are_what_the_command_writes(kind, file):
    command = [sys.executable, "-m", "workers.training.manifests", kind, str(DEPLOY / "spec.json"), "--nodes", "4", "--ranks-per-node", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=DEPLOY.parents[1])
    assert done.stdout == (DEPLOY / file).read_text()
    assert json.loads((DEPLOY / "spec.json").read_text())["preset"] == "moe-16b-a3b"
