from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_align.data.text.render import CONTROL_IN_TEXT, END_IN_TEXT, START_IN_TEXT, QualityPosition, RenderOptions
from lit_align.data.text.tokenize import MERGED, Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut, Drop
from lit_align.errors import DataError
from lit_align.types import PreferencePair, TokenizedPair
from tests.data.examples import turns

QUALITY = "Please be useful:"
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def text_pair(prompt: str = "Where?", chosen: str = " Here.", rejected: str = " There.") -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, "rows.jsonl:7")


def chat_pair(*asked: str, chosen: str = "Here.", rejected: str = "There.") -> PreferencePair:
    def say(text: str) -> Any:
        return ({"role": "assistant", "content": text},)

    return PreferencePair(tuple(turns(*(asked or ("Where?",)))), say(chosen), say(rejected), "rows.jsonl:7")


def one(
    tokenizer: PreTrainedTokenizerFast,
    pair: PreferencePair,
    quality: str | None = None,
    position: QualityPosition = "start",
) -> TokenizedPair:
    options = RenderOptions(quality, quality_position=position)
    (outcome,) = Tokenize(Encoder(tokenizer), Cut(4000), options)([pair]).outcomes
    assert isinstance(outcome, TokenizedPair)
    return outcome


def reason(tokenizer: PreTrainedTokenizerFast, pair: PreferencePair, quality: str | None = None) -> str:
    (outcome,) = Tokenize(Encoder(tokenizer), Cut(4000), RenderOptions(quality))([pair]).outcomes
    assert isinstance(outcome, DataError)
    return str(outcome)


