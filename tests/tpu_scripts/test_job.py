"""Job files: what is read, and what is said of mistakes."""

from pathlib import Path

import pytest
import yaml

from tests.tpu_scripts.conftest import SPOT
from tpu_scripts import job as jobs
from tpu_scripts import slices

JOBS = Path(__file__).parents[2] / "tpu_scripts" / "jobs"


def read(tmp_path, content):
    path = tmp_path / "job.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return jobs.read(path)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path):
    assert jobs.read(path).outputs


def test_defaults(tmp_path):
    job = read(tmp_path, SPOT)
    assert (job.devices, job.outputs, job.bucket) == ("slice", (), None)
    assert job.slice == slices.Slice("v5litepod-8", 8, "v2-alpha-tpuv5-lite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zoen": "x"}, "key 'zoen' is unknown; did you mean 'zone'?"),
        ({"install": {"extra": ["hub"]}}, "'install.extra' is unknown; did you mean 'extras'?"),
        ({"zone": None}, "key 'zone' is missing; add it: a zone, such as us-west4-a."),
        ({"command": None}, "key 'command' is missing"),
        ({"xpk": {"image": "x"}}, "key 'xpk.cluster' is missing"),
        ({"zone": "us-west4"}, "zone: 'us-west4' is not valid; it must be a zone, such as us-wes"),
        ({"name": "My_Job"}, "name: 'My_Job' is not valid; it must be lower-case"),
        ({"mode": "cheap"}, "mode: 'cheap' is not one of on_demand, spot, queued."),
        ({"accelerator": "v5litepod-12"}, "slices of this family are v5litepod-1, v5litepod-4"),
        ({"accelerator": "v5e:3x3"}, "shapes of v5e are 1x1, 2x2"),
        ({"accelerator": "h100:8"}, "write one of v4, v5e, v5p, v6e before the colon"),
        ({"accelerator": "tpu7x-8"}, "the Cloud TPU API knows no TPU7x; it runs on GKE only."),
        ({"accelerator": "v4-12"}, "slices of this family are v4-8"),
        ({"queued": {"spot": True}}, "queued: has a meaning only with mode: queued"),
        ({"mode": "queued", "queued": {"valid_until": "soon"}}, "it must be a number and one of"),
        ({"outputs": ["/tmp/out"]}, "outputs: '/tmp/out' must be a path inside the checkout"),
        ({"files": ["../x"]}, "files: '../x' must be a path inside"),
        ({"files": "x"}, "files: 'x' is no list of texts; write [a, b]."),
        ({"bucket": "my-bucket"}, "bucket: 'my-bucket' is not valid; it must be gs://BUCKET"),
        ({"env": {"N": 3}}, 'env: write NAME: "value", every value in quotes.'),
        ({"env": {"A B": "3"}}, "env: 'A B' is no name"),
        ({"command": "a\nb"}, "command: must be one line; for a long one write `command: >-`"),
        ({"min_disk_gb": "10"}, "min_disk_gb: '10' is not an integer."),
        ({"min_disk_gb": True}, "min_disk_gb: True is not an integer."),
        ({"slurm": {"nodes": 0, "gpus_per_node": 8, "time": "1:00:00"}}, "it must be >= 1"),
        ({"slurm": {"nodes": 1, "gpus_per_node": 8, "time": 3600}}, "put it in quotes"),
        ({"install": "hub"}, "install must be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(jobs.JobError) as caught:
        read(tmp_path, SPOT | change)
    assert message in str(caught.value) and str(tmp_path / "job.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [("- a", "must be a mapping"), ("a: [", "is no YAML: while parsing")]
)
def test_what_is_no_job_file(tmp_path, content, message):
    with pytest.raises(jobs.JobError, match=message):
        read(tmp_path, content)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(jobs.JobError, match="cannot be read"):
        jobs.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "kind", "chips"),
    [("v5e:4x4", "v5litepod-16", 16), ("v6e:16x16", "v6e-256", 256), ("v4:2x2x1", "v4-8", 4),
     ("v5p:4x4x8", "v5p-256", 128), ("v5p-2048", "v5p-2048", 1024)],
)  # fmt: skip
def test_slices(name, kind, chips):
    found = slices.find(name)
    assert (found.type, found.chips) == (kind, chips)
