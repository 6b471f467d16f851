"""Streamed image files: the packed path's order, labels and pixels; workers that change nothing and leave nothing."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as official

from kdrun.cli.train import main
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.seeding import generator
from kdrun.data.load import load_dataset
from kdrun.data.loader import Loader, make_loader
from kdrun.data.residency import place
from kdrun.data.splits import Split
from kdrun.data.streamed import ImageFiles, num_workers
from kdrun.data.views.center import Center
from kdrun.data.views.recipes import Crop, FileCrop, Strong
from kdrun.data.views.view import clean
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator

SIZE = 16
STEPS = 6
CROPS = ["views=imagenet", "views.size=12"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (20 + 3 * i, 26 - 2 * i, 3)
                Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def composer():
    with Composer() as composer:
        yield composer


def config_of(composer, tree, outputs, *overrides):
    return composer.typed([
        "dataset=imagefolder", f"dataset.path={tree}", f"dataset.size={SIZE}", "method=supervised", "tracker=none",
        "dataset.val_fraction=0", f"execution.outputs={outputs}", *overrides,
    ])  # fmt: skip


def loader_of(config, outputs, workers: int, views=("weak", "strong"), **more) -> Loader:
    arrays = load_dataset(config.dataset, outputs)
    train, _ = place(arrays, torch.device("cpu"), "auto", workers)
    n = len(arrays.train_labels)
    return make_loader(
        {"labeled": views}, arrays, Split(np.arange(n), np.arange(n), np.arange(0), len(arrays.test_labels)), train,
        {"labeled": 4}, Assembly.of(config, torch.device("cpu")).recipes, seed=3, total_steps=STEPS, mix=config.views.mix,
        size=(12, 12) if config.views.weak.scale else None, **more,
    )  # fmt: skip


def batches(loader: Loader, steps=range(STEPS)):
    try:
        return [loader.batch(step)["labeled"] for step in steps]
    finally:
        loader.close()


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.target, other.target)
        for name, view in one.views.items():
            assert torch.equal(view.index, other.views[name].index)
            assert torch.equal(view.pixels, other.views[name].pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_crops_at_random_scales_all_is_as_if_packed(tree, composer, outputs, workers):
    packed = config_of(composer, tree, outputs, f"dataset.pack.size={SIZE}")
    streamed = config_of(composer, tree, outputs, f"dataset.pack.size={SIZE}", "dataset.stream=true")
    assert run_key(packed) == run_key(streamed)
    assert_same(batches(loader_of(streamed, outputs, workers)), batches(loader_of(packed, outputs, 0)))


def test_crops_have_the_packed_paths_order_labels_and_random_numbers(tree, composer, outputs):
    mixed = ["method=mixup_distill", "teacher=resnet8", "views.mix.kind=cutmix"]
    packed, streamed = (
        config_of(composer, tree, outputs, *CROPS, *mixed, f"dataset.stream={stream}") for stream in ("false", "true")
    )
    assert run_key(packed) != run_key(streamed)
    some, others = batches(loader_of(packed, outputs, 0)), batches(loader_of(streamed, outputs, 2))
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.target, other.target)
        view = other.views["weak"]
        assert torch.equal(one.views["weak"].index, view.index)
        assert torch.equal(one.views["weak"].unmixed.partner, view.unmixed.partner)
        assert view.pixels.shape == (4, 3, 12, 12)


def test_what_the_host_draws_is_made_into_the_same_batches_whatever_order_is_asked(tree, composer, outputs):
    mixed = ["method=mixup_distill", "teacher=resnet8", "views.mix.kind=cutmix"]
    config = config_of(composer, tree, outputs, *CROPS, *mixed, "dataset.stream=true")
    expected, loader = batches(loader_of(config, outputs, 0)), loader_of(config, outputs, 2)
    order = [*range(STEPS), 1, 0]
    try:
        got = [loader.made(loader.drawn(step))["labeled"] for step in order]
    finally:
        loader.close()
    assert_same(got, [expected[step] for step in order])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_batch_of_a_pass_may_be_small(tree, composer, outputs, workers):
    config = config_of(composer, tree, outputs, *CROPS, "dataset.stream=true")
    n = len(load_dataset(config.dataset, outputs).train_labels)
    steps = -(-n // 4)
    loader = loader_of(config, outputs, workers, small_last=True)
    found = batches(loader, range(2 * steps))
    assert [len(samples.target) for samples in found[:steps]] == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    assert n % 4
    assert all(len(view.pixels) == len(samples.target) for samples in found for view in samples.views.values())
    for first in (0, steps):
        seen = torch.cat([samples.views["weak"].index for samples in found[first : first + steps]])
        assert seen.sort().values.tolist() == list(range(n))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_box_is_cut_out_of_the_files_own_pixels_as_by_torchvision(tree, mode):
    crop = FileCrop((SIZE, SIZE), 12, (0.3, 1.0), (3 / 4, 4 / 3), mode, True)
    params = crop.draw(generator(0, "x"), 5)
    files = sorted((tree / "train" / "cat").iterdir())
    cut = []
    for k, path in enumerate(files):
        image = Image.open(path).convert("RGB")
        numbers = params.tries[k].unsqueeze(1), params.place[k].unsqueeze(1)
        ((top, left, height, width),) = crop.boxes(*numbers, (image.height, image.width)).tolist()
        assert top + height <= image.height
        assert left + width <= image.width
        expected = official.resized_crop(image, top, left, height, width, [12, 12], InterpolationMode(mode))
        cut.append(crop.cut(image, params, k))
        np.testing.assert_array_equal(cut[-1], np.asarray(expected))
    images = torch.from_numpy(np.stack(cut))
    got = crop.apply(images.clone(), torch.arange(5), params).permute(0, 2, 3, 1)
    for k, flip in enumerate(params.flip.tolist()):
        assert torch.equal(got[k], images[k].flip(1) if flip else images[k])


def test_images_of_the_size_of_the_packed_ones_give_the_same_boxes(tree):
    of_files, packed = (kind((SIZE, SIZE), 8, (0.1, 1.0), (0.5, 2.0), "bilinear", True) for kind in (FileCrop, Crop))
    params, expected = of_files.draw(generator(0, "x"), 50), packed.draw(generator(0, "x"), 50)
    found = of_files.boxes(params.tries.transpose(0, 1), params.place.T, (SIZE, SIZE))
    assert torch.equal(found, expected.box)
    assert torch.equal(params.flip, expected.flip)


def test_the_number_of_workers_changes_nothing_and_none_is_left(tree, composer, outputs):
    config = config_of(composer, tree, outputs, *CROPS, "dataset.stream=true")
    expected = batches(loader_of(config, outputs, 0))
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    for workers in (1, 2):
        assert_same(batches(loader_of(config, outputs, workers)), expected)
        assert not multiprocessing.active_children()
    assert torch.equal(torch.rand(1), wanted)  # the run's own random numbers are those that they would be
    assert_same(batches(loader_of(config, outputs, 2), range(3, STEPS)), expected[3:])  # resumed
    assert_same(batches(loader_of(config, outputs, 1), [4, 1, 2]), [expected[k] for k in (4, 1, 2)])


def test_evaluation_streams_too(tree, composer, outputs):
    packed, streamed = (config_of(composer, tree, outputs, *CROPS, f"dataset.stream={s}") for s in ("false", "true"))
    (one, _), (other, test) = (
        place(load_dataset(c.dataset, outputs), torch.device("cpu"), "auto") for c in (packed, streamed)
    )
    assert isinstance(test, ImageFiles)
    assert (other.shape, test.shape) == ((10, SIZE, SIZE, 3), (6, SIZE, SIZE, 3))
    center, index = Center(12, 0.75, "bilinear"), torch.tensor([7, 0, 3, 3, 9])
    assert torch.equal(clean(one, index, center), clean(other, index, center))
    found = [
        Evaluator({"val": (images, index, index)}, 2, center=center).logits(
            lambda view: {"net": view.pixels.flatten(1).float()}
        )["val", "net"]
        for images in (one, other)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named_when_they_are_met(tree, composer, outputs, tmp_path, workers):
    shutil.copytree(tree, tmp_path / "copy")
    bad = tmp_path / "copy" / "train" / "dog" / "2.png"
    bad.write_bytes(b"<html>")
    config = config_of(composer, tmp_path / "copy", outputs, "dataset.stream=true")
    with pytest.raises(DataError, match=rf"^dataset\.stream: unreadable image {bad} \(not an image\); remove it, or"):
        batches(loader_of(config, outputs, workers))
    assert not multiprocessing.active_children()
    train, _ = place(load_dataset(config.dataset, outputs), torch.device("cpu"), "auto")
    with pytest.raises(DataError, match=r"unreadable image"):
        clean(train, torch.arange(10))


def test_what_does_not_go_together(tree, composer, outputs):
    with pytest.raises(ConfigError, match=r"dataset\.skip_unreadable: which files are unreadable is not known before"):
        config_of(composer, tree, outputs, "dataset.stream=true", "dataset.skip_unreadable=true")
    np.savez(outputs.with_name("pool.npz"), images=np.zeros((2, SIZE, SIZE, 3), np.uint8))
    config = config_of(
        composer, tree, outputs, "dataset.stream=true", "method=fixmatch", "loss=ce",
        f"dataset.unlabeled={outputs.with_name('pool.npz')}",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"dataset\.unlabeled: .*only image files can be streamed with the others"):
        load_dataset(config.dataset, outputs)
    assert num_workers("auto") >= 1
    assert num_workers(0) == 0


RUN = [
    "dataset=imagefolder", f"dataset.size={SIZE}", "dataset.stream=true", "dataset.val_fraction=0.2", *CROPS,
    "tracker=none", "student=resnet8", "student.args.width=4", "schedule.batch_size=4", "execution.threads=1",
    "schedule.eval_every_steps=null", "execution.device=cpu", "teacher=none",
]  # fmt: skip


def test_a_run_of_fixmatch_and_its_resumption(tree, train, outputs):
    """Strong views and the pool of unlabeled images: nothing needs all images at hand."""
    arguments = [
        *RUN, f"dataset.path={tree}", "method=fixmatch", "loss=ce", "schedule.steps=3", "dataset.num_labels=4",
        "method.unlabeled_ratio=1", "execution.workers=1",
    ]  # fmt: skip
    assert train(*arguments) == 0
    (path,) = outputs.glob("runs/*/*/*/*/record.json")
    record = json.loads(path.read_text())
    assert record["seconds"]["data"] > 0
    assert "waiting for data" in (path.parent / "log.txt").read_text()
    assert not multiprocessing.active_children()


def children(pid: int) -> list[int]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == pid]


def train_in_a_group_of_its_own(arguments):
    os.setsid()
    os._exit(main(arguments))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_stops_the_run_with_a_checkpoint_and_ends_the_workers(tree, outputs, number, capfd):
    arguments = [
        *RUN, f"dataset.path={tree}", "method=supervised", "loss=ce", "schedule.steps=100000", "execution.workers=2",
        "execution.log_every_steps=5", f"execution.outputs={outputs}",
    ]  # fmt: skip
    run = multiprocessing.get_context("fork").Process(target=train_in_a_group_of_its_own, args=(arguments,))
    run.start()
    try:
        (logged,) = wait_for(lambda: [p for p in outputs.glob("runs/*/*/*/*/metrics.jsonl") if p.stat().st_size])
        workers = children(run.pid)
        assert len(workers) == 2
        os.killpg(run.pid, number)  # as a terminal does, SLURM and timeout(1): to all of them
        run.join(60)
        assert run.exitcode == 128 + number
    finally:
        if run.is_alive():
            os.killpg(run.pid, signal.SIGKILL)
    assert (logged.parent / "checkpoint" / "last.pt").exists()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in capfd.readouterr().err


def wait_for(found, seconds=60):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found()


def test_labeled_images_are_shown_strong_of_files_too(tree, composer, outputs):
    strong = ["views.labeled=strong", "views.strong.levels=timm", "views.strong.cutout=0", "views.strong.erase=0.5"]
    config = config_of(composer, tree, outputs, *CROPS, *strong, "dataset.stream=true")
    recipes = Assembly.of(config, torch.device("cpu")).recipes
    expected = batches(loader_of(config, outputs, 0, ("weak",), shown="strong"))
    assert_same(batches(loader_of(config, outputs, 2, ("weak",), shown="strong")), expected)
    loader = loader_of(config, outputs, 0, ("weak",), shown="strong")
    assert loader.streams["labeled"].recipes["weak"] is not recipes["weak"]
    one = loader.streams["labeled"]
    assert isinstance(one.recipes["weak"], Strong)
    decoded = one.decode(2)
    params = one.drawn(range(2, 3), decoded).params["weak"]
    cut = decoded.pixels["weak"]
    assert torch.equal(one.recipes["weak"].apply(cut, torch.arange(4), params), expected[2].views["weak"].pixels)
    weak = batches(loader_of(config, outputs, 0, ("weak",)))
    assert not torch.equal(weak[2].views["weak"].pixels, expected[2].views["weak"].pixels)
    loader.close()
