"""The page and the Markdown: structure, escaping, numbers, and that nothing is loaded; in a browser where one is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lit_align.cli.compare import compare
from lit_align.comparison.runs import Run
from lit_align.comparison.tables import DATA_ROWS
from lit_align.evaluation.record import EvaluationRecord, MetricEstimate, ModelRecord, append_jsonl, write_evaluation
from tests.comparison.folders import PROMPTS, TRAP, write_curves, write_sweep

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOADING = ("src", "srcset", "data", "poster", "action", "background", "href")
"""Attributes by which an element may load something."""


class Page(HTMLParser):
    """What a page holds, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.source = text
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._inside = "cell"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "cell":
            self.tables[-1][-1][-1] += data
        elif not self._inside:
            self.texts.append(data)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures by their captions."""
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", self.source)
        figures = json.loads(next(script for script in self.scripts if script.startswith("[")))
        return dict(zip(captions, figures, strict=True))

    def row(self, name: str, column: str) -> str:
        """Return the cell of a row by its name and the heading of a column."""
        for table in self.tables:
            for row in table[1:]:
                if row[0] == name and column in table[0]:
                    return row[table[0].index(column)]
        raise KeyError(name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("page")
    sweep = write_sweep(tmp_path / "sweep")
    numbers = {"length/tokens": MetricEstimate(41.0, 40.0, 42.0, 4), "win_rate": MetricEstimate(0.6, 0.5, 0.7, 4)}
    models = (
        ModelRecord("b", str(sweep / "b"), {"judge": "the judge"}, numbers),
        ModelRecord("base <i>", "some/model", {}, numbers | {"win_rate": MetricEstimate(0.5)}),
    )
    write_evaluation(tmp_path / "evaluation", EvaluationRecord(models, "base <i>", ("lengths hardly <b>overlap",)))
    row = {"index": 0, "seed": 0, "prompt": PROMPTS[0], "response": f"evaluated {TRAP}", "tokens": [5, 6, 7]}
    append_jsonl(
        tmp_path / "evaluation" / "models" / "b" / "responses.jsonl", [row, {**row, "seed": 1, "response": "2"}]
    )
    compare([sweep], tmp_path / "out", [tmp_path / "evaluation"], title="Runs <1>")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "compare.html").read_text("utf-8"))


def test_nothing_is_loaded(page: Page) -> None:
    loaded = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in LOADING and value is not None and not value.startswith("#")
    ]
    assert loaded == []
    assert {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base"} == set()
    (policy,) = (attributes for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'; ")
    assert "http" not in policy["content"]


def test_texts_of_runs_are_not_markup(page: Page, written: Path) -> None:
    assert any(TRAP in text for text in page.texts), "as a text"
    assert [attributes for _, attributes in page.tags if "onerror" in attributes] == []
    assert "Runs <1>" in page.texts
    assert "i" not in {tag for tag, attributes in page.tags if not attributes}
    markdown = (written / "compare.md").read_text("utf-8")
    assert "<img" not in markdown
    assert r"\*\*bold\*\* \| cell" in markdown


def test_there_is_a_place_for_every_figure(page: Page) -> None:
    places = [int(attributes["data-figure"]) for _, attributes in page.tags if "data-figure" in attributes]
    figures = json.loads(next(script for script in page.scripts if script.startswith("[")))
    assert sorted(places) == list(range(len(figures)))
    assert len(figures) == 2 + 6 + 1, "two planes, six metrics, one bucket with pairs"
    assert all(figure["data"] for figure in figures)


def test_sections_come_in_order(page: Page) -> None:
    anchors = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    expected = [
        "runs",
        "length-and-score",
        "results",
        "evaluation",
        "settings",
        "curves",
        "margins-by-length",
        "samples",
    ]
    assert anchors == [*expected, "data", "environment"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{anchor}" for anchor in anchors]


def test_the_tables_hold_what_the_files_say(page: Page) -> None:
    """The intervals are those of scipy: t over (2, 4, 3, 1), Wilson of 120 of 200 pairs, of 3 of 4, of 20.5 of 50."""
    assert page.row("score of its samples", "a-0") == "2.5 (0.4457 to 4.554)"
    assert page.row("reward accuracy", "a-0") == "0.6 (0.5308 to 0.6654)"
    assert page.row("samples that ended", "b") == "0.75 (0.3006 to 0.9544)"
    assert page.row("… minus that of a-0, by prompt", "b") == "1.5 (−1.547 to 4.547), n = 4"
    assert page.row("shorter", "b") == "0.41 (0.2849 to 0.548), n = 50"
    assert page.row("longer", "b") == "–"
    assert page.row("win rate", "b") == "0.6 (0.5 to 0.7)"
    assert page.row("win rate", "base <i> (baseline)") == "0.5"
    assert page.row("score of its samples", "beta 0.1 (2 seeds)") == "2.625 (1.037 to 4.213)"
    assert page.row("model.objective.beta", "b") == "0.5"
    assert page.row("model.policy", "all") == "some/model"
    assert page.row("rows left out", "train: all runs") == "9"
    assert page.row("longer response is the chosen one", "validation: all runs") == "0.7 (0.63 to 0.76)"
    assert page.row("responses that were cut", "validation: all runs") == "7"
    assert page.row("torch", "a-1") == "2.0"


def test_every_row_of_the_data_is_that_of_the_report(page: Page) -> None:
    rows = {
        "pairs": "210",
        "chosen, mean tokens": "31.5",
        "rejected, mean tokens": "24.25",
        "responses that were cut": "7",
        "duplicates": "5",
        "contradictions": "6",
        "prompts seen in training": "7",
        "rows left out": "9",
    }
    assert {name: page.row(name, "train: all runs") for name in rows} == rows
    assert {name for name in DATA_ROWS} == {*rows, "longer response is the chosen one"}


def test_correlations_have_fishers_interval(page: Page) -> None:
    """With 200 pairs: the interval of scipy for data with exactly this correlation."""
    noise = np.random.default_rng(0).normal(size=(2, 200))
    x = (noise[0] - noise[0].mean()) / noise[0].std()
    rest = noise[1] - noise[1].mean() - x * (noise[1] @ x) / 200
    y = 0.25 * x + np.sqrt(1 - 0.25**2) * rest / rest.std()
    low, high = stats.pearsonr(x, y).confidence_interval(0.95)
    assert page.row("correlation of margin and length gap", "b") == f"0.25 ({low:.4g} to {high:.4g})"


def test_the_plane_and_its_tables_hold_what_the_runs_reported(page: Page) -> None:
    """Length and mean score at every step, by hand from the scores of the fixture; the front as listed by hand."""
    figure = page.figures()["Length and score over training"]["data"]
    by_name = {trace["name"]: trace for trace in figure}
    assert (by_name["a-1"]["x"], by_name["a-1"]["y"]) == ([20, 24, 28], [1.0, 1.75, 2.75])
    assert (by_name["b"]["x"], by_name["b"]["y"]) == ([20, 19, 45], [1.0, 0.5, 4.0])
    assert by_name["b"]["text"] == ["step 0", "step 10", "step 20"]
    front = by_name["Pareto front"]
    assert list(zip(front["x"], front["y"], strict=True)) == [
        (19, 0.5), (20, 1.0), (20, 1.0), (20, 1.0), (24, 1.75), (28, 2.75), (45, 4.0),
    ]  # fmt: skip
    heads = ["run", "step", "length of its samples (tokens)", "score of its samples"]
    tables = {len(table): table for table in page.tables if table[0] == heads}
    assert tables[8][-1] == ["b", "20", "45", "4"]
    assert tables[10][6] == ["a-1", "20", "28", "2.75"], "all points: three runs of three steps"


def test_fronts_are_told_apart_by_their_scores(page: Page) -> None:
    for title in ("Pareto front: win rate", "Pareto front: score of its samples"):
        assert title in page.texts
    assert ["b", "41", "0.6"] in [row for table in page.tables if table[0][0] == "model" for row in table]


def test_evaluated_models_have_bars_of_their_intervals(page: Page) -> None:
    traces = {trace["name"]: trace for trace in page.figures()["Length and score as evaluated"]["data"]}
    trace = traces["b"]
    assert (trace["x"], trace["y"]) == ([41.0], [0.6])
    bars = {axis: (trace[axis]["array"][0], trace[axis]["arrayminus"][0]) for axis in ("error_x", "error_y")}
    assert bars["error_x"] == pytest.approx((1.0, 1.0))
    assert bars["error_y"] == pytest.approx((0.1, 0.1))
    assert traces["base &lt;i&gt;"]["error_y"] == {"visible": False}
    texts = {name: own["text"] for name, own in traces.items()}
    assert texts == {"b": [""], "base &lt;i&gt;": ["base &lt;i&gt;"]}, "a run is known by its colour"


def test_curves_are_the_rows_of_the_metrics(page: Page, written: Path) -> None:
    file = written.parent / "sweep" / "a-0" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for metric, caption in (("loss", "validation loss"), ("grad_norm", "gradient norm")):
        traces = {trace["name"]: trace for trace in page.figures()[caption]["data"]}
        for part, name in (("val", "a-0"), ("train", "a-0, training")):
            points = [(line["step"], line[f"{part}/{metric}"]) for line in lines if f"{part}/{metric}" in line]
            if points:
                assert list(zip(traces[name]["x"], traces[name]["y"], strict=True)) == points


def test_histograms_of_margins_are_shares_between_the_edges(page: Page) -> None:
    """Counts 5, 24, 20 and 1 between -2, -1, 0, 1 and 2, of 50 pairs, each bin as wide as the others."""
    figure = page.figures()["chosen is shorter"]
    trace = figure["data"][0]
    assert trace["y"] == [0, 0.1, 0.48, 0.4, 0.02, 0]
    assert trace["x"] == [0, 0, 1, 2, 3, 4]
    assert trace["text"] == ["-2", "-2", "-1", "0", "1", "2"]
    assert trace["name"] == "a-0, n = 50"
    axis = figure["layout"]["xaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True)) == pytest.approx(
        {"-1": 1, "-0.1": 1.9, "0": 2, "0.1": 2.1, "1": 3}
    )


def test_answers_have_score_and_length(page: Page) -> None:
    """Of prompt 1 the scores at the last step are 4, 3 and 3; lengths without tokens are words."""
    sample = page.source[page.source.index(f"a-0 at 20: {PROMPTS[1]}") - 400 :][:1600]
    labels = re.findall(r"<b[^>]*>([^<]*) <small>([^<]*)</small>", sample)
    assert ("a-0", "4, 6 words") in labels
    assert ("reference", "1, 4 words") in labels


def test_the_markdown_has_the_same_tables(page: Page, written: Path) -> None:
    lines = (written / "compare.md").read_text("utf-8").splitlines()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    cells = {tuple(cell.replace("\\", "").replace("&lt;", "<").replace("&gt;", ">") for cell in row) for row in rows}
    for table in page.tables:
        for row in table[1:]:
            assert (
                tuple(cell.strip() for cell in row) in {tuple(cell.strip() for cell in line) for line in cells}
                or not row[-1]
            )


def test_samples_stand_side_by_side(page: Page) -> None:
    texts = " ".join(page.texts)
    for name in ("a-0", "a-1", "b"):
        assert f"{name} at 20: {PROMPTS[1]}" in texts
        assert f"{name} at 10: " not in texts, "only the last ones"
    assert texts.count(f"before: {PROMPTS[1]}") == 1, "the reference is shown once"
    assert f"evaluated {TRAP}" in texts
    assert "3 tokens" in texts


def test_runs_of_different_tasks_share_what_they_have(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "reward"
    other.mkdir()
    (other / "metrics.jsonl").write_text('{"step": 5, "val/loss": 0.5, "val/calibration/ece": 0.125}\n')
    compare([sweep / "b", other], tmp_path / "out")
    page = Page((tmp_path / "out" / "compare.html").read_text("utf-8"))
    assert [page.row("validation loss", name) for name in ("b", "reward")] == ["0.68", "0.5"]
    assert [page.row("calibration error", name) for name in ("b", "reward")] == ["–", "0.125"]


def test_reward_and_on_policy_runs_have_figures_of_their_own(sweep: Path, tmp_path: Path) -> None:
    """Curves beside those of other runs, the plane of divergence and score, calibration; numbers by hand."""
    bins = [[0, 0.0, 0.0], [4, 2.4, 3.0], [2, 1.8, 1.0]]
    curves = {
        "val/rewards/accuracies": [0.5, 0.7],
        "val/calibration/ece": [0.3, 0.2],
        "val/calibration/brier": [0.25, 0.2],
    }
    reward = write_curves(
        tmp_path / "reward", "reward", {**curves, "val/lengths/score_correlation": [0.1, 0.4]}, reliability=bins
    )
    sampled = {
        "val/score": [1.0, 2.0, 1.5],
        "val/kl": [0.1, 2.0, 3.0],
        "val/reward": [0.9, 1.8, 1.2],
        "val/length": [9, 8, 7],
    }
    online = write_curves(
        tmp_path / "online", "online", {**sampled, "val/entropy": [4, 3, 2], "val/matching/d2": [1, 1, 0.5]}
    )
    compare([sweep / "b", reward, online], tmp_path / "out")
    page = Page((tmp_path / "out" / "compare.html").read_text("utf-8"))
    figures = page.figures()
    points = figures["Divergence and score over training"]
    assert [(trace["name"], trace["x"], trace["y"]) for trace in points["data"]] == [
        ("online", [0.1, 2.0, 3.0], [1.0, 2.0, 1.5]),
        ("Pareto front", [0.1, 2.0], [1.0, 2.0]),
    ]
    assert points["layout"]["xaxis"]["title"]["text"] == "divergence from the reference (nats)"
    diagonal, curve = figures["Calibration of the rewards"]["data"]
    assert diagonal["x"] == diagonal["y"]
    assert (curve["name"], curve["x"], curve["y"], curve["text"]) == (
        "reward",
        [0.6, 0.9],
        [0.75, 0.5],
        ["4 pairs", "2 pairs"],
    )
    own = ("calibration error", "Brier score", "correlation of score and length", "matching divergence D2")
    assert set(own) <= figures.keys()
    assert {trace["name"] for trace in figures["reward accuracy"]["data"]} == {"b", "reward"}
    assert [page.row("calibration error", name) for name in ("b", "reward", "online")] == ["–", "0.2", "–"]
    assert page.row("reward of its responses (score minus penalty)", "online") == "1.2"
    assert page.row("divergence from the reference (nats)", "online") == "3"
    assert "no samples" in page.row("online", "notes")
    assert "no samples" not in page.row("reward", "notes"), "which writes nothing"


def test_each_judge_has_a_plane_and_rows(sweep: Path, tmp_path: Path) -> None:
    numbers = {
        "length/tokens": MetricEstimate(41.0),
        "win_rate": MetricEstimate(0.6),
        "judges/long/win_rate": MetricEstimate(0.9),
    }
    record = ModelRecord("b", str(sweep / "b"), {"judge": "the truth", "judges": {"long": "the length"}}, numbers)
    write_evaluation(tmp_path / "evaluation", EvaluationRecord((record,), None))
    compare([sweep / "b"], tmp_path / "out", [tmp_path / "evaluation"])
    page = Page((tmp_path / "out" / "compare.html").read_text("utf-8"))
    figures = page.figures()
    assert figures["Length and score as evaluated"]["data"][0]["y"] == [0.6]
    assert figures["Length and score as evaluated, by long"]["data"][0]["y"] == [0.9]
    assert [page.row(name, "b") for name in ("win rate", "win rate by long")] == ["0.6", "0.9"]
    assert any("Judged by the truth; long: the length." in text for text in page.texts)


def test_a_secret_in_a_setting_is_masked(runs: list[Run], sweep: Path, tmp_path: Path) -> None:
    config = sweep / "b" / "config.yaml"
    config.write_text(
        config.read_text("utf-8") + "extend: hf_abcdefghijklmnopqrstuv\nnote: hf_abcdefghijklmnopqrstuv\n"
    )
    compare([sweep], tmp_path / "out")
    for file in ("compare.html", "compare.md"):
        assert "hf_abcdefghijklmnopqrstuv" not in (tmp_path / "out" / file).read_text("utf-8")


def in_browser(page: Path, folder: Path) -> tuple[str, set[str]]:
    """Return the page as a browser has drawn it, and what was asked for, but for what a browser asks for itself."""
    log = folder / "net.json"
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    options = ("--headless", "--no-sandbox", "--disable-gpu", *quiet, "--window-size=1400,4500", "--dump-dom")
    places = (f"--log-net-log={log}", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=6000")
    command = [BROWSER, *options, *places, page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', log.read_text("utf-8")))
    return dom, {url for url in asked if not re.match(r"https?://[\w.-]*\.(google|googleapis)\.com/", url)}


SEARCHING = """<script>
const box = document.getElementById("search");
box.value = "FRUIT a-0";
box.dispatchEvent(new Event("input"));
</script></body>"""
"""Types into the search box."""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_the_page_and_asks_for_nothing_else(written: Path, tmp_path: Path) -> None:
    """And its search leaves the samples that have all the words, in capitals or not."""
    searched = tmp_path / "searched.html"
    searched.write_text((written / "compare.html").read_text("utf-8").replace("</body>", SEARCHING), "utf-8")
    dom, asked = in_browser(searched, tmp_path)
    assert asked == set()
    drawn = Page(dom)
    plots = [attributes for _, attributes in drawn.tags if "data-figure" in attributes]
    assert len(plots) == 9
    assert all("drawn" in (attributes["class"] or "") for attributes in plots), "every figure was drawn"
    assert sum(tag == "svg" for tag, _ in drawn.tags) >= len(plots)
    assert drawn.row("win rate", "b") == "0.6 (0.5 to 0.7)"
    samples = [attributes for _, attributes in drawn.tags if attributes.get("class") == "sample"]
    assert len(samples) == len(PROMPTS)
    assert ["hidden" in attributes for attributes in samples].count(False) == 1
    assert "1 of them" in drawn.texts


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_that_asks_for_something_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<img src="http://example.org/x.png">', "utf-8")
    _, asked = in_browser(tmp_path / "page.html", tmp_path)
    assert asked == {"http://example.org/x.png"}
