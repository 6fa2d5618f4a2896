"""Opening the text that a config names: which reader reads it.

The shape that every source has is in documents.py; reading files and reading datasets are in their
own files. Prepared shards are no text: data/opening.py opens them.
"""

from data.config import DataConfig, SourceConfig, SourceKind
from data.documents import Source
from data.files import glob_source, python_source
from data.hugging_face import DatasetSource


def open_source(config: DataConfig, one: SourceConfig | None = None) -> Source:
    """Open the text that `config` names, or that `one` of its sources does.

    ValueError when nothing matches, or a split or column is missing; RuntimeError when the network
    does not answer.
    """
    chosen = one or config
    if chosen.kind is SourceKind.prepared:
        raise ValueError(
            f"data.path={chosen.path} holds shards, and they are text no more: give the text"
        )
    if chosen.kind is SourceKind.python:
        return python_source()
    if chosen.kind is SourceKind.files:
        return glob_source(chosen.files or "")
    return DatasetSource(
        chosen.dataset or "",
        chosen.subset,
        list(chosen.data_files),
        chosen.split,
        chosen.text_column,
        config.shuffle_window,
        chosen.validation_split,
    )
