"""``viperctl email send``, and its alias ``sendtestemail``, send at once and show the server's replies."""

import re
import socket
import sys
from email import message_from_bytes
from pathlib import Path

import pytest
from support.commands import Cli
from support.smtpd import SmtpServer


def configure(project: Path, **email: object) -> None:
    (project / "settings.py").write_text(f"EMAIL = { ({'default_sender': 'shop@example.com'} | email)!r}\n")


def test_the_servers_answer_is_shown_for_each_recipient(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings())
        done = cli.run("email", "send", "--project", project, "a@example.com", "b@example.com")
        (message,) = server.wait_for(1)
    assert done.returncode == 0, done.stderr
    assert f"SMTPBackend: 127.0.0.1 port {server.port}, no TLS" in done.stdout
    assert "accepted  a@example.com  250 2.0.0 taken" in done.stdout
    assert "accepted  b@example.com  250 2.0.0 taken" in done.stdout
    assert message.recipients == ["a@example.com", "b@example.com"]
    assert message.sender == "shop@example.com"
    parsed = message.parse()
    assert parsed["Subject"] == "Test message from sample"
    assert parsed["Message-ID"] in done.stdout


def test_a_redirected_test_message_says_where_it_goes(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings(), redirect_to=["team@example.com"], redirect_except=["example.org"])
        done = cli.run("email", "send", "--project", project, "a@example.com")
        (message,) = server.wait_for(1)
    assert message.recipients == ["team@example.com"]
    line = f"port {server.port}, no TLS, without a login; redirected to team@example.com, except mail for example.org\n"
    assert line in done.stdout


def test_login_and_starttls_are_named_but_never_the_password(cli: Cli, project: Path) -> None:
    with SmtpServer(tls="starttls", users={"shop": "very-secret"}) as server:
        configure(project, **server.settings())
        done = cli.run("email", "send", "--project", project, "a@example.com")
        (message,) = server.wait_for(1)
    assert "STARTTLS, as shop" in done.stdout
    assert message.tls
    assert message.user == "shop"
    assert "very-secret" not in done.stdout + done.stderr


def test_a_wrong_password_is_reported_without_showing_it(cli: Cli, project: Path) -> None:
    with SmtpServer(users={"shop": "right"}) as server:
        configure(project, **server.settings(password="very-wrong"))
        done = cli.run("email", "send", "--project", project, "a@example.com")
    assert done.returncode == 1
    assert "535" in done.stderr
    assert "very-wrong" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_one_refused_recipient_is_shown_with_the_reply(cli: Cli, project: Path) -> None:
    """The others get it; the command ends with 1 all the same."""
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        configure(project, **server.settings())
        done = cli.run("email", "send", "--project", project, "a@example.com", "gone@example.com")
        (message,) = server.wait_for(1)
    assert done.returncode == 1
    assert message.recipients == ["a@example.com"]
    assert "accepted  a@example.com" in done.stdout
    assert "refused   gone@example.com  550 5.0.0 as the test says" in done.stdout


