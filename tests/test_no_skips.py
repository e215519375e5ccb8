"""A test that is left out fails the suite."""

import os
import subprocess
import sys
from pathlib import Path


LEFT_OUT = """
import unittest, pytest

def test_skips(): pytest.skip("no weights")

@pytest.mark.skip
def test_is_marked(): pass

@pytest.mark.skipif(True, reason="no weights")
class TestClass:
    def test_in_a_class(self): pass

@pytest.mark.xfail
def test_is_expected_to_fail_and_fails(): assert False

@pytest.mark.xfail
def test_is_expected_to_fail_and_passes(): pass

@pytest.fixture
def model(): pytest.importorskip("no_such_package")

def test_lacks_a_fixture(model): pass

class Test(unittest.TestCase):
    def test_of_unittest(self): self.skipTest("no weights")
"""
NAMES = [word.split("(")[0] for word in LEFT_OUT.split() if word.startswith("test_")]


def run(folder):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no_skips", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_tests_that_skip_or_are_expected_to_fail_fail_and_are_named(tmp_path):
    (tmp_path / "test_some.py").write_text(LEFT_OUT + "\ndef runs(): pass\n\ntest_runs = runs\n")
    done = run(tmp_path)
    failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert done.returncode == 1 and len(NAMES) == 7, done.stdout
    assert sorted(line.split("::")[-1] for line in failed) == sorted(NAMES)
    assert done.stdout.splitlines()[-1].startswith("4 failed, 1 passed, 3 errors")


def test_a_module_that_skips_fails_and_is_named(tmp_path):
    (tmp_path / "test_all.py").write_text("import pytest\n\npytest.importorskip('no_such_package')")
    done = run(tmp_path)
    assert done.returncode == 2 and "ERROR test_all.py" in done.stdout and "no_such_package" in done.stdout
