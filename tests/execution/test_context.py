"""A conversation under its cap: what is counted, what is dropped or cut, and what never is.

The laws are held against random conversations from a printed seed; DRIVETRAIN_SEED=n repeats a run.
"""

from __future__ import annotations

import copy
import os
import random
from typing import Any

import pytest

from drivetrain.core.errors import RequestError
from drivetrain.execution.charging import IMAGE_TOKENS_MAX
from drivetrain.execution.context import (
    BOUNDARY_CHARS,
    BYTES_PER_TOKEN,
    ENDS_BYTES_MIN,
    MESSAGE_TOKENS,
    Fitted,
    fitted,
    input_tokens,
)
from drivetrain.providers.answers import estimated_tokens

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("DRIVETRAIN_SEED") or random.SystemRandom().randrange(2**32))
CONVERSATIONS = 1_500
INSTRUCTIONS = ("system", "developer")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


def system(text: str = "Be kind.") -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(text: str | None, *calls: str) -> dict[str, Any]:
    asked = [{"id": call, "type": "function", "function": {"name": "look", "arguments": "{}"}} for call in calls]
    return {"role": "assistant", "content": text, **({"tool_calls": asked} if asked else {})}


def tool(call: str, text: str = "found") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


def drop(messages: list[Any], limit: int) -> Fitted:
    return fitted(messages, limit_tokens=limit, strategy="drop_oldest_turns")


def ends(messages: list[Any], limit: int, other_bytes: int = 0) -> Fitted:
    return fitted(messages, limit_tokens=limit, strategy="keep_ends", other_bytes=other_bytes)


def one_under(messages: list[Any]) -> int:
    """A cap that these messages just miss."""
    return input_tokens(messages) - 1


# The count.


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("", 0),
        ("abc", 1),
        ("abcd", 2),
        ("größer", 3),  # 8 bytes
        ("🙂", 2),
        ("\ud83d", 1),  # half of a pair, as Python's own JSON reader lets through
        (None, 0),
        ([], 0),
        ([{"type": "text", "text": "abcdef"}], 2),
        ([{"type": "text", "text": "abc"}, {"type": "text", "text": "def"}], 2),
        ([{"type": "text", "text": "abc"}, IMAGE], 1 + IMAGE_TOKENS_MAX),
        ([IMAGE, IMAGE], 2 * IMAGE_TOKENS_MAX),
    ],
)
def test_a_message_counts_a_third_of_its_bytes_and_a_fixed_bound_per_image(content: Any, tokens: int) -> None:
    assert input_tokens([user(content)]) == tokens + MESSAGE_TOKENS


def test_all_that_a_message_carries_is_counted() -> None:
    plain = input_tokens([assistant("Fine.")])
    long_arguments = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "x" * 3_000}}
    assert input_tokens([{**assistant("Fine."), "tool_calls": [long_arguments]}]) >= plain + 1_000
    assert input_tokens([{**assistant("Fine."), "name": "x" * 3_000}]) >= plain + 1_000
    assert input_tokens([{**assistant("Fine."), "reasoning": [{"weights": [0.5] * 300}]}]) >= plain + 1_000
    assert input_tokens([{**assistant("Fine."), "scores": {"x" * 3_000: 1}}]) >= plain + 1_000
    audio = {"type": "input_audio", "input_audio": {"data": "x" * 3_000, "format": "wav"}}
    assert input_tokens([user([audio])]) >= 1_000


def test_a_value_nested_deeper_than_our_stack_is_counted() -> None:
    nested: Any = "x" * 300
    for _ in range(100_000):
        nested = [nested]
    message = {**assistant("Fine."), "tool_calls": nested}
    assert input_tokens([message]) == input_tokens([assistant("Fine.")]) + 100


def test_tools_and_response_format_count_towards_the_cap() -> None:
    messages = [user("abc")]
    limit = input_tokens(messages) + 100
    assert fitted(messages, limit_tokens=limit, strategy="refuse", other_bytes=300).messages is messages
    with pytest.raises(RequestError) as refused:
        fitted(messages, limit_tokens=limit, strategy="refuse", other_bytes=301)
    assert "301 bytes of tools and response format" in refused.value.what


