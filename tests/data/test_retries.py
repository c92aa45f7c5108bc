from __future__ import annotations

import errno
import itertools
import os

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, DocumentStream, TextFiles, retries


class Flaky(Documents):
    """Documents of which one fails to be read some times."""

    def __init__(self, failures, error):
        super().__init__(["one", "two", "three"])
        self.failures, self.error, self.tried = failures, error, 0

    def __getitem__(self, index):
        if index == 1:
            self.tried += 1
            if self.tried <= self.failures:
                raise self.error
        return super().__getitem__(index)


def stream(source):
    return DocumentStream(source, Bytes(), batch_size=1, segment_length=4, seed=3)


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """The waits, which take no time here."""
    waits = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    return waits


def test_a_passing_fault_leaves_the_data_as_they_are(waited):
    plain = stream(Documents(["one", "two", "three"]))
    flaky = stream(Flaky(3, OSError(errno.EIO, os.strerror(errno.EIO))))
    for _ in range(6):
        for expected, found in zip(next(plain).values(), next(flaky).values(), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert waited == [0.1, 1.0, 5.0]


def test_a_document_that_cannot_be_read_is_named(waited):
    source = Flaky(9, OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(UsageError, match=r"document '1' cannot be read after 4 attempts \(Stale"):
        list(itertools.islice(stream(source), 6))
    assert source.tried == 4


def test_what_does_not_pass_is_not_waited_for(waited, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    source = TextFiles(tmp_path)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UsageError, match=r"b\.txt' cannot be read \(No such file"):
        source[1]
    assert waited == []
