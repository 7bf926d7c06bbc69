"""``viperctl email send`` is ``sendtestemail`` with the project as an option."""

from pathlib import Path

from support.commands import Cli
from support.smtpd import SmtpServer


def configure(project: Path, **email: object) -> None:
    (project / "settings.py").write_text(f"EMAIL = { ({'default_sender': 'shop@example.com'} | email)!r}\n")


def test_one_message_goes_out_and_the_answers_are_shown(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings())
        done = cli.run("email", "send", "a@example.com", "--project", project, "--from", "b@example.com")
        (message,) = server.wait_for(1)
    assert done.returncode == 0, done.stderr
    assert "accepted  a@example.com  250 2.0.0 taken" in done.stdout
    assert message.sender == "b@example.com"


def test_a_refused_recipient_ends_with_1(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        configure(project, **server.settings())
        done = cli.run("email", "send", "gone@example.com", "--project", project)
    assert done.returncode == 1
    assert "refused   gone@example.com  550" in done.stdout


def test_the_project_is_the_working_directory_by_default(cli: Cli, tmp_path: Path) -> None:
    """The commands of the fixture are run in the folder above the sample project."""
    (tmp_path / "settings.py").write_text('EMAIL = {"backend": "ConsoleBackend", "default_sender": "a@example.com"}')
    done = cli.run("email", "send", "b@example.com")
    assert done.returncode == 0, done.stderr
    assert "Test message from" in done.stdout
