"""Every command of README and docs does what it says, shortened by one rule (docs/tested.md)."""

import time

import pytest

from kdrun.core.errors import KdrunError
from tests.docs import places, rule
from tests.docs.pages import PAGES, Command, blocks, commands, files, in_package, split, told


def covered() -> dict[tuple[str, ...], Command]:
    """Words -> the first command with them; pages on the package's inside run word for word in test_extend.py."""
    found = {}
    for page in PAGES:
        for command in () if in_package(page.read_text()) else commands(page):
            found.setdefault(tuple(rule.plain(command.words)), command)
    return found


@pytest.mark.minute
@pytest.mark.slow
def test_commands_and_python_of_the_pages_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule.shorten(monkeypatch)
    texts = {page: page.read_text() for page in PAGES}
    for text in texts.values():
        places.write({name: content for name, content in files(text).items() if name not in in_package(text)})
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
    for page, text in texts.items():
        for block in blocks(text):
            if block.language == "python" and block.file is None:
                try:
                    rule.execute(block.text, monkeypatch)
                except Exception as error:  # whatever a page's own code may raise
                    wrong.append(f"{told(page)}:{block.line}: {type(error).__name__}: {error}")
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
