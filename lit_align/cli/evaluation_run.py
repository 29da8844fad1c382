"""What the evaluate command does once its options are known."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
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
from lit_align.evaluation.evaluate import START, PromptEvaluation, ResponseSettings, versions
from lit_align.evaluation.judges import JudgeError, make_judge
from lit_align.evaluation.models import LoadedModel, load_hugging_face, model_names, weight_files
from lit_align.evaluation.preference_sets import kept_margins, pair_metrics, read_pairs
from lit_align.evaluation.prompts import read_prompts
from lit_align.evaluation.record import EvaluationRecord, ModelRecord, model_folder, write_evaluation
from lit_align.files import at_home
from lit_align.models.generation import Sampling
from lit_align.models.loading import Loading
from lit_align.modules import LitModule


def run_evaluation(options: argparse.Namespace) -> None:
    """Evaluate the models of a command line, print the numbers, and write them.

    Args:
        options: of `evaluate_parser`.
    """
    with cli.exit_codes():
        try:
            record = evaluate_models(options)
        except JudgeError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(1)
    show_evaluation(record)
    for note in record.warnings:
        print(f"warning: {printable(note)}", file=sys.stderr)
    print(write_evaluation(Path(options.into), record))


def evaluate_models(options: argparse.Namespace) -> EvaluationRecord:
    """Evaluate the models of a command line; rows are written, numbers are returned."""
    cli.silence_libraries()
    prepare_parsing(options.extend.split(",") if options.extend else [])
    paths = list(dict.fromkeys([*options.models, *([options.baseline] if options.baseline else [])]))
    names = options.names or model_names(paths)
    named = dict(zip(names, paths, strict=True))
    baseline = next((name for name, path in named.items() if path == options.baseline), None)
    load = ModelLoader(options.dtype, options.device or default_device(), options.extend)
    folder = Path(options.into)
    if options.tasks:
        check_harness()
    if options.prompts:
        record = _on_prompts(options, named, baseline, load)
    else:
        models = [ModelRecord(name, path, {"versions": versions()}, {}, folder) for name, path in named.items()]
        record = EvaluationRecord(tuple(models))
    if options.pairs or options.tasks:
        record = _on_pairs_and_tasks(options, record, load)
    return record


def _on_pairs_and_tasks(options: argparse.Namespace, record: EvaluationRecord, load: ModelLoader) -> EvaluationRecord:
    """Add what needs no responses of the models."""
    pairs = read_pairs(options.pairs, options.format, options.limit, options.chat) if options.pairs else []
    tasks = benchmark_tasks(options.tasks, options.fewshot, options.task_path) if options.tasks else []
    models, notes = [], list(record.warnings)
    for model in record.models:
        folder = model_folder(Path(options.into), model.name)
        loaded = load(model.path, model.name)
        metrics, settings = dict(model.metrics), dict(model.settings)
        if pairs:
            reference = load.reference_of(loaded, options.reference)
            margins, left_out = kept_margins(loaded, reference, pairs, options.by, folder, options.batch_size)
            metrics |= pair_metrics(margins, options.by, options.resamples)
            notes += left_out
            settings["pairs"] = {"source": options.pairs, "count": len(margins), "chat": options.chat}
            settings["reference"] = None if reference is None else reference.path
        if tasks:
            limit, size = options.task_limit, options.batch_size
            metrics |= benchmark_metrics(loaded, tasks, folder, limit, size, options.resamples)
            settings["tasks"] = {task.name: task.fewshot for task in tasks}
        models.append(replace(model, settings=settings, metrics=metrics, folder=folder))
    return EvaluationRecord(tuple(models), record.baseline, tuple(notes))


def _on_prompts(
    options: argparse.Namespace, named: dict[str, str], baseline: str | None, load: ModelLoader
) -> EvaluationRecord:
    prompts = read_prompts(options.prompts, options.format, options.limit, options.chat)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    evaluation = PromptEvaluation(
        paths=named,
        load=load,
        baseline=baseline,
        reference=START if options.reference is None else _named(options.reference),
        judge=_judge(options, load),
        settings=ResponseSettings(options.seeds, sampling, options.batch_size, options.resamples),
        described={"prompts": {"source": options.prompts, "count": len(prompts), "chat": options.chat}},
    )
    return evaluation(prompts, Path(options.into))


def _judge(options: argparse.Namespace, load: ModelLoader) -> Any:
    if options.judge is None:
        return None
    endpoint = None
    if options.judge.startswith("llm:"):
        from lit_align.evaluation.endpoint import Endpoint

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
    return make_judge(options.judge, loading, load.device, options.tie_margin, endpoint)


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
    """

    dtype: Any
    device: str
    extend: str | None = None

    def __call__(self, path: str, name: str) -> LoadedModel:
        """Load a model.

        Args:
            path: run folder, checkpoint, or Hugging Face folder or name.
            name: to call it.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: a run has no checkpoint that is intact, and no exported policy.
        """
        place = at_home(path)
        is_run = (place / "config.yaml").is_file() and not (place / "config.json").is_file()
        if testbed.resolve(path) is None and (is_run or place.suffix == ".ckpt"):
            return self._of_run(place, path, name)
        return load_hugging_face(path, name, Loading(dtype=self.dtype), self.device)

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
            exported = load_hugging_face(str(place / "policy"), name, Loading(dtype=self.dtype), self.device)
            exported.path, exported.reference = path, _start_of(place / "config.yaml")
            return exported
        loaded: list[LoadedModel] = []
        extension = ["--extend", self.extend] if self.extend else []
        action = partial(self._load_checkpoint, checkpoint=checkpoint, path=path, name=name, loaded=loaded)
        cli.run(["fit", "--config", str(config), *extension], partial(cli.Cli, action=action))
        loaded[0].reference = _start_of(config)
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
