"""Memory that a dataset takes."""

import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench.harness import fake_cifar100, report

RESIDENT = """
import sys
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

import torch
from kdrun.config.compose import Composer
import kdrun.training.runner
from kdrun.data.load import load_dataset
from kdrun.data.views.recipes import Weak

with Composer() as composer:
    config = composer.typed(["dataset=cifar100", "dataset.verify_md5=false", f"dataset.root={sys.argv[1]}"])
import torchvision.datasets
before = resident()
if sys.argv[2] == "load":
    arrays = load_dataset(config.dataset)
    train, test = torch.from_numpy(arrays.train_images), torch.from_numpy(arrays.test_images)
    recipe, generator = Weak(4, False, True), torch.Generator()
    for step in range(20):
        recipe.apply(train, torch.randint(0, 50_000, (64,)), recipe.draw(generator, 64))
print(resident() - before)
"""


def bench_memory() -> None:
    """What CIFAR-100 adds to a process that has imported everything."""
    if not Path("/proc/self/statm").exists():
        print("memory: needs /proc")
        return
    with tempfile.TemporaryDirectory() as folder:
        fake_cifar100(Path(folder))
        for what in ("load", "nothing"):
            values = []
            for _ in range(3):
                command = [sys.executable, "-c", RESIDENT, folder, what]
                values.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            report(f"resident memory, CIFAR-100: {what}", values, "MB")
