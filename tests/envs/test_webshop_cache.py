"""The cache of WebShop's official files: shared, kept apart, checked, and where it is."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from sdar_trl.envs import WebShopEnv, load_world
from sdar_trl.envs.webshop.cache import open_cache
from sdar_trl.envs.webshop.samples import write_files
from sdar_trl.envs.webshop.store import load_shop


ITEMS, INSTRUCTIONS = "items_shuffle.json", "items_ins_v2.json"


def files(folder, products=20):
    folder.mkdir(exist_ok=True)
    write_files(folder, products)
    return folder


def built(place):
    """When each cache in a place was built."""
    return {path.name: (path / "ids.npy").stat().st_mtime_ns for path in place.iterdir() if path.is_dir()}


def reopen(folder, **options):
    """Load anew: a file that was touched is read again, though it is the same."""
    os.utime(folder / ITEMS)
    return load_shop(folder, **options)


def facts(shop):
    goals = [shop.goals[index] for index in range(0, len(shop.goals), 7)]
    return list(shop.products), goals, [hit.asin for hit in shop.engine.search("lamp shoe tea")]


def renamed(folder, old, new):
    """Exchange a word for another of the same length in all products; size and time of the file stay."""
    path = folder / ITEMS
    status = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


# Which shop it is


def test_a_change_of_the_files_is_noticed_also_by_a_running_process(tmp_path):
    folder = files(tmp_path)
    assert len(load_shop(folder).products) == 20
    files(tmp_path, 30)
    assert len(load_shop(folder).products) == 30


def test_a_change_that_leaves_size_and_time_is_noticed_also_by_a_running_process(tmp_path):
    before = load_shop(files(tmp_path))
    env, tasks = WebShopEnv(data_dir=tmp_path), [{"goal": 0, "shop": before.name}]
    title = before.products[0].title
    renamed(tmp_path, title, title.upper())
    after = load_shop(tmp_path)
    assert before.products[0].title == title and after.products[0].title == title.upper() != title
    assert env.reset(**tasks[0])
    with pytest.raises(
        ValueError, match="Give dataset and environment the same `data_dir`.*leave the files as they are"
    ):
        WebShopEnv(data_dir=tmp_path).reset(**tasks[0])


@pytest.mark.parametrize("name", [ITEMS, INSTRUCTIONS, "items_human_ins.json"])
def test_goals_of_changed_files_are_those_of_another_shop(tmp_path, name):
    options = {"data_dir": files(tmp_path), "human_goals": name.startswith("items_human")}
    before = load_shop(**options)
    path = tmp_path / name
    path.write_text(path.read_text() + " ")
    assert load_shop(**options).name != before.name
    path.write_text(path.read_text()[:-1])
    assert load_shop(**options).name == before.name


def test_a_relative_folder_is_that_of_the_time_it_was_named(tmp_path, monkeypatch):
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        files(tmp_path / name / "data", 20 + number)
    monkeypatch.chdir(tmp_path / "first")
    world = load_world("webshop", data_dir="data", cache_dir="cache")
    assert len(load_shop("data").products) == 20
    monkeypatch.chdir(tmp_path / "second")
    assert len(load_shop("data").products) == len(WebShopEnv(data_dir="data").shop.products) == 21
    env = world.environment_factory()
    assert len(env.shop.products) == 20 and (tmp_path / "first" / "cache").is_dir()
    assert env.reset(goal=0, shop=env.shop.name)


def test_a_folder_is_one_shop_by_whatever_path(tmp_path, monkeypatch):
    folder = files(tmp_path / "data")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    paths = (folder, str(folder), "data", Path("data/../data"), tmp_path / "link")
    assert len({id(load_shop(path)) for path in paths}) == 1


# Sharing


def test_of_several_threads_one_builds_and_all_get_the_same_shop(tmp_path):
    files(tmp_path, 100)
    shops, start = [], threading.Barrier(8)

    def load():
        start.wait()
        shops.append(WebShopEnv(data_dir=tmp_path).shop)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shops) == 8 and len(set(map(id, shops))) == 1


CODE = """
import sys, threading
from sdar_trl.envs import WebShopEnv
data_dir, cache_dir, seed = sys.argv[1:]
shops, start = [], threading.Barrier(4)
def load():
    start.wait()
    shops.append(WebShopEnv(data_dir=data_dir or None, cache_dir=cache_dir or None, seed=int(seed)).shop)
