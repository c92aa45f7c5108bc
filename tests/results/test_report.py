from __future__ import annotations

import base64
import html.parser
import json
import re

import pytest

from jaxlab.core import UsageError
from jaxlab.results import Claim, Record, figures, write_report

NASTY = "\nif a < b & c > d: <script>alert('x')</script>\n\t</pre><img src=x onerror=y>\n"


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and the text inside each kind of tag, as a browser would."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags do not nest"

    def handle_data(self, data):
        for tag in set(self.open):
            self.text[tag][-1] += data


@pytest.fixture
def record(tmp_path):
    record = Record.create(
        tmp_path, experiment="study<1>", variant="tiny", paper="A & B, arXiv:2203.07852v2",
        config={"model": {"width": 64}, "note": "<b>&"},
    )  # fmt: skip
    record.write_results(
        [Claim("it <learns>", "< 2.0", 1.51239, True), Claim("it flies", ">= 1", None, False)],
        {
            "bits": {"slide": 2.5, "recurrent": {"value": 2.25, "command": "python a.py > b"}},
            "parameters": 912384,
        },
    )
    return record


def read(record, **parts):
    path = write_report(record, **({"title": "T <t>", "summary": "One & two.\n\nThree."} | parts))
    assert path == record.report_path
    return Page(path.read_text())


def test_claims_show_expected_measured_and_whether_they_hold(record):
    page = read(record)
    cells = page.text["td"][:8]
    assert cells == ["it <learns>", "< 2.0", "1.512", "yes", "it flies", ">= 1", "n/a", "no"]
    assert "1 of 2 claims hold." in page.text["p"]
    marks = [value for tag, name, value in page.attributes if (tag, name) == ("span", "class")]
    assert marks == ["mark yes", "mark no"]


def test_what_ran_is_said_with_the_paper_as_a_link(record):
    page = read(record)
    assert page.text["dd"][:3] == ["study<1>", "tiny", "A & B, arXiv:2203.07852"]
    assert page.text["a"] == ["arXiv:2203.07852"]
    assert page.text["title"] == page.text["h1"] == ["T <t>"]
    assert {"One & two.", "Three."} <= set(page.text["p"])


def test_a_paper_without_an_arxiv_id_is_text(tmp_path):
    record = Record.create(tmp_path, experiment="a", variant="b", paper="none <yet>", config={})
    record.write_results([], {})
    page = read(record)
    assert "none <yet>" in page.text["dd"]
    assert "a" not in page.tags
    assert "table" in page.tags, "the environment is shown even when nothing was claimed"


def test_numbers_are_shown_with_their_groups_and_their_commands(record):
    page = read(record, commands={"Sample": "python s.py", "Again": "python s.py"})
    assert page.text["dt"][4:] == ["bits / slide", "bits / recurrent", "parameters"]
    assert page.text["dd"][4:] == ["2.500", "2.250", "912,384"]
    assert page.text["pre"][:2] == ["python s.py", "python a.py > b"]
    assert {"Sample, Again", "bits / recurrent"} <= set(page.text["p"])


def test_samples_are_inert_and_shown_as_they_are(record):
    page = read(record, samples={"<u>": NASTY})
    assert "script" not in page.tags and "u" not in page.tags and "img" not in page.tags
    # A browser drops one line break right after <pre>; Python's parser keeps it.
    assert page.text["pre"][0] == "\n" + NASTY


def test_config_and_environment_are_there_to_unfold(record):
    page = read(record)
    assert page.tags.count("details") == 2
    assert json.loads(page.text["pre"][-1]) == record.config
    unfolded = page.text["details"][-1]
    for name, value in record.environment().items():
        assert name in unfolded and str(value) in unfolded


def test_figures_are_inside_the_page(record):
    path = figures.save(figures.bars({"a": 1.0}, xlabel="x"), record.figures_dir / "a.png")
    page = read(record, figures={'A "caption" <i>': path})
    (source,) = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    kind, _, content = source.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == path.read_bytes()
    assert page.text["figcaption"] == ['A "caption" <i>']
    assert ("img", "alt", 'A "caption" <i>') in page.attributes


def test_the_page_refers_to_nothing_outside_but_the_paper(record):
    path = figures.save(figures.bars({"a": 1.0}, xlabel="x"), record.figures_dir / "a.png")
    page = read(record, figures={"f": path}, tables={"t": [{"a": 1}]}, samples={"s": NASTY})
    links = [
        value for _, name, value in page.attributes
        if name in ("href", "src", "srcset", "action", "data") and not value.startswith("data:")
    ]  # fmt: skip
    assert links == ["https://arxiv.org/abs/2203.07852"]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    policy = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy
    assert not re.search(r"url\(|@import", "".join(page.text["style"]))


def test_tables_are_shown_under_their_captions(record):
    page = read(record, tables={"Models": [{"model": "a<b", "loss": 1.5}]})
    assert page.text["h3"] == ["Models"]
    assert {"a<b", "1.500"} <= set(page.text["td"])


def test_a_run_drawn_again_gives_the_same_page(record):
    read(record)
    before = record.report_path.read_bytes()
    write_report(Record.open(record), title="T <t>", summary="One & two.\n\nThree.")
    assert record.report_path.read_bytes() == before


def test_a_missing_figure_or_one_that_is_no_png_is_named_and_the_old_page_stays(record, tmp_path):
    read(record)
    before = record.report_path.read_bytes()
    with pytest.raises(UsageError, match="gone.png' cannot be read"):
        read(record, figures={"f": tmp_path / "gone.png"})
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(UsageError, match="text.png' is not a PNG"):
        read(record, figures={"f": tmp_path / "text.png"})
    assert record.report_path.read_bytes() == before


def test_a_run_that_is_not_complete_has_no_report(tmp_path):
    record = Record.create(tmp_path, experiment="a", variant="b", paper="c", config={})
    with pytest.raises(UsageError, match="let it finish first"):
        write_report(record, title="t", summary="s")
