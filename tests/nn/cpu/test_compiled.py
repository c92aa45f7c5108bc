"""How compiled code is built, kept and refused."""

from __future__ import annotations

import pytest

from jaxlab.core import UsageError
from jaxlab.nn.cpu import compiled
from jaxlab.nn.cpu.compiled import build


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler, and no-such-compiler is not on"):
        build(tmp_path)
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho 'x.cc:1: error: no' >&2; exit 3\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(UsageError, match=r"does not build with .* \(code 3\): x.cc:1: error: no; "):
        build(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be kept in .*: Not a directory; set XDG_CACHE"):
        build(failing / "inside")
    assert {path.name for path in tmp_path.iterdir()} == {"c++"}
    failing.write_bytes(b"\x7fELF")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler, and .* does not run: "):
        build(tmp_path)


@pytest.mark.usefixtures("compiler")
def test_the_library_is_built_once_in_the_users_cache(monkeypatch, tmp_path):
    code, other = tmp_path / "code.cc", tmp_path / "other.cc"
    code.write_text("int code;\n")
    other.write_text("int other;\n")
    monkeypatch.setattr(compiled, "SOURCES", (code,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = build()
    made = path.stat().st_mtime_ns
    assert path.parent == tmp_path / "jaxlab" and build() == path
    assert path.stat().st_mtime_ns == made
    monkeypatch.setattr(compiled, "SOURCES", (code, other))
    assert build() != path
