"""The HTML page: valid, whole in itself, readable without eyes, and never a place for somebody else's markup."""

import base64
import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import asegnet_fast.cli as cli
from asegnet_fast.report import write_report
from asegnet_fast.report.conclusions import draw_conclusions
from asegnet_fast.report.counts import read_counts, row_intervals
from asegnet_fast.report.figures import Figures
from asegnet_fast.report.page import write_page
from asegnet_fast.report.table import percent, write_tables
from asegnet_fast.training.crossval import load_data, summarise_run
from tests.program_runs import data_folder, finished_run, settings

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements of a page as (tag, attributes), its text, and what is wrong with its nesting."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if len(dict(attributes)) < len(attributes):
            self.wrong.append(f"an attribute of {tag} twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run's folder with everything that `crossval` leaves in it; one loss is enough."""
    run = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(finished_run(), run, ignore=shutil.ignore_patterns("*--dl"))
    summary = summarise_run(run)
    write_tables(summary, run)
    wanted = settings(run)
    assert write_report(run, summary, load_data(wanted), wanted.data) == []
    return run


@pytest.fixture(scope="module")
def page(written):
    return Page((written / "report.html").read_text(encoding="utf-8"))


def test_elements_are_nested_and_names_are_unique(page):
    assert page.wrong == [] and page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert len(links) > 8 and set(links) <= set(ids)
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_nothing_is_fetched(written, page):
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not page.all("script") and not page.all("iframe")
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy
    for image in page.all("img"):
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.*)", image["src"]).groups()
        raw = base64.b64decode(content, validate=True)
        assert raw.startswith(b"\x89PNG" if kind == "png" else b"<svg")
        assert kind == "png" or not re.search(rb'(?:href|src)="(?!#)', raw)
    assert (written / "report.html").stat().st_size < 6_000_000


def test_it_can_be_read_without_eyes_and_without_a_mouse(page):
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == len(page.all("main")) == 1
    images = page.all("img")
    assert len(images) > 20 and all(len(image["alt"]) > 20 for image in images)
    assert all("scope" in head for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    scrolled = [a for _, a in page.elements if "scroll" in a.get("class", "").split()]
    assert scrolled and all(a["tabindex"] == "0" and a["role"] == "region" for a in scrolled)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_text_has_contrast_in_light_and_dark(written):
    text = (written / "report.html").read_text(encoding="utf-8")

    def luminance(colour):
        colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    schemes = re.findall(r":root \{(.*?)\}", text, re.S)[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]+)", scheme))
        for ground in ("page", "card", "warn"):
            for ink in ("text", "soft", "link", "good", "bad", "open", "none"):
                light, dark = sorted((luminance(colours[ground]), luminance(colours[ink])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)


def test_it_shows_the_runs_numbers_and_the_papers(written, page):
    summary = json.loads((written / "summary.json").read_text())
    for row in summary["rows"]:
        for measure in ("dice", "sensitivity", "specificity"):
            assert percent(row[measure]["pooled"]) in page.text
    for published in ("89.61", "92.73", "99.51", "87.56"):
        assert published in page.text
    for said in (
        "(1) The attention gate helps.",
        "4 patients or files are too few",
        "ftl:… and tl:…, same model",
        "Floor: a predictor that answers lesion everywhere",
        "0.0 % of the test slices have a neighbour in training",
        "One seed (0)",
        "Trained for 3 epochs; the paper trained for 50.",
        summary["data"]["fingerprint"],
        summary["environment"]["torch"],
        "checkpoint_last.pt",
        "label 2",
    ):
        assert said in page.text, said


def test_downloads_are_whole(written, page):
    links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    assert set(links) == {"table1.csv", "table1.md", "conclusions.csv", "summary.json"}
    for name, uri in links.items():
        assert base64.b64decode(uri.split(",", 1)[1]) == (written / name).read_bytes()


def test_names_and_notes_are_text_and_never_markup(written, tmp_path):
    evil = '"><script>alert(1)</script>&amp;'
    summary = json.loads((written / "summary.json").read_text())
    config = json.loads((written / "config.json").read_text())["settings"]
    summary["data"]["notes"] = [evil]
    summary["environment"]["cpu"] = evil
    counts = read_counts(written, summary)
    intervals = row_intervals(counts)
    counts = type(counts)(
        (evil,) * len(counts.groups), (evil,) * len(counts.files), counts.folds, counts.by_row
    )
    answers = draw_conclusions(summary, counts, intervals)
    figures = Figures(problems=[evil])
    args = (written, summary, config | {"data": evil}, counts, intervals, answers, [evil], figures)
    write_page(tmp_path / "page.html", *args)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.wrong == [] and not page.all("script") and page.text.count(evil) >= 7


def test_report_without_data_shows_the_rest(tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run, ignore=shutil.ignore_patterns("*--ftl-*"))
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert cli.main(["report", str(run), "--out", str(tmp_path / "elsewhere" / "page.html")]) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "no CT pictures (--data" in lines[0]
    page = Page((tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8"))
    assert page.wrong == [] and "The CT slices were not at hand" in page.text
    assert len(page.all("img")) == 3 + 1 + 2 and not (run / "report.html").exists()
    assert cli.main(["report", str(run), "--data", str(tmp_path / "gone")]) == 2
    assert "gone: expected a folder" in capsys.readouterr().err
    for wrong in (tmp_path, run / "config.json" / "page.html"):
        assert cli.main(["report", str(run), "--out", str(wrong)]) == 2
        assert "--out: expected a file in a folder" in capsys.readouterr().err


def test_report_of_a_damaged_run_says_what_is_missing(tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run, ignore=shutil.ignore_patterns("*--ftl-*"))
    (run / "segnet--dl" / "fold0" / "checkpoint_last.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert cli.main(["report", str(run), "--data", data_folder()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "fold0/checkpoint_last.pt: expected a whole checkpoint" in lines[0]
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "What is missing from this page" in page.text and "as SegNet, DL sees it" not in str(page.elements)
    assert "as A-SegNet, DL sees it" in str(page.elements)
    (run / "folds.json").write_text("{")
    assert cli.main(["report", str(run)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "folds.json: expected a folds file" in lines[0]
