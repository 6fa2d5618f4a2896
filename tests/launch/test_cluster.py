"""A cluster's file is checked key by key, and what is made of it is what schedulers take."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from launch.cluster import ClusterConfig, read_cluster
from launch.kubernetes import kubernetes_manifest
from launch.slurm import slurm_script

SMALL = ClusterConfig(nodes=1, processes_per_node=1, shared_path="/shared/retnet")
LARGE = ClusterConfig(
    nodes=16,
    processes_per_node=8,
    shared_path="/shared/retnet",
    hours=12.5,
    memory_per_node="512Gi",
    interface="ib0",
    partition="gpu",
    account="lab",
    image="registry.local:5000/retnet@sha256:0",
    claim="runs",
    secret="tokens",
)
# What a shell, Slurm or Kubernetes would take for its own.
AWKWARD = ["$(rm -rf /)", "data.files='~/my notes/**/*.md'", 'a="b"', "c=`d`", "e=$HOME", "f=;#"]
COMMAND = ["train.py", "name=lab/run7", *AWKWARD]


def test_a_cluster_is_read_and_mistakes_in_it_are_sentences(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("nodes: 1\nprocesses_per_node: 1\nshared_path: /shared/retnet\nhours: 24\n")
    assert read_cluster(file) == SMALL
    for line, sentence in {
        "ndoes: 2": "nodes?",
        "nodes: many": "type int",
        "nodes: 0": "at least 1",
        "image: a b": "letters",
        "user: 0": "root",
        "shared_path: here": "begin with /",
        "hours: 0.1": "5 minutes",
        "- 1": "no YAML",
    }.items():
        file.write_text(f"nodes: 1\nprocesses_per_node: 1\nshared_path: /s\n{line}\n")
        with pytest.raises(ValueError, match=sentence.replace("?", "[?]")):
            read_cluster(file)
    file.write_text("nodes: 1\n")
    with pytest.raises(ValueError, match="processes_per_node, shared_path"):
        read_cluster(file)


@pytest.mark.parametrize("cluster", [SMALL, LARGE], ids=["small", "large"])
def test_the_slurm_script_passes_shellcheck_and_keeps_the_command(
    cluster: ClusterConfig, tmp_path: Path
) -> None:
    """Run with an srun that is a plain function: every word of the command arrives unchanged."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    fake = tmp_path / ".venv/bin/python"
    fake.write_text('#!/bin/bash\n[ "$2" = -m ] || printf "%s\\0" "$@" > words.$RANK\n')
    fake.chmod(0o755)
    script = slurm_script(replace(cluster, shared_path=str(tmp_path)), COMMAND)
    file = tmp_path / "run.sh"
    file.write_text(script)
    checker = str(Path(sys.executable).with_name("shellcheck"))
    # since Slurm 22.05 srun takes over nothing of it from the batch script
    assert f"srun --kill-on-bad-exit=1 --cpus-per-task={cluster.cpus_per_process} " in script
    done = subprocess.run([checker, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

    environment = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "77", "SLURM_PROCID": "1"}
    environment |= {"SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "PATH": "/usr/bin:/bin"}
    stand_ins = 'srun() { shift 2; "$@"; }; scontrol() { echo n1; }; export -f srun scontrol\n'
    run = subprocess.run(
        ["bash", "-c", f"{stand_ins} bash {file}"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    words = (tmp_path / "words.1").read_text().split("\0")[:-1]
    assert words == ["-u", *COMMAND]


def test_the_kubernetes_manifest_is_valid_and_as_tight_as_can_be() -> None:
    cluster = replace(SMALL, image="retnet:1", claim="runs")
    for chosen in (cluster, replace(cluster, gpus=False), LARGE):
        documents = list(yaml.safe_load_all(kubernetes_manifest(chosen, COMMAND)))
        for document in documents:
            kubernetes_validate.validate(document, "1.37", strict=True)
        service, job = documents
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == chosen.nodes
        pod = job["spec"]["template"]["spec"]
        assert pod["subdomain"] == service["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
        (container,) = pod["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        told = [word.replace("$$(", "$(") for word in container["command"]]
        assert told[-len(COMMAND) :] == COMMAND
        assert "$$(rm" in container["command"][-len(AWKWARD)]
    with pytest.raises(ValueError, match="image"):
        kubernetes_manifest(SMALL, COMMAND)


@pytest.mark.parametrize("name", ["7b", "-", "x" * 49 + ".y", "Run.7/a_b", "9" * 80])
def test_a_services_name_is_one_that_a_host_can_have(name: str) -> None:
    """RFC 1035: letters, digits and dashes, a letter first, a letter or digit last, 63 at most."""
    cluster = replace(SMALL, image="retnet:1", claim="runs")
    manifest = kubernetes_manifest(cluster, ["train.py", f"name={name}"])
    service, _ = yaml.safe_load_all(manifest)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", service["metadata"]["name"])


@pytest.mark.parametrize("make", [slurm_script, kubernetes_manifest])
@pytest.mark.parametrize("arguments", [[], ["name=../x"], ["name=$(id)"], ["name="]])
def test_a_run_without_a_plain_name_is_refused(make: object, arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="name"):
        make(LARGE, ["train.py", *arguments])
