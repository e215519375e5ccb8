"""The command that makes the page."""

import http.client
import json
import re
import subprocess
import sys
import urllib.parse

import pytest
from conftest import made_episode

from sdar_trl.view import page, run_names
from sdar_trl.view.__main__ import main


def test_the_page_is_beside_the_first_runs_episodes(write_run, capsys):
    run = write_run()
    main([str(run), str(write_run("two"))])
    assert re.fullmatch(rf"24 episodes, \d\.\d MiB: {run}/episodes.html\n", capsys.readouterr().out)
    assert "<title>Episodes: run, two</title>" in (run / "episodes.html").read_text()
    main([str(run / "episodes" / "step_000001.jsonl"), "--output", str(run / "mine.html")])
    assert (run / "mine.html").exists()


def test_a_file_of_episodes_needs_no_step(tmp_path):
    file = tmp_path / "panel.jsonl"
    episode = made_episode(1)
    del episode["step"], episode["return"], episode["turns"][0]["losses"]
    file.write_text(json.dumps(episode) + "\n")
    text, count = page([file])
    assert count == 1 and '"panel"' in text  # the file's name in place of a step


def test_a_run_without_episodes_is_told_how_to_get_some(tmp_path):
    (tmp_path / "panel_after.jsonl").touch()
    with pytest.raises(SystemExit, match="No episodes in .*save_episodes_every=N.* ended, .*/panel_after.jsonl"):
        main([str(tmp_path)])


@pytest.mark.parametrize("line", ["{", "[]", '{"turns": []}', "null"])
def test_a_line_that_is_no_episode_is_named(tmp_path, line):
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps(made_episode(1)) + "\n" + line + "\n")
    with pytest.raises(SystemExit, match=r"some.jsonl, line 2: expected an episode as JSON, got '"):
        main([str(file)])


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    assert run_names([tmp_path / "a", tmp_path / "a"]) == ["a", "a"]


def test_it_is_served_on_this_machine_alone_and_made_anew_each_time(write_run):
    run = write_run()
    server = subprocess.Popen(
        [sys.executable, "-m", "sdar_trl.view", str(run), "--serve", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        address = urllib.parse.urlparse(re.search(r"http://\S+", said)[0])
        assert address.hostname == "localhost" and said.startswith("12 episodes")

        def get(path="/", **headers):
            connection = http.client.HTTPConnection("127.0.0.1", address.port)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert get()[0] == 200 and get()[1].count('id="e') == 12
        more = (run / "episodes" / "step_000001.jsonl").read_text()
        (run / "episodes" / "step_000002.jsonl").write_text(more)
        assert get()[1].count('id="e') == 24
        assert get(Host="evil.example")[0] == 403 and get("/etc/passwd")[0] == 404
    finally:
        server.terminate()
        server.wait()


def test_it_needs_neither_torch_nor_transformers():
    code = "import sys, sdar_trl.view; assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_runs_own_episodes_make_a_page(make_trainer, make_config, tmp_path):
    trainer = make_trainer(make_config(max_steps=2, save_episodes_every=1, sdar_coef=0.1))
    trainer.train()
    text, count = page([tmp_path / "out"])
    assert count == 8 and text.count('type="text/plain" id="c') == 2  # contexts once each: even, odd
