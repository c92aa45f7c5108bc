from __future__ import annotations

import pathlib

import pytest

from jaxlab.core import UsageError
from jaxlab.data import Source, TexArticles, open_source

MAIN = rb"\documentclass{article}" + b"\n"


def article(root: pathlib.Path, **files: bytes) -> bytes:
    """The document of one sub-folder; `__` in a name stands for a slash, a name has no suffix."""
    for name, text in files.items():
        path = root / "paper" / f"{name.replace('__', '/')}.tex"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    source = TexArticles(root)
    assert source.names == ("paper",)
    return source[0]


def test_sub_folders_and_single_files_are_articles(tmp_path):
    for name in ("b", "empty", "figures"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "main.tex").write_bytes(MAIN)
    (tmp_path / "empty" / "main.tex").touch()
    (tmp_path / "figures" / "plot.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.tex").write_bytes(rb"one \input{c} \input{b/main}")
    (tmp_path / "c.tex").write_bytes(b"two")
    (tmp_path / "notes.md").write_bytes(b"no article")
    (tmp_path / ".hidden.tex").write_bytes(b"hidden")
    (tmp_path / "link.tex").symlink_to(tmp_path / "c.tex")
    source = open_source(f"tex:{tmp_path}")
    assert isinstance(source, Source)
    assert source.names == ("a.tex", "b", "c.tex")
    # A file beside the sub-folders takes in no other: those are other documents.
    assert [source[i] for i in range(3)] == [rb"one \input{c} \input{b/main}", MAIN, b"two"]


def test_inputs_are_replaced_where_they_stand_and_within_what_they_bring(tmp_path):
    document = article(
        tmp_path,
        a_appendix=b"never taken in",
        main=MAIN + b"0 \\input{sections/one} 3 \\include{last}5\n\\input four.tex\n",
        sections__one=rb"1 \input{ sections/two.tex }",
        sections__two=b"2",
        last=b"4 ",
        four=b"6",
    )
    assert document == MAIN + b"0 1 2 3 4 5\n6\n"


def test_names_are_looked_up_from_the_main_file_then_the_folder_then_the_asker(tmp_path):
    document = article(
        tmp_path,
        src__main=MAIN + rb"\input{x} \input{top} \input{part/y}",
        src__x=b"main's",
        x=b"folder's",
        top=b"top",
        src__part__y=rb"\input{x} \input{z}",
        src__part__x=b"nobody's",
        src__part__z=b"asker's",
    )
    assert document == MAIN + b"main's top main's asker's"


def test_a_subfile_brings_its_body_and_is_not_the_main_file(tmp_path):
    document = article(
        tmp_path,
        main=MAIN + b"\\begin{document}\n\\subfile{parts/one}\n\\end{document}\n",
        parts__one=(
            b"% \\begin{document}\n\\documentclass[../main.tex]{subfiles}\n\\usepackage{x}\n"
            b"\\begin{document}1 \\input{deep/two} 3\\end{document}" + b"after" * 50
        ),
        parts__deep__two=b"2",
        deep__two=b"another",
        parts__bare=rb"no document of its own",
        a_longer=rb"\documentclass[main]{subfiles} \subfile{parts/bare} " + b"long" * 500,
    )
    assert document == MAIN + b"\\begin{document}\n1 2 3\n\\end{document}\n"


def test_a_subfile_without_a_main_file_is_one_and_a_part_without_a_document_comes_whole(tmp_path):
    document = article(
        tmp_path, a=rb"\documentclass[gone]{subfiles} \subfile{b}\subfileinclude{c}", b=b"b", c=b"c"
    )
    assert document == rb"\documentclass[gone]{subfiles} bc"


def test_an_import_names_the_folder_of_all_that_it_brings(tmp_path):
    document = article(
        tmp_path,
        src__main=MAIN + rb"\import{part/}{one} \input{two}; \import*{ ../other }{one}",
        src__part__one=rb"1 \input{two} \subimport{sub/}{three} \import{part}{sub/three}",
        src__part__two=b"2",
        src__two=b"top",
        src__part__sub__three=rb"3 \input{four} \subinputfrom{..}{two}",
        src__part__sub__four=b"4",
        src__part__four=b"near",
        other__one=rb"other \input{two} \includefrom{gone}{two}",
    )
    assert document == MAIN + (rb"1 2 3 4 2 3 near top top; other top \includefrom{gone}{two}")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (rb"a\iffalse b\fi c", b"ac"),
        (b"a\n\\iffalse\nb\n\\fi \nc", b"a\nc"),
        (rb"a\iffalse b\else c\fi d", b"ac\x64"),
        (rb"\iffalse\ifx\a\b x\else y\fi\iftrue\fi z\else w\fi.", b"w."),
        (rb"\iffalse\iffalse x\else y\fi z\fi.", b"."),
        (rb"\iffalse x\else\ifx\a y\else z\fi.\iffalse u\fi v\fi.", rb"\ifx\a y\else z\fi.v."),
        (b"\\em\\iffalse a\\fi\\iffalse b\\fi \nc", b"\\em \nc"),
        (rb"\ifx\a\b x\iffalse y\fi z\else w\fi.", rb"\ifx\a\b xz\else w\fi."),
        (b"\\iffalse 5\\% \\fi a % \\iffalse\n b", b"a % \\iffalse\n b"),
        (b"\\iffalse % \\fi\n x \\\\fi \\final \\fi a", b"a"),
        (rb"\iffalse $a \iff b$ \ifthenelse{a}{b}{c} \newif\ifdraft \ifdraft x\fi \fi a", b"a"),
        (rb"\iffalse \input{part} \fi a", b"a"),
        (rb"a \iffalse b \ifx c \fi", rb"a \iffalse b \ifx c \fi"),
        (rb"\iffalse x\fi \fi a \iffalses \\iffalse b\fi", rb"\fi a \iffalses \\iffalse b\fi"),
    ],
)
def test_what_iffalse_hides_is_dropped(tmp_path, text, kept):
    assert article(tmp_path, main=MAIN + text, part=b"TAKEN IN") == MAIN + kept


