"""The same job for other launchers: a command of xpk, a file for SkyPilot, a script for SLURM."""

import dataclasses
import shlex

import yaml

from tpu_scripts import gcloud
from tpu_scripts.job import Job, JobError

_CAPACITY = {"on_demand": "--on-demand", "spot": "--spot", "queued": "--flex"}


def xpk(job: Job) -> str:
    """Lines of bash that submit the job to a GKE cluster of xpk, from the checkout.

    Raises:
        JobError: no cluster is named, or GKE cannot do what the job asks for.
    """
    if job.xpk is None:
        raise JobError("key 'xpk' is missing; add it: xpk: {cluster: my-cluster}.")
    if job.devices == "host" and job.slice.chips > 8:
        raise JobError(
            "devices: host hides the other hosts of a slice, whose names a pod of GKE needs to "
            "find its place; use `tpu run`, or several jobs on slices of one host."
        )
    if job.bucket is not None and job.xpk.image == "python:3.12":
        raise JobError(
            "bucket: is used with gcloud, which python:3.12 does not have; set xpk.image to an "
            "image with gcloud and Python >= 3.11."
        )
    where = [f"--cluster={job.xpk.cluster}", f"--project={job.project}", f"--zone={job.zone}"]
    kind = [f"--tpu-type={job.slice.type}", "--num-slices=1"]
    cluster = ["xpk", "cluster", "create", *where, *kind, _CAPACITY[job.mode]]
    submit = ["xpk", "workload", "create", f"--workload={job.name}", *where, *kind]
    submit += [f"--base-docker-image={job.xpk.image}", "--script-dir=."]
    submit += [f"--max-restarts={job.xpk.max_restarts}"]
    submit += [f"--command={gcloud.install(job)} && {gcloud.on_host(job, 'exec')}"]
    return f"# Once, for the cluster: {shlex.join(cluster)}\n{shlex.join(submit)}"


def sky(job: Job) -> str:
    """A SkyPilot task, to be launched from the checkout; its setup and run are for every host."""
    spot = job.mode == "spot" or job.queued.spot
    # What is lost is made again by managed jobs only.
    launch = f"sky jobs launch -n {job.name}" if spot else f"sky launch -c {job.name}"
    wait = " --retry-until-up" if job.mode == "queued" and not spot else ""
    region = job.zone.rpartition("-")[0]
    task = {
        "name": job.name,
        "workdir": ".",
        "resources": {
            "infra": f"gcp/{region}/{job.zone}",
            "accelerators": f"tpu-{job.slice.type}",
            "accelerator_args": {"runtime_version": job.runtime or job.slice.runtime},
            "use_spot": spot,
        },
        "setup": gcloud.install(job),
        "run": gcloud.on_host(job, "exec"),
    }
    text = yaml.safe_dump(task, sort_keys=False, width=10_000)
    return f"# In the checkout: tpu sky JOB > job.sky.yaml && {launch}{wait} job.sky.yaml\n{text}"


def slurm(job: Job) -> str:
    """A script for sbatch: one process per GPU; outputs stay on the cluster's common disk.

    Raises:
        JobError: nodes and GPUs are not given.
    """
    if job.slurm is None:
        raise JobError(
            "key 'slurm' is missing; add it: "
            'slurm: {nodes: 2, gpus_per_node: 8, time: "24:00:00"}.'
        )
    ask = {
        "job-name": job.name,
        "nodes": job.slurm.nodes,
        "ntasks-per-node": job.slurm.gpus_per_node,
        "gpus-per-node": job.slurm.gpus_per_node,
        "time": job.slurm.time,
        "partition": job.slurm.partition,
        "account": job.slurm.account,
        "output": f"{job.folder}/slurm-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in ask.items() if value is not None]
    command = gcloud.on_host(_on_disk(job), "exec")
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *lines,
            "# A preempted job begins again, and commands of jaxdecode go on where they were.",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            f"# In the checkout: tpu slurm JOB | sbatch; once before it: mkdir -p {job.folder} && "
            f"{gcloud.install(job, 'cuda13')}",
            "set -euo pipefail",
            f"srun {command}",
        ]
    )


def _on_disk(job: Job) -> Job:
    """The job without a bucket."""
    return dataclasses.replace(job, bucket=None)
