"""The batch script of a run under Slurm.

    python -m launch.slurm cluster.yaml -- train.py name=run7 > run7.sh && sbatch run7.sh

srun starts one process for each rank. Five minutes before the limit Slurm sends them SIGUSR1: the
run saves and leaves, and the script asks for the job again, as it does after a machine's fault, a
bounded number of times. No scheduler has run such a script here; shellcheck has read it.
"""

import shlex
import sys

from launch.cluster import ClusterConfig, generate, name_of
from launch.ending import AGAIN

# Seconds before the limit at which the run is told to save. Slurm is up to a minute inexact.
BEFORE_LIMIT = 300
# `srun bash -c` is given it as one word; $@ is the run's command.
RANK = (
    "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS "
    'LOCAL_WORLD_SIZE={processes}; exec "$@"'
)


def slurm_script(cluster: ClusterConfig, command: list[str]) -> str:
    """The script, for `command` (the training script and its arguments).

    ValueError where the command does not name its run.
    """
    name = name_of(command[1:])
    rank = RANK.format(processes=cluster.processes_per_node)
    words = shlex.join([".venv/bin/python", "-u", *command])
    lines = ["#!/bin/bash", *_settings(cluster, name)]
    lines += [
        "",
        f"cd {shlex.quote(cluster.shared_path)} || exit 1",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        # another for each job: two may share a machine
        f"MASTER_PORT=$(({cluster.port} + SLURM_JOB_ID % 1000))",
        "export MASTER_ADDR MASTER_PORT",
    ]
    if cluster.interface:
        interface = shlex.quote(cluster.interface)
        lines.append(f"export GLOO_SOCKET_IFNAME={interface} NCCL_SOCKET_IFNAME={interface}")
    lines += [
        "",
        "# One process for each rank; when one fails, Slurm ends the others.",
        "# shellcheck disable=SC2016  # the variables are each process's own",
        # since Slurm 22.05 srun does not take over the script's --cpus-per-task
        f"srun --kill-on-bad-exit=1 --cpus-per-task={cluster.cpus_per_process} \\",
        f"    bash -c {shlex.quote(rank)} rank \\",
        f"    {words}",
        "code=$?",
        "",
        "# What the run itself wrote down says whether another start would go on.",
        f".venv/bin/python -m launch.ending runs/{name}",
        "said=$?",
        f'if [ "$code" -ne 2 ] && [ "$said" -eq {AGAIN} ] &&',
        f'    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {cluster.restarts} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _settings(cluster: ClusterConfig, name: str) -> list[str]:
    minutes = round(cluster.hours * 60)
    given = {
        "job-name": name.replace("/", "-"),
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.processes_per_node,
        "cpus-per-task": cluster.cpus_per_process,
        "gpus-per-node": cluster.processes_per_node if cluster.gpus else "",
        "mem": cluster.memory_per_node,
        "time": f"{minutes // 60:02}:{minutes % 60:02}:00",
        "partition": cluster.partition,
        "account": cluster.account,
        "signal": f"USR1@{BEFORE_LIMIT}",
        "open-mode": "append",
        "output": f"{cluster.shared_path}/slurm-{name.replace('/', '-')}-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in given.items() if value != ""]
    return [*lines, "#SBATCH --requeue"]


if __name__ == "__main__":
    sys.exit(generate("launch.slurm", slurm_script))
