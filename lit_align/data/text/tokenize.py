"""Tokenization of preference pairs: one prompt, and two responses that are encoded separately from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_align.data.text.render import RenderedPair, RenderOptions, render
from lit_align.data.text.responses import RenderedResponse
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.data.text.truncate import EncodedPair, EncodedResponse, PromptIds, Truncation
from lit_align.errors import DataError
from lit_align.types import PreferencePair, TokenizedPair

MERGED = "a token would span prompt and response; they are encoded separately"
PROMPT_CUT = "the prompt is too long and was cut"
_EDGE = 24


@dataclass(frozen=True)
class Tokenized:
    """Result of tokenizing a list of pairs.

    Args:
        outcomes: for each pair its ids, the reason why it cannot be used, or None if truncation drops it.
        notes: note → number of pairs that it applies to.
    """

    outcomes: list[TokenizedPair | DataError | None]
    notes: Counter[str]


@dataclass(frozen=True)
class Tokenize:
    """Tokenize pairs in batches.

    The prompt has the same ids on both sides. It begins with one BOS if the tokenizer (for text) or its chat template
    (for messages) uses one, and every response that is not cut ends with one end token. Control tokens that the data
    spells remain text. Text that a template adds to a response, and turns of others in it, are present but not scored.

    Args:
        encoder: the tokenizer.
        truncation: how pairs are made to fit.
        options: how pairs are rendered as text.
    """

    encoder: Encoder
    truncation: Truncation
    options: RenderOptions = RenderOptions()

    def __call__(self, pairs: Sequence[PreferencePair]) -> Tokenized:
        """Tokenize pairs; those that cannot be used become ``DataError`` outcomes."""
        rendered = [self._render(pair) for pair in pairs]
        good = [result for result in rendered if isinstance(result, RenderedPair)]
        encoded = iter(self._encode(good))
        outcomes: list[TokenizedPair | DataError | None] = []
        notes = Counter(note for result in good for note in result.notes)
        for pair, result in zip(pairs, rendered, strict=True):
            if isinstance(result, DataError):
                outcomes.append(result)
                continue
            ids = self._assemble(result, encoded, pair.where)
            outcomes.append(fitted := self._truncate(ids))
            notes[PROMPT_CUT] += isinstance(fitted, TokenizedPair) and len(fitted.prompt) < len(ids.prompt.ids())
        return Tokenized(outcomes, +notes + Counter({MERGED: self._count_merged(good)}))

    def _render(self, pair: PreferencePair) -> RenderedPair | DataError:
        try:
            return render(pair, self.encoder, self.options, closing=self.truncation.keeps_closing)
        except DataError as error:
            return error

    def _truncate(self, pair: EncodedPair) -> TokenizedPair | DataError | None:
        try:
            return self.truncation(pair)
        except DataError as error:
            return error

    def _count_merged(self, rendered: Sequence[RenderedPair]) -> int:
        """Count the pairs in which a token would span prompt and response, judging by the adjacent text."""
        edges = [
            (row, Piece(pair.prompt.after[-1].text[-_EDGE:]), Piece(side.segments[0].pieces[0].text[:_EDGE]))
            for row, pair in enumerate(rendered)
            for side in pair.sides
            if side.segments and not pair.prompt.after[-1].template
        ]
        separate = self.encoder([(left, right) for _, left, right in edges])
        joint = self.encoder([(Piece(left.text + right.text),) for _, left, right in edges])
        return len({edge[0] for edge, a, b in zip(edges, separate, joint, strict=True) if a != b})

    # ── from rendered text to ids: ``_assemble`` consumes what ``_encode`` produces, in the same order ──────────────

    def _encode(self, rendered: Sequence[RenderedPair]) -> list[list[int]]:
        """Encode all parts of all pairs in one call of the tokenizer."""
        parts: list[Pieces] = []
        for pair in rendered:
            prompts = [pair.prompt] if pair.prompted is None else [pair.prompt, pair.prompted]
            parts.append(pair.closing)
            parts += [segment.pieces for side in pair.sides for segment in side.segments]
            parts += [part for prompt in prompts for part in prompt.parts]
        return self.encoder(parts)

    def _assemble(self, rendered: RenderedPair, encoded: Iterator[list[int]], where: str) -> EncodedPair:
        closing = next(encoded)
        return EncodedPair(
            chosen=self._response(rendered.chosen, encoded),
            rejected=self._response(rendered.rejected, encoded),
            prompt=self._prompt(rendered, encoded, closing),
            prompted=None if rendered.prompted is None else self._prompt(rendered, encoded, closing),
            where=where,
        )

    def _response(self, rendered: RenderedResponse, encoded: Iterator[list[int]]) -> EncodedResponse:
        """Concatenate the segments of a response, and add EOS unless the template has ended the turn."""
        ids: list[int] = []
        unscored: set[int] = set()
        for segment in rendered.segments:
            start = len(ids)
            ids += next(encoded)
            unscored.update(() if segment.scored else range(start, len(ids)))
        ids += [] if rendered.ended else [self.encoder.end]
        return EncodedResponse(ids, frozenset(unscored))

    def _prompt(self, rendered: RenderedPair, encoded: Iterator[list[int]], closing: list[int]) -> PromptIds:
        """Split a prompt into the parts that truncation treats differently; a template writes its BOS itself."""
        before, quality, after = next(encoded), next(encoded), next(encoded)
        start = self.encoder.start
        if not rendered.adds_start:
            first = before or after
            start = first[:1] if first[:1] == [self.encoder.tokenizer.bos_token_id] else []
            before, after = (before[len(start) :], after) if before else (before, after[len(start) :])
        split = len(after) - len(closing) if closing and after[-len(closing) :] == closing else len(after)
        return PromptIds(start, before, quality, after[:split], after[split:])
