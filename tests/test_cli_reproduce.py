"""The subcommand reproduce; `tests/test_reproduce.py` has a whole run of it."""

import pytest

from pyro_armed.cli import main
from pyro_armed.reproduce import APPLICATIONS


def test_the_list_has_every_application(capsys):
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(APPLICATIONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name an application"),
        (["spiral"], "no application 'spiral'"),
        (["spirals", "--seeds", "11"], "11 are too many"),
        (["spirals", "--data", "rows.csv"], "spirals reads no files"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
