"""Every mistake gets one line that names the key and the nearest right one; exit code 2; nothing is written."""

import shlex

import pytest

from kdrun.cli.train import main
from kdrun.cli.useless import without_effect
from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError

pytestmark = pytest.mark.slow


PEERS = ["method=peer_distill", "students=[resnet8,resnet14]"]
MISTAKES = {
    "unknown option": (["method=distil"], "method=distil: no such option; nearest: distill"),
    "unknown option of a nested group": (["schedule/decay=stp"], "schedule/decay=stp: no such option; nearest: step"),
    "unknown group": (["metod=distill"], "metod: unknown key; nearest: method"),
    "unknown key": (["schedule.lrr=1"], "schedule.lrr: unknown key; nearest: lr "),
    "unknown key with +": (["+schedule.lrr=1"], "schedule.lrr: unknown key; nearest: lr "),
    "unknown key with ++": (["++schedule.wieght_decay=1"], "schedule.wieght_decay: unknown key; nearest: weight_decay"),
    "unknown key of a term with +": (["+loss.kd.tempreature=5"], "loss.kd.tempreature: unknown key; nearest: temperature"),
    "unknown nested key with +": (["+views.weak.flipp=true"], "views.weak.flipp: unknown key; nearest: flip"),
    "unknown root key with +": (["+sed=1"], "sed: unknown key; nearest: seed"),
    "+ on a key that exists": (["+seed=1"], "seed: exists already"),
    "removing what is not there": (["~loss.foo"], "~loss.foo: there is no such key"),
    "seed not an int": (["seed=abc"], "seed: must be a valid integer, got 'abc'"),
    "seed a float": (["seed=1.5"], "seed: must be a valid integer, got 1.5"),
    "negative seed": (["seed=-1"], "seed: must be greater than or equal to 0, got -1"),
    "number that is text": (["schedule.lr=fast"], "schedule.lr: must be a valid number, got 'fast'"),
    "number that is infinite": (["schedule.lr=inf"], "schedule.lr: must be a finite number"),
    "negative temperature": (["loss.kd.temperature=-4"], "loss.kd.temperature: must be greater than 0, got -4"),
    "temperature zero": (["loss=dist", "loss.dist.temperature=0"], "loss.dist.temperature: must be greater than 0, got 0"),
    "gamma zero": (["loss=ttm", "loss.ttm.gamma=0"], "loss.ttm.gamma: must be greater than 0, got 0"),
    "gamma negative": (["loss=wttm", "loss.wttm.gamma=-0.5"], "loss.wttm.gamma: must be greater than 0, got -0.5"),
    "unknown standardisation": (["loss.kd.standardize=zscor"], "loss.kd.standardize: 'zscor' is not allowed; nearest: zscore"),
    "no part of dkd": (["loss=dkd", "loss.dkd.alpha=0", "loss.dkd.beta=0"], "loss.dkd: alpha and beta are both 0; give one"),
    "no part of dist": (["loss=dist", "loss.dist.beta=0", "loss.dist.gamma=0"], "loss.dist: beta and gamma are both 0; give one"),
    "warm-up beyond the run": (["loss=dkd", "loss.dkd.warmup=20"], "loss.dkd.warmup: must be less than 1, got 20"),
    "gamma above 1": (["loss=wttm", "loss.wttm.gamma=2"], "loss.wttm.gamma: must be less than or equal to 1, got 2"),
    "not one of the allowed": (["schedule.weight_decay_on=kernel"], "schedule.weight_decay_on: 'kernel' is not allowed; nearest: kernels"),
    "bool that is text": (["schedule.nesterov=maybe"], "schedule.nesterov: must be a valid boolean, got 'maybe'"),
    "sweep without -m": (["seed=0,1"], "seed=0,1: several values are a sweep; add -m"),
    "not an override": (["seed"], "seed: not understood; write key=value"),
    "unknown flag": (["--sweep"], "command line: unrecognized arguments: --sweep"),
    "no such config directory": (["--config-dir", "/nonexistent"], "--config-dir: /nonexistent: no such directory"),
    "no length": (["schedule.steps=null"], "schedule: give schedule.steps or schedule.epochs, exactly one"),
    "two lengths": (["schedule.epochs=3"], "schedule: give schedule.steps or schedule.epochs, exactly one"),
    "no milestones": (["schedule/decay=step"], "schedule.decay: give milestones_steps or milestones_epochs"),
    "missing value": (["student=timm"], "student.name: missing; write student.name=<value>"),
    "unknown network": (["student=timm", "student.name=resnet188"], "student.name: timm knows no network 'resnet188'; nearest: resnet18"),
    "unknown argument of a network": (["+student.args.depht=3"], "resnet8: the network cannot be built with args"),
    "unknown optimizer": (["schedule.optimizer=adamww"], "schedule.optimizer: unknown optimizer 'adamww'; nearest: adamw"),
    "unknown optimizer argument": (["schedule.optimizer=adamw", "++schedule.optimizer_args={betaz: 1}"], "schedule.optimizer_args: adamw does not take"),
    "fewer labels than classes": (["dataset.num_labels=9"], "dataset.num_labels: 9 is fewer than the 10 classes"),
    "more labels than images": (["dataset.num_labels=1258"], "dataset.num_labels: 1258 is more than the 1257 training images"),
    "more of a class than there are": (
        ["dataset.num_labels=160/class"],
        "dataset.num_labels: 160/class, but class 8 has 121 images without validation; give at most 121/class, or 1600",
    ),
    "no number of labels": (
        ["dataset.num_labels=16/image"],
        "dataset.num_labels: '16/image' is no number of labels; give e.g. 160, 16/class or 1%",
    ),
    "no labels": (["dataset.num_labels=0"], "dataset.num_labels: 0 is no number of labels; give e.g. 160, 16/class or 1%"),
    "fewer labels for the teacher": (["teacher.num_labels=9"], "teacher: dataset.num_labels: 9 is fewer"),
    "loss needs a teacher": (["teacher=none"], "loss.kd: kd needs a teacher, but teacher.source=none"),
    "method offers no teacher": (["method=supervised", "loss=kd"], "loss.kd: kd works against the teacher, which method=supervised does not offer"),
    "all weights zero": (["loss.ce.weight=0", "loss.kd.weight=0"], "loss: no term with a weight above 0"),
    "the only weight zero": (["loss=wttm_noce", "loss.wttm.weight=0"], "loss: no term with a weight above 0"),
    "negative weight": (["loss.kd.weight=-1"], "loss.kd.weight: must be greater than or equal to 0, got -1"),
    "plateau without validation": (["schedule/decay=plateau", "dataset.val_fraction=0"], "schedule.decay: plateau follows the validation score"),
    "two students for one": (["students=[resnet8,resnet20]"], "students: method=distill trains 1, got 2"),
    "one student for peers": (["method=peer_distill"], "students: method=peer_distill trains 2 or more, got 1; give e.g. students=[resnet8,resnet14]"),
    "a peer of other classes": ([*PEERS, "students=[resnet8,{name: resnet14, args: {num_classes: 5}}]"], "students.1: args.num_classes: kdrun gives this one itself"),
    "peers without any weight": ([*PEERS, "loss.ce.weight=0", "loss.kd.weight=0", "method.peer_weight=0"], "loss: no term with a weight above 0"),
    "negative weight of peers": ([*PEERS, "method.peer_weight=-1"], "method.peer_weight: must be greater than or equal to 0, got -1"),
    "peers with unlabeled images": ([*PEERS, "method.unlabeled_ratio=7"], "method.unlabeled_ratio: unknown key (allowed: "),
    "fixmatch with peers": (["method=fixmatch", "students=[resnet8,resnet14]"], "students: method=fixmatch trains 1, got 2"),
    "unknown kind of uncertainty": ([*PEERS, "method/uncertainty=entropi"], "method/uncertainty=entropi: no such option; nearest: entropy"),
    "unknown name of an uncertainty": ([*PEERS, "method.uncertainty.name=entropi"], "method.uncertainty.name: unknown uncertainty 'entropi'; nearest: entropy"),
    "dropout that is not there": ([*PEERS, "method/uncertainty=mc_dropout"], "method.uncertainty: mc_dropout needs a teacher with dropout, and resnet20 has none"),
    "one pass with dropout": ([*PEERS, "method/uncertainty=mc_dropout", "method.uncertainty.passes=1"], "method.uncertainty.passes: must be greater than or equal to 2, got 1"),
    "one teacher as an ensemble": ([*PEERS, "method/uncertainty=deep_ensemble"], "method.uncertainty: deep_ensemble needs several teachers, teacher.source is train; choose ensemble"),
    "a teacher that gives no evidence": ([*PEERS, "method/uncertainty=evidential"], "method.uncertainty: evidential needs a teacher trained with that loss, and teacher.loss is ce"),
    "a statistic of the batch, weighted": ([*PEERS, "loss=dist"], "loss.dist: dist is a statistic of the batch, which cannot be weighted per sample; choose another loss, or method/uncertainty=none"),
    "unknown loss of a teacher": (["teacher.loss=evidentail"], "teacher.loss: unknown loss 'evidentail'; nearest: evidential"),
    "teacher that needs a teacher": (["teacher.loss=kd"], "teacher.loss: kd works against a teacher; choose a loss against labels, e.g. ce"),
    "ramp of no weight": (["+ramps.a={key: loss.kd.wieght, end: 0}"], "ramps.a.key: no weight above 0 is called 'loss.kd.wieght'; nearest: loss.kd.weight"),
    "two ramps of one weight": (["+ramps.a={key: loss.kd.weight, end: 0}", "+ramps.b={key: loss.kd.weight, end: 2}"], "ramps.b.key: loss.kd.weight has a ramp already"),
    "ramp that stands still": (["+ramps.a={key: loss.kd.weight}"], "ramps.a: start and end are both 1; nothing would move"),
    "ramp that ends before it begins": (["+ramps.a={key: loss.kd.weight, end: 0, from_progress: 0.5, until_progress: 0.4}"], "ramps.a: until_progress must be above from_progress, got 0.4"),
    "unknown kind of ramp": (["+ramps.a={key: loss.kd.weight, kind: cosin, end: 0}"], "ramps.a.kind: 'cosin' is not allowed; nearest: cosine"),
    "ramp that is no mapping": (["++ramps=5"], "ramps: expected a mapping such as {alpha: {key: loss.ce.weight, end: 0}}, got 5"),
    "adaptive ramp without evaluations": (["+ramps.a={key: loss.kd.weight, kind: adaptive, end: 0}", "schedule.eval_every_steps=null"], "ramps.a: adaptive needs evaluations"),
    "adaptive ramp without validation": (["+ramps.a={key: loss.kd.weight, kind: adaptive, end: 0}", "dataset.val_fraction=0"], "ramps.a: adaptive follows the validation score"),
    "absent feature": (["loss=fitnet", "loss.fitnet.feature=stage4"], "loss.fitnet: the student gives no stage4; it gives stage1, stage2, stage3, prelogits"),
    "feature that is no stage": (["loss=at", "loss.at.features=[prelogits]"], "loss.at.features.0: String should match pattern '^stage[1-9][0-9]*$', got 'prelogits'"),
    "features of an ensemble": (["loss=rkd", "teacher=ensemble", "teacher.members=[{source: train, model: {name: resnet8}}, {source: train, model: {name: resnet14}}]"], "loss.rkd: the teacher gives no prelogits; it gives members"),
    "term without a part": (["loss=itrd", "loss.itrd.correlation_weight=0", "loss.itrd.mutual_information_weight=0"], "loss.itrd: correlation_weight and mutual_information_weight are both 0"),
    "alpha of zero": (["method=mixup_distill", "views.mix.alpha=0"], "views.mix.alpha: must be greater than 0, got 0"),
    "negative alpha": (["views.mix.alpha=-1"], "views.mix.alpha: must be greater than 0, got -1"),
    "share above 1": (["views.mix.share=1.5"], "views.mix.share: must be less than or equal to 1, got 1.5"),
    "share below 0": (["views.mix.share=-0.5"], "views.mix.share: must be greater than or equal to 0, got -0.5"),
    "unknown mix": (["views.mix.kind=mixupp"], "views.mix.kind: 'mixupp' is not allowed; nearest: mixup"),
    "lambda per what": (["views.mix.per=image"], "views.mix.per: 'image' is not allowed (allowed: batch, sample)"),
    "method that cannot mix": (["method=fixmatch", "views.mix.kind=cutmix"], "views.mix.kind: method=fixmatch does not take mixed images, got cutmix; set it to none"),
    "method that must mix": (["method=mixup_distill", "views=usb"], "views.mix.kind: none, but method=mixup_distill mixes; choose mixup or cutmix"),
    "labeled images and views by their rates": (["method=fixmatch", "views=ctaugment", "views.labeled=strong"], "views.labeled: strong, but views.strong.policy=ctaugment has its operations done by methods of FixMatch's kind"),
    "kept logits of strong views": (["loss=kd", "views.labeled=strong", "teacher.cache.mode=views"], "teacher.cache.mode: views keeps logits of weak views, and views.labeled=strong shows others; set it to off"),
    "erasing behind views by their rates": (["method=fixmatch", "views=ctaugment", "views.strong.erase=0.5"], "views.strong.erase: goes with policy=randaugment; set it to 0"),
    "magnitude above 10": (["views.strong.magnitude=11"], "views.strong.magnitude: must be less than or equal to 10, got 11"),
    "memory of mixed images": (["method=mixup_distill", "loss=crd"], "loss.crd: crd remembers single images, and views.mix.kind=mixup mixes them"),
    "mixing for a teacher from a file": (["teacher=file", "student@teacher.model=resnet8", f"teacher.path={__file__}", "teacher.mix.kind=mixup"], "teacher.mix: not for source=file; source=distilled and train have it"),
    "temperature of zero": (["method=mixup_distill", "loss.kd.temperature=0"], "loss.kd.temperature: must be greater than 0, got 0"),
    "coefficient of no term": (["++coefficients={wttn: {wttm.gamma: 1}}"], "coefficients.wttn: unknown loss 'wttn'; nearest: wttm"),
    "coefficient of no field": (["++coefficients={wttm: {wttm.gama: 1}}"], "coefficients.wttm.wttm.gama: wttm has no 'gama'; nearest: gamma"),
    "missing plugin": (["plugins=[nowhere.py]"], "plugins: nowhere.py: no such Python file"),
    "missing folder of corruptions": (["evaluate.corruptions=/nowhere"], "evaluate.corruptions: /nowhere/labels.npy: no such file; expected the files of CIFAR-10-C"),
    "missing data file": (["dataset=npz", "dataset.path=/nowhere.npz"], "dataset.path: /nowhere.npz: cannot be read"),
    "missing split file": (["dataset.split_file=/nowhere.npz"], "dataset.split_file: /nowhere.npz: cannot be read (No such file or directory)"),
    "absent device": (["execution.device=cuda:99"], "execution.device: cuda:99 was asked for"),
    "fp16 without cuda": (["schedule.precision=fp16", "execution.device=cpu"], "schedule.precision: fp16 needs cuda, this run is on cpu"),
    "group set to null": (["method=null"], "method=null: not an option of the group (allowed: "),
    "group set to a number": (["loss=5"], "loss=5: "),
    "learning rate in two places": (["+schedule.optimizer_args.lr=5"], "schedule.optimizer_args: lr belongs to schedule.lr"),
    "small batches of no whole pass": (["schedule.last_batch=small"], "schedule.last_batch: small batches end a pass of whole steps"),
    "the same of a teacher": (["+teacher.schedule={steps: 1, last_batch: small}"], "teacher.schedule.last_batch: small batches end a pass"),
    "a key of a member": (["teacher=ensemble", "teacher.members=[{source: timm, model: {name: resnet18, pretrained: true, new_head: true}}, {source: train}]"], "teacher.members.0.model.new_head: a frozen teacher would have"),
    "option of a nested group": (["method=linear_eval", "method@method.of=nope"], "method@method.of=nope: no such option (allowed: "),
    "option of an added group": (["+loss/term@loss.more=nope"], "loss/term@loss.more=nope: no such option; nearest: nce"),
    "configuration of a sweep": (["-m", "seed=0,1", "--cfg", "job"], "--cfg: shows one job, and this is a sweep; give each key one value"),
    "a key of a student that is a name": (["experiment=dual_student/digits", "students.0.file=x.pth"], "students.0.file: students.0 is only a name; write \"students=[{name: resnet8, file: x.pth}, wrn_16_1]\""),
    "a new key of a student": (["students=[{name: resnet8},resnet14]", "students.0.file=x.pth"], "students.0.file: a new key goes in with a +; write +students.0.file=x.pth"),
    "a key of no student": (["students=[resnet8,resnet14]", "students.2.file=x.pth"], "students.2.file: there are 2 students, counted from 0"),
    "settings of nothing": (["+settings.dhoo.ce_share=1"], "settings.dhoo: no method, teacher or loss term reads it; nearest: dho"),
    "a count that is not there": (["experiment=kd_fixmatch/digits", "method.selector=random"], "method.selector: random needs a count; give "),
    "padding as wide as the image": (["views.weak.pad=8"], "views.weak.pad: 8 is too wide for images of 8x8 pixels"),
    "value that needs quotes": (["dataset.split_file=~/x"], "dataset.split_file=~/x: not understood; quote the value: \"dataset.split_file='~/x'\""),
    "coefficients not a mapping": (["++coefficients={wttm: 1}", "loss=wttm"], "coefficients.wttm: expected a mapping"),
    "file that is a folder": (["dataset=npz", "dataset.path=."], "dataset.path: .: not a readable .npz file"),
    "changing directories": (["hydra.job.chdir=true"], "hydra.job.chdir: kdrun names directories itself"),
    "unknown network in lr_for": (["+schedule.lr_for.resnet188=0.1"], "schedule.lr_for.resnet188: timm knows no network"),
    "unknown device": (["execution.device=gpu"], "execution.device: 'gpu' is not a device; allowed: auto, cpu, cuda"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, train, outputs, capsys):
    arguments, message = MISTAKES[name]
    assert train("tracker=none", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: {message}"), lines[0]
    assert not outputs.exists()


def test_mistakes_of_a_sweep_are_listed_and_no_job_starts(train, outputs, capsys):
    assert train("-m", "tracker=none", "seed=0,1", "loss=ce,kdd", "dataset.num_labels=5,50") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "loss=kdd: no such option; nearest: kd" in line]
    assert all(line.startswith("error: job ") for line in lines)
    assert not outputs.exists()


def test_in_a_sweep_no_mistake_hides_another(train, outputs, capsys):
    assert train("-m", "tracker=none", "loss=kd,kdd", "schedule.lrr=1") == 2
    key, option = capsys.readouterr().err.splitlines()
    assert key.startswith("error: job 0 (loss=kd): schedule.lrr: unknown key; nearest: lr ")
    assert option.startswith("error: job 1 (loss=kdd): loss=kdd: no such option; nearest: kd ")
    assert not outputs.exists()


def test_a_key_of_what_is_swept_over_is_known(train, outputs, capsys):
    words = ["-m", "tracker=none", "loss=ce", "teacher=none", "method=fixmatch,flexmatch", "method.threshold=0.9"]
    assert train(*words, "seed=x") == 2
    assert capsys.readouterr().err == "error: seed: must be a valid integer, got 'x'\n"
    assert train(*words[:-2], "method=fixmatch,supervised", "method.threshold=0.9") == 2
    assert capsys.readouterr().err.startswith("error: job 1 (method=supervised): method.threshold: unknown key")
    assert not outputs.exists()


def test_mistake_in_one_value_of_a_sweep_names_its_job(train, outputs, capsys):
    assert train("-m", "tracker=none", "seed=0,x") == 2
    assert capsys.readouterr().err == "error: job 1 (seed=x): seed: must be a valid integer, got 'x'\n"
    assert not outputs.exists()


@pytest.mark.parametrize("place", ["file/outputs", "file"])
def test_unwritable_output_directory(tmp_path, capsys, place):
    (tmp_path / "file").write_text("not a directory")
    assert main(["tracker=none", f"execution.outputs={tmp_path / place}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: execution.outputs: {tmp_path / place}: cannot write there")
    assert (tmp_path / "file").read_text() == "not a directory"


def test_flags_may_stand_between_overrides(train, capsys):
    assert train("seed=0,x", "-m", "loss=ce") == 2
    assert "job 1 (seed=x): seed" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["execution=null", "~execution"])
def test_execution_cannot_be_left_out(tmp_path, monkeypatch, capsys, override):
    monkeypatch.chdir(tmp_path)
    assert main(["tracker=none", override]) == 2
    assert capsys.readouterr().err == "error: execution: missing; it must be the mapping of conf/config.yaml\n"
    assert not list(tmp_path.iterdir())


USELESS = {
    "names that nobody reads": "dataset.class_names=[a,b]",
    "a pool that nobody asks": "dataset.unlabeled=nowhere",
    "a teacher's temperature": "teacher.temperature=3",
    "strong views that nobody sees": "views.strong.num_ops=5",
    "a magnitude that levels do not have": "views.strong.magnitude=5",
    "CutMix of mixup": "views.mix.cutmix_alpha=0.3",
    "crops that are not made": "views.weak.ratio=[1,2]",
    "a seed of no draw": "dataset.split_seed=3",
}


@pytest.mark.parametrize("override", USELESS.values())
def test_an_override_without_effect_is_told(override):
    with Composer() as composer:
        jobs = [
            composer.job(["method=supervised", "loss=ce", "teacher=none", override, f"seed={seed}"]) for seed in "01"
        ]
    assert without_effect(jobs) == [f"{override}: has no effect in what this runs"]


def test_an_override_with_an_effect_in_one_job_is_not_told():
    words = [
        "method=distill",
        "teacher=resnet8",
        "teacher.model.args.width=4",
        "schedule.lr=1e-3",
        "dataset.num_labels=50",
    ]
    words += ["student.args.width=4", "schedule.compile=null", "teacher.cache.mode=off", "loss.ce.weight=2"]
    with Composer() as composer:
        jobs = [composer.job([*words, loss]) for loss in ("loss=kd", "loss=ce")]
        assert without_effect(jobs) == []
        assert without_effect(jobs[1:]) == ["teacher.model.args.width=4: has no effect in what this runs"]


@pytest.mark.parametrize(
    "value", ["a'b.pt", "'a'b.pt'", "~/x", 'a"b', "a'b\"c", "=1", "a b'", "[x", "b\\'c", "é{", "x'\\"]
)
def test_the_hint_to_quote_is_itself_understood(value):
    with Composer() as composer:
        with pytest.raises(ConfigError, match="not understood; quote the value: ") as refused:
            composer.compose([f"tracker.project={value}"])
        (word,) = shlex.split(str(refused.value).partition("quote the value: ")[2])
        quoted = len(value) > 1 and value[0] == value[-1] == "'"
        assert composer.compose([word]).tracker.project == (value[1:-1] if quoted else value)


@pytest.mark.parametrize("value", ["1", "'a b'", "a", "[0.9,0.9]", "{a: 1, b: 2}", "'it\\'s'", '"$x"', "'x;y'"])
@pytest.mark.parametrize("key", ["student.args.foo", "teacher.model.args.foo", "schedule.optimizer_args.foo"])
def test_the_hint_to_add_a_key_is_itself_understood(key, value):
    with Composer() as composer:
        with pytest.raises(ConfigError, match=rf"^{key}: a new key goes in with a \+; write ") as refused:
            composer.compose([f"{key}={value}"])
        (word,) = shlex.split(str(refused.value).partition("; write ")[2])
        assert word == f"+{key}={value}"
        composer.compose([word])


GROUPS = ["method", "dataset", "loss", "schedule", "student", "teacher", "views", "tracker", "experiment"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", ["null", "3", "0.5", "true"])
def test_the_group_that_has_no_such_option_is_blamed_wherever_it_stands(group, value):
    others = ["schedule.steps=2", "dataset.split_file=null", "schedule.lr=0.1", "student.pretrained=false"]
    others = [word for word in others if not word.startswith(group)]
    with Composer() as composer:
        for words in ([f"{group}={value}", *others], [*others, f"{group}={value}"]):
            with pytest.raises(ConfigError, match=rf"^{group}={value}: ") as refused:
                composer.compose(words)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["12", "1.5", "true", "-3"])
@pytest.mark.parametrize("key", ["dataset.split_file", "tracker.project", "student.file", "schedule.optimizer"])
def test_the_hint_to_quote_what_is_no_text_is_itself_taken(key, value):
    """The path may then be absent: what counts is that the text is taken as a text."""
    with Composer() as composer:
        with pytest.raises(ConfigError, match=rf"{key}: must be a valid string, got .*; quote it: ") as refused:
            composer.typed([f"{key}={value}"])
        (word,) = shlex.split(str(refused.value).partition("quote it: ")[2])
        assert word.startswith(f"{key}=")
        told = ""
        try:
            composer.typed([word])
        except ConfigError as error:
            told = str(error)
        assert "must be a valid string" not in told


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([], "student"),
        (["method=peer_distill", "students=[resnet8,{name: resnet14, NAME: [0.5,0.5]}]"], "students.1"),
        (["loss=kd", "teacher=resnet20"], "teacher.model"),
        (["loss=kd", "teacher=ensemble", "teacher.members=[{source: train, model: resnet8}, {source: train, model: {name: resnet8, NAME: [0.5,0.5]}}]"], "teacher.members.1.model"),
    ],
)  # fmt: skip
def test_statistics_of_other_channels_name_the_key(name, words, key, train, outputs, capsys):
    words = [word.replace("NAME", name) for word in words]
    given = [] if any(name in word for word in words) else [f"{key}.{name}=[0.5,0.5]"]
    assert train("tracker=none", *words, *given) == 2
    assert capsys.readouterr().err == f"error: {key}.{name}: 2 numbers for images of 1 channels; give 1\n"
    assert not outputs.exists()
