"""Encoding of what follows a prompt, with the ids that it has in the whole text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lit_align.data.text.tokenizer import CONTEXTS, Encoder, Piece, Pieces
from lit_align.data.text.truncate import Ids

_SAME = 16
"""Tokens in front of a segment that are decoded with it."""


@dataclass(frozen=True)
class Continuation:
    """Segments of text that follow a prompt.

    Args:
        prompt: text of the prompt.
        ids: ids of the prompt, encoded alone.
        segments: what follows, in order.
    """

    prompt: Pieces
    ids: Ids
    segments: tuple[Pieces, ...]

    def upto(self, count: int) -> Pieces:
        """Return the prompt and the first segments as one text."""
        return (*self.prompt, *(piece for segment in self.segments[:count] for piece in segment))


@dataclass(frozen=True)
class EncodedContinuation:
    """Ids of what follows a prompt.

    Args:
        segments: ids of each segment.
        merged: whether a token of the whole text spans the start of a segment.
        lost: whether no ids of a segment give its text back behind those in front of it.
    """

    segments: tuple[Ids, ...]
    merged: bool = False
    lost: bool = False


@dataclass(frozen=True)
class _Cut:
    """A segment that is not known to begin with a token of the whole text.

    Args:
        row: number of the continuation.
        segment: number of its segment.
        before: ids of the text in front of it.
        whole: ids of that text and the segment.
    """

    row: int
    segment: int
    before: Ids
    whole: Ids

    @property
    def tail(self) -> Ids | None:
        """Ids of the segment in the whole text; None if those in front of it are others there."""
        size = len(self.before)
        return self.whole[size:] if self.whole[:size] == self.before else None


def encode_continuations(encoder: Encoder, rows: Sequence[Continuation]) -> list[EncodedContinuation]:
    """Encode segments that follow their prompts.

    The ids of a segment are those that it has in the encoding of the whole text, if the ids of the text in front of
    it are the same with and without it. Otherwise a token spans both; the segment is then encoded as a continuation,
    without the blank that SentencePiece-like tokenizers put in front of a text.
    """
    prefixes = _prefixes(encoder, rows)
    ids: list[list[Ids]] = []
    cuts: list[_Cut] = []
    for row, texts in enumerate(prefixes):
        ids.append([])
        for segment, (before, whole) in enumerate(zip(texts, texts[1:], strict=False)):
            cut = _Cut(row, segment, before, whole)
            tail = None if before[-1:] == [encoder.tokenizer.unk_token_id] else cut.tail
            ids[row].append(tail or [])
            if tail is None:
                cuts.append(cut)
    merged: set[int] = set()
    lost: set[int] = set()
    for cut, rest in zip(cuts, _continue(encoder, rows, cuts), strict=True):
        ids[cut.row][cut.segment] = rest or []
        merged.update({cut.row} if rest != cut.tail else ())
        lost.update({cut.row} if rest is None else ())
    return [EncodedContinuation(tuple(parts), row in merged, row in lost) for row, parts in enumerate(ids)]


# ── where the segments begin in the whole text ──────────────────────────────────────────────────────────────────────


def _prefixes(encoder: Encoder, rows: Sequence[Continuation]) -> list[list[Ids]]:
    """Encode, for each row, its prompt, the prompt with the first segment, and so on up to the whole text."""
    wholes = encoder([row.upto(len(row.segments)) for row in rows])
    windows = [_windows(encoder, row) if len(row.segments) > 1 else [] for row in rows]
    encoded = iter(encoder([text for parts in windows for _, text in parts[:-1]]))
    prefixes = []
    for row, whole, parts in zip(rows, wholes, windows, strict=True):
        inner = [(controls, next(encoded)) for controls, _ in parts[:-1]]
        places = [place for place, token in enumerate(whole) if token in encoder.control_ids] if inner else []
        if inner and len(places) != parts[-1][0]:
            between = encoder([row.upto(count) for count in range(1, len(row.segments))])
        else:
            between = [whole[: places[controls - 1] if controls else 0] + ids for controls, ids in inner]
        prefixes.append([row.ids, *between, *([whole] if row.segments else [])])
    return prefixes


def _windows(encoder: Encoder, row: Continuation) -> list[tuple[int, Pieces]]:
    """Return, for each segment, the text up to its end from the last control token on, and the number of these.

    Text behind a control token is encoded independently of what stands in front of it, so that a long conversation
    need not be encoded again for each of its turns.
    """
    windows: list[tuple[int, Pieces]] = []
    controls, last = 0, Pieces()
    for part in (row.prompt, *row.segments):
        for piece in part:
            last = (*last, piece)
            for match in encoder.control_text.finditer(piece.text) if piece.template else ():
                controls, last = controls + 1, (Piece(piece.text[match.start() :], template=True),)
        windows.append((controls, last))
    return windows[1:]


# ── segments that do not begin with a token of the whole text ───────────────────────────────────────────────────────


def _continue(encoder: Encoder, rows: Sequence[Continuation], cuts: Sequence[_Cut]) -> list[Ids | None]:
    """Encode segments so that their ids, behind those in front of them, decode to the whole text; None if none do."""
    texts = [rows[cut.row].segments[cut.segment] for cut in cuts]
    alone: Sequence[Ids | None] = encoder(texts)
    results: list[Ids | None] = [None] * len(cuts)
    left = list(range(len(cuts)))
    for context in (None, *CONTEXTS):
        if not left:
            break
        candidates = alone if context is None else encoder.after(context, [texts[number] for number in left])
        for number, candidate in zip(left, candidates, strict=True):
            if candidate is not None and _fits(encoder, cuts[number], texts[number], candidate):
                results[number] = candidate
        left = [number for number in left if results[number] is None]
    unknown = encoder.tokenizer.unk_token_id
    for number in left:
        ids = alone[number] or []
        if unknown in (*cuts[number].whole, *ids) or (
            not encoder.keeps_blanks and _fits(encoder, cuts[number], texts[number], ids, exact=False)
        ):
            results[number] = ids
    return results


def _fits(encoder: Encoder, cut: _Cut, text: Pieces, ids: Ids, exact: bool = True) -> bool:
    """Whether ids, behind those in front of the segment, decode as the whole does, or to the text of the segment."""
    same = max(0, len(cut.before) - _SAME)
    same = same if cut.before[:same] == cut.whole[:same] else 0
    before, whole = cut.before[same:], cut.whole[same:]
    decoded = _decoded(encoder, [*before, *ids])
    written = _decoded(encoder, before) + "".join(piece.text for piece in text)
    targets = (_decoded(encoder, whole), unicodedata.normalize("NFC", written))
    return decoded in targets if exact else decoded.split() in [target.split() for target in targets]


def _decoded(encoder: Encoder, ids: Ids) -> str:
    """Decode ids, apart from how characters are composed and how many of them an unknown token stands for."""
    unknown = encoder.tokenizer.unk_token
    text = unicodedata.normalize("NFC", encoder.decode_exactly(ids))
    return re.sub(f"(?:{re.escape(unknown)})+", unknown, text) if unknown else text
