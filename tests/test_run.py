"""Whole runs through the real launchers: they learn, survive kills bit by bit, and can be used."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import retnet
from retnet.training.manifest import verify
from tests.retnet.evaluation.local_tasks import write_tasks


def step_reached(step: int):
    """Whether metrics.jsonl has the line of that step."""

    def reached(folder: Path) -> bool:
        file = folder / "metrics.jsonl"
        return file.exists() and file.read_text().count("\n") >= step

    return reached


def test_a_run_under_the_deepspeed_launcher_learns_exports_and_goes_on(runs):
    said = runs.finished(2, name="learns", steps=60, save_every=0, log_every=5, evaluate_every=30)
    losses = runs.losses("learns")
    assert losses[-1] < 0.8 * losses[0], losses
    folder = runs.folder / "runs" / "learns"
    assert "step  5 of 60 | loss" in said and "Finished at step 60" in said
    for line in ("this model", "unigram", "gzip", "A sample:", "steps=120"):
        assert line in said
    evaluations = [line for line in runs.metrics("learns") if "val/held_out/loss" in line]
    assert [line["step"] for line in evaluations] == [30, 60]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    # The launcher's own processes warn twice that there is no GPU; the ranks' chatter is in logs.
    chatter = "Setting accelerator to CPU"
    for rank in (0, 1):
        assert chatter in (folder / "logs" / f"rank-{rank}.log").read_text()
    assert said.count(chatter) <= 2 and "INFO" not in said

    model = AutoModelForCausalLM.from_pretrained(folder / "export")
    assert isinstance(model, retnet.RetNetForCausalLM)
    assert runs.events("learns")[0]["parameters"] == model.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    prompt = tokenizer("import ", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])
    assert "import " in text

    settings = dict(name="learns", save_every=0, log_every=5)
    again = runs.finished(2, launched=False, steps=60, evaluate_every=30, **settings)
    assert "learns is finished: 60 steps" in again and "this model" not in again
    assert runs.losses("learns") == losses
    runs.finished(2, launched=False, steps=65, **settings)
    assert [entry["event"] for entry in runs.events("learns")] == [
        *("started", "saved", "finished"),
        *("resumed",),
        *("resumed", "saved", "finished"),
    ]
    assert runs.losses("learns")[:-1] == losses


def test_every_zero_stage_and_number_of_ranks_trains_alike(runs):
    """Same losses within 1e-5 of their size: float32 sums in another order, grown by ten steps."""
    curves, parameters = {}, set()
    for processes, engine in ((0, "zero1"), (2, "zero0"), (2, "zero1"), (2, "zero2"), (2, "zero3")):
        name = f"{engine}-{processes}"
        settings = dict(name=name, engine=engine, save_every=0, logging__sample_tokens=0)
        said = runs.finished(processes, launched=False, **settings)
        parameters.add(re.search(r"retnet: ([\d,]+) parameters", said)[1])
        curves[name] = torch.tensor(runs.losses(name), dtype=torch.float64)
    assert len(parameters) == 1 and parameters != {"0"}
    expected = curves.pop("zero1-0")
    for name, curve in curves.items():
        torch.testing.assert_close(
            curve, expected, rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_runs_do_not_share_a_folder(runs):
    settings = dict(name="shared", steps=100_000, save_every=0)

    def second_is_refused(folder: Path) -> bool:
        if not step_reached(1)(folder):
            return False
        config = (folder / "config.yaml").read_bytes()
        done = runs.run(**settings | dict(steps=7))
        assert done.returncode == 2 and "is in use by a run that is still at work" in done.stderr
        assert (folder / "config.yaml").read_bytes() == config
        return True

    runs.interrupted(second_is_refused, signal.SIGTERM, **settings)
    assert [event["event"] for event in runs.events("shared")] == ["started", "saved", "stopped"]


def test_torchrun_trains_too(runs):
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    _, *arguments = runs.command(name="torchrun", steps=3, logging__sample_tokens=0)
    command = [torchrun, "--nproc_per_node", "2", "--master_port", "29511", *arguments]
    done = subprocess.run(command, cwd=runs.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(runs.losses("torchrun")) == 3


def test_a_damaged_checkpoint_is_passed_over_and_without_a_good_one_a_run_ends_in_a_sentence(runs):
    name = "damaged"
    runs.finished(name=name, steps=8, save_every=3)
    checkpoints = runs.folder / "runs" / name / "checkpoints"
    victim = max(
        (checkpoints / "step-00000008").glob("rank-*"), key=lambda path: path.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    said = runs.finished(name=name, steps=8, save_every=3)
    assert "passed over a checkpoint" in said and victim.name in said
    kinds = [event["event"] for event in runs.events(name)]
    assert kinds[-4:] == ["passed_over", "resumed", "saved", "finished"]
    assert runs.metrics(name)[-2]["step"] == 8
    verify(checkpoints / "step-00000008")
    for path in checkpoints.glob("step-*/manifest.json"):
        path.unlink()
    done = runs.run(name=name, steps=8, save_every=3)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"no checkpoint in runs/{name}/checkpoints is good: " in done.stderr


def test_nucleus_x_trains_in_bfloat16(runs):
    more = "[{name: more, kind: files, files: " + runs.defaults["data.files"] + "}]"
    settings = dict(model="nucleus_x_tiny", engine__dtype="bfloat16", data__validation_sets=more)
    runs.finished(name="nucleus", steps=20, **settings)
    losses = runs.losses("nucleus")
    assert losses[-1] < losses[0]
    assert {"val/held_out/loss", "val/more/bits_per_byte"} < runs.metrics("nucleus")[-1].keys()
    model = AutoModelForCausalLM.from_pretrained(runs.folder / "runs" / "nucleus" / "export")
    assert isinstance(model, retnet.NucleusXForCausalLM)


def test_a_run_that_diverges_stops_with_a_sentence_before_the_weights_are_spoilt(runs):
    settings = dict(name="diverges", save_every=1, schedule__warmup_steps=0)
    done = runs.run(2, **settings, optimizer__learning_rate=1e30)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no weight has moved" in done.stderr and "Traceback" not in done.stderr
    last = runs.events("diverges")[-1]
    assert last["event"] == "diverged" and last["why"] in done.stderr


def test_a_terminal_gets_a_live_display(runs):
    """Under a pseudo-terminal the display is redrawn in place; a pipe gets plain lines."""
    command = runs.command(name="live", steps=6, logging__sample_tokens=0)
    written = bytearray()

    def read(descriptor: int) -> bytes:
        written.extend(chunk := os.read(descriptor, 1024))
        return chunk

    before = os.getcwd()
    os.chdir(runs.folder)
    try:
        status = pty.spawn(command, read)
    finally:
        os.chdir(before)
    shown = written.decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert "step 6 of 6" in shown and "tokens/s" in shown
    assert "\x1b[" in shown, "no control codes: the display is not live"
    assert "\x1b[" not in runs.finished(name="piped", steps=2, logging__sample_tokens=0)


def test_a_run_that_is_asked_and_watched_has_the_losses_of_one_that_is_not(runs, tmp_path):
    """Killed in the middle too: no answer is written twice."""
    runs.finished(name="quiet")
    every = {
        f"evaluation__{kind}_every": 3 for kind in ("samples", "positions", "passkey", "tasks")
    }
    settings = dict(name="asked", evaluate_every=3, logging__sample_tokens=0, **every)
    settings |= dict(evaluation__tasks_path=write_tasks(tmp_path), evaluation__tasks="[copying]")
    settings |= dict(evaluation__lengths="[1,2]", evaluation__sample_tokens=5)
    settings |= dict(evaluation__passkey_depths=2, evaluation__passkey_trials=1)
    settings |= dict(logging__norms_every=3, logging__tensorboard="true", profile__at="[8,10]")
    runs.interrupted(step_reached(8), signal.SIGKILL, **settings)
    runs.finished(**settings)
    assert runs.losses("asked") == runs.losses("quiet")
    folder = runs.folder / "runs" / "asked"
    told = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    told = [(one["step"], one["kind"], one.get("prompt")) for one in told]
    kinds = [*[("samples", prompt) for prompt in ("", "def ", "import ")]]
    kinds += [(kind, None) for kind in ("positions", "passkey", "tasks")]
    told.remove((10, "yardsticks", None))
    assert told == [(step, *kind) for step in (3, 6, 9, 10) for kind in kinds]
    last = runs.metrics("asked")[-1]
    wanted = {"position/2x/loss", "passkey/2x/accuracy", "tasks/copying/acc", "val/held_out/loss"}
    assert last["step"] == 10 and wanted < last.keys()
    steps = [line["step"] for line in runs.metrics("asked") if "grad_norm/layer.01" in line]
    assert steps == [3, 6, 9]
    assert [file.name for file in (folder / "profile").iterdir()] == [
        "step-00000008-rank-0.json.gz"
    ]
    assert len(list((folder / "tensorboard").iterdir())) == 2
    # The trace that the end cut short too: a run's last event says how it ended.
    assert [event["event"] for event in runs.events("asked")][-3:] == [
        "profiled",
        "saved",
        "finished",
    ]


def test_other_data_under_the_same_name_is_refused(runs):
    short = dict(logging__sample_tokens=0)
    runs.finished(name="data", steps=2, **short)
    done = runs.run(name="data", steps=4, data__streams=8)
    assert done.returncode == 2 and "was trained on other data: data.streams 4 -> 8" in done.stderr
    assert "Traceback" not in done.stderr
    runs.finished(name="data", steps=3, data__streams=8, data__allow_change="true", **short)
    events = {event["event"]: event for event in runs.events("data")}
    assert "data.streams 4 -> 8 (documents" in events["data_changed"]["why"]
    done = runs.run(name="data", steps=4, model__num_layers=3)
    assert done.returncode == 2 and "holds a run with model.num_layers=2" in done.stderr
