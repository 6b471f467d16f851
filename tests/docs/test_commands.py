"""Every command of README and docs does what it says, shortened by one rule (docs/tested.md)."""

import time

import pytest

from kdrun.core.errors import KdrunError
from tests.docs import places, rule
from tests.docs.pages import PAGES, Command, commands, files, split


def covered() -> dict[tuple[str, ...], Command]:
    """Words -> the first command with them; those of docs/extend run word for word in tests/e2e/test_extend.py."""
    found = {}
    for page in PAGES:
        for command in commands(page) if page.parent.name != "extend" else ():
            found.setdefault(tuple(rule.plain(command.words)), command)
    return found


@pytest.mark.slow
def test_commands_of_kdrun_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule.shorten(monkeypatch)
    for page in PAGES:
        places.write(
            {name: text for name, text in files(page.read_text()).items() if not name.startswith(("kdrun/", "conf/"))}
        )
    ours = {words: command for words, command in covered().items() if rule.is_run(words)}
    trains = [words for words in ours if words[1] in ("train", "sweep")]
    wrong, trained = [], set()
    for words in [*trains, *(words for words in ours if words not in trains)]:
        began = time.process_time()
        try:
            rule.run(list(words), trained)
        except (KdrunError, AssertionError) as error:
            wrong.append(f"{ours[words]}: {error}")
        print(f"{time.process_time() - began:6.2f} s of CPU: {ours[words]}")
    assert not wrong, "\n".join(wrong)


def test_what_other_programs_are_given_of_kdrun_is_there():
    wrong = []
    for words, command in covered().items():
        if not rule.is_run(words):
            try:
                rule.read(list(words))
            except (KdrunError, AssertionError) as error:
                wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(wrong)


def test_a_command_that_no_rule_covers_is_told():
    for line, why in {
        "frobnicate kdrun": "no rule of docs/tested.md covers it",
        "make nonsense": "make has no target nonsense",
        "pip install 'kdrun[nonsense]'": "no extra nonsense",
        "python scripts/nonsense.py": "no scripts/nonsense.py",
        "torchrun -m kdrun.train sed=1": "sed: unknown key",
    }.items():
        ((words),) = split(line)
        with pytest.raises((KdrunError, AssertionError), match=why):
            rule.read(rule.plain(words))


def test_commands_are_told_apart_as_a_shell_does():
    line = "for i in 1 2; do CUDA=$((i - 1)) kdrun sweep 'a=b c' & done; wait   # why"
    assert list(split(line)) == [("for", "i", "in", "1", "2"), ("kdrun", "sweep", "a=b c"), ("done",), ("wait",)]
    assert rule.plain(["python", "-m", "kdrun.train", "a=1"]) == ["kdrun", "train", "a=1"]
    assert rule.plain([".venv/bin/kdrun", "loss=ce"]) == ["kdrun", "train", "loss=ce"]
    assert rule.plain(["python", "scripts/table.py", "table=demo"]) == ["kdrun", "table", "table=demo"]
