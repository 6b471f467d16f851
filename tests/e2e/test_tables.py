"""scripts/table.py execute=true from nothing to a table; then a run of it evaluated again."""

import json
import re

import pytest
import yaml

from kdrun.cli.evaluate import main as evaluate
from kdrun.cli.table import main as table
from kdrun.core.errors import ConfigError, Unfinished
from kdrun.core.schema import build
from kdrun.models.flops import flops_of_record
from kdrun.results.found import unique_records
from tests.conftest import FAST, ROOT, TEACHER

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(tmp_path, outputs, monkeypatch):
    path = tmp_path / "few.yaml"
    columns = json.dumps([*FAST, *TEACHER])
    path.write_text(f"seeds: [0, 1]\nrows: {{CE: [loss=ce], KD: [loss=kd]}}\ncolumns: {{digits: {columns}}}\n")
    monkeypatch.setattr(
        "kdrun.results.spec.read_conf", lambda _, name, cls: build(cls, yaml.safe_load(path.read_text()), name)
    )
    return ["table=few", f"outputs={outputs}"]


@pytest.mark.usefixtures("train")
def test_what_is_missing_is_made_once_prerequisites_first(asked, outputs, capsys):
    dry = table([*asked, "dry=true"])
    assert "teacher resnet8 (supervised/digits/nall/s0-" in dry
    assert "5 runs to make: 5 of them without an estimate" in dry
    assert f"schedule.eval_every_steps=10 {' '.join(FAST[7:])} {' '.join(TEACHER)} loss=kd seed=0,1" in dry
    with pytest.raises(ConfigError, match=r"override: schedule\.steps=21: makes .* does not plan"):
        table([*asked, "execute=true", "override=schedule.steps=21"])
    assert not list(outputs.glob("runs"))

    text = table([*asked, "execute=true", "columns=params,flops,teacher"])
    assert text.count("(n=2)") == 2
    told = capsys.readouterr().err.splitlines()
    ended = [i for i, line in enumerate(told) if line.endswith(" done")]
    assert len(ended) == 5
    teacher = next(i for i in ended if "teacher resnet8-digits" in told[i])
    assert teacher < min(i for i, line in enumerate(told) if " kd-resnet8" in line and line.endswith("running"))
    runs = {record["key"]: directory for directory, record in unique_records(outputs)[0]}
    assert len(runs) == 5
    stamps = {path: path.stat().st_mtime_ns for path in outputs.rglob("record.json")}
    assert table([*asked, "execute=true"]).count("(n=2)") == 2
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("record.json")} == stamps
    assert table([*asked, "dry=true"]).endswith("nothing is missing")

    run = next(d for d, r in unique_records(outputs)[0] if r["method"] == "distill" and r["requires"])
    record = json.loads((run / "record.json").read_text())
    assert record["nets"]["student"]["flops"] == flops_of_record(record) > 0
    evaluate([f"run={run}", "dataset=digits", "name=again"])
    again = json.loads((run / "evaluations" / "again.json").read_text())["metrics"]
    for key in ("test/student/top1", "test/student/nll", "test/teacher/ece"):
        assert again[key] == pytest.approx(record["metrics"][key], rel=1e-6)
    with pytest.raises(ConfigError, match=r"method\.nam: unknown key"):
        evaluate([f"run={run}", "method.nam=1"])


@pytest.mark.usefixtures("train")
def test_what_failed_is_named_and_the_rest_is_done(asked, tmp_path, outputs):
    path = tmp_path / "few.yaml"
    path.write_text(
        path.read_text().replace("KD: [loss=kd]", "KD: [loss=ce, schedule.lr=1e30]").replace("[0, 1]", "[0]")
    )
    with pytest.raises(Unfinished, match=r"failed: .*became nan") as caught:
        table([*asked, "execute=true"])
    assert "CE  1/1 done" in caught.value.text
    assert "failed (0/1)" in table(asked)


@pytest.mark.usefixtures("train")
def test_the_table_of_the_page_on_tables_is_made_tuned_and_shown(outputs, monkeypatch):
    [text] = re.findall(
        r"```yaml\n(# my_conf/table/mine\.yaml\n.*?)```", (ROOT / "docs" / "tables.md").read_text(), re.S
    )
    node = yaml.safe_load(text)
    short = ["student.args.width=4", "schedule.steps=2", "schedule.batch_size=16", "teacher.schedule.steps=2"]
    node["columns"] = {name: [*words, *short] for name, words in node["columns"].items()}
    monkeypatch.setattr("kdrun.results.spec.read_conf", lambda _, name, cls: build(cls, {**node, "seeds": [0]}, name))
    fast = [f"override={word}" for word in ("tracker=none", "execution.threads=1", "execution.device=cpu")]
    shown = table(["table=mine", f"outputs={outputs}", "execute=true", *fast])
    assert shown.splitlines()[2].split() == ["50", "labels", "100", "labels", "both"]
    assert shown.count("(n=1)") == 2 * 3
    assert "tuned: of the candidates of a row each column shows the best by val/top1" in shown
    assert "supervised/digits/nall" in shown
    assert len(list(unique_records(outputs)[0])) == 2 * 2 * 2 + 1
