"""What a chat template leaves out of a conversation, determined with a marker once for each kind of conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from lit_align.data.formats.fields import Messages
from lit_align.data.text.chat_template import ChatTemplate
from lit_align.errors import DataError

OnTemplateLoss: TypeAlias = Literal["error", "warn"]
LEFT_OUT = "the chat template leaves out"
_FIRST_NUMBER = 730_519_000
_Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Losses:
    """What a chat template leaves out of conversations of one kind.

    Args:
        contents: places of messages of which it writes nothing, or not their content.
        keys: other keys and tools that it leaves out, described.
    """

    contents: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()


class _Marker(NamedTuple):
    """A text, or a number, in place of a value of the messages or of the tools."""

    value: str | int
    path: _Path
    key: str

    @property
    def message(self) -> int:
        """Place of the message; -1 for tools."""
        return int(self.path[1]) if self.path[0] == "messages" else -1


def find_losses(template: ChatTemplate, messages: Messages, start: int, is_prompt: bool) -> Losses:
    """Return what the chat template leaves out of a conversation.

    The result is kept for all conversations with the same roles and keys.

    Args:
        template: the template.
        messages: the conversation.
        start: position of the first message to look at.
        is_prompt: render the messages as a prompt, as generation sees it, and look at the tools as well.
    """
    kind = (tuple(_kind(message) for message in messages), start, is_prompt, len(template.tools))
    probed = template.encoder.probed
    if kind not in probed:
        probed[kind] = _find_losses(template, messages, start, is_prompt)
    losses: Losses = probed[kind]
    return losses


def _kind(message: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides how a template treats a message, apart from its texts."""
    present = sorted(key for key, value in message.items() if value not in ("", None, [], {}))
    return message["role"], tuple(present), len(message.get("tool_calls") or ()), message["content"] is None


def _find_losses(template: ChatTemplate, messages: Messages, start: int, is_prompt: bool) -> Losses:
    markers = list(_message_markers(messages, start))
    markers += _tool_markers(template.tools, len(markers)) if is_prompt else ()
    together = _written(template, messages, markers, is_prompt)
    lost = []
    for marker in markers:  # a template may refuse all markers at once, or choose what it writes by another value
        if together is None or str(marker.value) not in together:
            alone = _written(template, messages, [marker], is_prompt)
            lost += [marker] if alone is not None and str(marker.value) not in alone else []
    return _described(messages, markers, lost)


def _described(messages: Messages, markers: list[_Marker], lost: list[_Marker]) -> Losses:
    contents: list[int] = []
    keys: list[str] = []
    for index in dict.fromkeys(marker.message for marker in lost):
        gone = [marker for marker in lost if marker.message == index]
        whole = index >= 0 and len(gone) == sum(marker.message == index for marker in markers)
        if whole or any(marker.key == "content" for marker in gone):
            contents.append(index)
        elif index < 0:
            keys += [f"{LEFT_OUT} {marker.key}" for marker in gone]
        else:
            keys += [f"{LEFT_OUT} {marker.key} of messages of the {messages[index]['role']}" for marker in gone]
    return Losses(tuple(contents), tuple(dict.fromkeys(keys)))


# ── markers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _message_markers(messages: Messages, start: int) -> Iterator[_Marker]:
    number = 0
    for index in range(start, len(messages)):
        for path, key, value in _message_values(messages[index]):
            number += 1
            yield _marker(number, ("messages", index, *path), key, value)


def _message_values(message: Mapping[str, Any]) -> Iterator[tuple[_Path, str, Any]]:
    """Yield path, description and value of what a template should write of a message."""
    for key, value in message.items():
        if key == "tool_calls":
            yield from _call_values(value)
        elif key != "role":
            yield from ((path, key, leaf) for path, leaf in _leaves(value, (key,)))


