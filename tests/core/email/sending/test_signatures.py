"""The arguments of a send, spelled in each function that takes them."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from openviper.core.email import send_email, send_email_sync, submit_email


@pytest.mark.parametrize("function", [send_email, send_email_sync])
def test_the_twins_take_the_arguments_of_submit_email(function: Callable[..., Any]) -> None:
    assert inspect.signature(function).parameters == inspect.signature(submit_email).parameters


@pytest.mark.parametrize("function", [submit_email, send_email, send_email_sync])
def test_a_wrong_keyword_names_the_function_that_was_called(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'subjct'"):
        function("user@example.test", subjct="Hello", text="Hi")


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
