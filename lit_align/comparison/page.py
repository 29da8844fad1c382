"""The comparison of runs as one HTML page that loads nothing, and as Markdown."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_align.comparison.figures import (
    PlotlyFigure,
    calibration_figure,
    curve_figures,
    evaluated_figures,
    evaluated_plane,
    judges_of,
    margin_figures,
    plane_figure,
    run_style,
)
from lit_align.comparison.numbers import DIVERGENCE_PLANES, last_samples, training_plane
from lit_align.comparison.runs import EvaluatedModel, Run
from lit_align.comparison.tables import (
    ComparisonTable,
    data_table,
    differences,
    environment_table,
    evaluation_table,
    front_table,
    margins_table,
    number_text,
    overview,
    plane_table,
    results_table,
    seeds_table,
    shared_settings,
)
from lit_align.evaluation.record import write_whole

PAGE, TEXT = "compare.html", "compare.md"
MARKDOWN_SAMPLES = 5
"""Prompts whose responses are in the Markdown; the page has more."""
GREY = "#808080"
_CALIBRATION = (
    "Of the last validation: how often the side with the higher reward is the preferred one, by the probability "
    "σ(margin) that it is given. Of a policy the margin is that of its implicit rewards."
)
_DASH_STYLES = {"solid": "solid", "dash": "dashed", "dot": "dotted"}


@dataclass(frozen=True)
class Answer:
    """A response to a prompt.

    Args:
        name: of the run or model.
        text: the response.
        label: its score and length, where they are known.
        colour: of the run.
    """

    name: str
    text: str
    label: str
    colour: str = GREY


@dataclass(frozen=True)
class ComparedPrompt:
    """A prompt and the responses of all runs to it."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: its heading.
        note: under the heading.
        large: figures of full width.
        small: figures beside each other.
        tables: below the figures.
        folded: tables that are shown on request.
        samples: prompts with responses.
    """

    title: str
    note: str = ""
    large: tuple[PlotlyFigure, ...] = ()
    small: tuple[PlotlyFigure, ...] = ()
    tables: tuple[ComparisonTable, ...] = ()
    folded: tuple[ComparisonTable, ...] = ()
    samples: tuple[ComparedPrompt, ...] = ()

    @property
    def anchor(self) -> str:
        """The name that links to it use."""
        return self.title.lower().replace(" ", "-")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.large or self.small or self.tables or self.folded or self.samples)


def sections_of(runs: Sequence[Run], models: Sequence[EvaluatedModel], prompts: int) -> list[Section]:
    """Return what a comparison shows, most important first; sections that would be empty are left out."""
    names = [run.name for run in runs]
    plane = training_plane(runs)
    evaluated = [evaluated_plane(models, judge) for judge in judges_of(models)]
    planes = [*evaluated_figures(models, names), plane_figure(plane, names) if plane else None]
    fronts = [front_table(each) for each in (*evaluated, plane) if each]
    whole = [plane_table(plane)] if plane else []
    diverged = training_plane(runs, DIVERGENCE_PLANES)
    results = [results_table(runs).untitled, seeds_table(runs)]
    sections = [
        Section("Runs", tables=(replace(overview(runs), title=""),)),
        Section("Length and score", large=_known(planes), tables=tuple(fronts), folded=tuple(whole)),
        Section(
            "Divergence and score",
            large=_known([plane_figure(diverged, names) if diverged else None]),
            folded=_known([plane_table(diverged) if diverged else None]),
        ),
        Section("Results", tables=_known(results)),
        Section("Evaluation", tables=(replace(evaluation_table(models), title=""),) if models else ()),
        Section("Settings", tables=(differences(runs),), folded=(shared_settings(runs),)),
        Section("Curves", "Dots are validation, thin lines training.", small=tuple(curve_figures(runs))),
        Section(
            "Margins by length",
            "Of the last validation, by the length of the chosen response beside that of the rejected one.",
            small=tuple(margin_figures(runs)),
            tables=_known([margins_table(runs)]),
        ),
        Section("Calibration", _CALIBRATION, small=_known([calibration_figure(runs)])),
        Section("Samples", samples=tuple(compared_prompts(runs, models))[:prompts]),
        Section("Data", tables=_known([_untitled(data_table(runs))])),
        Section("Environment", tables=_known([_untitled(environment_table(runs))])),
    ]
    return [section for section in sections if not section.is_empty]


def _known(parts: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(part for part in parts if part is not None)


def _untitled(table: ComparisonTable | None) -> ComparisonTable | None:
    return None if table is None else table.untitled


def compared_prompts(runs: Sequence[Run], models: Sequence[EvaluatedModel]) -> Iterator[ComparedPrompt]:
    """Yield each prompt with the last responses of all runs and models to it, prompts that most of them have first.

    Args:
        runs: the responses to whose prompts are shown; that of the reference once.
        models: of evaluations; of several seeds the first is shown.
    """
    answers: dict[str, list[Answer]] = {}
    for number, run in enumerate(runs):
        for row in last_samples(run):
            own = answers.setdefault(str(row["prompt"]), [])
            own += [answer for answer in _sampled(run, row, run_style(number)[0]) if answer not in own]
    for model in models:
        scores = {row["index"]: row.get("score") for row in reversed(model.record.scores())}
        first = {row["index"]: row for row in reversed(model.record.responses())}
        for index, row in sorted(first.items()):
            answer = _answer(f"{model.name}, evaluated", row["response"], scores.get(index), row.get("tokens"))
            answers.setdefault(str(row["prompt"]), []).append(answer)
    for prompt, own in sorted(answers.items(), key=lambda item: -len(item[1])):
        yield ComparedPrompt(prompt, tuple(sorted(own, key=lambda answer: answer.name != "reference")))


def _sampled(run: Run, row: Mapping[str, Any], colour: str) -> Iterator[Answer]:
    """Yield the responses of a row of ``samples.jsonl``."""
    for model, name in (("reference", "reference"), ("policy", run.name)):
        if model in row:
            shade = colour if model == "policy" else GREY
            answer = _answer(name, row[model], row.get(f"{model}_score"), row.get(f"{model}_tokens"))
            yield replace(answer, colour=shade)


def _answer(name: str, text: Any, score: Any, tokens: Any) -> Answer:
    count = len(tokens) if isinstance(tokens, list) else tokens
    length = f"{len(str(text).split())} words" if count is None else f"{count} tokens"
    return Answer(name, str(text), length if score is None else f"{number_text(score)}, {length}")


def write_comparison(
    folder: Path,
    title: str,
    runs: Sequence[Run],
    models: Sequence[EvaluatedModel],
    warnings: Sequence[str],
    prompts: int,
) -> list[Path]:
    """Write ``compare.html`` and ``compare.md``, and return their paths.

    Args:
        folder: for the files.
        title: of the page.
        runs: that are compared.
        models: of evaluations.
        warnings: of the evaluations.
        prompts: most prompts whose responses are shown.
    """
    sections = sections_of(runs, models, prompts)
    write_whole(folder / PAGE, render_page(title, runs, sections, warnings))
    write_whole(folder / TEXT, render_markdown(title, sections, warnings))
    return [folder / PAGE, folder / TEXT]


# ── HTML ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_page(title: str, runs: Sequence[Run], sections: Sequence[Section], warnings: Sequence[str]) -> str:
    """Return the page; texts of runs are escaped, and nothing is loaded from anywhere."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    source = files("lit_align.comparison").joinpath("templates/page.html.jinja").read_text("utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(source)
    figures = [figure for section in sections for figure in (*section.large, *section.small)]
    key = [
        (run.name, colour, _DASH_STYLES[dash])
        for run, (colour, dash) in zip(runs, map(run_style, range(len(runs))), strict=True)
    ]
    return template.render(
        title=title,
        subtitle=f"{len(runs)} run{'s' if len(runs) > 1 else ''}, compared by lit_align",
        key=key,
        warnings=warnings,
        sections=sections,
        numbers={id(figure): number for number, figure in enumerate(figures)},
        place=id,
        plotly=get_plotlyjs(),
        figures=script_json([{"data": figure.data, "layout": figure.layout} for figure in figures]),
    )


