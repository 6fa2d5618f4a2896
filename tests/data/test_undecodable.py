"""One wrong byte costs one document, whatever the file is, and nothing that is text is marked."""

import codecs
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config import DataConfig, SourceKind
from data.documents import checked
from data.sources import open_source
from data.undecodable import HANDLER, JSON_ENCODING, MARK
from tests.data.corpora import LONGEST

BAD = b"b\xff\xfex"
BROKEN = {
    "a.jsonl": (
        "json",
        b'{"text":"ok"}\n{"text":"'
        + BAD
        + b'"}\n{"text":"\\ud800 half"}\n{"text":"\\ude00\\ud83d"}\n'
        b'{"text":"\\ud83d\\ude00 \\\\ud800"}\n{"text":null}\n{"n":1}\n{"text":"end"}\n',
        ["ok", None, None, None, "😀 \\ud800", "", "", "end"],
    ),
    "a.txt": ("text", b"ok\n" + BAD + b"\n\nend\n", ["ok", None, "", "end"]),
    "a.csv": ("csv", b"text,n\nok,1\n" + BAD + b",2\nend,3\n", ["ok", None, "end"]),
    "a.parquet": ("parquet", b"", ["ok", None, "end"]),
}
BROKEN["a.jsonl.gz"] = ("json", gzip.compress(BROKEN["a.jsonl"][1]), BROKEN["a.jsonl"][2])


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_utf8_refuse_a_document_and_not_a_file(name: str, tmp_path: Path) -> None:
    builder, content, wanted = BROKEN[name]
    if builder == "parquet":  # whose writer takes what no reader could decode
        offsets = np.array([0, 2, 6, 9], np.int32).tobytes()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"ok" + BAD + b"end")]
        column = pa.Array.from_buffers(pa.string(), 3, buffers)
        pq.write_table(pa.table({"text": column}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    config = DataConfig(
        kind=SourceKind.dataset, dataset=builder, data_files=[str(tmp_path / name)], streams=1
    )
    texts = list(open_source(config).validation_documents())
    assert [None if checked(text, LONGEST)[1] == "not_utf8" else text for text in texts] == wanted


def test_the_mark_is_of_characters_that_no_text_has() -> None:
    assert codecs.decode(BAD, errors=HANDLER) == f"b{MARK}{MARK}x"
    assert all(0xFDD0 <= ord(letter) <= 0xFDEF for letter in (MARK[0], MARK[1], MARK[-1]))


def test_json_without_wrong_bytes_is_read_as_utf8() -> None:
    whole = '{"a": "état \\n \\\\ \\\\ud800 \\" \\u00e9 \\ud83d\\ude00 😀"}\n'.encode()
    assert whole.decode(JSON_ENCODING) == whole.decode()