threads = [threading.Thread(target=load) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
shop = shops[0]
assert all(other is shop for other in shops)
print(shop.name, shop.goals[0].instruction, [product.asin for product in shop.engine.search("lamp")])
"""


def processes(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, "-c", CODE, *map(str, options)] for options in arguments]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for command in commands]
    answers = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return answers


def test_the_embedded_shop_is_made_once_for_all_threads():
    [answer] = processes(("", "", 0))
    assert answer.startswith("embedded ")


def test_several_processes_build_one_cache_and_see_the_same(tmp_path):
    files(tmp_path, 100)
    first, second, third = processes(*[(tmp_path, "", 0)] * 2, (tmp_path, "", 1))
    assert first == second != third and "seed 0" in first
    assert len(built(tmp_path / ".webshop_cache")) == 1
    before = built(tmp_path / ".webshop_cache")
    assert processes((tmp_path, "", 0), (tmp_path, "", 1)) == [first, third]
    assert built(tmp_path / ".webshop_cache") == before


# Where it is


def test_the_cache_is_where_it_is_wanted_and_caches_of_several_folders_keep_apart(tmp_path):
    place = tmp_path / "some" / "place"
    folders = [files(tmp_path / name, count) for name, count in (("a", 20), ("b", 30))]
    shops = [load_shop(folder, cache_dir=place) for folder in folders]
    assert [len(shop.products) for shop in shops] == [20, 30]
    before = built(place)
    assert len(before) == 2 and not any((folder / ".webshop_cache").exists() for folder in folders)
    assert [facts(reopen(folder, cache_dir=place)) for folder in folders] == list(map(facts, shops))
    assert built(place) == before


def test_world_environment_and_dataset_use_the_wanted_place(tmp_path):
    world = load_world("webshop", data_dir=str(files(tmp_path / "data", 200)), cache_dir=str(tmp_path / "cache"))
    env, tasks = world.environment_factory(), world.dataset("test")
    assert env.reset(**tasks[0]) and len(built(tmp_path / "cache")) == 1
    assert {path.name for path in (tmp_path / "data").iterdir()} == {ITEMS, INSTRUCTIONS, "items_human_ins.json"}


@pytest.fixture
def read_only():
    """A folder of official files, what forbids to write in it even if root runs the tests, and another folder."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    load_shop(files(base / "any"))  # imports what a user without rights may not read
    folder, elsewhere = files(base / "data"), base / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)

    def forbid():
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)

    yield folder, forbid, elsewhere
    os.seteuid(os.getuid())
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(base)


def test_a_complete_cache_in_a_folder_that_cannot_be_written_is_used(read_only):
    folder, forbid, _ = read_only
    shop = load_shop(folder)
    for path in folder.rglob("*"):
        os.utime(path)
    before = built(folder / ".webshop_cache")
    forbid()
    again = load_shop(folder)
    assert again is not shop and facts(again) == facts(shop)
    assert load_shop(folder, seed=1).goals[0] != load_shop(folder, seed=2).goals[0]  # drawn, though not kept
    assert load_shop(folder, human_goals=True).goals
    assert built(folder / ".webshop_cache") == before


def test_where_no_cache_can_be_built_the_error_says_how_to_name_another_place(read_only):
    folder, forbid, elsewhere = read_only
    forbid()
    with pytest.raises(
        OSError, match=re.escape(f"{folder}/.webshop_cache") + ".*Name another place for it: `cache_dir`"
    ):
        load_shop(folder)
    with pytest.raises(OSError, match="Name another place for it: `cache_dir`"):
        load_shop(folder, cache_dir=folder / ITEMS)
    assert len(load_shop(folder, cache_dir=elsewhere / "cache").products) == 20


# Whether it is whole