def _call_values(calls: Any) -> Iterator[tuple[_Path, str, Any]]:
    for number, call in enumerate(calls if isinstance(calls, list) else ()):
        path: _Path = ("tool_calls", number)
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
            path, call = (*path, "function"), call["function"]
        if isinstance(call, Mapping):
            yield from ((place, "tool_calls", leaf) for place, leaf in _leaves(call.get("name"), (*path, "name")))
            arguments = _leaves(call.get("arguments"), (*path, "arguments"))
            yield from ((place, "arguments of tool_calls", leaf) for place, leaf in arguments)


def _tool_markers(tools: Sequence[Mapping[str, Any]], number: int) -> Iterator[_Marker]:
    for index, tool in enumerate(tools):
        nested = isinstance(tool.get("function"), Mapping)
        path: _Path = ("tools", index, "function") if nested else ("tools", index)
        own = tool["function"] if nested else tool
        for name, key in (("name", "tools"), ("description", "descriptions of tools")):
            if isinstance(own.get(name), str):
                number += 1
                yield _marker(number, (*path, name), key, own[name])


def _marker(number: int, path: _Path, key: str, value: Any) -> _Marker:
    return _Marker(f"zq{number}qz" if isinstance(value, str) else _FIRST_NUMBER + number, path, key)


def _leaves(value: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    """Yield the texts and numbers of a nested value, with their paths."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        yield path, value


def _written(template: ChatTemplate, messages: Messages, markers: list[_Marker], is_prompt: bool) -> str | None:
    """Render a conversation with markers in it, in lower case; None if the template refuses it."""
    content: Any = {"messages": messages, "tools": template.tools}
    for marker in markers:
        content = _replaced(content, marker.path, marker.value)
    probe = replace(template, tools=tuple(content["tools"]))
    marked: Messages = tuple(content["messages"])
    try:
        rendered = probe.opened(marked) if is_prompt else probe.render(marked, opens_response=False)
    except DataError:
        return None
    return rendered.lower()


def _replaced(value: Any, path: _Path, new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, Mapping):
        return {key: _replaced(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
    return [_replaced(item, path[1:], new) if index == path[0] else item for index, item in enumerate(value)]


# ── arguments of tool calls ─────────────────────────────────────────────────────────────────────────────────────────


def with_arguments(template: ChatTemplate, conversations: Sequence[Messages]) -> list[Messages]:
    """Return messages whose tool calls have their arguments as the template expects them: objects, or JSON text.

    A template that writes an object as Python does, or refuses it, gets JSON text.

    Args:
        template: the template.
        conversations: parts of a row: the prompt, and each response.
    """
    if not any(_has_objects(message) for messages in conversations for message in messages):
        return list(conversations)
    probed = template.encoder.probed
    if "arguments" not in probed:
        prompt, *responses = conversations
        whole = next(((*prompt, *each) for each in responses if any(map(_has_objects, each))), prompt)
        as_text = _expects_text(template, whole)
        if as_text is None:
            return list(conversations)
        probed["arguments"] = as_text
    if not probed["arguments"]:
        return list(conversations)
    return [tuple(_with_arguments(message, _json) for message in messages) for messages in conversations]


def _expects_text(template: ChatTemplate, messages: Messages) -> bool | None:
    """Whether the template expects JSON text; None if it refuses the conversation either way."""
    objects = tuple(_with_arguments(message, lambda _: {"zq0qz": "zq1qz"}) for message in messages)
    written = _written(template, objects, [], is_prompt=False)
    if written is not None and "{'zq0qz': 'zq1qz'}" not in written:
        return False
    texts = tuple(_with_arguments(message, _json) for message in messages)
    if _written(template, texts, [], is_prompt=False) is not None:
        return True
    return None if written is None else False


def _has_objects(message: Mapping[str, Any]) -> bool:
    return _with_arguments(message, _json) != message


def _with_arguments(message: Mapping[str, Any], change: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Return a message with changed arguments of its tool calls, where they are objects."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call_with_arguments(call, change) for call in calls]}


def _call_with_arguments(call: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call_with_arguments(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if isinstance(call.get("arguments"), Mapping) else call


def _json(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)
