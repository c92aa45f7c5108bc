from __future__ import annotations

import pathlib

import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Repositories, Source, open_source, walk


def grow(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return root


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return grow(
        tmp_path,
        {
            "beta/main.c": b"int main;",
            "alpha/z.py": b"z = 1\n",
            "alpha/lib/b.py": b"b = 2",
            "alpha/lib/a.c": b"a\n",
            "alpha/README": b"read me\n",
            "alpha/image.py": b"\x89PNG\0\0",
            "alpha/empty.py": b"",
            "alpha/.git/hook.py": b"hidden folder",
            "alpha/.hidden.py": b"hidden file",
            ".cache/x.py": b"hidden repository",
            "loose.py": b"of no repository",
        },
    )


def test_each_sub_folder_is_one_document_of_its_files_in_sorted_order(folder):
    source = Repositories(folder)
    assert isinstance(source, Source) and len(source) == 2
    assert source.names == ("alpha", "beta")
    assert source[0] == (b"# README\nread me\n# lib/a.c\na\n# lib/b.py\nb = 2\n# z.py\nz = 1\n")
    assert source[1] == b"# main.c\nint main;\n"


def test_patterns_choose_files_and_repositories_without_any_are_left_out(folder):
    source = open_source(f"repositories:{folder}:*.py")
    assert source.names == ("alpha",)
    assert source[0] == b"# lib/b.py\nb = 2\n# z.py\nz = 1\n"
    both = open_source(f"repositories:{folder}: *.py, *.c ")
    assert both.names == ("alpha", "beta") and b"# lib/a.c\na\n# lib/b.py" in both[0]


def test_a_folder_with_a_colon_in_its_name_needs_no_pattern(folder, tmp_path_factory):
    root = grow(tmp_path_factory.mktemp("trees") / "a:b", {"one/x.c": b"x"})
    assert open_source(f"repositories:{root}").names == ("one",)
    assert open_source(f"repositories:{root}:*.c").names == ("one",)


def test_symbolic_links_are_not_followed(folder, tmp_path_factory):
    elsewhere = grow(tmp_path_factory.mktemp("elsewhere"), {"secret.py": b"secret"})
    before = [Repositories(folder)[i] for i in range(2)]
    (folder / "gamma").symlink_to(elsewhere)
    (folder / "alpha" / "linked").symlink_to(elsewhere)
    (folder / "alpha" / "loop").symlink_to(folder / "alpha")
    (folder / "alpha" / "secret.py").symlink_to(elsewhere / "secret.py")
    source = Repositories(folder)
    assert source.names == ("alpha", "beta")
    assert [source[i] for i in range(2)] == before


def test_contents_are_read_only_when_asked_for(folder):
    source = Repositories(folder)
    (folder / "beta" / "main.c").write_bytes(b"changed\n")
    assert source[1] == b"# main.c\nchanged\n"
    (folder / "beta" / "main.c").unlink()
    with pytest.raises(UsageError, match=r"main\.c' cannot be read \(No such file"):
        source[1]


def test_a_repository_of_binary_files_is_an_empty_document_that_walks_leave_out(folder):
    grow(folder, {"gamma/blob.py": b"\0\1"})
    source = Repositories(folder, ["*.py", "*.c"])
    assert source.names == ("alpha", "beta", "gamma") and source[2] == b""
    assert walk(source, Bytes(), batch_size=1, segment_length=8).num_documents == 2


def test_what_cannot_be_used_is_named(folder, tmp_path_factory):
    bare = grow(tmp_path_factory.mktemp("bare"), {"x.py": b"x"})
    for spec, message in {
        f"{folder}/nowhere": "nowhere' does not exist; expected a folder with one sub-folder per",
        f"{folder}/nowhere:*.py": "nowhere' does not exist",
        f"{folder}/loose.py": "loose.py' is a file; expected a folder",
        f"{bare}": "has no repository: .* pass the folder that holds it",
        f"{folder}:*.rs,*.go": r"matches '\*\.rs,\*\.go'; there are: \.py \(4\), \.c \(2\), README",
        f"{folder}:": "patterns is empty",
        f"{folder}:empty.*": "all 1 files in .* are empty",
    }.items():
        with pytest.raises(UsageError, match=message):
            open_source(f"repositories:{spec}")
