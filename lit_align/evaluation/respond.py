"""Responses of a model to the prompts of an evaluation, kept on disk row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import RESPONSES, RowFile
from lit_align.models.generation import CachedGenerator, GenerationRequest, Generator
from lit_align.models.sampling import Sampling, mix_seed

SETTINGS = "settings.json"
Advance: TypeAlias = Callable[[int], None]
"""Tells a progress bar how many rows are done."""


@dataclass(frozen=True)
class EvaluationResponse:
    """A response to a prompt.

    Args:
        index: of the prompt.
        seed: that it was sampled with.
        prompt: as judges see it.
        response: its text.
        tokens: number of its tokens, the end token included.
        ended: whether it ended by itself.
        prompt_ids: ids of the prompt.
        ids: ids of the response.
    """

    index: int
    seed: int
    prompt: str
    response: str
    tokens: int
    ended: bool
    prompt_ids: list[int]
    ids: list[int]

    @property
    def key(self) -> tuple[int, int]:
        """Prompt and seed."""
        return self.index, self.seed


def collect_responses(
    evaluated: LoadedModel,
    prompts: Sequence[EvaluationPrompt],
    seeds: Sequence[int],
    sampling: Sampling,
    folder: Path,
    batch_size: int = 64,
) -> list[EvaluationResponse]:
    """Sample a response to each prompt with each seed; those that are on disk already are read.

    A response depends on model, prompt, seed and sampling alone. Responses are kept on disk as they come: a process
    that was interrupted goes on where it was. If anything that they depend on has changed, they are sampled anew, and
    the earlier ones are moved to ``previous``.

    Returns:
        By prompt, then by seed.
    """
    ids = dict(zip((p.index for p in prompts), evaluated.prompt_ids(prompts, sampling.max_new_tokens), strict=True))
    stops = evaluated.stop_tokens(prompts)
    file = RowFile(folder / RESPONSES, _settings(evaluated, sampling, stops), folder / SETTINGS)
    if file.changed:
        print(f"{folder.name}: responses are sampled anew, because this has changed: {', '.join(file.changed)}")
    known = _known(file, prompts, ids)
    wanted = [(prompt, seed) for prompt in prompts for seed in seeds]
    missing = [(prompt, seed) for prompt, seed in wanted if (prompt.index, seed) not in known]
    missing.sort(key=lambda item: len(ids[item[0].index]))
    with progress(f"{evaluated.name}: responses", len(wanted), len(wanted) - len(missing)) as advance:
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            rows = generate_responses(evaluated, part, ids, stops, sampling, CachedGenerator(batch_size))
            file.add(asdict(row) for row in rows)
            known |= {row.key: row for row in rows}
            advance(len(part))
    return [known[prompt.index, seed] for prompt, seed in wanted]


def generate_responses(
    evaluated: LoadedModel,
    part: Sequence[tuple[EvaluationPrompt, int]],
    ids: dict[int, list[int]],
    stops: frozenset[int],
    sampling: Sampling,
    generator: Generator,
) -> list[EvaluationResponse]:
    """Generate a response to each prompt and seed.

    Args:
        evaluated: the model; all processes that hold a part of it must call this together.
        part: prompts and seeds.
        ids: of the prompts, by their indices.
        stops: ids that end a response.
        sampling: length, temperature and top-p.
        generator: generates the responses.
    """
    requests = [GenerationRequest(ids[prompt.index], mix_seed(seed, prompt.index)) for prompt, seed in part]
    with torch.no_grad():
        generated = generator(evaluated.model, requests, stops, evaluated.encoder.pad, sampling)
    decode = evaluated.encoder.decode_response
    return [
        EvaluationResponse(
            index=prompt.index,
            seed=seed,
            prompt=prompt.text,
            response=decode(ids[prompt.index], response.content),
            tokens=len(response.ids),
            ended=response.ended,
            prompt_ids=ids[prompt.index],
            ids=list(response.ids),
        )
        for (prompt, seed), response in zip(part, generated, strict=True)
    ]


def _settings(evaluated: LoadedModel, sampling: Sampling, stops: frozenset[int]) -> dict[str, Any]:
    """Return what responses depend on beside prompt and seed."""
    options = asdict(sampling)
    del options["seed"]
    return {
        "model": evaluated.identity,
        "sampling": options,
        "stop_tokens": sorted(stops),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _known(
    file: RowFile, prompts: Sequence[EvaluationPrompt], ids: dict[int, list[int]]
) -> dict[tuple[int, int], EvaluationResponse]:
    """Return the responses on disk that are to these prompts."""
    texts = {prompt.index: prompt.text for prompt in prompts}
    rows = [EvaluationResponse(**row) for row in file.rows]
    return {
        row.key: row for row in rows if texts.get(row.index) == row.prompt and ids[row.index] == list(row.prompt_ids)
    }


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar on the error stream if it is a terminal; else say what is done when it has changed by a tenth."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda rows: bar.advance(task, rows)
        return
    state = {"done": done, "told": done}

    def advance(rows: int) -> None:
        state["done"] += rows
        if state["done"] == total or state["done"] - state["told"] >= total / 10:
            state["told"] = state["done"]
            console.print(f"{label}: {state['done']} of {total}", soft_wrap=True, highlight=False)

    yield advance