def test_the_cap_errs_on_the_other_side_than_charges_do() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 100
    assert BYTES_PER_TOKEN == 3
    assert input_tokens([user(text)]) > estimated_tokens(len(text))


# What fits, and what is refused.


@pytest.mark.parametrize("strategy", ["refuse", "drop_oldest_turns", "keep_ends"])
def test_what_fits_exactly_is_the_same_list(strategy: str) -> None:
    messages = [system(), user("Hello?"), assistant("Yes?"), user([{"type": "text", "text": "x" * 500}, IMAGE])]
    fit = fitted(messages, limit_tokens=input_tokens(messages), strategy=strategy)
    assert fit.messages is messages
    assert fit.notes == ()


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("refuse", "Send less"),
        ("drop_oldest_turns", "the instructions and the last turn, counts 1,009 of them: shorten the last turn"),
        ("keep_ends", "The longest text, of 3,000 bytes, cannot be cut enough"),
    ],
)
def test_a_refusal_says_what_was_counted_the_cap_and_what_to_do(strategy: str, says: str) -> None:
    messages = [system("Be."), user("secret" * 100), user("z" * 3_000)]
    with pytest.raises(RequestError) as refused:
        fitted(messages, limit_tokens=60, strategy=strategy)
    error = refused.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert f"about {input_tokens(messages):,} tokens (3 messages), more than the 60 that" in error.what
    assert says in error.what
    assert "ask the workflow's owner for a higher cap" in error.what
    assert "secret" not in error.what


# Dropping the oldest turns.


def test_the_oldest_turn_goes_first_and_only_as_many_as_must() -> None:
    messages = [system(), user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    fit = drop(messages, one_under(messages))
    assert fit.messages == [messages[0], *messages[3:]]
    gone = input_tokens(messages) - input_tokens(fit.messages)
    assert fit.notes == (f"context: dropped 1 oldest turn (2 messages, about {gone} tokens)",)
    fit = drop(messages, one_under(fit.messages))
    assert fit.messages == [messages[0], messages[5]]
    assert fit.notes[0].startswith("context: dropped 2 oldest turns (4 messages, about ")


def test_instructions_stay_wherever_they_stand() -> None:
    late = {"role": "developer", "content": "From now on in French."}
    messages = [user("one"), system("first"), assistant("1"), late, user("two"), system("last"), assistant("2")]
    assert drop(messages, one_under(messages)).messages == [messages[1], late, *messages[4:]]


def test_a_greeting_before_the_first_question_is_the_oldest_turn() -> None:
    messages = [system(), assistant("Welcome!"), user("one"), assistant("1"), user("two")]
    fit = drop(messages, one_under(messages))
    assert fit.messages == [messages[0], *messages[2:]]
    assert "dropped 1 oldest turn (1 message, about " in fit.notes[0]


def test_tool_results_leave_with_their_calls() -> None:
    messages = [user("one"), assistant(None, "a", "b"), tool("a"), tool("b"), assistant("1"), user("two")]
    assert drop(messages, one_under(messages)).messages == [messages[5]]


def test_the_last_turn_keeps_its_running_tool_calls() -> None:
    messages = [user("one"), assistant("1"), user("two"), assistant(None, "a"), tool("a", "x" * 900)]
    assert drop(messages, one_under(messages)).messages == messages[2:]
    with pytest.raises(RequestError):
        drop(messages, 300)


def test_a_question_between_a_call_and_its_result_begins_no_turn() -> None:
    messages = [user("one"), assistant(None, "a"), user("hurry"), tool("a"), assistant("1"), user("two")]
    assert drop(messages, one_under(messages)).messages == [messages[5]]
    held = messages[:5]
    with pytest.raises(RequestError):  # the last question stands inside the pair, so nothing can be dropped
        drop(held, one_under(held))


def test_the_older_function_calls_stay_with_their_results() -> None:
    asked = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}}
    result = {"role": "function", "name": "look", "content": "found"}
    messages = [user("one"), asked, user("hurry"), result, user("two")]
    assert drop(messages, one_under(messages)).messages == [messages[4]]


