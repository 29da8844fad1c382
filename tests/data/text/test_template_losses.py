"""What a chat template leaves out is refused, or counted."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data.text.tokenize import Tokenized
from tests.data.conftest import CHATML, train_tokenizer
from tests.data.examples import turns
from tests.data.families import FAMILIES, tokenizer_of
from tests.data.text.test_responses import pair_of, refusal, row, tokenize

LEAVES_OUT = "rows.jsonl:7: the chat template leaves out a message: message"
CALL = {"type": "function", "function": {"name": "find", "arguments": {"where": "sea", "deep": 7}}}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {}}}
CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is not none %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}: ARGUMENTS;{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


def only(*roles: str) -> PreTrainedTokenizerFast:
    """ChatML that writes only messages with some roles."""
    start = "{% for message in messages %}"
    return chatml(
        CHATML.replace(start, f"{start}{{% if message.role in {roles} %}}").replace(
            "{% endfor", "{% endif %}{% endfor", 1
        )
    )


def lost(result: Tokenized) -> list[str]:
    pair_of(result)
    return sorted(note.removeprefix("the chat template leaves out ") for note in result.notes if "leaves out" in note)


DEVELOPER = row([{"role": "developer", "content": "Answer in French."}, *turns("Where?")], "Ici.")


class TestMessages:
    @pytest.mark.fault("A42")
    def test_a_message_that_is_left_out(self) -> None:
        message = refusal(tokenize(only("user", "assistant"), DEVELOPER))
        assert message.startswith(f"{LEAVES_OUT} 1 (the developer's, 'Answer in French.'); set data.chat_template")
        assert message.endswith("or data.on_template_loss to warn")

    def test_it_can_be_accepted_and_is_counted(self) -> None:
        result = tokenize(only("user", "assistant"), DEVELOPER, on_template_loss="warn")
        assert lost(result) == ["messages of the developer"]

    def test_a_template_that_writes_all(self) -> None:
        assert not lost(tokenize(chatml(), DEVELOPER))

    def test_a_response_that_is_left_out(self) -> None:
        message = refusal(tokenize(only("user"), row(turns("Where?"), "Here.")))
        assert message.startswith(f"{LEAVES_OUT} 2 (the assistant's, 'Here.')")

    def test_a_turn_inside_the_response(self) -> None:
        both = {"chosen": turns("Where?", "Here.", "Sure?", "Yes."), "rejected": turns("Where?", "No.")}
        template = CHATML.replace("{{ message.content }}", "{{ message.content if loop.index0 != 2 }}")
        message = refusal(tokenize(chatml(template), both, score="all_turns"))
        assert "message 3 (the user's, 'Sure?')" in message

    def test_one_of_several_system_messages(self) -> None:
        """As ``messages[0]`` alone is looked at."""
        template = CHATML.replace(
            "{{ message.content }}", "{{ message.content if message.role != 'system' or loop.first }}"
        )
        twice = [{"role": "system", "content": text} for text in ("Be brief.", "Be kind.")]
        assert not lost(tokenize(chatml(template), row([twice[0], *turns("Where?")], "Here.")))
        assert "message 2 (the system's" in refusal(tokenize(chatml(template), row([*twice, *turns("W?")], "Here.")))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_families_write_every_turn(self, name: str) -> None:
        assert not lost(tokenize(tokenizer_of(name), row(turns("Where?", "There.", "Sure?"), "Yes.")))

    def test_null_beside_calls_stays_null(self) -> None:
        """A template that asks for null sees it."""
        call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        template = CALLS.replace("{% if m.content is not none", "{% if m.content is defined")
        spoken = {**row(turns("Where?"), "Here."), "chosen": [call]}
        tokenizer = chatml(template.replace("%}{{ m.content }}{", "%}<{{ m.content }}>{"))
        assert tokenizer.decode(pair_of(tokenize(tokenizer, spoken)).chosen.ids).startswith("find: ")


class TestOtherKeys:
    def test_a_key_that_is_left_out_is_counted(self) -> None:
        asked = [{"role": "user", "name": "Ada", "content": "Where?"}]
        more = [{"role": "assistant", "content": "Here.", "reasoning_content": "hm"}]
        result = tokenize(chatml(), {**row(asked, "Here."), "chosen": more})
        assert lost(result) == ["name of messages of the user", "reasoning_content of messages of the assistant"]

    def test_thinking_is_written_in_the_last_turn_alone(self) -> None:
        thought = {"role": "assistant", "content": "Here.", "reasoning_content": "hm"}
        last = tokenize(tokenizer_of("qwen3"), {**row(turns("Where?"), "Here."), "chosen": [thought]})
        assert not lost(last)
        earlier = tokenize(tokenizer_of("qwen3"), row([*turns("Where?"), thought, *turns("Sure?")], "Yes."))
        assert lost(earlier) == ["reasoning_content of messages of the assistant"]

    def test_tools_and_calls(self) -> None:
        call = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
        spoken = {**row(turns("Where?"), "Here."), "chosen": [call], "tools": [TOOL]}
        assert lost(tokenize(chatml(), spoken)) == [
            "arguments of tool_calls of messages of the assistant",
            "descriptions of tools",
            "tool_calls of messages of the assistant",
            "tools",
        ]
        assert not lost(tokenize(chatml(CALLS.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}")), spoken))
        without = tokenize(chatml(CALLS.replace("ARGUMENTS", "")), spoken)
        assert lost(without) == ["arguments of tool_calls of messages of the assistant"]

    def test_a_turn_that_only_calls_is_a_message(self) -> None:
        call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert LEAVES_OUT in refusal(tokenize(chatml(), {**row(turns("Where?"), "Here."), "chosen": [call]}))


@pytest.mark.parametrize(
    "arguments",
    [
        "{{ c.function.arguments | tojson }}",
        "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
        "{{ '' + c.function.arguments }}",
        "{{ c.function.arguments }}",
    ],
    ids=["objects", "both", "text alone", "as python writes it"],
)
def test_arguments_as_json_text_and_as_an_object_are_written_alike(arguments: str) -> None:
    tokenizer = chatml(CALLS.replace("ARGUMENTS", arguments))
    texts = []
    for form in (CALL["function"]["arguments"], '{"where": "sea", "deep": 7}'):  # type: ignore[index]
        call: Any = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "find", "arguments": form}}],
        }
        pair = pair_of(tokenize(tokenizer, {**row(turns("Where?"), "Here."), "chosen": [call]}))
        texts.append(tokenizer.decode(pair.chosen.ids))
    assert texts == ['find: {"where": "sea", "deep": 7};<|im_end|>'] * 2