def test_who_may_have_it_is_told_from_who_was_refused(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.fault("body", "drop")
        server.refuse("gone@example.com", 550)
        configure(project, **server.settings())
        done = cli.run("email", "send", "--project", project, "a@example.com", "gone@example.com")
    assert done.returncode == 1
    assert "refused   gone@example.com  550" in done.stdout
    assert "perhaps   a@example.com  451" in done.stdout
    assert "may or may not have been accepted" in done.stderr


def test_when_all_are_refused_each_reply_is_shown(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        server.refuse("full@example.com", 452)
        configure(project, **server.settings())
        done = cli.run("email", "send", "--project", project, "gone@example.com", "full@example.com")
    assert done.returncode == 1
    assert "refused   gone@example.com  550" in done.stdout
    assert "refused   full@example.com  452" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_named(cli: Cli, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configure(project, host="127.0.0.1", port=port)
    done = cli.run("email", "send", "--project", project, "a@example.com")
    assert done.returncode == 1
    assert "ConnectionFailed" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_one_even_where_the_project_fails_silently(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.fault("MAIL", 550)
        configure(project, fail_silently=True, **server.settings())
        done = cli.run("email", "send", "--project", project, "a@example.com")
    assert done.returncode == 1
    assert "550" in done.stderr


def test_the_option_from_beats_the_settings(cli: Cli, project: Path) -> None:
    configure(project, backend="FileBackend", file_dir=str(project / "mail"))
    done = cli.run("email", "send", "--project", project, "a@example.com", "--from", "Other <other@example.com>")
    assert done.returncode == 0, done.stderr
    (file,) = (project / "mail").glob("*.eml")
    assert message_from_bytes(file.read_bytes())["From"] == "Other <other@example.com>"
    assert "FileBackend" in done.stdout


def test_the_environment_beats_the_settings_module(cli: Cli, project: Path) -> None:
    configure(project, host="127.0.0.1", port=1)
    done = cli.run("email", "send", "--project", project, "a@example.com", EMAIL_BACKEND="ConsoleBackend")
    assert done.returncode == 0, done.stderr
    assert "Test message from sample" in done.stdout


def test_without_a_sender_the_remedy_is_named(cli: Cli, project: Path) -> None:
    configure(project, default_sender=None, backend="ConsoleBackend")
    done = cli.run("email", "send", "--project", project, "a@example.com")
    assert done.returncode == 1
    assert "default_sender" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_impossible_address_is_named(cli: Cli, project: Path) -> None:
    configure(project, backend="ConsoleBackend")
    done = cli.run("email", "send", "--project", project, "not an address")
    assert done.returncode == 1
    assert "not an address" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_wrong_setting_is_listed(cli: Cli, project: Path) -> None:
    configure(project, prot=25, timeout=-1)
    done = cli.run("email", "send", "--project", project, "a@example.com")
    assert done.returncode == 1
    assert 'EMAIL["prot"]' in done.stderr
    assert 'EMAIL["timeout"]' in done.stderr


def test_no_address_is_a_usage_error(cli: Cli, project: Path) -> None:
    done = cli.run("email", "send", "--project", project)
    assert done.returncode == 2
    assert "ADDRESSES" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["viperctl"], ["openviper", "viperctl"], [sys.executable, "-m", "openviper.cli", "viperctl"]],
)
def test_every_way_to_call_the_command_is_the_same(cli: Cli, project: Path, command: list[str]) -> None:
    configure(project, backend="FileBackend", file_dir=str(project / "mail"))
    program = [Path(sys.executable).with_name(command[0]) if command[0] != sys.executable else sys.executable]
    done = cli.run_program([*program, *command[1:], "email", "send", "--project", project, "a@example.com"])
    assert done.returncode == 0, done.stderr
    assert len(list((project / "mail").glob("*.eml"))) == 1


def test_the_project_is_the_working_directory_by_default(cli: Cli, tmp_path: Path) -> None:
    """The commands of the fixture are run in the folder above the sample project."""
    (tmp_path / "settings.py").write_text('EMAIL = {"backend": "ConsoleBackend", "default_sender": "a@example.com"}')
    done = cli.run("email", "send", "b@example.com")
    assert done.returncode == 0, done.stderr
    assert "Test message from" in done.stdout


def test_sendtestemail_is_an_alias(cli: Cli, project: Path) -> None:
    """It takes the project as its first argument; output, exit status and message are the same."""
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        configure(project, **server.settings())
        addresses = ("a@example.com", "gone@example.com", "--from", "b@example.com")
        sent = cli.run("email", "send", *addresses, "--project", project)
        alias = cli.run("sendtestemail", project, *addresses)
        messages = server.wait_for(2)
    assert alias.returncode == sent.returncode == 1
    assert [without_id(done.stdout) for done in (alias, sent)] == [without_id(sent.stdout)] * 2
    assert without_id(alias.stderr) == without_id(sent.stderr)
    assert [(message.sender, message.recipients) for message in messages] == [("b@example.com", ["a@example.com"])] * 2


def test_an_address_in_the_place_of_the_folder_is_answered_with_the_order_of_both(cli: Cli) -> None:
    done = cli.run("sendtestemail", "a@example.com", "b@example.com")
    assert done.returncode == 2
    assert "The project's folder comes first: viperctl sendtestemail . ADDRESS" in done.stderr
    missing = cli.run("sendtestemail", "nowhere", "b@example.com")
    assert "Directory 'nowhere' does not exist" in missing.stderr
    assert "comes first" not in missing.stderr


def without_id(text: str) -> str:
    return re.sub(r"<[^>]+>", "<id>", text)
