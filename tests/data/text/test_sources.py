from __future__ import annotations

import pathlib
import sysconfig

import pytest

from jaxlab.core import UsageError
from jaxlab.data import (
    Documents,
    Source,
    StandardLibrary,
    Subset,
    TextFiles,
    open_source,
    source_fingerprint,
    split,
)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes(b"second\xff")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.md").write_text("not taken")
    return tmp_path


def test_folder_is_searched_in_order_of_relative_paths_without_empty_files(folder):
    source = TextFiles(folder)
    assert source.names == ("a.txt", "b/two.txt")
    assert [source[i] for i in range(len(source))] == [b"first", b"second\xff"]


def test_pattern_chooses_the_files_of_a_folder(folder):
    assert TextFiles(folder, pattern="*.md").names == ("notes.md",)


def test_listed_files_keep_their_order_and_are_named_below_their_common_folder(folder):
    source = TextFiles([folder / "b" / "two.txt", folder / "a.txt"])
    assert source.names == ("b/two.txt", "a.txt")
    assert TextFiles(folder / "b" / "two.txt").names == ("two.txt",)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere' does not exist; expected a text file or a fold"):
        TextFiles(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="gone.txt' does not exist"):
        TextFiles([tmp_path / "gone.txt"])
    with pytest.raises(UsageError, match="empty list"):
        TextFiles([])


def test_folder_in_a_list_of_files_is_refused(folder):
    with pytest.raises(UsageError, match="is a folder in a list of files"):
        TextFiles([folder / "a.txt", folder / "b"])


def test_no_match_lists_the_suffixes_that_are_there(folder, tmp_path_factory):
    with pytest.raises(UsageError, match=r"matches '\*\.rst'; there are: \.txt \(3\), \.md \(1\)"):
        TextFiles(folder, pattern="*.rst")
    with pytest.raises(UsageError, match="there are: no files"):
        TextFiles(tmp_path_factory.mktemp("bare"))


def test_only_empty_files_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match="all 1 files in .* are empty"):
        TextFiles(tmp_path)


def test_file_that_goes_away_is_named_when_read(folder):
    source = TextFiles(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(UsageError, match=r"a\.txt' cannot be read \(No such file"):
        source[0]


def test_documents_take_text_and_bytes():
    source = Documents(["é", b"\xff"], names=["x", "y"])
    assert (source[0], source[1], source.names) == ("é".encode(), b"\xff", ("x", "y"))
    with pytest.raises(UsageError, match="names has 1 entries for 2 documents"):
        Documents(["a", "b"], names=["x"])


def test_every_source_follows_the_protocol(folder):
    documents = Documents(["a", "b"])
    for source in (documents, TextFiles(folder), Subset(documents, [1]), StandardLibrary()):
        assert isinstance(source, Source)
        assert len(source.names) == len(source) > 0
        assert isinstance(source[0], bytes)


def test_standard_library_has_one_document_a_module_or_package():
    source = StandardLibrary()
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    at = source.names.index
    module = (root / "argparse.py").read_bytes()
    assert source[at("argparse")] == b"# argparse.py\n" + module
    package = source[at("json")]
    parts = [f"# json/{p.name}\n".encode() + p.read_bytes() for p in sorted(root.glob("json/*.py"))]
    assert package == b"".join(parts) and len(parts) > 2


def test_standard_library_leaves_out_tests_and_installed_packages():
    source = StandardLibrary()
    left_out = {"test", "site-packages", "dist-packages", "idlelib", "lib2to3"}
    assert left_out.isdisjoint(source.names) and len(source) > 100
    assert list(source.names) == sorted(source.names)
    assert b"/tests/" not in source[source.names.index("unittest")][:20_000]


def test_missing_standard_library_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UsageError, match="no .py files of the standard library"):
        StandardLibrary()


def test_split_parts_the_documents_and_does_not_depend_on_their_order():
    names = [f"book {i}" for i in range(20)]
    source = Documents(names, names)
    train, held_out = split(source, 0.2, seed=3)
    assert len(held_out) == 4
    assert sorted(train.names + held_out.names) == sorted(names)
    assert [train[i].decode() for i in range(len(train))] == list(train.names)
    backwards = split(Documents(names[::-1], names[::-1]), 0.2, seed=3)[1]
    assert set(backwards.names) == set(held_out.names)
    assert set(split(source, 0.2, seed=4)[1].names) != set(held_out.names)


@pytest.mark.parametrize("rate", [0.001, 0.999])
def test_split_leaves_no_side_empty(rate):
    train, held_out = split(Documents(["a", "b", "c"]), rate)
    assert len(train) >= 1 and len(held_out) >= 1


def test_split_refuses_what_cannot_be_split():
    with pytest.raises(UsageError, match=r"has 1 document\(s\).* pass a separate held-out folder"):
        split(Documents(["a"]), 0.1)
    with pytest.raises(UsageError, match="held_out_rate=1.5; expected a fraction between 0 and 1"):
        split(Documents(["a", "b"]), 1.5)


def test_fingerprint_changes_with_the_names_and_their_order():
    named = (Documents(["", ""], names) for names in ("ab", "ba", "ac"))
    assert len({source_fingerprint(source) for source in named}) == 3


def test_spec_opens_the_source_it_names(folder):
    assert open_source(f"text:{folder}").names == ("a.txt", "b/two.txt")
    assert open_source("stdlib").names == StandardLibrary().names


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("stdlb", "did you mean 'stdlib'"), ("txt:/x", "did you mean 'text'"), ("tfds:", "expected")],
)
def test_unknown_spec_names_the_nearest(spec, hint):
    with pytest.raises(UsageError, match=f"unknown source '{spec}'.*{hint}"):
        open_source(spec)


def test_bare_path_as_a_spec_is_shown_with_its_prefix(folder):
    with pytest.raises(UsageError, match=f"did you mean 'text:{folder}'"):
        open_source(str(folder))
