"""The package ``openviper.core.email`` itself."""

import pytest

from openviper.core import email


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="EmailMiddlewear"):
        email.EmailMiddlewear  # type: ignore[attr-defined]  # noqa: B018


def test_a_lazy_name_is_the_same_each_time() -> None:
    assert email.EmailMiddleware is email.EmailMiddleware
    assert email.EmailMiddleware.__module__ == "openviper.core.email.asgi.middleware"
