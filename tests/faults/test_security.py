"""Nobody gets in, and nothing gets out: what a run leaves behind holds no secret and is nobody
else's to change, and what it reads is never executed."""

import functools
import http.server
import json
import os
import pickle
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retnet.training.manifest import read_manifest, verify, write_manifest
from retnet.training.tensor_file import open_tensors
from tests import forked
from tests.conftest import Runs
from tests.retnet.training.wandb_file import records

SECRET = "b7e1fe0c-do-not-tell"
# As `python train.py` of a user whose files are everybody's.
OPEN_HANDED = """
import os, runpy, sys
os.umask(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files under any query, and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def signed(tmp_path: Path) -> str:
    """An address, with a signature, of a file of documents."""
    files = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    lines = [json.dumps({"text": file.read_text(errors="replace")}) for file in files]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/documents.jsonl?X-Amz-Signature={SECRET}"
    server.shutdown()


def test_a_run_keeps_its_secrets_and_its_files_to_itself(
    runs: Runs, signed: str, record: Callable[..., None]
) -> None:
    """Tokens in the environment, a signature in an address; then every file is looked through."""
    defaults = {key: value for key, value in runs.defaults.items() if key != "data.files"}
    settings = {"data": "jsonl", "data__data_files": f'["{signed}"]', "name": "secrets"}
    # wandb keeps what it finds out by itself, too
    settings |= {"steps": 2, "logging__sample_tokens": 0, "logging__wandb": "offline"}
    command = replace(runs, defaults=defaults).command(0, **settings)
    # less the address of a wandb that other tests have in this process
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"WANDB_API_KEY": SECRET, "HF_TOKEN": SECRET}
    where = runs.folder / "secrets"
    where.mkdir()
    done = forked.run(
        "-c", OPEN_HANDED, *command[1:], timeout=120, folder=where, cwd=where, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path for path in (where / "runs").rglob("*") if path.is_file()]
    assert {"model.safetensors", "config.yaml"} <= {path.name for path in files}
    (sent,) = (path for path in files if path.suffix == ".wandb")
    assert any(record.HasField("exit") for record in records(sent)), "wandb has not written all"
    telling = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
    record("a secret in what a run leaves", not telling, str(telling))
    assert SECRET not in done.stdout + done.stderr
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (where / "runs").rglob("*")}
    loose = [str(path) for path, mode in modes.items() if mode & 0o022]
    record("a file that others can write", not loose, str(loose))


class Trap:
    """Executes a command when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.touched}",)


def test_a_pickle_in_the_place_of_a_checkpoint_executes_nothing(
    tmp_path: Path, record: Callable[..., None]
) -> None:
    touched, file = tmp_path / "touched", tmp_path / "rank-00000.safetensors"
    file.write_bytes(pickle.dumps(Trap(touched)))
    with pytest.raises(Exception, match="(?i)header|safetensors"):
        open_tensors(file).names()
    record("a pickle as a checkpoint", not touched.exists())


@pytest.mark.parametrize("name", ["../rank-00000.safetensors", "/etc/passwd", "rank-00000.pt", ""])
def test_a_manifest_leads_nowhere_else(
    name: str, tmp_path: Path, record: Callable[..., None]
) -> None:
    listed = {"files": {name: {"bytes": 0, "sha256": ""}}}
    rest = ("state", "parameters", "layout", "extra")
    write_manifest(tmp_path, listed | {key: {} for key in rest})
    for read in (read_manifest, verify):
        with pytest.raises(RuntimeError, match="no file of a checkpoint"):
            read(tmp_path)
    record("a manifest that names other files", True)
