"""``viperctl email suppressed`` on a real database."""

from pathlib import Path

from support.commands import Cli


def test_an_address_is_added_listed_and_removed(cli: Cli, project: Path) -> None:
    (project / "settings.py").write_text(f"DATABASE_URL = 'sqlite:///{project}/shop.sqlite3'\n")

    def run(*arguments: str) -> tuple[int, str]:
        done = cli.run("email", "suppressed", *arguments, "--project", str(project))
        return done.returncode, done.stdout + done.stderr

    code, output = run("list")
    assert code == 1
    assert output.startswith(
        "Error: there is no table email_suppression on DATABASE_URL; create it with "
        "`await create_suppression_table()`, or `viperctl email suppressed add`; the settings come from settings ("
    )
    assert "Traceback" not in output
    assert run("add", "Ann@example.test", "--reason", "hard bounce") == (0, "Ann@example.test is suppressed\n")
    assert run("add", "ben@example.test", "--stream", "news")[0] == 0
    code, output = run("list")
    assert code == 0
    assert "ann@example.test  every stream" in output
    assert "hard bounce" in output
    assert "ben@example.test  news" in output
    assert "2 suppressed" in output
    assert run("remove", "ben@example.test") == (1, "Error: ben@example.test is not suppressed for every stream\n")
    assert run("remove", "ben@example.test", "--stream", "news") == (0, "ben@example.test is mailed again\n")
    code, output = run("add", "not an address")
    assert code == 2
    assert "ADDRESS: " in output
