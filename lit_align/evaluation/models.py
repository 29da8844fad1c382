"""Models as an evaluation uses them: weights, tokenizer, and an identity that tells when responses are stale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_align import testbed
from lit_align.data.text.render import RenderOptions
from lit_align.data.text.stop_tokens import template_stop_tokens
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.files import at_home
from lit_align.locate import adapter_base, tokenizer_source
from lit_align.models.generation import model_stop_tokens
from lit_align.models.loading import Loading, load_causal_lm
from lit_align.types import PreferencePair, TokenizedPair

UNLIMITED = 1 << 30


@dataclass
class LoadedModel:
    """A model to evaluate, in evaluation mode.

    Args:
        name: short and unique within the evaluation.
        path: as it was given.
        model: a causal language model.
        encoder: its tokenizer.
        options: how prompts and responses are rendered as text.
        ends: ids that end a response, beside those of the model's own settings.
        identity: what its weights are known by: files with sizes and times, or a step.
        reference: name of the model that it was trained from, as far as is known.
    """

    name: str
    path: str
    model: nn.Module
    encoder: Encoder
    options: RenderOptions = field(default_factory=RenderOptions)
    ends: frozenset[int] = frozenset()
    identity: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    @property
    def positions(self) -> int | None:
        """Most tokens of prompt and response together; None if the model does not say."""
        limit: int | None = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        return limit

    def stop_tokens(self, prompts: Sequence[EvaluationPrompt]) -> frozenset[int]:
        """Return the ids that end a response to these prompts."""
        own = model_stop_tokens(self.model) | {self.encoder.end}
        return self.ends | own | template_stop_tokens([prompt.pair for prompt in prompts], self.encoder)

    def prompt_ids(self, prompts: Sequence[EvaluationPrompt], new_tokens: int) -> list[list[int]]:
        """Tokenize prompts as in training, without cutting any.

        Raises:
            DataError: a prompt cannot be tokenized, or leaves no room for a response; names its row.
        """
        ids = [list(pair.prompt) for pair in self.tokenize([prompt.pair for prompt in prompts])]
        for prompt, tokens in zip(prompts, ids, strict=True):
            if self.positions is not None and len(tokens) + new_tokens > self.positions:
                raise DataError(
                    prompt.pair.where,
                    f"the prompt has {len(tokens)} tokens, a response up to {new_tokens}, and {self.name} "
                    f"{self.positions} positions; lower --max_new_tokens, or leave the row out",
                )
        return ids

    def tokenize(self, pairs: Sequence[PreferencePair]) -> list[TokenizedPair]:
        """Tokenize pairs as in training, without cutting any.

        Raises:
            DataError: a pair cannot be tokenized; names its row.
        """
        return tokenize_whole(self.encoder, pairs, self.options)


def tokenize_whole(
    encoder: Encoder, pairs: Sequence[PreferencePair], options: RenderOptions = RenderOptions()
) -> list[TokenizedPair]:
    """Tokenize pairs without cutting any.

    Raises:
        DataError: a pair cannot be tokenized; names its row.
    """
    tokenized = []
    for outcome in Tokenize(encoder, Cut(UNLIMITED), options)(pairs).outcomes:
        if isinstance(outcome, DataError):
            raise outcome
        assert outcome is not None, "nothing is dropped without a limit"
        tokenized.append(outcome)
    return tokenized


def load_hugging_face(path: str, name: str, loading: Loading, device: str) -> LoadedModel:
    """Load a Hugging Face folder or name, or ``testbed:policy``."""
    model: Any = load_causal_lm(path, loading)
    folder = testbed.resolve(path) or at_home(path)
    encoder = Encoder(load_tokenizer(tokenizer_source(path), loading.revision))
    identity = {"dtype": loading.dtype, "revision": loading.revision, "files": weight_files(folder)}
    return LoadedModel(name, path, model.to(device), encoder, identity=identity)


def weight_files(path: Path) -> dict[str, list[int]]:
    """Return size and time of the files of a model's folder or checkpoint; empty for a name on a hub.

    An adapter's base is part of the model; a model card, into which evaluations are written, is not.
    """
    files = sorted(part for part in path.rglob("*") if part.suffix != ".md") if path.is_dir() else [path]
    base = adapter_base(path)
    own = {
        str(file.relative_to(path.parent)): [file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    }
    return own if base is None else {**weight_files(at_home(base)), **own}


def model_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each path, none twice, each fit to name a folder.

    >>> model_names(["runs/dpo", "runs/ipo/", "old/dpo", "testbed:policy"])
    ['runs-dpo', 'ipo', 'old-dpo', 'testbed-policy']
    >>> model_names(["runs/a/policy", "runs/b/policy", "x/checkpoints/step=3.ckpt"])
    ['a-policy', 'b-policy', 'step-3']
    """
    parts = [
        [_plain(part) for part in Path(path).parts if part not in ("/", ".", "..")] or ["model"] for path in paths
    ]
    names = []
    for own in parts:
        size = 1
        while size < len(own) and sum(other[-size:] == own[-size:] for other in parts) > 1:
            size += 1
        names.append("-".join(own[-size:]))
    return [
        name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]


def _plain(part: str) -> str:
    return re.sub(r"[^\w.]+", "-", part.removesuffix(".ckpt")).strip("-.") or "model"
