"""The engine behind ``EMAIL`` and ``TASKS``: sources in order of precedence, plain pydantic models, one error."""

import pickle
import re
import traceback
from typing import Annotated, Any, ClassVar, Self

import pytest
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from openviper.conf import override
from openviper.conf.checked import CheckedSettings, Conflict, Conflicts, load_settings, report_faults
from openviper.conf.kinds import Flag, SettingKind
from openviper.conf.sources import Source
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.tasks import TaskSettings

SECRET = "hunter2"


def _as_secret(value: object) -> SecretStr | None:
    if value is None or isinstance(value, SecretStr):
        return value
    raise ValueError("is not a string")


Number = Annotated[int, Field(ge=1), SettingKind("a whole number of at least 1", int)]
Secret = Annotated[SecretStr | None, BeforeValidator(_as_secret), SettingKind("a string", secret=True)]


class ShopSettings(CheckedSettings):
    setting_name: ClassVar[str] = "SHOP"

    size: Number = Field(5, validation_alias=AliasChoices("size", "length"))
    depth: Number
    open: Flag = False
    closed: Flag = False
    token: Secret = None

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.depth == 13:
            raise ValueError("is unlucky")
        if self.open and self.closed:
            raise Conflicts([Conflict("closed", "both are True; keep one", excludes="open")])
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _report_faults(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        return report_faults(cls, values, handler, info)


def load(*sources: Source, **shop: Any) -> ShopSettings:
    return load_settings(ShopSettings, *sources, Source.setting("SHOP", shop))


def faults(*sources: Source, **shop: Any) -> list[str]:
    with pytest.raises(ImproperlyConfigured) as caught:
        load(*sources, **shop)
    return str(caught.value).splitlines()


def test_the_first_source_that_has_a_value_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_LENGTH", "7")
    monkeypatch.setenv("SHOP_DEPTH", "8")
    sources = (Source.arguments("Shop(", {"size": 9}), Source.environment(ShopSettings, "SHOP_"))
    settings = load(*sources, size=1, depth=2, open=True)
    assert (settings.size, settings.depth, settings.open, settings.closed) == (9, 8, True, False)
    assert load(*sources[1:], size=1).size == 7


def test_each_fault_is_named_at_the_source_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SIZE", "0")
    sources = (Source.arguments("Shop(", {"opne": True}), Source.environment(ShopSettings, "SHOP_"))
    assert faults(*sources, depth="deep", token=7) == [
        "Shop({\"opne\": ...}): there is no such setting; did you mean 'open'?",
        "SHOP_SIZE (environment): 0 is not allowed; give a whole number of at least 1",
        "SHOP[\"depth\"]: 'deep' is not allowed; give a whole number of at least 1",
        'SHOP["token"]: *** is not a string; give a string',
    ]


def test_a_required_setting_is_named() -> None:
    assert faults() == ['SHOP["depth"]: is missing; give a whole number of at least 1']


def test_conflicts_are_found_beside_faults_of_other_fields() -> None:
    assert faults(size=0, depth=1, open=True, closed=True) == [
        'SHOP["size"]: 0 is not allowed; give a whole number of at least 1',
        'SHOP["closed"]: excludes SHOP["open"], and both are True; keep one',
    ]


def test_an_error_of_the_models_own_validator_is_named_with_the_setting() -> None:
    assert faults(depth=13) == ["SHOP: is unlucky"]


def test_an_unknown_key_of_a_short_setting_lists_the_known_ones() -> None:
    (line,) = faults(depth=1, zzz=1)
    assert line == ('SHOP["zzz"]: there is no such setting; known settings: size, depth, open, closed, token, length')


def test_a_setting_within_a_setting_and_the_parts_of_a_url_are_sources_too() -> None:
    """What several mailers need: a path of any depth, a source above it, and one below it to inherit from."""
    sources = (
        Source({"size": "big"}, "SHOP_NORTH_URL (environment)", lambda key: f"SHOP_NORTH_URL (environment), {key}"),
        Source.setting('SHOP["branches"]["north"]', {"depth": -1}),
    )
    assert faults(*sources, size=1, depth=2) == [
        "SHOP_NORTH_URL (environment), size: 'big' is not allowed; give a whole number of at least 1",
        'SHOP["branches"]["north"]["depth"]: -1 is not allowed; give a whole number of at least 1',
    ]


def test_pydantics_own_calls_validate_the_same() -> None:
    assert ShopSettings.model_validate({"depth": 1, "length": 2}) == ShopSettings(depth=1, size=2)
    assert TypeAdapter(ShopSettings).validate_python({"depth": 1}).depth == 1
    settings = ShopSettings(depth=1, size=2)
    assert ShopSettings.model_validate(settings) is settings
    for call in (
        lambda: ShopSettings(size=2, depth=0),
        lambda: ShopSettings.model_validate({"depth": 0}),
    ):
        with pytest.raises(ImproperlyConfigured, match=r"^ShopSettings\(depth=\.\.\.\): 0 is not allowed; give "):
            call()
    with pytest.raises(ImproperlyConfigured, match=r"^ShopSettings\(\): is a list; give a dict of settings"):
        ShopSettings.model_validate([])


def test_a_traceback_shows_only_our_own_frames_and_no_secret() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        load(depth=0, token=SECRET)
    text = "".join(traceback.format_exception(caught.value))
    assert "pydantic" not in text
    assert SECRET not in text
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_text_that_may_hold_a_password_is_not_shown() -> None:
    url = f"smtp://me:{SECRET}{'x' * 100}@host"
    for wrong in (url, [url], {"url": f"smtp://me:{SECRET}@host"}):
        (line,) = faults(depth=wrong)
        assert SECRET not in line
        assert "***" in line


@pytest.mark.parametrize(
    ("model", "name", "wrong"),
    [
        (
            EmailSettings,
            "EMAIL",
            {
                "retires": 1,
                "port": 0,
                "use_tls": "yes",
                "password": 7,
                "attachment_dirs": "/srv",
                "pool_size": "x" * 500,
            },
        ),
        (
            TaskSettings,
            "TASKS",
            {"brokr": 1, "enabled": "yes", "broker": "x" * 500, "broker_url": 7, "modules": "shop", "namespace": ""},
        ),
    ],
    ids=["EMAIL", "TASKS"],
)
def test_the_errors_of_email_and_tasks_have_one_shape(
    model: type[EmailSettings] | type[TaskSettings], name: str, wrong: dict[str, Any]
) -> None:
    """A line for each fault: path, value (cut, or masked), reason, what is allowed; a suggestion for an unknown key."""
    with override(**{name: wrong}), pytest.raises(ImproperlyConfigured) as caught:
        model.from_settings()
    lines = str(caught.value).splitlines()
    unknown = next(iter(wrong))
    assert re.fullmatch(rf'{name}\["{unknown}"\]: there is no such setting; did you mean \'\w+\'\?', lines[0]), lines[0]
    fields = list(model.model_fields)
    expected = sorted((key for key in wrong if key != unknown), key=fields.index)
    assert len(lines) == len(wrong)
    for key, line in zip(expected, lines[1:], strict=True):
        assert re.fullmatch(rf'{name}\["{key}"\]: (\S.{{0,90}}) is (not .+); give .+', line), line
        assert ("***" in line) == (key in ("password", "broker_url"))


@pytest.mark.parametrize(("model", "name"), [(EmailSettings, "EMAIL"), (TaskSettings, "TASKS")])
def test_both_refuse_what_is_no_dict_with_the_same_text(
    model: type[EmailSettings] | type[TaskSettings], name: str
) -> None:
    with override(**{name: ["x"]}), pytest.raises(ImproperlyConfigured) as caught:
        model.from_settings()
    assert str(caught.value) == f"{name}: is a list; give a dict of settings"


@pytest.mark.parametrize("model", [EmailSettings, TaskSettings])
def test_both_read_the_project_again_only_when_it_changes(model: type[EmailSettings] | type[TaskSettings]) -> None:
    before = model.from_settings()
    assert model.from_settings() is before
    with override(DEBUG=True):
        assert model.from_settings() is not before
        assert model.from_settings() == before


def test_both_show_what_differs_from_the_defaults_and_no_secret() -> None:
    assert repr(TaskSettings(broker="redis", broker_url=f"redis://me:{SECRET}@host")) == (
        "TaskSettings(enabled=True, broker_url=SecretStr('**********'))"
    )
    assert repr(EmailSettings(username="me", password=SECRET)) == (
        "EmailSettings(username='me', password=SecretStr('**********'))"
    )
