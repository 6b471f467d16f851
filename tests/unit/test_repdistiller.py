"""RepDistiller's published teachers: files in its naming, through conf/teacher/repdistiller_*.yaml."""

import http.server
import re
import threading

import pytest
import torch
import yaml

from kdrun.cli.download import configs_of, main, needs_of
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.paths import CONF_DIR
from kdrun.methods.step import Setup
from kdrun.results.cell import given_teacher
from kdrun.teachers.kind import make_teacher, untrained_teacher

SETUP = Setup(
    100, 3, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), train_target=torch.zeros(5, dtype=torch.int64)
)
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


def vgg(name: str) -> str:
    """block0.0 is its first convolution; its pooling stands between the blocks, ours at the beginning of layer 2 to 4."""
    if name.startswith("fc."):
        return name.replace("fc.", "classifier.")
    layer, i, rest = re.fullmatch(r"layer(\d)\.(\d)\.(.*)", name).groups()
    return f"block{int(layer) - 1}.{int(i) - (2 <= int(layer) <= 4)}.{rest}"


def wrn(name: str) -> str:
    name = re.sub(r"^layer(\d)\.(\d)\.shortcut\.", r"block\1.layer.\2.convShortcut.", name)
    return re.sub(r"^layer(\d)\.", r"block\1.layer.", name)


THEIRS = {
    "resnet56": lambda name: name.replace("shortcut", "downsample"),
    "resnet110": lambda name: name.replace("shortcut", "downsample"),
    "resnet32x4": lambda name: name.replace("shortcut", "downsample"),
    "wrn_40_2": wrn,
    "vgg13_cifar": vgg,
    "resnet50_cifar": lambda name: name.replace("fc.", "linear."),
}


def test_there_is_one_for_every_teacher_of_the_table():
    picked = set()
    for path in (CONF_DIR / "experiment" / "ttm").glob("*.yaml"):
        text = path.read_text()
        if "- /experiment/ttm/base" in text:
            picked |= {
                word["override /teacher"] for word in yaml.safe_load(text)["defaults"] if "override /teacher" in word
            }
    assert picked == set(THEIRS)
    assert {path.stem for path in (CONF_DIR / "teacher").glob("repdistiller_*")} == {
        f"repdistiller_{n}" for n in THEIRS
    }


@pytest.mark.parametrize("name", THEIRS)
def test_a_file_in_its_naming_says_what_our_weights_say(tmp_path, name):
    path = tmp_path / "ckpt_epoch_240.pth"
    path.touch()
    with Composer() as composer:
        teacher = composer.typed(
            ["dataset=cifar100", f"teacher=repdistiller_{name}", f"teacher.path={path}", "loss=kd", "student=resnet8"]
        ).teacher
    ours = SETUP.network(teacher.model, seed=1).eval()
    state = {THEIRS[name](key): value for key, value in ours.net.state_dict().items()}
    assert len(state) == len(ours.net.state_dict())
    torch.save({"epoch": 240, "model": state, "best_acc": torch.tensor(72.3), "optimizer": {"state": {}}}, path)
    made = make_teacher(teacher, SETUP, {}).eval()
    assert torch.equal(made(PIXELS).logits, ours(PIXELS).logits)
    with torch.device("meta"):
        untrained_teacher(teacher, SETUP)


def test_the_file_is_fetched_from_where_it_is_published_and_its_absence_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web" / "repo" / "resnet56_vanilla").mkdir(parents=True)
    (tmp_path / "web" / "repo" / "resnet56_vanilla" / "ckpt_epoch_240.pth").write_bytes(b"weights")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=str(tmp_path / "web"), **options)

        def log_message(self, *_):
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = ["dataset=digits", "teacher=repdistiller_resnet56", "loss=kd", "student=resnet8"]
    [need] = [need for need in needs_of(configs_of(words)) if "teacher.path" in need.what]
    assert need.state == "missing"
    assert "shape2prog.csail.mit.edu/repo/resnet56_vanilla/ckpt_epoch_240.pth" in need.what
    with (
        Composer() as composer,
        pytest.raises(ConfigError, match=r"teacher\.path: .*; kdrun download gets it from http"),
    ):
        run_key(composer.typed(words))
    base = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(
        KdrunError, match=r"teacher\.path: http://\S+ cannot be downloaded .*; put the file at data/rep"
    ):
        main([*words, f"teacher.url={base}/gone.pth"])
    main([*words, f"teacher.url={base}/repo/resnet56_vanilla/ckpt_epoch_240.pth"])
    assert (tmp_path / "data/repdistiller/resnet56_vanilla/ckpt_epoch_240.pth").read_bytes() == b"weights"
    server.shutdown()


def test_tables_say_whose_teacher_it_is():
    teacher = {"source": "file", "path": "a/b.pth", "model": {"name": "resnet56"}}
    record = {"config": {"teacher": teacher}, "metrics": {"test/teacher/top1": 0.7234}, "requires": {}}
    assert given_teacher(record, "test/top1") == {"resnet56 (file)": 0.7234}
    teacher["origin"] = "RepDistiller's published one (arXiv 1910.10699)"
    assert given_teacher(record, "test/top1") == {f"resnet56 ({teacher['origin']})": 0.7234}


def test_an_experiment_of_the_table_takes_it(tmp_path):
    (tmp_path / "t.pth").touch()
    with Composer() as composer:
        words = ["experiment=ttm/vgg13_cifar_vgg8_cifar", "loss=wttm", f"teacher.path={tmp_path / 't.pth'}"]
        config = composer.typed([*words, "teacher=repdistiller_vgg13_cifar"])
    assert (config.teacher.source, config.teacher.model.name) == ("file", "vgg13_cifar")
    assert config.losses["wttm"].gamma == 0.1
