"""What follows a prompt has the ids of the whole text, under the tokenizers of the published families."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data import Collate, PreferenceData
from lit_align.data.text.in_context import Continuation, _prefixes
from lit_align.data.text.render import QualityPosition, RenderOptions
from lit_align.data.text.tokenize import MERGED, Tokenize, Tokenized
from lit_align.data.text.tokenizer import Encoder, Piece, load_tokenizer
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError
from lit_align.models import response_log_probs
from lit_align.types import PreferencePair, TokenizedPair, TokenizedResponse
from tests.conftest import tiny_llama
from tests.data.conftest import BARE, CHATML, Write
from tests.data.examples import pair_row, turns
from tests.data.families import TEMPLATES
from tests.data.tokenizers import PUBLISHED, published

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
Encode: TypeAlias = Callable[[Encoder, str, str], tuple[list[int], list[int]] | DataError]

PUTS_A_BLANK = (
    "llama_2",
    "mistral_first",
    "mistral_always",
    "phi_3",
    "t5",
    "opt_prefix",
    "gpt_neox_prefix",
    "python_sentencepiece",
)
CONTINUES_WORDS_ELSEWHERE = ("wordpiece", "python_words")
"""Their tokens know whether a word goes on, so that encoding apart is wrong inside of words."""
EXACT = tuple(sorted(set(PUBLISHED) - {"t5", *CONTINUES_WORDS_ELSEWHERE}))
"""They give every text back."""
every = pytest.mark.parametrize("name", PUBLISHED)
exact = pytest.mark.parametrize("name", EXACT)

ROWS = (
    ("where does the river end?", " it ends in the sea", " in the harbour"),
    ("where does the river end?\n", "it ends in the sea", "in the harbour"),
    ("\n\nHuman: where?\n\nAssistant:", " A small ship, they said.", "\nnone"),
    ("Query: ", "the lighthouse", "boats"),
    ("The li", "ghthouse", "on"),
    ("They counted 1", "2 boats", " 2 boats"),
    ("boats  ", "  of theirs", " of theirs"),
    ("boats:\n\n", "\n a ship", "(1)"),
    ("caf\u00e9 \u2603", " \u2603 sea", "\u2603\u2603"),
    ("cafe", "\u0301s", "s"),
    ("said </s> and <unk>", "</s>they", " <s> they"),
    ("\U0001f6a2", "\U0001f6a2\u200d\U0001f6a2", "\tships"),
)


def text_pair(prompt: str, chosen: str, rejected: str = " no") -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, "rows.jsonl:7")


def in_context(encoder: Encoder, prompt: str, response: str) -> tuple[list[int], list[int]] | DataError:
    """What the package does."""
    (pair,) = Tokenize(encoder, Cut(4000))([PreferencePair(prompt, response, None, "rows.jsonl:7")]).outcomes
    if isinstance(pair, DataError):
        return pair
    assert pair is not None
    assert pair.chosen.ids[-1] == encoder.end
    return list(pair.prompt)[len(encoder.start) :], list(pair.chosen.ids)[:-1]


def apart(encoder: Encoder, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """What the package did: correct only where enc(a) + enc(b) = enc(a + b)."""
    return plain(encoder, encoder.without_start(prompt)), plain(encoder, encoder.without_end(response))


def plain(encoder: Encoder, text: str, template: bool = False) -> list[int]:
    ids = encoder.tokenizer(text, add_special_tokens=False, split_special_tokens=not template)["input_ids"]
    return list(ids)


def broken(encoder: Encoder, encode: Encode, prompt: str, response: str) -> str | None:
    """The invariant that the ids of a row break, if any."""
    result = encode(encoder, prompt, response)
    if isinstance(result, DataError):
        return "refused"
    before, ids = result
    alone = plain(encoder, encoder.without_start(prompt))
    whole = plain(encoder, encoder.without_start(prompt) + encoder.without_end(response))
    unknown = encoder.tokenizer.unk_token_id
    if before != alone:
        return "prompt"
    if whole[: len(alone)] == alone and alone[-1] != unknown:
        return None if ids == whole[len(alone) :] else "ids"
    if unknown in whole:
        return None
    text = unicodedata.normalize("NFC", encoder.decode([*before, *ids]))
    targets = [
        unicodedata.normalize("NFC", each) for each in (encoder.decode(whole), encoder.decode(before) + response)
    ]
    if not encoder.keeps_blanks:
        return None if text.split() == targets[0].split() else "text"
    return None if text in targets else "text"


def rows_broken(name: str, encode: Encode) -> set[str]:
    encoder = Encoder(published(name))
    rows = [(prompt, side) for prompt, *sides in ROWS for side in sides]
    if not encoder.control_ids.isdisjoint(plain(encoder, "</s>")):  # Unigram: see ``test_tokenizer``
        rows = [(prompt, side) for prompt, side in rows if "</s>" not in prompt + side]
    return {reason for prompt, side in rows if (reason := broken(encoder, encode, prompt, side))}


class TestText:
    @every
    def test_ids_are_those_of_the_whole_text(self, name: str) -> None:
        assert rows_broken(name, in_context) == ({"refused"} if name == "python_words" else set())

    @every
    def test_encoding_apart_is_wrong_where_a_tokenizer_looks_at_the_start_of_a_text(self, name: str) -> None:
        """The same rows and the same law, for the wrong variant."""
        reasons = rows_broken(name, apart)
        assert "ids" in reasons or name not in PUTS_A_BLANK
        assert bool(reasons) == (name in PUTS_A_BLANK or name in CONTINUES_WORDS_ELSEWHERE)

    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_any_text(self, data: st.DataObject) -> None:
        encoder = Encoder(published(data.draw(st.sampled_from(EXACT))))
        texts = st.lists(st.sampled_from(["ship", " ", "\n", "1", "\u00e9", "It", ".", "\u2603", "\t"]), min_size=1)
        prompt, response = ("".join(data.draw(texts)) for _ in range(2))
        if prompt.strip() and response.strip():
            assert broken(encoder, in_context, prompt, response) is None

    @every
    def test_log_probs_are_those_of_the_whole_text(self, name: str) -> None:
        encoder = Encoder(published(name))
        model = tiny_llama(vocabulary=len(encoder.tokenizer)).double()
        rows = ROWS[:3]
        outcomes = Tokenize(encoder, Cut(4000))([text_pair(*row) for row in rows]).outcomes
        batch = Collate(encoder.pad)([(pair, 1.0) for pair in outcomes if isinstance(pair, TokenizedPair)])
        values = response_log_probs(model, batch).sum(-1).tolist()
        for (prompt, *sides), sums in zip(rows, values, strict=True):
            start = [*encoder.start, *plain(encoder, prompt)]
            for side, value in zip(sides, sums, strict=True):
                ids = torch.tensor([[*encoder.start, *plain(encoder, prompt + side), encoder.end]])
                if ids[0, : len(start)].tolist() != start:
                    assert name == "python_words"  # "Assistant:\n" is one word for it
                    continue
                logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
                assert value == pytest.approx(float(logs[len(start) - 1 :].sum()), abs=1e-5)

    @pytest.mark.parametrize("name", ["llama_2", "llama_3"])
    def test_rows_in_which_a_token_spans_both_are_counted(self, name: str) -> None:
        pairs = [text_pair(*row) for row in ROWS[:5]]
        assert Tokenize(Encoder(published(name)), Cut(4000))(pairs).notes[MERGED] == 2

    def test_a_row_that_cannot_be_encoded_is_named(self) -> None:
        pairs = [text_pair("The", " ship"), text_pair("The li", "ghthouse"), text_pair("The li", " ship")]
        first, second, third = Tokenize(Encoder(published("python_words")), Cut(4000))(pairs).outcomes
        assert isinstance(second, DataError)
        assert str(second).startswith("rows.jsonl:7: prompt and response do not decode to their text: a word spans")
        assert isinstance(first, TokenizedPair)
        assert isinstance(third, TokenizedPair)

    @exact
    @pytest.mark.parametrize("position", ["start", "last_turn"])
    def test_a_prompted_prompt_is_encoded_as_a_whole(self, name: str, position: QualityPosition) -> None:
        encoder = Encoder(published(name))
        prompt = "\n\nHuman: where?\n\nAssistant: it ends\n\nHuman: a ship\n\nAssistant:"
        last = prompt.replace("Human: a", "Human: Be useful: a")
        expected = f"Be useful:{prompt}" if position == "start" else last
        options = RenderOptions("Be useful:", quality_position=position)
        (pair,) = Tokenize(encoder, Cut(4000), options)([text_pair(prompt, " in the sea")]).outcomes
        assert isinstance(pair, TokenizedPair)
        whole = [*encoder.start, *plain(encoder, f"{expected} in the sea"), encoder.end]
        assert [*(pair.prompted or ()), *pair.chosen.ids] == whole

    @exact
    def test_cutting_keeps_the_quality_prompt_and_what_opens_the_response(self, name: str) -> None:
        encoder = Encoder(published(name))
        prompt = f"\n\nHuman: {'a small ship ' * 60}left\n\nAssistant:"
        for side in ("left", "right"):
            tokenize = Tokenize(encoder, Cut(150, prompt=side), RenderOptions("Please be useful. Query:"))
            (pair,) = tokenize([text_pair(prompt, " in the sea")]).outcomes
            assert isinstance(pair, TokenizedPair)
            assert len(pair.prompted or ()) + len(pair.chosen.ids) <= 150
            text = encoder.decode(pair.prompted or ())
            assert "Please be useful. Query:" in text
            assert text.endswith("Assistant:")
            assert encoder.decode(pair.prompt).endswith("Assistant:")

    @exact
    def test_a_response_is_decoded_with_the_blank_that_it_begins_with(self, name: str) -> None:
        encoder = Encoder(published(name))
        for prompt, *sides in ROWS[:3]:
            for side in sides:
                before, ids = in_context(encoder, prompt, side)
                assert encoder.decode_response([*encoder.start, *before], ids) == side

    def test_alone_a_response_loses_its_blank(self) -> None:
        encoder = Encoder(published("llama_2"))
        before, ids = in_context(encoder, *ROWS[0][:2])
        assert encoder.decode(ids) == "it ends in the sea"


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


CHAT_TEMPLATES = {
    "bare": BARE,
    "chatml": CHATML,
    "phi": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    **{name: (TEMPLATES / f"{name}.jinja").read_text("utf-8") for name in ("zephyr", "mistral", "gemma")},
}
TALK = turns("where does the river end?", "It ends\nin the sea.", "After", "forty miles", "Query: ", "A ship ")
templates = pytest.mark.parametrize("template", CHAT_TEMPLATES)


@cache
def with_template(name: str, template: str) -> Any:
    tokenizer = deepcopy(published(name))
    tokenizer.chat_template = CHAT_TEMPLATES[template]
    return tokenizer


def talk(encoder: Encoder, messages: list[dict[str, str]], size: int, **options: Any) -> Tokenized:
    """Tokenize a conversation whose response begins at a message."""
    pair = PreferencePair(tuple(messages[:size]), tuple(messages[size:]), None, "rows.jsonl:7")
    return Tokenize(encoder, Cut(4000), RenderOptions(**options))([pair])


def scored_text(encoder: Encoder, side: TokenizedResponse) -> str:
    ids = [token for token, counts in zip(side.ids, side.scored, strict=True) if counts]
    return encoder.decode(ids)


class TestChat:
    @every
    @templates
    @pytest.mark.parametrize("size", [1, 5])
    def test_ids_are_those_of_the_whole_conversation(self, name: str, template: str, size: int) -> None:
        tokenizer = with_template(name, template)
        encoder = Encoder(tokenizer)
        result = talk(encoder, TALK, size, score="all_turns")
        (pair,) = result.outcomes
        assert isinstance(pair, TokenizedPair), pair
        opened = tokenizer.apply_chat_template(TALK[:size], tokenize=False, add_generation_prompt=True)
        whole = plain(encoder, tokenizer.apply_chat_template(TALK, tokenize=False), template=True)
        assert list(pair.prompt) == plain(encoder, opened, template=True)
        ids = [*pair.prompt, *pair.chosen.ids]
        if MERGED not in result.notes:
            assert ids in (whole[: len(ids)], [*whole[: len(ids) - 1], encoder.end])
        elif name in EXACT:
            assert encoder.decode(whole).startswith(encoder.decode(ids).removesuffix("</s>").rstrip())

    @exact
    @templates
    def test_turns_are_scored_where_they_stand(self, name: str, template: str) -> None:
        encoder = Encoder(with_template(name, template))
        (pair,) = talk(encoder, TALK[:4], 1, score="all_turns").outcomes
        assert isinstance(pair, TokenizedPair)
        text = scored_text(encoder, pair.chosen)
        assert text.index("It ends\nin the sea.") < text.index("forty miles")
        assert "After" not in text

    @exact
    @templates
    def test_control_tokens_that_data_spells_are_text_where_they_stand(self, name: str, template: str) -> None:
        encoder = Encoder(with_template(name, template))
        control = [token for token in ("</s>", "<unk>", "<|end|>") if encoder.control_text.fullmatch(token)]
        spoilt = f"a{''.join(control)}b {control[0]} c"
        messages = turns(f"x{spoilt}y", f"A{spoilt}z", "Now", "It is")
        clean = turns("xy", "Az", "Now", "It is")
        for talked, size in ((messages, 1), (messages, 3)):
            (pair,) = talk(encoder, talked, size, score="all_turns").outcomes
            (expected,) = talk(encoder, clean, size, score="all_turns").outcomes
            assert isinstance(pair, TokenizedPair)
            assert isinstance(expected, TokenizedPair)
            for ids, others in ((pair.prompt, expected.prompt), (pair.chosen.ids, expected.chosen.ids)):
                controls = [[token for token in each if token in encoder.control_ids] for each in (ids, others)]
                assert controls[0] == controls[1]
            text = encoder.decode([*pair.prompt, *pair.chosen.ids])
            assert f"x{spoilt}y" in text
            assert f"A{spoilt}z" in text

    @exact
    @templates
    def test_windows_give_the_ids_of_whole_conversations(self, name: str, template: str) -> None:
        """A long conversation is not encoded again for each of its turns; the ids are as if it were."""
        tokenizer = with_template(name, template)
        encoder = Encoder(tokenizer)
        texts = [tokenizer.apply_chat_template(TALK[:size], tokenize=False) for size in range(1, 6)]
        pieces = [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]
        first, *segments = [(Piece(piece, template=True),) for piece in pieces]
        row = Continuation(first, encoder([first])[0], tuple(segments))
        assert _prefixes(encoder, [row])[0] == [plain(encoder, text, template=True) for text in texts]


# ── formats ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ASKED, GOOD, BAD = "\n\nHuman: where does the river end?\n\nAssistant:", " It ends in the sea.", " In the harbour"
TALKED, ANSWERED, ELSE = turns("where does the river end?"), "It ends\nin the sea.", "In the harbour"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


FORMATS: dict[str, tuple[bool, list[dict[str, Any]]]] = {
    "pairs": (False, [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}]),
    "hh": (False, [{"chosen": ASKED + GOOD, "rejected": ASKED + BAD}]),
    "ranking": (False, [{"prompt": ASKED, "responses": [BAD, GOOD], "scores": [1, 2]}]),
    "unpaired": (
        False,
        [{"prompt": ASKED, "completion": text, "label": text == GOOD} for text in (GOOD, BAD)],
    ),
    "pairs of messages": (True, [{"prompt": TALKED, "chosen": said(ANSWERED), "rejected": said(ELSE)}]),
    "chat": (True, [{"chosen": [*TALKED, *said(ANSWERED)], "rejected": [*TALKED, *said(ELSE)]}]),
    "ranking of messages": (
        True,
        [{"prompt": TALKED, "responses": [said(ELSE), said(ANSWERED)], "scores": [1, 2]}],
    ),
    "unpaired messages": (
        True,
        [{"prompt": TALKED, "completion": said(text), "label": text == ANSWERED} for text in (ANSWERED, ELSE)],
    ),
}
"""Format → whether it has messages, and rows that mean the same."""


@pytest.mark.parametrize("name", ["llama_2", "gpt_neox_prefix", "qwen_2", "t5"])
@pytest.mark.parametrize("layout", FORMATS)
def test_rows_of_every_format_have_the_ids_of_the_whole_text(
    name: str, layout: str, tmp_path: Path, write: Write
) -> None:
    messages, rows = FORMATS[layout]
    tokenizer = with_template(name, "chatml")
    tokenizer.save_pretrained(tmp_path / name)
    data = PreferenceData(train=str(write(rows)), tokenizer=str(tmp_path / name), render=None if messages else "text")
    data.prepare_all()
    encoder, split = Encoder(data.tokenizer), data.splits["train"]
    sides = [(pair.prompt, side) for pair in split.store for side in (pair.chosen, pair.rejected) if side.ids]
    texts = (ANSWERED, ELSE) if messages else (GOOD, BAD)
    assert len(sides) == 2
    for (prompt, side), text in zip(sides, texts, strict=True):
        if messages:
            talk = [*TALKED, *said(text)]
            whole = plain(encoder, tokenizer.apply_chat_template(talk, tokenize=False), template=True)
        else:
            whole = [*encoder.start, *plain(encoder, ASKED + text), encoder.end]
        ids = [*prompt, *side.ids]
        assert ids in (whole[: len(ids)], [*whole[: len(ids) - 1], encoder.end])


# ── tokenizers in Python ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["python_bytes", "python_words"])
def test_tokenizers_in_python_prepare_data(name: str, tmp_path: Path, write: Write) -> None:
    published(name).save_pretrained(tmp_path / name)
    path = write([pair_row(number) for number in range(4)])
    loaded = load_tokenizer(str(tmp_path / name))
    assert not loaded.is_fast
    fingerprints = []
    for folder in (tmp_path / "cache", tmp_path / "cache", None):
        cache_folder = None if folder is None else str(folder)
        data = PreferenceData(train=str(path), tokenizer=str(tmp_path / name), cache=cache_folder)
        data.prepare_all()
        pair = data.splits["train"].store[0]
        assert list(pair.prompt) == plain(Encoder(loaded), "Question 0:")
        fingerprints.append(data.splits["train"].fingerprint)
    assert len(set(fingerprints)) == 1
    assert len(list((tmp_path / "cache").rglob("pairs.arrow"))) == 1
