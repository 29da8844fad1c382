"""Tokenization of preference pairs: one prompt, and two responses with the ids that they have behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lit_align.data.text.in_context import Continuation, EncodedContinuation, encode_continuations
from lit_align.data.text.render import RenderedPair, RenderOptions, render
from lit_align.data.text.responses import RenderedResponse
from lit_align.data.text.tokenizer import ControlTokenError, Encoder, Pieces
from lit_align.data.text.truncate import EncodedPair, EncodedResponse, Ids, PromptIds, Truncation
from lit_align.errors import DataError
from lit_align.types import PreferencePair, TokenizedPair

MERGED = "a token would span prompt and response; the response is encoded as the continuation of the prompt"
PROMPT_CUT = "the prompt is too long and was cut"
_LOST = (
    "prompt and response do not decode to their text: a word spans both, and this tokenizer cannot continue one; "
    "expected a blank or a line break between them"
)
_DIFFERS = "the response has other tokens behind the quality prompt than without it"
_LOCAL = 8
"""Tokens at the end of a prompt; where two prompts share them, what follows has the same tokens behind both."""

_Text: TypeAlias = Literal["prompt", "head", "prompted", "prompted head", "before"]


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
class _EncodedTexts:
    """Ids of the texts of a pair.

    Args:
        prompts: ids of the prompt, of the prompt with the quality prompt, and of parts of them.
        responses: both responses behind the prompt.
        prompted: both responses behind the prompt with the quality prompt, if they have to be compared.
    """

    prompts: dict[_Text, Ids]
    responses: list[EncodedContinuation] = field(default_factory=list)
    prompted: list[EncodedContinuation] = field(default_factory=list)


@dataclass(frozen=True)
class Tokenize:
    """Tokenize pairs in batches.

    The prompt has the ids that it has at generation time, encoded alone, the same on both sides. A response has those
    that it has in the whole text; only where a token would span both is it encoded as a continuation. The prompt
    begins with one BOS if the tokenizer (for text) or its chat template (for messages) uses one, and every response
    that is not cut ends with one end token. Control tokens that the data spells remain text. Text that a template
    adds to a response, and turns of others in it, are present but not scored.

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
        encoded = iter(self._encode_all(good))
        outcomes: list[TokenizedPair | DataError | None] = []
        notes = Counter(note for result in good for note in result.notes)
        for pair, result in zip(pairs, rendered, strict=True):
            if isinstance(result, DataError):
                outcomes.append(result)
                continue
            texts = next(encoded)
            if isinstance(texts, ControlTokenError):
                outcomes.append(DataError(pair.where, str(texts)))
                continue
            outcomes.append(outcome := self._fit(result, texts, pair.where))
            if isinstance(outcome, TokenizedPair):
                start = self.encoder.start if result.adds_start else []
                notes[PROMPT_CUT] += len(outcome.prompt) < len(start) + len(texts.prompts["prompt"])
            notes[MERGED] += any(side.merged for side in texts.responses)
        return Tokenized(outcomes, +notes)

    def _render(self, pair: PreferencePair) -> RenderedPair | DataError:
        try:
            return render(pair, self.encoder, self.options, closing=self.truncation.keeps_closing)
        except DataError as error:
            return error

    def _fit(self, rendered: RenderedPair, texts: _EncodedTexts, where: str) -> TokenizedPair | DataError | None:
        try:
            return self.truncation(self._assemble(rendered, texts, where))
        except DataError as error:
            return error

    # ── from rendered text to ids ───────────────────────────────────────────────────────────────────────────────────

    def _encode_all(self, rendered: Sequence[RenderedPair]) -> list[_EncodedTexts | ControlTokenError]:
        """Encode pairs together, and each alone if one of them cannot be encoded."""
        try:
            return [*self._encode(rendered)]
        except ControlTokenError as error:
            return [error] if len(rendered) == 1 else [self._encode_all([pair])[0] for pair in rendered]

    def _encode(self, rendered: Sequence[RenderedPair]) -> list[_EncodedTexts]:
        """Encode all prompts in one call of the tokenizer, and in another one all that follows them."""
        prompts = [_prompt_texts(pair) for pair in rendered]
        ids = iter(self.encoder([text for texts in prompts for text in texts.values()]))
        encoded = [_EncodedTexts({name: next(ids) for name in texts}) for texts in prompts]
        rows: list[Continuation] = []
        results: list[list[EncodedContinuation]] = []
        for pair, texts, parts in zip(rendered, prompts, encoded, strict=True):
            sides = [tuple(segment.pieces for segment in side.segments) for side in pair.sides]
            rows += [Continuation(texts["prompt"], parts.prompts["prompt"], side) for side in sides]
            results += [parts.responses] * len(sides)
            if parts.prompts["prompt"][-_LOCAL:] != parts.prompts.get("prompted", parts.prompts["prompt"])[-_LOCAL:]:
                rows += [Continuation(texts["prompted"], parts.prompts["prompted"], side) for side in sides]
                results += [parts.prompted] * len(sides)
        for responses, response in zip(results, encode_continuations(self.encoder, rows), strict=True):
            responses.append(response)
        return encoded

    def _assemble(self, rendered: RenderedPair, texts: _EncodedTexts, where: str) -> EncodedPair:
        if any(side.lost for side in (*texts.responses, *texts.prompted)):
            raise DataError(where, _LOST)
        if texts.prompted and [side.segments for side in texts.prompted] != [
            side.segments for side in texts.responses
        ]:
            raise DataError(where, _DIFFERS)
        chosen, rejected = map(self._response, rendered.sides, texts.responses)
        prompt, prompted = self._prompts(rendered, texts.prompts)
        return EncodedPair(prompt, chosen, rejected, prompted, where)

    def _response(self, rendered: RenderedResponse, encoded: EncodedContinuation) -> EncodedResponse:
        """Concatenate the segments of a response, and add EOS unless the template has ended the turn."""
        ids: list[int] = []
        unscored: set[int] = set()
        for segment, part in zip(rendered.segments, encoded.segments, strict=True):
            unscored.update(() if segment.scored else range(len(ids), len(ids) + len(part)))
            ids += part
        ids += [] if rendered.ended else [self.encoder.end]
        return EncodedResponse(ids, frozenset(unscored))

    def _prompts(self, rendered: RenderedPair, texts: dict[_Text, Ids]) -> tuple[PromptIds, PromptIds | None]:
        """Split the prompts into the parts that truncation treats differently; a template writes its BOS itself."""
        start = self.encoder.start
        if not rendered.adds_start:
            first = texts["prompt"][:1]
            start = first if first == [self.encoder.tokenizer.bos_token_id] else []
            texts = {name: ids[len(start) :] for name, ids in texts.items()}
        plain = texts["prompt"]
        prompt = PromptIds(start, [], [], *_split_closing(plain, texts.get("head", plain), len(plain)))
        if "prompted" not in texts:
            return prompt, None
        whole, before = texts["prompted"], texts["before"]
        first_same = min(_shared(before, whole), _shared(before, plain))
        last_same = min(_shared(plain[::-1], whole[::-1]), min(len(plain), len(whole)) - first_same)
        after, closing = _split_closing(whole, texts.get("prompted head", whole), last_same)
        return prompt, PromptIds(start, whole[:first_same], whole[first_same : len(whole) - last_same], after, closing)


def _prompt_texts(rendered: RenderedPair) -> dict[_Text, Pieces]:
    """Return the texts that are encoded to know the ids of the prompts and of their parts."""
    texts: dict[_Text, Pieces] = {"prompt": rendered.prompt.text}
    if rendered.closing:
        texts["head"] = rendered.prompt.without(rendered.closing)
    if rendered.prompted is not None:
        texts |= {"prompted": rendered.prompted.text, "before": rendered.prompted.before}
        if rendered.closing:
            texts["prompted head"] = rendered.prompted.without(rendered.closing)
    return texts


def _split_closing(prompt: Ids, head: Ids, count: int) -> tuple[Ids, Ids]:
    """Split the last ``count`` ids of a prompt where its head ends, and with it what may be cut."""
    closing = max(len(prompt) - count, _shared(prompt, head))
    return prompt[len(prompt) - count : closing], prompt[closing:]


def _shared(first: Ids, second: Ids) -> int:
    """Return the number of ids that two lists have in common at their start."""
    pairs: Iterator[tuple[int, int]] = zip(first, second, strict=False)
    return next((place for place, (own, other) in enumerate(pairs) if own != other), min(len(first), len(second)))
