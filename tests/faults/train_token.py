"""train.py, and then a digest of the token that it had: `token-RANK.txt` of the working folder."""

import hashlib
import os
import runpy
from pathlib import Path

TRAIN = str(Path(__file__).parents[2] / "train.py")
TOKEN = "WANDB_API_KEY"


def digest(token: str) -> str:
    """What may be written down of it."""
    return hashlib.sha256(token.encode()).hexdigest()


if __name__ == "__main__":
    try:
        runpy.run_path(TRAIN, run_name="__main__")
    finally:
        Path(f"token-{os.environ['RANK']}.txt").write_text(digest(os.environ.get(TOKEN, "")))
