"""Tokenizing turns a pair of texts into ids: one prompt, and two responses that are encoded apart from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_align.data.errors import DataError
from lit_align.data.spell import SpelledPair, SpelledPrompt, spell
from lit_align.data.tokenizer import Encoder, Piece, Pieces
from lit_align.data.truncate import EncodedPair, PromptIds, Truncation
from lit_align.types import PreferencePair, TokenizedPair

MERGED = "a token would reach from the prompt into a response; they are encoded apart"
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
    stay text.

    Args:
        encoder: the tokenizer.
        truncation: how pairs are made to fit.
        quality_prompt: the text p of the prompted pair; None to build none.
    """

    encoder: Encoder
    truncation: Truncation
    quality_prompt: str | None = None

    def __call__(self, pairs: Sequence[PreferencePair]) -> Tokenized:
        """Ids of each pair, or why there are none."""
        spelled = [self._spell(pair) for pair in pairs]
        good = [one for one in spelled if isinstance(one, SpelledPair)]
        encoded = iter(self.encoder([pieces for one in good for pieces in _spellings(one)]))
        outcomes: list[TokenizedPair | DataError | None] = []
        for pair, one in zip(pairs, spelled, strict=True):
            outcomes.append(one if isinstance(one, DataError) else self._fit(self._assemble(one, encoded, pair.where)))
        notes = Counter(note for one in good for note in one.notes)
        return Tokenized(outcomes, notes + Counter({MERGED: self._merged(good)}))

    def _spell(self, pair: PreferencePair) -> SpelledPair | DataError:
        try:
            return spell(pair, self.encoder, self.quality_prompt)
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
            (row, Piece(one.prompt.after[-1].text[-_EDGE:]), Piece(side[0].text[:_EDGE]))
            for row, one in enumerate(spelled)
            for side in (one.chosen, one.rejected)
            if not one.prompt.after[-1].template
        ]
        apart = self.encoder([(left, right) for _, left, right in places])
        together = self.encoder([(Piece(left.text + right.text),) for _, left, right in places])
        return len({place[0] for place, a, b in zip(places, apart, together, strict=True) if a != b})

    def _assemble(self, spelled: SpelledPair, encoded: Iterable[list[int]], where: str) -> EncodedPair:
        """Put the ids of one pair together, in the order of ``_spellings``."""
        ids = iter(encoded)
        ends = [[self.encoder.end] if added else [] for added in spelled.adds_end]
        return EncodedPair(
            chosen=next(ids) + ends[0],
            rejected=next(ids) + ends[1],
            prompt=self._prompt(next(ids), next(ids), next(ids), spelled),
            prompted=self._prompt(next(ids), next(ids), next(ids), spelled) if spelled.prompted else None,
            where=where,
        )

    def _prompt(self, before: list[int], quality: list[int], after: list[int], spelled: SpelledPair) -> PromptIds:
        """The parts of a prompt; a template has written its BOS itself."""
        if spelled.adds_start:
            return PromptIds(self.encoder.start, before, quality, after)
        begins = self.encoder.tokenizer.bos_token_id
        first = before or after
        start = first[:1] if first[:1] == [begins] else []
        drop = len(start)
        return PromptIds(start, before[drop:], quality, after if before else after[drop:])


def _spellings(pair: SpelledPair) -> list[Pieces]:
    prompts = [pair.prompt] if pair.prompted is None else [pair.prompt, pair.prompted]
    return [pair.chosen, pair.rejected, *(part for prompt in prompts for part in _parts(prompt))]


def _parts(prompt: SpelledPrompt) -> tuple[Pieces, Pieces, Pieces]:
    return prompt.before, prompt.quality, prompt.after
