"""The command that trains a tokenizer alone, for several runs or for preparing shards.

    python -m data.tokenizer data=... tokenizer.vocab_size=32000 out=my.model

Every key of the data and of the tokenizer is a run's own; `out` is the file to write.
"""

import logging
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.explain import check_overrides
from data.config import DataConfig
from data.opening import choose_tokenizer, open_places
from data.tokenizer import Tokenizer, TokenizerConfig

USER_ERROR = 2
log = logging.getLogger("data.tokenizer")


def main(arguments: list[str]) -> None:
    """Train and write; ValueError for what is wrong with the command or the text."""
    outs = [word.partition("=")[2] for word in arguments if word.startswith("out=")]
    if len(outs) != 1 or not outs[0]:
        raise ValueError("say once where the tokenizer is to be written, as out=my.model")
    config = check_overrides([word for word in arguments if not word.startswith("out=")])
    if config is None or config.tokenizer.path is not None:
        raise ValueError("this command trains a tokenizer: leave tokenizer.path null")
    out = Path(outs[0]).expanduser()
    if out.exists():
        raise ValueError(f"out={out} is there already: give another name")
    tokenizer = train(config.data, config.tokenizer, out)
    log.info(
        "%s: %d pieces; use it with tokenizer=sentencepiece tokenizer.path=%s "
        "tokenizer.vocab_size=%d",
        out,
        tokenizer.vocab_size,
        out,
        tokenizer.vocab_size,
    )


def train(data: DataConfig, config: TokenizerConfig, out: Path) -> Tokenizer:
    """Train on the documents that a run on this data trains on, and write the model to `out`.

    ValueError where the data is shards: they bring theirs.
    """
    places = open_places(data)
    if any(place.shelf for place in places):
        raise ValueError("prepared shards bring their tokenizer, and none is trained on them")
    with TemporaryDirectory() as folder:
        tokenizer = choose_tokenizer(data, config, places, Path(folder))
        (model,) = Path(folder).rglob("*.model")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, out)
    return tokenizer


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(USER_ERROR)