def test_a_cache_that_was_copied_or_moved_with_its_files_is_good_there(tmp_path):
    shop = load_shop(files(tmp_path / "data"))
    before = built(tmp_path / "data" / ".webshop_cache")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")  # times stay, inodes and times of change do not
    assert facts(load_shop(tmp_path / "copy")) == facts(shop)
    assert built(tmp_path / "copy" / ".webshop_cache") == before
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert facts(load_shop(tmp_path / "moved")) == facts(shop)
    assert built(tmp_path / "moved" / ".webshop_cache") == before


def damages(path, other):
    content = path.read_bytes()
    middle = len(content) // 2
    return {
        "emptied": b"",
        "cut in half": content[:middle],
        "cut by a byte": content[:-1],
        "a byte deleted": content[:middle] + content[middle + 1 :],
        "one bit turned over": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "a block of zeros": content[: middle // 2] + bytes(len(content) - middle // 2),
        "all zeros": bytes(len(content)),
        "written over": b"x" * len(content),
        "something behind it": content + b"\n",
        "another file": other.read_bytes(),
        "other digits": content.replace(b"0", b"1"),
    }


def test_every_damage_to_a_cache_is_told_with_the_file_and_what_to_do(tmp_path):
    shop = load_shop(files(tmp_path))
    [cache] = [path for path in (tmp_path / ".webshop_cache").iterdir() if path.is_dir()]
    shutil.copytree(cache, tmp_path / "whole")
    names = sorted(path.name for path in cache.iterdir())
    assert len(names) > 15
    tried = 0
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        path = cache / name
        for content in [None, *damages(path, cache / other).values()]:
            status = path.stat()
            if content == path.read_bytes():
                continue
            path.unlink() if content is None else path.write_bytes(content)
            if content is not None:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            if content is None and name == "manifest.json":  # as if it had not been built to the end: it is, now
                assert facts(reopen(tmp_path)) == facts(shop)
            else:
                message = f"{path} is not what it was when the cache was built. Delete {cache}; it is built anew."
                for _ in range(2):
                    with pytest.raises(ValueError, match=re.escape(message)):
                        reopen(tmp_path)
            tried += 1
            shutil.rmtree(cache)
            shutil.copytree(tmp_path / "whole", cache)
    assert tried > 150
    shutil.rmtree(cache)  # what the message says
    assert facts(reopen(tmp_path)) == facts(shop)


def test_files_of_a_cache_that_changed_places_are_told(tmp_path):
    load_shop(files(tmp_path / "a"))
    load_shop(files(tmp_path / "b", 30))
    [first], [second] = ((tmp_path / name / ".webshop_cache").glob("*/") for name in "ab")
    other = tmp_path / "other"
    for one, two in ((first / "documents.npy", first / "starts.npy"), (first / "prices.npy", second / "prices.npy")):
        for _ in range(2):  # there and back
            one.rename(other), two.rename(one), other.rename(two)
            if _ == 0:
                with pytest.raises(ValueError, match="is not what it was when the cache was built. Delete "):
                    reopen(tmp_path / "a")
    assert reopen(tmp_path / "a")
    first.rename(other), second.rename(first), other.rename(second)
    assert len(reopen(tmp_path / "a").products) == 20 and len(reopen(tmp_path / "b").products) == 30


def test_a_build_that_breaks_off_leaves_no_cache(tmp_path):
    files(tmp_path)
    whole = (tmp_path / ITEMS).read_text()
    (tmp_path / ITEMS).write_text(whole[:-30])
    for _ in range(2):
        with pytest.raises(ValueError, match="not valid JSON"):
            load_shop(tmp_path)
        assert not list((tmp_path / ".webshop_cache").glob("*/"))
    (tmp_path / ITEMS).write_text(whole)
    assert len(load_shop(tmp_path).products) == 20


def test_files_that_change_while_they_are_read_are_told(tmp_path):
    path = tmp_path / "source.json"
    path.write_text("[")

    def build(folder):
        np.save(folder / "values.npy", np.arange(3))
        path.write_text("[]")

    with pytest.raises(RuntimeError, match="source.json changed while it was being read"):
        open_cache(tmp_path / "cache", (path,), build)
    assert not list((tmp_path / "cache").glob("*/"))
