from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.evals import xz_bits_per_byte


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_it_is_what_the_xz_program_needs():
    texts = [b"import os\n" * 200, bytes(range(256)) * 8]
    sizes = [
        len(subprocess.run(["xz", "-9e", "-c"], input=t, capture_output=True, check=True).stdout)
        for t in texts
    ]
    found = xz_bits_per_byte(texts) * sum(map(len, texts)) / 8
    # The program notes the size of the block in its header, the library does not.
    assert found == pytest.approx(sum(sizes), abs=8 * len(texts))


def test_documents_do_not_help_one_another():
    noise = np.random.default_rng(0).bytes(5000)
    assert xz_bits_per_byte([noise, noise]) == pytest.approx(xz_bits_per_byte([noise]))
    assert xz_bits_per_byte([noise + noise]) < 0.6 * xz_bits_per_byte([noise])


@pytest.mark.parametrize("texts", [[], [b"", b""]])
def test_no_text_is_refused(texts: list[bytes]):
    with pytest.raises(UsageError, match="no text to compress"):
        xz_bits_per_byte(texts)