def test_a_class_that_iffalse_hides_makes_no_main_file(tmp_path):
    document = article(
        tmp_path, a=rb"\iffalse" + MAIN + b"long" * 50 + rb"\fi a", z=MAIN + rb"\input{a}"
    )
    assert document == MAIN + b"a"


@pytest.mark.parametrize(
    "text",
    [
        rb"\import{}{gone} \import{/etc}{hostname} \import{..}{outside} \import{.}",
        rb"\subfile{gone} \subfiles{part} \subfile part \imports{.}{part} \import{.}{}",
        rb"\input{gone} \include{gone}",
        rb"\input{../outside}",
        rb"\input{/etc/hostname}",
        rb"\input{}",
        rb"\input{picture.pdf}",
        rb"\includegraphics{part}",
        rb"\inputs{part}",
        b"% \\input{part}\n",
        rb"100\% \\% \input{part}",
        rb"\\input{part}",
        rb"\input",
        rb"\input{",
    ],
)
def test_what_names_no_file_of_the_article_is_left_as_it_is(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("made") / "articles"
    (root / "paper").mkdir(parents=True)
    (root / "paper" / "picture.pdf").write_bytes(b"%PDF\0")
    (root.parent / "outside.tex").write_bytes(b"outside")
    assert article(root, main=MAIN + text, part=b"TAKEN IN") == MAIN + text


def test_an_escaped_percent_starts_no_comment(tmp_path):
    assert article(tmp_path, main=MAIN + rb"5\% \input{part}", part=b"x") == MAIN + rb"5\% x"


def test_cycles_are_cut_where_they_close(tmp_path):
    document = article(
        tmp_path, main=MAIN + rb"\input{a}", a=rb"a \input{b}", b=rb"b \input{a} \input{main}"
    )
    assert document == MAIN + rb"a b \input{a} \input{main}"


def test_a_chain_is_followed_as_deep_as_tex_itself_would(tmp_path):
    chain = {f"f{i}": f"{i} \\input{{f{i + 1}}}".encode() for i in range(1, 40)}
    document = article(tmp_path, main=MAIN + rb"\input{f1}", **chain)
    assert document.endswith(rb"13 14 \input{f15}")


def test_the_main_file_has_a_document_class_outside_comments(tmp_path):
    document = article(
        tmp_path, a=b"% \\documentclass{article}\n", z=rb" \documentstyle{article} \input{a}"
    )
    assert document == b" \\documentstyle{article} % \\documentclass{article}\n"


def test_of_several_main_files_the_longest_document_counts(tmp_path):
    figure, long = MAIN + b"figure", MAIN + rb"\input{text}"
    assert article(tmp_path, a=figure, b=long, text=b"t" * 50) == MAIN + b"t" * 50


def test_without_a_main_file_all_are_joined_in_order_each_once(tmp_path):
    document = article(
        tmp_path, a=b"a", b=rb"b \input{a}", c=b"c\n", x=rb"x \input{y}", y=rb"y \input{x}"
    )
    assert document == b"b a\nc\nx y \\input{x}"


def test_bytes_that_are_not_utf8_stay(tmp_path):
    latin = MAIN + b"caf\xe9 \\input{r\xe9sum\xe9}"
    assert article(tmp_path, main=latin) == latin


def test_an_article_of_binary_files_is_empty(tmp_path):
    assert article(tmp_path, main=MAIN + b"\0") == b""


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere' does not exist; expected a folder with one sub"):
        open_source(f"tex:{tmp_path}/nowhere")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.pdf").touch()
    with pytest.raises(UsageError, match=r"matches '\*\.tex'; there are: \.pdf \(1\)"):
        TexArticles(tmp_path)
    (tmp_path / "paper" / "a.tex").touch()
    with pytest.raises(UsageError, match="all 1 files in .* are empty"):
        TexArticles(tmp_path)
    with pytest.raises(UsageError, match=r"a\.tex' is a file; expected a folder"):
        TexArticles(tmp_path / "paper" / "a.tex")
