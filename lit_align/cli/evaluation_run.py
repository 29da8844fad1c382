"""What the evaluate command does once its options are known."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from lit_align import testbed
from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO
from lit_align.cli import run as cli
from lit_align.cli.consolidate import find_checkpoint, load_checkpoint_weights
from lit_align.cli.parsing import prepare_parsing
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import printable
from lit_align.evaluation.benchmarks import benchmark_metrics, benchmark_tasks, check_harness
from lit_align.evaluation.card import card_of, write_into_card
from lit_align.evaluation.client import Endpoint
from lit_align.evaluation.evaluate import START, PromptEvaluation, ResponseSettings, versions
from lit_align.evaluation.join import join_evaluation
from lit_align.evaluation.judges import Judge, JudgeError, make_judge
from lit_align.evaluation.judging import drop_unfinished
from lit_align.evaluation.models import LoadedModel, load_hugging_face, model_names, weight_files
from lit_align.evaluation.preference_sets import kept_margins, pair_digest, pair_metrics, read_pairs
from lit_align.evaluation.prompts import read_prompts
from lit_align.evaluation.record import (
    FILE,
    EvaluationRecord,
    ModelRecord,
    content_digest,
    locked,
    model_folder,
    read_evaluation,
)
from lit_align.evaluation.remote import REMOTE
from lit_align.files import at_home
from lit_align.models.loading import Loading
from lit_align.models.sampling import Sampling
from lit_align.modules import LitModule


def run_evaluation(options: argparse.Namespace) -> None:
    """Evaluate the models of a command line, print the numbers, and write them."""
    with cli.exit_codes():
        folder, load = (
            Path(options.into),
            ModelLoader(options.dtype, options.device or default_device(), options.extend),
        )
        try:
            record = evaluate_models(options, load)
        except JudgeError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(1)
        record, reasons = join_evaluation(folder, record)
        drop_unfinished(folder)
        for model in (model for model in record.models if model.name in load.cards):
            write_into_card(load.cards[model.name], model, folder)
    show_evaluation(record)
    for note in (*record.warnings, *reasons):
        print(f"warning: {printable(note)}", file=sys.stderr)
    print(Path(options.into) / FILE)


def evaluate_models(options: argparse.Namespace, load: ModelLoader) -> EvaluationRecord:
    """Evaluate the models of a command line; rows are written, numbers are returned."""
    cli.silence_libraries()
    for name in ("lightning.pytorch", "lightning.fabric"):  # seeds and devices of runs that are not trained here
        logging.getLogger(name).setLevel(logging.WARNING)
    prepare_parsing(options.extend.split(",") if options.extend else [])
    folder = Path(options.into)
    known = read_evaluation(folder) if (folder / FILE).is_file() else EvaluationRecord(())
    named = name_models(options, known)
    baseline = next((name for name, path in named.items() if path == options.baseline), None)
    if options.tasks:
        check_harness()
    if options.prompts:
        record = _on_prompts(options, named, baseline, load, known)
    else:
        models = [ModelRecord(name, path, {"versions": versions()}, {}, folder) for name, path in named.items()]
        record = EvaluationRecord(tuple(models))
    if options.pairs or options.tasks:
        record = _on_pairs_and_tasks(options, record, load)
    return record


def name_models(options: argparse.Namespace, known: EvaluationRecord) -> dict[str, str]:
    """Return name → path of the models of a command line, the baseline last.

    Models that have been evaluated before keep their names.

    Raises:
        ValueError: a name is that of another model.
    """
    paths = list(dict.fromkeys([*options.models, *([options.baseline] if options.baseline else [])]))
    before = {_place(model.path): model.name for model in known.models}
    fresh = [path for path in paths if _place(path) not in before]
    together = model_names([*(model.path for model in known.models), *fresh])[len(before) :]
    chosen = dict(zip(fresh, together if before else model_names(paths), strict=True))
    if options.names:
        chosen, before = dict(zip(paths, options.names, strict=True)), {}
    for model in known.models:
        for path in (
            path for path, name in chosen.items() if name == model.name and _place(path) != _place(model.path)
        ):
            raise ValueError(
                f"--names {model.name}: {options.into} has a model of that name, {model.path}; not {path}"
            )
    return {before.get(_place(path)) or chosen[path]: path for path in paths}


def _place(path: str) -> str:
    """Return a path of a model by which it is known again."""
    return str(at_home(path).resolve()) if at_home(path).exists() else path


def _on_pairs_and_tasks(options: argparse.Namespace, record: EvaluationRecord, load: ModelLoader) -> EvaluationRecord:
    """Add what needs no responses of the models."""
    pairs = read_pairs(options.pairs, options.format, options.limit, options.chat) if options.pairs else []
    tasks = benchmark_tasks(options.tasks, options.fewshot, options.task_path) if options.tasks else []
    models, notes = [], list(record.warnings)
    for model in record.models:
        folder = model_folder(Path(options.into), model.name)
        loaded = load(model.path, model.name)
        metrics, settings = dict(model.metrics), {**model.settings, "weights": content_digest(loaded.identity)}
        if pairs:
            reference = load.reference_of(loaded, options.reference)
            with locked(folder):
                margins, left_out = kept_margins(loaded, reference, pairs, options.by, folder, options.batch_size)
            metrics |= pair_metrics(margins, options.by, options.resamples)
            notes += left_out
            settings["pairs"] = {
                "source": options.pairs,
                "count": len(margins),
                "chat": options.chat,
                "content": content_digest([pair_digest(pair, options.by) for pair in pairs]),
                "reference": None if reference is None else reference.path,
            }
        if tasks:
            limit, size = options.task_limit, options.batch_size
            with locked(folder):
                metrics |= benchmark_metrics(loaded, tasks, folder, limit, size, options.resamples)
            settings["tasks"] = {task.name: {"fewshot": task.fewshot, "limit": limit} for task in tasks}
        models.append(replace(model, settings=settings, metrics=metrics, folder=folder))
    return EvaluationRecord(tuple(models), record.baseline, tuple(notes))


def _on_prompts(
    options: argparse.Namespace,
    named: dict[str, str],
    baseline: str | None,
    load: ModelLoader,
    known: EvaluationRecord,
) -> EvaluationRecord:
    prompts = read_prompts(options.prompts, options.format, options.limit, options.chat)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    evaluation = PromptEvaluation(
        paths=named,
        load=load,
        baseline=baseline,
        reference=START if options.reference is None else _named(options.reference),
        judges=name_judges([(setting, _judge(options, setting, load)) for setting in options.judge], known),
        settings=ResponseSettings(options.seeds, sampling, options.batch_size, options.resamples),
        endpoint=Endpoint(options.model_url, options.model_key, workers=options.batch_size),
        described={
            "prompts": {
                "source": options.prompts,
                "count": len(prompts),
                "chat": options.chat,
                "content": content_digest([[prompt.index, prompt.text] for prompt in prompts]),
            }
        },
    )
    return evaluation(prompts, Path(options.into))


def name_judges(judges: Sequence[tuple[str, Judge]], known: EvaluationRecord) -> dict[str, Judge]:
    """Return name → judge: a judge that has judged before keeps its name, and the first one of a folder has none."""
    taken: dict[str, Any] = {}
    for model in known.models:
        first = model.settings.get("judge")
        taken |= ({} if first is None else {"": first}) | (model.settings.get("judges") or {})
    named: dict[str, Judge] = {}
    for setting, judge in judges:
        own = next((name for name, description in taken.items() if description == judge.description), None)
        if own is None and "" in taken:
            plain = re.sub(r"[^\w.-]+", "-", setting.removeprefix("llm:").removeprefix("scores:")).strip("-.")
            own = plain if plain not in taken else f"{plain}-{content_digest(judge.description)[:6]}"
        named[own or ""] = judge
        taken[own or ""] = judge.description
    return named


def _judge(options: argparse.Namespace, setting: str, load: ModelLoader) -> Judge:
    endpoint = None
    if setting.startswith("llm:"):
        request = {"options": options.judge_options} if options.judge_options is not None else {}
        endpoint = Endpoint(
            base_url=options.judge_url,
            key_variable=options.judge_key,
            template=options.judge_template,
            cache=Path(options.into) / "judge.jsonl",
            budget=options.judge_budget,
            workers=options.judge_workers,
            **request,
        )
    loading = Loading(dtype=load.dtype)
    return make_judge(setting, loading, load.device, options.tie_margin, endpoint)


def _named(reference: str | None) -> str | None:
    return None if reference == "none" else reference


def default_device() -> str:
    """Return ``cuda`` if there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ModelLoader:
    """Loads what the command line may name as a model.

    Args:
        dtype: of the weights of Hugging Face models.
        device: to put models on.
        extend: folders or modules with a user's own parts, which a run's configuration may name.
        cards: name of a model that was loaded → the model card of the policy that these weights were exported as.
    """

    dtype: Any
    device: str
    extend: str | None = None
    cards: dict[str, Path] = field(default_factory=dict)

    def __call__(self, path: str, name: str) -> LoadedModel:
        """Load a model.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: a run has no checkpoint that is intact, and no exported policy.
        """
        if path.startswith(REMOTE):
            raise ValueError(
                f"{path} stands behind an endpoint, which writes responses to --prompts; --pairs, --tasks and "
                "--reference need its weights: expected a folder or a name on a hub"
            )
        place = at_home(path)
        is_run = (place / "config.yaml").is_file() and not (place / "config.json").is_file()
        if testbed.resolve(path) is None and (is_run or place.suffix == ".ckpt"):
            return self._of_run(place, path, name)
        self._note_card(name, place)
        return load_hugging_face(path, name, Loading(dtype=self.dtype), self.device)

    def _note_card(self, name: str, exported: Path, step: int | None = None) -> None:
        card = card_of(exported, step)
        if card is not None:
            self.cards[name] = card

    def reference_of(self, loaded: LoadedModel, setting: str | None) -> LoadedModel | None:
        """Load the model that implicit rewards are measured from.

        Args:
            loaded: the policy.
            setting: a model, ``none``, or None for the one that the policy was trained from.
        """
        path = loaded.reference if setting is None else _named(setting)
        return None if path is None or path == loaded.path else self(path, f"{loaded.name} (reference)")

    def _of_run(self, place: Path, path: str, name: str) -> LoadedModel:
        try:
            checkpoint, config = find_checkpoint(place)
        except ValueError:
            if not (place / "policy" / "config.json").is_file():
                raise
            self._note_card(name, place / "policy")
            exported = load_hugging_face(str(place / "policy"), name, Loading(dtype=self.dtype), self.device)
            exported.path, exported.reference = path, _start_of(place / "config.yaml")
            return exported
        loaded: list[LoadedModel] = []
        extension = ["--extend", self.extend] if self.extend else []
        action = partial(self._load_checkpoint, checkpoint=checkpoint, path=path, name=name, loaded=loaded)
        cli.run(["fit", "--config", str(config), *extension], partial(cli.Cli, action=action))
        loaded[0].reference = _start_of(config)
        self._note_card(name, config.parent / "policy", loaded[0].identity["step"])
        return loaded[0]

    def _load_checkpoint(
        self, module: LitModule, data: Any, checkpoint: Path, path: str, name: str, loaded: list[LoadedModel]
    ) -> None:
        if not module.trains_policy:
            raise ValueError(f"{path} is a run that trains no policy; expected one, or --judge reward:{path}")
        state = AtomicCheckpointIO().load_checkpoint(checkpoint)
        data.load_state_dict(state.get(type(data).__qualname__, {}))
        load_checkpoint_weights(module, state["state_dict"])
        model: Any = module.trained_model
        identity = {"step": state["global_step"], "files": weight_files(checkpoint)}
        encoder = Encoder(data.tokenizer, data.template_date)
        options = replace(data.render_options, dialogues=data.renders_dialogues, quality_prompt=None)
        ends = data.response_ends
        loaded.append(LoadedModel(name, path, model.to(self.device).eval(), encoder, options, ends, identity))


def _start_of(config: Path) -> str | None:
    """Return the model that a run's policy is held to: a reference of its own, or else where it started."""
    content = yaml.safe_load(config.read_text("utf-8"))
    model = content.get("model", {})
    reference = model.get("reference")
    own: str | None = (reference.get("init_args") or {}).get("path") if isinstance(reference, dict) else None
    start: str | None = model.get("policy")
    return own or start


def show_evaluation(record: EvaluationRecord) -> None:
    """Print the numbers of an evaluation, a column for each model."""
    table = Table(title="95 % intervals in brackets", title_justify="left")
    table.add_column("metric")
    for model in record.models:
        table.add_column(f"{model.name} (baseline)" if model.name == record.baseline else model.name, justify="right")
    for name in dict.fromkeys(name for model in record.models for name in model.metrics):
        numbers = [model.metrics.get(name) for model in record.models]
        table.add_row(name, *("" if number is None else _shown(number) for number in numbers))
    width = None if sys.stdout.isatty() else 60 + 40 * len(record.models)
    Console(width=width).print(table)


def _shown(number: Any) -> str:
    if number.low is None:
        return f"{number.value:.4g}"
    return f"{number.value:.4g} [{number.low:.4g}, {number.high:.4g}]"
