"""Whether the places that a config names are there, looked at before a run starts: those of this
machine alone, and nothing is read to its end. Not here: what is in them, which opening finds.
"""

import glob
import itertools
import os
from pathlib import Path

from data.config import LOCAL_BUILDERS, DataConfig, SourceConfig, SourceKind, naming
from data.files import has_files
from data.index import NAME
from data.tokenizer import TokenizerConfig


def check_presence(data: DataConfig, tokenizer: TokenizerConfig) -> None:
    """Raises ValueError with one sentence for text, shards or a tokenizer that are not there or
    may not be read."""
    if data.sources:
        sources = [(source.name, source) for source in data.sources]
    else:
        sources = [("", data)]
    sources += [(source.name, source) for source in data.validation_sets]
    for name, source in sources:
        with naming(name):
            _check_source(source)
    if tokenizer.path is not None and not Path(tokenizer.path).expanduser().exists():
        raise ValueError(
            f"tokenizer.path={tokenizer.path} is not there: give a sentencepiece .model file or a "
            "fast tokenizer's folder, or null to train one on the data"
        )


def _check_source(source: SourceConfig) -> None:
    if source.kind is SourceKind.files:
        has_files(source.files)
    elif source.kind is SourceKind.dataset and source.dataset in LOCAL_BUILDERS:
        _check_data_files(source.data_files)
    elif source.kind is SourceKind.prepared and "://" not in source.path:
        folder = Path(source.path).expanduser()
        if not (folder / NAME).is_file():
            what = f"has no {NAME}" if folder.is_dir() else "is no folder"
            raise ValueError(
                f"data.path={source.path} {what}: give the folder that `python -m data.prepare` "
                "wrote, which ends with its index"
            )
        _check_readable(folder / NAME, "data.path")


def _check_data_files(patterns: list[str]) -> None:
    some_text = False
    for pattern in patterns:
        if "://" in pattern:
            some_text = True
            continue
        found = glob.iglob(str(Path(pattern).expanduser()), recursive=True)
        if (first := next(found, None)) is None:
            raise ValueError(f"data.data_files has {pattern}, which matches no file")
        _check_readable(Path(first), "data.data_files")
        some_text = some_text or any(map(os.path.getsize, itertools.chain([first], found)))
    if not some_text:
        raise ValueError(f"data.data_files={patterns}: every file is empty")


def _check_readable(path: Path, key: str) -> None:
    if not os.access(path, os.R_OK):
        raise ValueError(f"{key}: {path} may not be read by this user")
