"""What the tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import small_disk as disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of one megabyte."""
    with disks.small_disk(tmp_path / "disk", 1) as folder:
        yield folder
