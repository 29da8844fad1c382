"""Tokenizing turns a pair of texts into ids: one prompt, and two responses that are encoded apart from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lit_align.data.formats.conversations import Score
from lit_align.data.text.render import Manner, SpelledPair, SpelledPrompt, spell
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.data.text.truncate import EncodedPair, EncodedResponse, PromptIds, Truncation
from lit_align.data.text.turns import SpelledResponse
from lit_align.errors import DataError
from lit_align.types import PreferencePair, TokenizedPair

MERGED = "a token would reach from the prompt into a response; they are encoded apart"
PROMPT_CUT = "the prompt is longer than its room, and cut"
_EDGE = 24


@dataclass(frozen=True)
class Tokenized:
    """What became of a list of pairs: one entry for each, in their order.

    Args:
        outcomes: the pair as ids, the reason why it cannot be used, or None where truncation leaves it out.
        notes: how many pairs needed which remark.
    """

    outcomes: list[TokenizedPair | DataError | None]
    notes: Counter[str]


@dataclass(frozen=True)
class Tokenize:
    """Pairs to ids, many at a time.

    The prompt's ids are the same for both sides. There is one BOS where the tokenizer (for text) or its chat template
    (for messages) uses one, and one end token on every response that is not cut. Control tokens that the data spells
    stay text. What a template writes into a response by itself, and the turns of others in it, is there unscored.

    Args:
        encoder: the tokenizer.
        truncation: how pairs are made to fit.
        quality_prompt: the text p of the prompted pair; None to build none.
        score: which of the assistant's turns in a response are scored.
    """

    encoder: Encoder
    truncation: Truncation
    quality_prompt: str | None = None
    score: Score = "last_turn"

    def __call__(self, pairs: Sequence[PreferencePair]) -> Tokenized:
        """Ids of each pair, or why there are none."""
        spelled = [self._spell(pair) for pair in pairs]
        good = [one for one in spelled if isinstance(one, SpelledPair)]
        encoded = iter(self.encoder([pieces for one in good for pieces in _spellings(one)]))
        outcomes: list[TokenizedPair | DataError | None] = []
        notes = Counter(note for one in good for note in one.notes)
        for pair, one in zip(pairs, spelled, strict=True):
            if isinstance(one, DataError):
                outcomes.append(one)
                continue
            whole = self._assemble(one, encoded, pair.where)
            outcomes.append(fitted := self._fit(whole))
            notes[PROMPT_CUT] += isinstance(fitted, TokenizedPair) and len(fitted.prompt) < len(whole.prompt.ids())
        return Tokenized(outcomes, +notes + Counter({MERGED: self._merged(good)}))

    def _spell(self, pair: PreferencePair) -> SpelledPair | DataError:
        manner = Manner(self.quality_prompt, self.score, self.truncation.keeps_closing)
        try:
            return spell(pair, self.encoder, manner)
        except DataError as error:
            return error

    def _fit(self, pair: EncodedPair) -> TokenizedPair | DataError | None:
        try:
            return self.truncation(pair)
        except DataError as error:
            return error

    def _merged(self, spelled: Sequence[SpelledPair]) -> int:
        """Of how many pairs a token would reach across the boundary, judged by the text next to it."""
        places = [
            (row, Piece(one.prompt.after[-1].text[-_EDGE:]), Piece(side.segments[0].pieces[0].text[:_EDGE]))
            for row, one in enumerate(spelled)
            for side in one.sides
            if side.segments and not one.prompt.after[-1].template
        ]
        apart = self.encoder([(left, right) for _, left, right in places])
        together = self.encoder([(Piece(left.text + right.text),) for _, left, right in places])
        return len({place[0] for place, a, b in zip(places, apart, together, strict=True) if a != b})

    def _assemble(self, spelled: SpelledPair, encoded: Iterable[list[int]], where: str) -> EncodedPair:
        """Put the ids of one pair together, in the order of ``_spellings``."""
        ids = iter(encoded)
        closing = next(ids)
        return EncodedPair(
            chosen=self._response(spelled.chosen, ids),
            rejected=self._response(spelled.rejected, ids),
            prompt=self._prompt([next(ids), next(ids), next(ids)], spelled, closing),
            prompted=self._prompt([next(ids), next(ids), next(ids)], spelled, closing) if spelled.prompted else None,
            where=where,
        )

    def _response(self, spelled: SpelledResponse, encoded: Iterator[list[int]]) -> EncodedResponse:
        """The ids of a response's segments, and EOS where the template has not ended it."""
        ids: list[int] = []
        unscored: set[int] = set()
        for segment in spelled.segments:
            start = len(ids)
            ids += next(encoded)
            unscored.update(() if segment.scored else range(start, len(ids)))
        ids += [] if spelled.ended else [self.encoder.end]
        return EncodedResponse(ids, frozenset(unscored))

    def _prompt(self, parts: list[list[int]], spelled: SpelledPair, closing: list[int]) -> PromptIds:
        """The parts of a prompt; a template has written its BOS itself."""
        before, quality, after = parts
        start = self.encoder.start
        if not spelled.adds_start:
            first = before or after
            start = first[:1] if first[:1] == [self.encoder.tokenizer.bos_token_id] else []
            before, after = (before[len(start) :], after) if before else (before, after[len(start) :])
        apart = len(after) - len(closing) if closing and after[-len(closing) :] == closing else len(after)
        return PromptIds(start, before, quality, after[:apart], after[apart:])


def _spellings(pair: SpelledPair) -> list[Pieces]:
    prompts = [pair.prompt] if pair.prompted is None else [pair.prompt, pair.prompted]
    responses = [segment.pieces for side in pair.sides for segment in side.segments]
    return [pair.closing, *responses, *(part for prompt in prompts for part in _parts(prompt))]


def _parts(prompt: SpelledPrompt) -> tuple[Pieces, Pieces, Pieces]:
    return prompt.before, prompt.quality, prompt.after