def decode(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


CHATML_CONTROL = ["<|im_start|>", "<|im_end|>", "<pad>"]
any_text = st.lists(st.text(max_size=5) | st.sampled_from(["<s>", "</s>", "<pad>", " "]), min_size=1, max_size=5).map(
    "".join
)


class TestText:
    @settings(deadline=None)
    @given(prompt=any_text, chosen=any_text, rejected=any_text)
    def test_one_bos_one_eos_and_the_text_in_between(
        self, bos: PreTrainedTokenizerFast, prompt: str, chosen: str, rejected: str
    ) -> None:
        pair = text_pair(prompt, chosen, rejected)
        (outcome,) = Tokenize(Encoder(bos), Cut(4000))([pair]).outcomes
        if isinstance(outcome, DataError):
            assert str(outcome).startswith("rows.jsonl:7: ")
            return
        assert outcome is not None
        for text, side in zip((chosen, rejected), outcome.sides, strict=True):
            ids = [*outcome.prompt, *side.ids]
            assert ids.count(bos.bos_token_id) == 1
            assert ids.count(bos.eos_token_id) == 1
            assert ids[0] == bos.bos_token_id
            assert ids[-1] == bos.eos_token_id
            assert decode(bos, side.ids[:-1]) == Encoder(bos).without_end(text)
        assert decode(bos, outcome.prompt[1:]) == Encoder(bos).without_start(prompt)

    @pytest.mark.fault("A03")
    def test_no_bos_where_the_tokenizer_uses_none(self, plain: PreTrainedTokenizerFast) -> None:
        pair = one(plain, text_pair())
        assert decode(plain, pair.prompt) == "Where?"
        assert decode(plain, pair.chosen.ids) == " Here.</s>"

    def test_prompt_ids_do_not_depend_on_the_response(self, plain: PreTrainedTokenizerFast) -> None:
        together = one(plain, text_pair("The li", "ghthouse", "on"))
        assert together.prompt == one(plain, text_pair("The li", "d", "p")).prompt
        assert list(together.prompt) == plain("The li").input_ids

    @pytest.mark.fault("A16")
    @pytest.mark.parametrize("end", ["</s>", "</s>\n", " </s></s> "])
    def test_eos_in_the_text_is_taken_once_and_counted(self, plain: PreTrainedTokenizerFast, end: str) -> None:
        result = Tokenize(Encoder(plain), Cut(100))([text_pair(chosen=f" Here.{end}")])
        (pair,) = result.outcomes
        assert isinstance(pair, TokenizedPair)
        assert list(pair.chosen.ids).count(plain.eos_token_id) == 1
        assert result.notes[END_IN_TEXT] == 1

    def test_bos_in_the_text_is_taken_once_and_counted(self, bos: PreTrainedTokenizerFast) -> None:
        result = Tokenize(Encoder(bos), Cut(100))([text_pair(prompt="<s>Where?"), text_pair()])
        first, second = result.outcomes
        assert isinstance(first, TokenizedPair)
        assert isinstance(second, TokenizedPair)
        assert first.prompt == second.prompt
        assert result.notes == Counter({START_IN_TEXT: 1})

    @pytest.mark.fault("A15")
    @pytest.mark.security(12)
    def test_control_tokens_in_the_text_are_counted(self, plain: PreTrainedTokenizerFast) -> None:
        result = Tokenize(Encoder(plain), Cut(100))([text_pair("Where <|user|> is"), text_pair(), text_pair("a</s>b")])
        assert result.notes == Counter({CONTROL_IN_TEXT: 2})

    @pytest.mark.parametrize("side", ["chosen", "rejected"])
    def test_a_response_of_control_tokens_alone(self, plain: PreTrainedTokenizerFast, side: str) -> None:
        text = reason(plain, text_pair(**{side: " </s> "}))
        assert text == f"rows.jsonl:7: {side}: found nothing but control tokens (' </s> ')"

    def test_responses_that_differ_only_in_eos_are_the_same(self, plain: PreTrainedTokenizerFast) -> None:
        assert "the same" in reason(plain, text_pair(chosen=" Here.", rejected=" Here.</s>"))

    def test_the_quality_prompt_stands_in_front(self, bos: PreTrainedTokenizerFast) -> None:
        pair = one(bos, text_pair(), QUALITY)
        assert decode(bos, pair.prompted) == f"<s>{QUALITY} Where?"
        assert decode(bos, pair.prompt) == "<s>Where?"

    def test_an_empty_quality_prompt_changes_nothing(self, bos: PreTrainedTokenizerFast) -> None:
        pair = one(bos, text_pair(), "")
        assert pair.prompted == pair.prompt

    @pytest.mark.parametrize(
        ("position", "expected"),
        [
            ("start", f"{QUALITY}\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"),
            ("last_turn", f"\n\nHuman: a\n\nAssistant: b\n\nHuman: {QUALITY} c\n\nAssistant:"),
        ],
    )
    def test_where_a_dialogue_has_it(
        self, bos: PreTrainedTokenizerFast, position: QualityPosition, expected: str
    ) -> None:
        """The ids are those of the prompted text as a whole, and the response follows it as it follows the prompt."""
        prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
        pair = one(bos, text_pair(prompt), QUALITY, position)
        assert decode(bos, pair.prompted) == f"<s>{expected}"
        assert list(pair.prompted or ()) == bos(expected).input_ids[:-1]
        assert [*(pair.prompted or ()), *pair.chosen.ids] == bos(f"{expected} Here.").input_ids
        assert decode(bos, pair.prompt) == f"<s>{prompt}"

    def test_outcomes_keep_the_order_of_the_pairs(self, plain: PreTrainedTokenizerFast) -> None:
        pairs = [text_pair(), text_pair(chosen="</s>"), text_pair(prompt="Where? " * 30), text_pair("Who?")]
        outcomes = Tokenize(Encoder(plain), Drop(40))(pairs).outcomes
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [TokenizedPair, DataError, type(None), TokenizedPair]
        assert outcomes[3].prompt == one(plain, text_pair("Who?")).prompt  # type: ignore[union-attr]

    @pytest.mark.fault("A33")
    def test_tokens_that_would_merge_are_counted(self, plain: PreTrainedTokenizerFast) -> None:
        result = Tokenize(Encoder(plain), Cut(100))(
            [text_pair("The li", "ghthouse"), text_pair(), text_pair("Who: ", "the ship")]
        )
        assert result.notes == Counter({MERGED: 2})

    def test_no_pairs(self, plain: PreTrainedTokenizerFast) -> None:
        assert Tokenize(Encoder(plain), Cut(100))([]).outcomes == []

    @pytest.mark.slow
    def test_a_response_of_two_megabytes_is_cut_in_bounded_time(self, plain: PreTrainedTokenizerFast) -> None:
        (pair,) = Tokenize(Encoder(plain), Cut(64))([text_pair(chosen=" ship" * 400_000)]).outcomes
        assert isinstance(pair, TokenizedPair)
        assert pair.chosen.truncated


class TestChat:
    @pytest.mark.parametrize(("position", "turn"), [("start", "a"), ("last_turn", "c")])
    def test_llama_3(self, llama3: PreTrainedTokenizerFast, position: QualityPosition, turn: str) -> None:
        pair = one(llama3, chat_pair("a", "b", "c"), QUALITY, position)
        messages = turns("a", "b", "c")
        opened = llama3.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert decode(llama3, pair.prompt) == opened
        assert decode(llama3, pair.chosen.ids) == "Here.<|eot_id|>"
        assert decode(llama3, pair.prompted) == opened.replace(f"\n\n{turn}", f"\n\n{QUALITY} {turn}")
        assert list(pair.prompt).count(llama3.bos_token_id) == 1
        assert llama3.eos_token_id not in pair.chosen.ids

    def test_ids_are_those_of_the_whole_conversation(self, llama3: PreTrainedTokenizerFast) -> None:
        pair = one(llama3, chat_pair())
        whole = llama3.apply_chat_template(turns("Where?", "Here."), return_dict=False)
        assert [*pair.prompt, *pair.chosen.ids] == whole

    def test_chatml_ends_in_its_end_of_turn_without_the_line_break(self, chatml: PreTrainedTokenizerFast) -> None:
        pair = one(chatml, chat_pair())
        assert decode(chatml, pair.chosen.ids) == "Here.<|im_end|>"
        assert decode(chatml, pair.prompt).endswith("<|im_start|>assistant\n")
        assert all(pair.chosen.scored)

    def test_a_template_without_end_of_turn_gets_eos(self, bare: PreTrainedTokenizerFast) -> None:
        pair = one(bare, chat_pair())
        assert decode(bare, pair.chosen.ids) == " Here.</s>"

    def test_cutting_keeps_bos(self, llama3: PreTrainedTokenizerFast) -> None:
        (pair,) = Tokenize(Encoder(llama3), Cut(30))([chat_pair("ship " * 50)]).outcomes
        assert isinstance(pair, TokenizedPair)
        assert pair.prompt[0] == llama3.bos_token_id
        assert list(pair.prompt).count(llama3.bos_token_id) == 1

    @settings(deadline=None)
    @given(
        content=st.lists(st.text("ab \U000f0000\U000f0001", max_size=3) | st.sampled_from(CHATML_CONTROL)).map("".join)
    )
    @pytest.mark.security(12)
    def test_control_tokens_are_the_templates_alone(self, chatml: PreTrainedTokenizerFast, content: str) -> None:
        spoilt = one(chatml, chat_pair(f"x{content}", chosen=f"y{content}z", rejected="no"), QUALITY)
        clean = one(chatml, chat_pair("x", chosen="y", rejected="no"), QUALITY)
        control = Encoder(chatml).control_ids
        for ids, expected in (
            (spoilt.prompt, clean.prompt),
            (spoilt.prompted, clean.prompted),
            (spoilt.chosen.ids, clean.chosen.ids),
        ):
            found = [token for token in ids or [] if token in control]
            assert found == [token for token in expected or [] if token in control]
        assert decode(chatml, spoilt.chosen.ids) == f"y{content}z<|im_end|>"
        assert f"{QUALITY} x{content}<|im_end|>" in decode(chatml, spoilt.prompted)

    @pytest.mark.slow
    def test_control_tokens_without_number_are_hidden_too(self, chatml: PreTrainedTokenizerFast) -> None:
        said = "<|im_end|>x" * 70_000
        assert decode(chatml, one(chatml, chat_pair(chosen=said)).chosen.ids).startswith("<|im_end|>x<|im_end|>x")

    def test_hidden_control_tokens_are_counted(self, chatml: PreTrainedTokenizerFast) -> None:
        result = Tokenize(Encoder(chatml), Cut(100))([chat_pair("a<pad>"), chat_pair(chosen="Here.<|im_end|>\n")])
        assert result.notes == Counter({CONTROL_IN_TEXT: 1, END_IN_TEXT: 1})
        assert isinstance(result.outcomes[1], TokenizedPair)
        assert list(result.outcomes[1].chosen.ids).count(chatml.eos_token_id) == 1

    def test_a_tokenizer_without_template(self, plain: PreTrainedTokenizerFast) -> None:
        with pytest.raises(ValueError, match=r"has no chat template: set data\.chat_template"):
            one(plain, chat_pair())

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ raise_exception('no such turn') }}", "refuses this conversation: 'no such turn'"),
            ("{{ messages | length }}", "leaves out a message: message 1"),
            (
                "{% for m in messages %}{{ m.content }}{{ messages | length }}{% endfor %}",
                "writes the prompt differently when a response follows",
            ),
            ("{{ messages[0].content }}", "leaves out a message: message 2"),
            ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
            (
                "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
                "writes the first user turn 2 times",
            ),
        ],
    )
    def test_a_template_that_does_not_fit(self, bare: PreTrainedTokenizerFast, template: str, text: str) -> None:
        bare = PreTrainedTokenizerFast(tokenizer_object=bare._tokenizer, eos_token="</s>", chat_template=template)
        assert text in reason(bare, chat_pair(), QUALITY)

    def test_a_conversation_without_user_has_no_place_for_the_quality_prompt(
        self, bare: PreTrainedTokenizerFast
    ) -> None:
        pair = chat_pair()
        pair = PreferencePair(({"role": "system", "content": "s"},), pair.chosen, pair.rejected, pair.where)
        assert "rows.jsonl:7: the conversation has no user turn" in reason(bare, pair, QUALITY)
        assert isinstance(one(bare, pair), TokenizedPair)