def test_ids_that_come_again_in_every_turn_bind_only_their_own_turn() -> None:
    turns = [[user(str(number)), assistant(None, "call_0"), tool("call_0"), assistant("ok")] for number in range(4)]
    messages = [message for turn in turns for message in turn]
    assert drop(messages, one_under(messages)).messages == messages[4:]


@pytest.mark.parametrize("calls", [5, [None], ["a"], [{"id": ["a"]}], [{"id": None}], {}])
def test_calls_of_a_wrong_shape_are_left_to_the_provider(calls: Any) -> None:
    odd = {"role": "assistant", "content": None, "tool_calls": calls, "function_call": 5}
    messages = [user("one"), odd, {"role": "tool", "tool_call_id": ["a"], "content": "x"}, user("two")]
    assert drop(messages, one_under(messages)).messages == [messages[3]]


def test_without_a_question_nothing_is_dropped() -> None:
    messages = [system(), assistant("one"), assistant("two")]
    with pytest.raises(RequestError):
        drop(messages, one_under(messages))


# Keeping the ends of the longest text.


def test_the_middle_of_the_longest_text_is_left_out() -> None:
    document = "HEAD" + "x" * 20_000 + "TAIL"
    messages = [system(), user("short"), user(document), assistant("Fine.")]
    fit = ends(messages, 1_000)
    kept = fit.messages[2]["content"]
    head, _, rest = kept.partition("\n[... ")
    said, _, tail = rest.partition(" characters left out ...]\n")
    left_out = int(said.replace(",", ""))
    assert document.startswith(head)
    assert head.startswith("HEAD")
    assert document.endswith(tail)
    assert tail.endswith("TAIL")
    assert len(head) + left_out + len(tail) == len(document)
    assert abs(len(head) - len(tail)) <= 1
    assert fit.notes == (f"context: left out {left_out:,} characters of the longest text",)
    assert 995 <= input_tokens(fit.messages) <= 1_000
    assert [fit.messages[place] for place in (0, 1, 3)] == [messages[place] for place in (0, 1, 3)]


def test_only_the_longest_part_of_a_message_is_cut() -> None:
    parts = [{"type": "text", "text": "q" * 50}, {"type": "text", "text": "d" * 9_000, "cache_control": {}}, IMAGE]
    fit = ends([system("s" * 12_000), user(parts)], IMAGE_TOKENS_MAX + 5_000)
    kept = fit.messages[1]["content"]
    assert fit.messages[0] == system("s" * 12_000)  # longer, but never cut
    assert (kept[0], kept[2]) == (parts[0], parts[2])
    assert kept[1]["cache_control"] == {}
    assert "characters left out" in kept[1]["text"]


def test_the_first_of_equally_long_texts_is_cut() -> None:
    messages = [user("x" * 3_000), user("y" * 3_000)]
    fit = ends(messages, one_under(messages))
    assert fit.messages[0] != messages[0]
    assert fit.messages[1] is messages[1]


