"""The arguments of a send, spelled in each function that takes them."""

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from starlette._utils import is_async_callable

from openviper.conf import override
from openviper.core.email import (
    EmailMessageData,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
)

SENDING = [submit_email, send_email, send_email_sync]


class RaisingMapping(Mapping[str, Any]):
    """A mapping that raises a TypeError of its own."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        raise TypeError("of the context")


@pytest.mark.parametrize("function", [send_email, send_email_sync])
def test_the_twins_take_the_arguments_of_submit_email(function: Callable[..., Any]) -> None:
    assert inspect.signature(function).parameters == inspect.signature(submit_email).parameters


@pytest.mark.parametrize("function", [submit_email, send_email, send_email_sync])
def test_a_wrong_keyword_names_the_function_that_was_called(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'subjct'"):
        function("user@example.test", subjct="Hello", text="Hi")


def test_a_rendering_takes_the_arguments_that_make_a_message() -> None:
    parameters = inspect.signature(submit_email).parameters
    rendering = inspect.signature(render_email).parameters
    of_delivery = {"fail_silently", "background", "send_at", "delay", "expires_at", "timeout", "key", "dsn"}
    assert rendering.keys() == parameters.keys() - of_delivery
    for name in rendering.keys() - {"recipients"}:
        assert rendering[name].annotation == parameters[name].annotation


def test_every_argument_is_passed_on() -> None:
    """A twin that forgot to pass one on would send without it."""
    for function in (send_email, send_email_sync):
        source = inspect.getsource(function)
        body = source[source.index(") -> bool:") :]
        passed = [
            name
            for name in inspect.signature(function).parameters
            if f"        {name}," in body or f"{name}={name}," in body
        ]
        assert passed == [*inspect.signature(submit_email).parameters]


@pytest.mark.parametrize("function", [*SENDING, EmailMessageData])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("to", "recipients"),
        ("recipient_list", "recipients"),
        ("to_emails", "recipients"),
        ("body", "text"),
        ("message", "text"),
        ("text_body", "text"),
        ("plain_text", "text"),
        ("html_message", "html"),
        ("html_body", "html"),
        ("from_email", "sender"),
        ("from_", "sender"),
        ("from", "sender"),
        ("replyTo", "reply_to"),
        ("replyto", "reply_to"),
        ("extra_headers", "headers"),
        ("Subject", "subject"),
        ("subjct", "subject"),
        ("recipents", "recipients"),
        ("attachment", "attachments"),
        ("idempotency_key", "key"),
    ],
)
def test_a_foreign_or_misspelt_keyword_names_the_right_one(
    function: Callable[..., Any], wrong: str, right: str
) -> None:
    with pytest.raises(TypeError) as caught:
        function(**{wrong: "ana@example.test"})
    name = function.__name__
    assert str(caught.value) == f"{name}() got an unexpected keyword argument '{wrong}'; did you mean {right}=?"


@pytest.mark.parametrize("function", SENDING)
@pytest.mark.parametrize(("wrong", "right"), [("template_name", "template"), ("template_body", "context")])
def test_a_template_is_hinted_at_where_one_is_taken(function: Callable[..., Any], wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=rf"'{wrong}'; did you mean {right}=\?$"):
        function("ana@example.test", **{wrong: "welcome.md"})
    with pytest.raises(
        TypeError,
        match=rf"'{wrong}'; there are recipients, .*, ref, metadata, stream, mailer, .*, unsubscribe, .*, dsn$",
    ):
        EmailMessageData("ana@example.test", "Hello", **{wrong: "welcome.md"})  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [*SENDING, EmailMessageData])
def test_what_has_no_keyword_names_its_remedy(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"'subtype'; give HTML as html=, plain text as text=$"):
        function("ana@example.test", "Hello", subtype="html")
    with pytest.raises(TypeError, match=r"'connection'; set EMAIL\[\"backend\"\]$"):
        function("ana@example.test", "Hello", connection=None)


@pytest.mark.parametrize("function", [*SENDING, EmailMessageData])
def test_all_wrong_keywords_are_named_at_once(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"'to'; did you mean recipients=\?; and 'body'; did you mean text=\?$"):
        function(to="ana@example.test", subject="Hello", body="Hi")
    with pytest.raises(TypeError) as caught:
        function(**{"x" * 100_000: 1, "y" * 100_000: 1})
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("function", [*SENDING, EmailMessageData])
def test_other_mistakes_of_a_call_keep_their_error(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'recipients'|missing 2 required"):
        function()
    with pytest.raises(TypeError, match="multiple values for argument 'subject'"):
        function("ana@example.test", "Hello", subject="Hello")


def test_a_type_error_inside_a_call_is_not_taken_for_a_wrong_keyword() -> None:
    """The sync twin runs its body within the call that is watched."""
    with override(EMAIL={"backend": "MemoryBackend"}), pytest.raises(TypeError, match=r"^of the context$"):
        send_email_sync("ana@example.test", "Hello", text="Hi", sender="a@b.test", context=RaisingMapping())


async def test_a_wrong_keyword_in_a_message_of_many_names_the_right_one() -> None:
    with pytest.raises(
        TypeError, match=r"^send_many\(\): message 0 has unknown arguments: 'to'; did you mean recipients=\?$"
    ):
        async for _ in send_many([{"to": "ana@example.test", "subject": "Hello"}]):
            pass


@pytest.mark.parametrize("function", SENDING)
def test_frameworks_see_what_kind_of_function_it_is(function: Callable[..., Any]) -> None:
    """One that a framework took for a sync function would be run in a thread, and its coroutine never awaited."""
    is_async = function is not send_email_sync
    assert inspect.iscoroutinefunction(function) is is_async
    assert is_async_callable(function) is is_async
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__doc__