def script_json(content: Any) -> str:
    r"""Return JSON that can stand inside of a ``<script>`` element whatever texts it holds.

    >>> script_json(["</script>"])
    '["\\u003c/script>"]'
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_markdown(title: str, sections: Sequence[Section], warnings: Sequence[str]) -> str:
    """Return the comparison as Markdown: the same tables and the first samples; figures are on the page."""
    parts = [f"# {markdown_text(title)}", *(f"> {markdown_text(warning)}" for warning in warnings)]
    for section in sections:
        parts += [f"## {section.title}", *([section.note] if section.note else [])]
        figures = (*section.large, *section.small)
        if figures:
            parts.append(
                f"Figures in [{PAGE}]({PAGE}): {', '.join(markdown_text(figure.title) for figure in figures)}."
            )
        for table in (*section.tables, *section.folded):
            parts += [
                *([f"### {table.title}"] if table.title else []),
                markdown_table(table),
                *([table.note] if table.note else []),
            ]
        for sample in section.samples[:MARKDOWN_SAMPLES]:
            parts.append("\n".join(_markdown_sample(sample)))
    return "\n\n".join(parts) + "\n"


def _markdown_sample(sample: ComparedPrompt) -> Iterator[str]:
    yield "| | |\n|---|---|"
    yield f"| prompt | {markdown_text(sample.prompt)} |"
    for answer in sample.answers:
        yield f"| {markdown_text(answer.name)} ({markdown_text(answer.label)}) | {markdown_text(answer.text)} |"


def markdown_table(table: ComparisonTable) -> str:
    """Return a table in Markdown."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(
        f"| {' | '.join(cell if line is lines[1] else markdown_text(cell) for cell in line)} |" for line in lines
    )


def markdown_text(text: str) -> str:
    r"""Escape a text so that it is neither markup nor leaves its cell.

    >>> markdown_text("a|b\n<b>*c*")
    'a\\|b<br>&lt;b&gt;\\*c\\*'
    """
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text.replace("\r", ""))
    return html.escape(escaped, quote=False).replace("\n", "<br>")