def test_a_cut_takes_the_end_of_a_line_before_that_of_a_word() -> None:
    lines = [f"line {number:04d} says so\n" for number in range(500)]
    kept = ends([user("".join(lines))], 500).messages[0]["content"]
    head, _, rest = kept.partition("\n[... ")
    tail = rest.partition("...]\n")[2]
    assert f"{head}\n".endswith(lines[len(f"{head}\n") // len(lines[0]) - 1])
    assert tail == "".join(lines[-(len(tail) // len(lines[0])) :])
    words = "word " * 3_000
    head = ends([user(words)], 500).messages[0]["content"].partition("\n[... ")[0]
    assert head.endswith("word")


def test_a_line_far_away_does_not_move_the_cut() -> None:
    document = "a\n" + "x" * 20_000 + "\nb"
    fit = ends([user(document)], 1_000)
    assert input_tokens(fit.messages) > 1_000 - 2 * BOUNDARY_CHARS // BYTES_PER_TOKEN


@pytest.mark.parametrize("letter", ["ß", "漢", "🙂", "\ud83d\ude00", "\udcff", "a漢🙂"])
@pytest.mark.parametrize("limit", range(200, 212))
def test_no_cut_goes_through_a_character_or_a_pair(letter: str, limit: int) -> None:
    kept = ends([user(letter * 3_000)], limit)
    text = kept.messages[0]["content"]
    head, _, rest = text.partition("\n[... ")
    tail = rest.partition("...]\n")[2]
    assert len(letter) > 2 or (head == letter * (len(head) // len(letter)) and head)
    assert len(letter) > 2 or (tail == letter * (len(tail) // len(letter)) and tail)
    assert (letter * 3_000).startswith(head)
    assert (letter * 3_000).endswith(tail)
    assert input_tokens(kept.messages) <= limit


def test_ends_too_short_to_say_anything_are_refused() -> None:
    messages = [user("x" * 9_000)]
    shortest = next(limit for limit in range(1_000) if _fits(messages, limit))
    kept = ends(messages, shortest).messages[0]["content"]
    head, _, rest = kept.partition("\n[... ")
    assert len(head) + len(rest.partition("...]\n")[2]) in range(ENDS_BYTES_MIN - 1, ENDS_BYTES_MIN + 4)


def _fits(messages: list[Any], limit: int) -> bool:
    try:
        ends(messages, limit)
    except RequestError:
        return False
    return True


def test_without_any_text_that_may_be_cut_it_is_refused() -> None:
    with pytest.raises(RequestError, match="There is no text that may be cut"):
        ends([system("x" * 9_000), user([IMAGE])], 1_000)


# The laws.


def conversation(dice: random.Random) -> list[Any]:
    """Well-formed: every tool result has its call before it; some questions stand between the two."""
    messages: list[Any] = [assistant("Welcome!")] if dice.random() < 0.2 else []
    for turn in range(dice.randrange(1, 9)):
        messages += [_said(dice, "system")] * (dice.random() < 0.3)
        messages.append(_said(dice, "user"))
        for step in range(dice.choice((0, 0, 1, 2))):
            again = dice.random() < 0.3  # ids may come again in every turn
            calls = [f"call_{number}" if again else f"{turn}.{step}.{number}" for number in range(dice.randrange(1, 4))]
            messages.append(assistant(dice.choice((None, "Looking.")), *calls))
            answered = [call for call in calls if dice.random() < 0.95]
            for call in dice.sample(answered, len(answered)):
                messages += [_said(dice, "user")] * (dice.random() < 0.05)
                messages += [_said(dice, "developer")] * (dice.random() < 0.05)
                messages.append(tool(call, _words(dice)))
        messages += [_said(dice, "assistant")] * (dice.random() < 0.8)
    return messages


def _said(dice: random.Random, role: str) -> dict[str, Any]:
    text = _words(dice)
    if role == "user" and dice.random() < 0.3:
        return {"role": role, "content": [{"type": "text", "text": text}, {"type": "text", "text": _words(dice)}]}
    return {"role": role, "content": text}


def _words(dice: random.Random) -> str:
    pieces = ("word ", "größer ", "漢字", "🙂", "line\n", "\ud83d", "\ude00", "x" * 40)
    return "".join(dice.choices(pieces, k=dice.choice((0, 1, 5, 30, 30, 200))))


def test_the_laws_hold_for_any_conversation() -> None:
    print(f"DRIVETRAIN_SEED={SEED}")
    dice = random.Random(SEED)
    done = {"drop_oldest_turns": 0, "keep_ends": 0, "refuse": 0}
    refused = 0
    for _ in range(CONVERSATIONS):
        messages = conversation(dice)
        as_given = copy.deepcopy(messages)
        other_bytes = dice.choice((0, 0, 100))
        limit = round(input_tokens(messages, other_bytes) * dice.uniform(0.1, 1.05))
        strategy = dice.choice(tuple(done))
        try:
            fit = fitted(messages, limit_tokens=limit, strategy=strategy, other_bytes=other_bytes)
        except RequestError as error:
            assert messages == as_given
            _check_refusal(error, messages, limit, strategy, other_bytes)
            refused += 1
            continue
        assert messages == as_given
        assert input_tokens(fit.messages, other_bytes) <= limit
        again = fitted(fit.messages, limit_tokens=limit, strategy=strategy, other_bytes=other_bytes)
        assert again.messages is fit.messages
        assert again.notes == ()
        if input_tokens(messages, other_bytes) <= limit:
            assert fit.messages is messages
            continue
        done[strategy] += 1
        assert len(fit.notes) == 1
        if strategy == "drop_oldest_turns":
            _check_dropped(messages, fit.messages, limit, other_bytes)
        else:
            _check_cut(messages, fit.messages)
    assert refused > CONVERSATIONS // 10
    assert done["refuse"] == 0
    assert min(done["drop_oldest_turns"], done["keep_ends"]) > CONVERSATIONS // 20


def _check_refusal(error: RequestError, messages: list[Any], limit: int, strategy: str, other_bytes: int) -> None:
    assert error.code == "context_length_exceeded"
    assert input_tokens(messages, other_bytes) > limit
    if strategy == "drop_oldest_turns":
        begin = max(_safe_starts(messages), default=0)
        least = [message for message in messages[:begin] if message["role"] in INSTRUCTIONS] + messages[begin:]
        assert input_tokens(least, other_bytes) > limit


def _check_dropped(messages: list[Any], kept: list[Any], limit: int, other_bytes: int) -> None:
    places = {id(message): place for place, message in enumerate(messages)}
    kept_places = [places[id(message)] for message in kept]
    assert kept_places == sorted(kept_places)
    gone = set(range(len(messages))) - set(kept_places)
    assert all(messages[place]["role"] not in INSTRUCTIONS for place in gone)
    last_question = max(place for place, message in enumerate(messages) if message["role"] == "user")
    assert gone
    assert max(gone) < last_question
    for result, call in _pairs(messages):
        assert (result in gone) == (call in gone)
    # Minimal: with the youngest of the dropped turns back, it would not fit.
    bounds = [0, *(start for start in _safe_starts(messages) if start > 0)]
    youngest = max(start for start in bounds if start <= max(gone))
    back = [message for place, message in enumerate(messages) if place not in gone or place >= youngest]
    assert input_tokens(back, other_bytes) > limit


def _pairs(messages: list[Any]) -> list[tuple[int, int]]:
    """(place of a tool's result, place of the newest call of its id before it)."""
    found = []
    for place, message in enumerate(messages):
        if message["role"] == "tool":
            for before in range(place - 1, -1, -1):
                if message["tool_call_id"] in [call["id"] for call in messages[before].get("tool_calls", [])]:
                    found.append((place, before))
                    break
            else:
                raise AssertionError("a tool's result without its call")
    return found


def _safe_starts(messages: list[Any]) -> list[int]:
    """The questions that no pair of a tool call and its result encloses."""
    pairs = _pairs(messages)
    questions = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return [place for place in questions if not any(call < place < result for result, call in pairs)]


def _check_cut(messages: list[Any], kept: list[Any]) -> None:
    changed = [(old, new) for old, new in zip(messages, kept, strict=True) if old is not new]
    assert len(changed) == 1
    old, new = changed[0]
    assert old["role"] not in INSTRUCTIONS
    assert {**old, "content": None} == {**new, "content": None}
    texts = list(zip(_texts(old), _texts(new), strict=True))
    cut = [(before, after) for before, after in texts if before != after]
    assert len(cut) == 1
    longest = max(
        _size(text) for message in messages if message["role"] not in INSTRUCTIONS for text in _texts(message)
    )
    assert _size(cut[0][0]) == longest
    head, _, rest = cut[0][1].partition("\n[... ")
    assert cut[0][0].startswith(head)
    assert cut[0][0].endswith(rest.partition(" left out ...]\n")[2])


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [part["text"] for part in content] if isinstance(content, list) else [content or ""]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
