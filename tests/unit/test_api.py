"""The public API: lazy, and the same things under the names of old plug-ins."""

import ast
import subprocess
import sys

import kdrun
from tests.conftest import ROOT


def test_every_public_name_is_there():
    for name in kdrun._PUBLIC:
        assert getattr(kdrun, name) is not None
        assert name in dir(kdrun)


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse((ROOT / "kdrun" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names if alias.asname}
    assert seen == {name: f"kdrun.{module}" for name, module in kdrun._PUBLIC.items()}


def test_importing_kdrun_imports_no_torch():
    code = (
        "import sys, kdrun; from kdrun import register, MethodConfig, ConfigError; "
        "assert not {'torch', 'timm', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_old_names_are_the_same_things():
    import kdrun.config
    import kdrun.losses
    import kdrun.method
    import kdrun.registry

    assert kdrun.registry.register is kdrun.register
    assert kdrun.method.Method is kdrun.Method
    assert kdrun.method.Step is kdrun.Step
    assert kdrun.config.TermConfig is kdrun.TermConfig
    assert kdrun.losses.Term is kdrun.Term
    assert kdrun.losses.kd.__module__ == "kdrun.losses.logits"
