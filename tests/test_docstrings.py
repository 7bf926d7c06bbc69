"""The count of docstrings that begin with a noun clause, which is part of lint."""

from pathlib import Path

import pytest

from scripts.docstrings import docstrings_of, main

SAMPLE = '''
"""The module's own docstring is not counted."""


class Pool:
    """A class may begin with a noun."""

    async def acquire(self):
        """The connection that is free.

        Returns the oldest.
        """

        def nested():
            """which is it"""

    @property
    def size(self):
        """
        All connections together.
        """

    def undocumented(self):
        return 1


def close():
    """Close the pool."""
'''


def sample(folder: Path, *first_words: str) -> Path:
    """Write a module of functions whose docstrings begin with the given words."""
    module = folder / "module.py"
    functions = [f'def f{number}():\n    """{words}"""\n' for number, words in enumerate(first_words)]
    module.write_text("\n".join(functions))
    return module


def test_functions_methods_and_nested_functions_are_counted_and_nothing_else() -> None:
    found = list(docstrings_of(SAMPLE, Path("pool.py")))
    assert {str(docstring) for docstring in found} == {
        "pool.py:9: acquire: The connection that is free.",
        "pool.py:15: nested: which is it",
        "pool.py:19: size: All connections together.",
        "pool.py:28: close: Close the pool.",
    }
    assert [docstring.function for docstring in found if not docstring.is_noun_clause] == ["close"]


@pytest.mark.parametrize(
    "words",
    ["What is sent.", "the reply", "Whether it is open.", "Seconds until then.", "Its size", "None, or 1"],
)
def test_a_noun_clause_is_found(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = sample(tmp_path, words)
    assert main([str(module)]) == 1
    assert capsys.readouterr().out.startswith(f"{module}:2: f0: {words}\n1 of 1 function docstrings")


@pytest.mark.parametrize(
    "words",
    ["Return the size.", "True if it is open.", "``The`` is code.", ":func:`the`.", "Anchor it.", "42"],
)
def test_other_beginnings_pass(words: str, tmp_path: Path) -> None:
    assert main([str(sample(tmp_path, words))]) == 0


def test_the_limit_itself_passes_and_what_is_above_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ["Send it."] * 19
    assert main([str(sample(tmp_path, "The pool.", *verbs))]) == 0
    assert "1 of 20 function docstrings begin with a noun clause: 5.0 % (limit 5 %)" in capsys.readouterr().out
    assert main([str(sample(tmp_path, "The pool.", *verbs[1:]))]) == 1
    assert "5.3 %" in capsys.readouterr().out


def test_folders_are_searched_and_a_folder_without_docstrings_passes(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert main([str(tmp_path)]) == 0
    sample(tmp_path / "inner", "The pool.")
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path), "--limit", "100"]) == 0
