"""Templates that write a conversation differently once a response follows, partial turns, and ends of turns."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data.formats.base import RawRow
from lit_align.data.formats.registry import formats, read_row
from lit_align.data.text.render import SHORTENED, RenderOptions
from lit_align.data.text.responses import WRITTEN_OUT
from lit_align.data.text.tokenize import Tokenize, Tokenized
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError
from lit_align.types import TokenizedPair, TokenizedResponse
from tests.data.conftest import train_tokenizer
from tests.data.examples import turns

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}<assistant>"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>OPENS{% endif %}"
)
"""Like DeepSeek-R1: drops the thinking of every turn, and may open one."""
MISTRAL = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}"
    "[INST] {% if loop.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Like Mistral-7B-Instruct v0.3: the system message stands in front of the last question, if nothing follows it."""
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
CONTROL = {
    R1: ("<bos>", "<user>", "<assistant>", "<eos>"),
    MISTRAL: ("[INST]", "[/INST]", "<eos>"),
    PHI3: ("<|user|>", "<|assistant|>", "<|end|>", "<eos>"),
}
ONCE = pytest.mark.parametrize("opens", ["", "<think>\n"])
THOUGHT = "<think>\nhm\n</think>\n\nHere."


def tokenizer_with(template: str, opens: str = "") -> PreTrainedTokenizerFast:
    control = CONTROL[template]
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(control),
        bos_token="<bos>" if "<bos>" in control else None,
        eos_token=control[-1],
        extra_special_tokens=list(control[:-1]),
        chat_template=template.replace("OPENS", opens),
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], **options: Any) -> Tokenized:
    form = formats(score=options.get("score", "last_turn"))["chat" if "chosen" in row else "prompts"]
    pairs = read_row(RawRow(row, "rows.jsonl:7"), form).pairs
    return Tokenize(Encoder(tokenizer), Cut(8000), RenderOptions(**options))(pairs)


def pair_of(result: Tokenized) -> TokenizedPair:
    (outcome,) = result.outcomes
    assert isinstance(outcome, TokenizedPair), outcome
    return outcome


def refusal(result: Tokenized) -> str:
    (outcome,) = result.outcomes
    assert isinstance(outcome, DataError)
    return str(outcome)


def scored(tokenizer: PreTrainedTokenizerFast, side: TokenizedResponse) -> str:
    return str(tokenizer.decode([token for token, counts in zip(side.ids, side.scored, strict=True) if counts]))


def row(prompt: Any, chosen: str, rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:]}


