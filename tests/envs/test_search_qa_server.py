"""The search server and its client, over real sockets of this machine."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import uvicorn

from sdar_trl.chat import Chat
from sdar_trl.envs import SearchEnv, load_world
from sdar_trl.envs.search_qa.client import SearchClient
from sdar_trl.envs.search_qa.embedded import questions
from sdar_trl.envs.search_qa.engines import Hit, SearchError, open_engine
from sdar_trl.envs.search_qa.questions import Document
from sdar_trl.envs.search_qa.serve import search_app
from sdar_trl.episodes import StopReason
from sdar_trl.factories import return_reward
from sdar_trl.rollout import Rollout


@contextmanager
def served(app):
    """The address of a server that runs inside."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@contextmanager
def raw_server(*answers):
    """A server that reads a request and does what each answer says: bytes to send, or a function of the connection.
    The last one is for all further requests. Yields its address and the requests' bodies."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    bodies, open_ones, stop = [], [], threading.Event()

    def run():
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            open_ones.append(connection)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection.makefile("rb") as file:
            headers = b"".join(iter(file.readline, b"\r\n"))
            length = int(re.search(rb"(?i)content-length: (\d+)", headers)[1])
            bodies.append(json.loads(file.read(length)))
            reply = answers[min(len(bodies), len(answers)) - 1]
            try:
                reply(connection) if callable(reply) else connection.sendall(reply)
            except OSError:
                pass
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", bodies
    finally:
        stop.set()
        thread.join()
        for connection in [listening, *open_ones]:
            connection.close()


def until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def response(content, status="200 OK", kind="application/json", length=None):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode() + body


def post(url, content, timeout=20):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{url}/retrieve", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


FOUND = [[{"document": {"id": "1", "contents": '"Lisbon"\nA city.'}, "score": 2.5}]]
QUICK = {"timeout": 0.5, "attempts": 2, "backoff": 0.01}


@pytest.fixture(scope="module")
def url():
    with served(search_app(open_engine())) as address:
        yield address


# The protocol


def test_a_client_of_search_r1_is_answered(url):
    """Its request, and how it reads the answer."""
    queries = ["capital of Armenia", "Braga"]
    status, answer = post(url, {"queries": queries, "topk": 2, "return_scores": True})
    assert status == 200
    for query, result in zip(queries, answer["result"], strict=True):
        titles = []
        for item in result:
            content = item["document"]["contents"]
            titles.append(content.split("\n")[0])
            assert "\n".join(content.split("\n")[1:]) and item["score"] > 0
        assert titles == [hit.document.title for hit in open_engine().search([query], 2)[0]]
    _, bare = post(url, {"queries": ["Braga"]})
    assert bare["result"][0][0]["contents"].startswith("Braga\nBraga is a city in")


def test_our_client_gets_what_the_engine_finds(url):
    queries = [question.text for question in questions("test")[:50]] + ["", "zzz", "日本 \u2028 </information>"]
    for address in (url, f"{url}/", f"{url}/retrieve"):
        assert SearchClient(address).search(queries, 4) == open_engine().search(queries, 4)


@pytest.mark.parametrize("wrap", [lambda results: results, lambda results: {"result": results}])
def test_both_shapes_of_an_answer_are_read(wrap):
    with raw_server(response(wrap(FOUND))) as (url, bodies):
        assert SearchClient(url).search(["x"], 3) == [[Hit(Document("Lisbon", "A city."), 2.5)]]
        assert bodies == [{"queries": ["x"], "topk": 3, "return_scores": True}]


# The client, when a server fails


def slowly(connection):
    """A byte at a time, for longer than the client waits."""
    for byte in response(FOUND):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda connection: time.sleep(2), "TimeoutError"),
        (slowly, "TimeoutError"),
        (lambda connection: connection.close(), "closed|reset|Reset|without response"),
        (lambda connection: connection.shutdown(socket.SHUT_WR), "without response"),
        (response(FOUND, length=10_000), "IncompleteRead"),
        (b"\x00\xff garbage \r\n\r\n", "BadStatusLine"),
        (response(b"<html>Bad gateway</html>", kind="text/html"), "got '<html>Bad gateway"),
        (response(b"<html>Down</html>", "502 Bad Gateway"), "status 502: '<html>Down"),
        (response(b"[[" * 100_000), "expected a list of 1 lists"),
        (response({"result": [[], []]}), "expected a list of 1 lists"),
        (response([[{"document": {"text": "x"}, "score": 1}]]), "KeyError: 'contents'"),
        (response([[{"document": {"contents": 3}, "score": 1}]]), "`contents` is no text"),
        (response({"error": "x"}), "KeyError: 'result'"),
        (response(b" " * 10_000_000), "more than 8388608 bytes"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else "",
)
def test_a_server_that_fails_is_asked_again_and_then_told(answer, said):
    with raw_server(answer) as (url, bodies):
        began = time.monotonic()
        with pytest.raises(SearchError, match=said) as error:
            SearchClient(url, **QUICK).search(["x"], 3)
        assert len(bodies) == 2 and time.monotonic() - began < 5
        assert f"{url}/retrieve did not answer in 2 attempts" in str(error.value) and "Start one with" in str(
            error.value
        )
    with raw_server(answer, response(FOUND)) as (url, _):  # and one that recovers has lost nothing
        assert len(SearchClient(url, **QUICK).search(["x"], 3)[0]) == 1


def test_a_server_that_is_down_is_told():
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    with pytest.raises(SearchError, match=rf"127.0.0.1:{port}/retrieve did not answer.*ConnectionRefused.*Start one"):
        SearchClient(f"http://127.0.0.1:{port}", **QUICK).search(["x"], 3)


def test_what_a_server_refuses_is_not_asked_again_and_costs_its_own_call_alone(url):
    with raw_server(response({"detail": "too long"}, "422 Unprocessable Entity")) as (refusing, bodies):
        with pytest.raises(SearchError, match="status 422.*too long"):
            SearchClient(refusing, **QUICK).search(["x"], 3)
        assert len(bodies) == 1
    client = SearchClient(url, wait=0.2)
    with ThreadPoolExecutor(3) as threads:
        several = [threads.submit(client.search, [query], 3) for query in ("Braga", "x" * 10_000, "Porto")]
        assert several[0].result() and several[2].result()
        with pytest.raises(SearchError, match="at most 4096 characters"):
            several[1].result()


def test_the_calls_of_a_turn_go_as_one_request():
    def each(connection):
        connection.sendall(response([FOUND[0] for _ in bodies[-1]["queries"]]))

    with raw_server(each) as (url, bodies):
        client = SearchClient(url, wait=0.3, batch_size=20)
        with ThreadPoolExecutor(30) as threads:
            several = [threads.submit(client.search, [f"q{i}"], 3 if i < 28 else 5) for i in range(30)]
            assert all(len(found.result()[0]) == 1 for found in several)
    sizes = [len(body["queries"]) for body in bodies]
    assert sum(sizes) == 30 and max(sizes) <= 20 and len(sizes) <= 4
    assert sorted(query for body in bodies for query in body["queries"]) == sorted(f"q{i}" for i in range(30))
    assert all((query in ("q28", "q29")) == (body["topk"] == 5) for body in bodies for query in body["queries"])


class Searching:
    """A policy that searches in the first turn and answers in the second."""

    def __init__(self, tokenizer, chat):
        self.tokenizer, self.chat, self.turn = tokenizer, chat, 0

    def any_running(self, count):
        return count > 0

    def generate(self, prompts):
        self.turn += 1
        text = "<search>lisbon</search>" if self.turn == 1 else "<answer>lisbon</answer>"
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.chat.end_of_turn_id]
        return [ids for _ in prompts], None

    def end(self):
        self.turn = 0


def test_a_server_that_goes_down_ends_its_episodes_unscored_and_training_goes_on(tokenizer):
    down = threading.Event()

    def each(connection):
        up = response([FOUND[0] for _ in bodies[-1]["queries"]])
        connection.sendall(response(b"down", "503 Service Unavailable") if down.is_set() else up)

    chat = Chat(tokenizer)
    prompt = [{"role": "user", "content": ""}]
    tasks = [{"prompt": prompt, "task_id": str(i), "question": "x", "answers": ["Lisbon"]} for i in range(8)]
    with raw_server(each) as (url, bodies):
        factory = load_world("search_qa", search_url=url).environment_factory
        factory().engine.backoff = 0.01
        rollout = Rollout(
            factory, chat, Searching(tokenizer, chat), max_turns=4, max_response_length=20, max_completion_length=500
        )
        rewards = return_reward({None: SearchEnv}, 0.01)
        for reason, reward in ((StopReason.WON, 1.0), (StopReason.ENV_ERROR, None), (StopReason.WON, 1.0)):
            (down.set if reward is None else down.clear)()
            before = len(bodies)
            episodes = rollout.play(tasks)
            assert [episode.stop_reason for episode in episodes] == [reason] * 8
            assert rewards(episode=episodes) == [reward] * 8
            if reward is None:
                assert all("did not answer in 4 attempts" in e.error and not e.success for e in episodes)
            else:  # fewer requests than episodes: one a turn, unless the machine is busy
                assert len(bodies) - before <= 4
        rollout.close()


# The server


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        ({"queries": []}, 422, "queries: .*at least 1"),
        ({"queries": ["x"] * 513}, 422, "queries: .*at most 512"),
        ({"queries": ["x" * 4097]}, 422, "queries.0: at most 4096 characters, got 4097"),
        ({"queries": ["x"], "topk": 101}, 422, "topk: .*less than or equal to 100"),
        ({"queries": ["x"], "topk": 0}, 422, "topk: .*greater than or equal to 1"),
        ({"queries": "x"}, 422, "queries: .*valid (list|array)"),
        ({"queries": [3]}, 422, "queries.0: .*string"),
        ({}, 422, "queries: Field required"),
        (b"{", 422, "Invalid JSON"),
        (b"\xff\xfe", 422, "Invalid JSON"),
        (b" " * (2**21 + 1), 413, "at most 2097152 bytes"),
    ],
)
def test_a_request_beyond_the_limits_is_refused_with_the_reason(url, content, status, detail):
    got, answer = post(url, content)
    assert got == status and re.search(detail, answer["detail"])
    assert post(url, {"queries": ["Braga"]})[0] == 200


def test_health_and_counts_can_be_looked_up(url):
    def counts():
        text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        return {name: float(value) for name, value in re.findall(r"^search_(\w+) (\S+)$", text, re.MULTILINE)}

    assert json.load(urllib.request.urlopen(f"{url}/health", timeout=10)) == {"status": "ok"}
    before = counts()
    post(url, {"queries": ["a", "b"]})
    post(url, {"queries": []})
    after = counts()
    grown = {name: after[name] - before[name] for name in after if name != "seconds_total"}
    assert grown == {"requests_total": 2, "queries_total": 2, "refused_total": 1, "failed_total": 0}
    assert after["seconds_total"] > before["seconds_total"]


def test_a_search_that_fails_is_an_answer_of_the_server():
    class Broken:
        def search(self, queries, topk):
            raise OSError("disk")

    with served(search_app(Broken())) as url:
        assert post(url, {"queries": ["x"]}) == (500, {"detail": "The search failed: OSError('disk')"})


@contextmanager
def server_process(*options):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sdar_trl.envs.search_qa.serve", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"

    def up():
        assert process.poll() is None, process.stdout.read()
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=1).status == 200
        except OSError:
            return False

    try:
        until(up, 60)
        yield url, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_under_load_nothing_is_lost_memory_does_not_grow_and_it_stops_gracefully(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = (f"Title {i}\n" + " ".join(f"w{(i * k) % 997}" for k in range(1, 40)) for i in range(2000))
    path.write_text("".join(json.dumps({"contents": text}) + "\n" for text in texts))
    with server_process("--corpus", str(path), "--max_topk", "5") as (url, process):
        memory = psutil.Process(process.pid).memory_info
        expected = {i: open_engine(path).search([f"w{i} w{i + 1}"], 5)[0] for i in range(40)}

        def load(seed):
            client = SearchClient(url, wait=0.0)
            for number in range(25):
                i = (seed + number) % 40
                assert client.search([f"w{i} w{i + 1}"] * 4, 5) == [expected[i]] * 4
            return 25

        sizes = []
        for _ in range(3):
            with ThreadPoolExecutor(12) as threads:
                assert sum(threads.map(load, range(12))) == 300
            sizes.append(memory().rss)
        assert sizes[2] - sizes[1] < 4e6
        assert post(url, {"queries": ["x"], "topk": 6})[0] == 422
        assert {c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"} == {
            "127.0.0.1"
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stdout.read()


def test_a_stop_waits_for_open_requests():
    entered, leave = threading.Event(), threading.Event()

    class Slow:
        def search(self, queries, topk):
            entered.set()
            leave.wait(10)
            return [[] for _ in queries]

    with ThreadPoolExecutor(1) as threads:
        with served(search_app(Slow())) as url:
            asked = threads.submit(post, url, {"queries": ["x"]})
            assert entered.wait(10)
            threading.Timer(0.3, leave.set).start()
        assert asked.result() == (200, {"result": [[]]})


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package_is_told_with_the_extra_that_brings_it(package):
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['serve']; "
    code += "from sdar_trl.envs.search_qa import serve; serve.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'ImportError: The search server needs {package!r}: pip install "sdar-trl[search_qa]"' in done.stderr
