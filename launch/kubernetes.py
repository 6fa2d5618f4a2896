"""The manifest of a run under Kubernetes: an indexed job, one pod for each machine, and the service
that gives the first pod a name.

    python -m launch.kubernetes cluster.yaml -- train.py name=run7 | kubectl apply -f -

A pod that fails is made again, a bounded number of times; a mistake in the command (2) or a model
that diverged (3) ends the job. A pod that is to go gets SIGTERM and 60 seconds: the run saves. No
cluster has run such a manifest here; it has been checked against Kubernetes' schema.
"""

import base64
import json
import re
import sys
from typing import Any

import yaml

from launch.cluster import ClusterConfig, generate, name_of

GRACE = 60
"Seconds between SIGTERM and SIGKILL; DeepSpeed's launcher takes 30."
# As DeepSpeed's launcher has it, each rank's code is the pod's.
LAUNCHER = [".venv/bin/python", "-u", "-m", "deepspeed.launcher.launch"]


def kubernetes_manifest(cluster: ClusterConfig, command: list[str]) -> str:
    """The manifest as YAML, for `command` (the training script and its arguments).

    ValueError where the command does not name its run, or the cluster lacks what a pod needs.
    """
    for key in ("image", "claim"):
        if not getattr(cluster, key):
            raise ValueError(f"the cluster does not say {key}, which Kubernetes needs")
    run = name_of(command[1:])
    name = re.sub(r"[^a-z0-9-]+", "-", run.lower())[:50].strip("-")
    if not name[:1].isalpha():  # a service's name begins with a letter
        name = f"run-{name}".rstrip("-")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": cluster.namespace},
        # no address of its own: the name of each pod, and before all of them are ready
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": name},
            "ports": [{"name": "rendezvous", "port": cluster.port}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": {
            "completions": cluster.nodes,
            "parallelism": cluster.nodes,
            "completionMode": "Indexed",
            "backoffLimit": cluster.restarts * cluster.nodes,
            "podReplacementPolicy": "Failed",  # the folder is free again before another takes it
            "podFailurePolicy": {"rules": _rules()},
            "template": {"spec": _pod(cluster, name, command)},
        },
    }
    return yaml.safe_dump_all([service, job], sort_keys=False)


def _rules() -> list[dict[str, Any]]:
    final = {"containerName": "run", "operator": "In", "values": [2, 3]}
    moved = {"type": "DisruptionTarget", "status": "True"}  # a drained node is nobody's failure
    return [
        {"action": "FailJob", "onExitCodes": final},
        {"action": "Ignore", "onPodConditions": [moved]},
    ]


def _pod(cluster: ClusterConfig, name: str, command: list[str]) -> dict[str, Any]:
    amounts = {"cpu": str(cluster.cpus_per_process * cluster.processes_per_node)}
    if cluster.memory_per_node:
        amounts["memory"] = cluster.memory_per_node
    limits = {"nvidia.com/gpu": str(cluster.processes_per_node)} if cluster.gpus else {}
    container = {
        "name": "run",
        "image": cluster.image,
        "workingDir": cluster.shared_path,
        "command": [*LAUNCHER, *_who(cluster, name), *(_literal(word) for word in command)],
        "env": _environment(cluster),
        "resources": {"requests": amounts | limits, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shared", "mountPath": cluster.shared_path},
            {"name": "memory", "mountPath": "/dev/shm"},  # NCCL's, and the data workers'
        ],
    }
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    return {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": cluster.claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _who(cluster: ClusterConfig, name: str) -> list[str]:
    """The launcher's options: all machines with their processes, and which one this pod is."""
    processes = list(range(cluster.processes_per_node))
    world = {f"node-{index}": processes for index in range(cluster.nodes)}
    encoded = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return [
        f"--world_info={encoded}",
        "--node_rank=$(NODE_RANK)",  # Kubernetes fills it in
        f"--master_addr={name}-0.{name}",
        f"--master_port={cluster.port}",
    ]


def _literal(word: str) -> str:
    """A word of the command that Kubernetes leaves as it is."""
    return word.replace("$(", "$$(")


def _environment(cluster: ClusterConfig) -> list[dict[str, Any]]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    found: list[dict[str, Any]] = [
        {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "HOME", "value": "/tmp"},  # the user id may have none
    ]
    if cluster.interface:
        for library in ("GLOO", "NCCL"):
            found.append({"name": f"{library}_SOCKET_IFNAME", "value": cluster.interface})
    return found


if __name__ == "__main__":
    sys.exit(generate("launch.kubernetes", kubernetes_manifest))