class TestThinking:
    @ONCE
    def test_a_response_keeps_the_thinking_that_the_template_drops(self, opens: str) -> None:
        """The prompt is what generation sees, and what follows it is the text of the row."""
        tokenizer = tokenizer_with(R1, opens)
        result = tokenize(tokenizer, row(turns("Where?"), THOUGHT, f"{THOUGHT} No."))
        pair = pair_of(result)
        opened = tokenizer.apply_chat_template(turns("Where?"), tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(pair.prompt) == opened
        assert tokenizer.decode([*pair.prompt, *pair.chosen.ids]) == f"<bos><user>Where?<assistant>{THOUGHT}<eos>"
        assert scored(tokenizer, pair.chosen) == THOUGHT.removeprefix(opens) + "<eos>"
        assert result.notes[WRITTEN_OUT] == 1

    @ONCE
    def test_thinking_of_earlier_turns_is_dropped_and_counted(self, opens: str) -> None:
        tokenizer = tokenizer_with(R1, opens)
        result = tokenize(tokenizer, row(turns("Where?", THOUGHT, "Sure?"), THOUGHT, f"{THOUGHT} No."))
        prompt = tokenizer.decode(pair_of(result).prompt)
        assert prompt == f"<bos><user>Where?<assistant>\n\nHere.<eos><user>Sure?<assistant>{opens}"
        assert result.notes[SHORTENED] == 1

    @pytest.mark.fault("A43")
    def test_a_response_without_the_thinking_that_the_template_opens_is_refused(self) -> None:
        """Both renderings are shown where they part, and the key that helps."""
        message = refusal(tokenize(tokenizer_with(R1, "<think>\n"), row(turns("Where?"), "Here.")))
        assert message.startswith(
            "rows.jsonl:7: the chat template writes the prompt differently when a response follows"
        )
        assert "'<think>\\n' for generation, and 'Here.<eos>' with the response" in message
        assert "data.chat_template" in message

    def test_all_turns_of_a_template_that_opens_nothing(self) -> None:
        tokenizer = tokenizer_with(R1)
        both = {
            "chosen": turns("Where?", "Here.", "Sure?", THOUGHT),
            "rejected": turns("Where?", THOUGHT, "Sure?", "No."),
        }
        pair = pair_of(tokenize(tokenizer, both, score="all_turns"))
        assert scored(tokenizer, pair.chosen) == f"Here.<eos>{THOUGHT}<eos>"
        assert scored(tokenizer, pair.rejected) == "No.<eos>"


def test_a_prompt_that_the_template_writes_otherwise_once_answered_is_that_of_generation() -> None:
    """The system message is part of it, and the response begins with the blank of the template."""
    tokenizer = tokenizer_with(MISTRAL)
    asked = [{"role": "system", "content": "Be brief."}, *turns("Where?")]
    pair = pair_of(tokenize(tokenizer, row(asked, "Here.")))
    assert tokenizer.decode(pair.prompt) == "[INST] Be brief.\n\nWhere?[/INST]"
    assert scored(tokenizer, pair.chosen) == " Here.<eos>"
    assert all(pair.chosen.scored)


class TestPartialTurns:
    @pytest.mark.parametrize("template", [R1, MISTRAL, PHI3])
    def test_the_response_goes_on_where_the_prompt_stops(self, template: str) -> None:
        tokenizer = tokenizer_with(template)
        pair = pair_of(tokenize(tokenizer, row(turns("Where?", "I think "), "here.")))
        whole = tokenizer.apply_chat_template(turns("Where?", "I think here."), tokenize=False)
        assert tokenizer.decode(pair.prompt) == whole[: whole.index("here.")]
        end = "<|end|>" if template == PHI3 else "<eos>"
        assert scored(tokenizer, pair.chosen) == f"here.{end}"
        assert scored(tokenizer, pair.rejected) == f"no{end}"

    def test_prompts_alone(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        prompt = pair_of(tokenize(tokenizer, {"prompt": turns("Where?", "I think")})).prompt
        assert tokenizer.decode(prompt) == "<|user|>\nWhere?<|end|>\n<|assistant|>\nI think"

    def test_a_template_that_cannot_go_on(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        tokenizer.chat_template = PHI3.replace("{{ m.content }}", "{{ m.content.split('.')[0] }}")
        message = refusal(tokenize(tokenizer, row(turns("Where?", "I think. And"), " here")))
        assert "the chat template cannot continue the prompt's last turn" in message


class TestEnds:
    def test_constants_behind_the_end_of_turn_are_left_out(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        pair = pair_of(tokenize(tokenizer, row(turns("Where?"), "Here.")))
        assert tokenizer.decode(pair.chosen.ids) == scored(tokenizer, pair.chosen) == "Here.<|end|>"

    def test_an_option_keeps_them(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        pair = pair_of(tokenize(tokenizer, row(turns("Where?"), "Here."), score_end="all"))
        assert scored(tokenizer, pair.chosen) == "Here.<|end|>\n<eos>"

    def test_a_control_token_in_the_text_is_no_end_of_turn(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        pair = pair_of(tokenize(tokenizer, row(turns("Where?"), "Here.<|end|> And there.<|end|>")))
        assert scored(tokenizer, pair.chosen) == "Here.<|end|> And there.<|end|><|end|>"

    def test_a_call_of_a_tool_ends_behind_the_call(self) -> None:
        tokenizer = tokenizer_with(PHI3)
        tokenizer.chat_template = PHI3.replace(
            "{{ m.content }}",
            "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<|user|>{{ c.function.name }}{% endfor %}",
        )
        call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "find"}}]}
        pair = pair_of(tokenize(tokenizer, {**row(turns("Where?"), "Here."), "chosen": [call]}))
        assert scored(tokenizer, pair.chosen) == "<|user|>find<|end|>"
