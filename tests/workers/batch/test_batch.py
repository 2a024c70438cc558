"""A batch as its worker runs it: a child process that is killed, and goes on; the model is a server that echoes, and counts what it is asked."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.upstream_server import KEY, Server
from workers.batch.journal import Journal
from workers.batch.prompts import BadPrompt, messages_of, read_prompts
from workers.upstream.spec import UpstreamSpec

ROWS = 150


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", KEY)
    server = Server()
    server.start()
    model = tmp_path / "model"
    model.mkdir()
    (model / "upstream.json").write_text(UpstreamSpec(base_url=f"http://127.0.0.1:{server.port}/v1", model="words", key="tests").model_dump_json())
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"slow row {number}", "id": f"r{number}"} for number in range(ROWS)]
    rows[3] = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}]}
    rows[5] = {"text": "asks nothing"}
    rows[7] = {"prompt": "refuse this"}
    prompts.write_text("\n".join(json.dumps(row) for row in rows) + "\n\nno json\n")
    yield {
        "version": 1, "model_folder": str(model), "inputs": [str(prompts)], "output_folder": str(tmp_path / "out"), "work_folder": str(tmp_path / "work"),
        "max_tokens": 100,
    }  # fmt: skip
    server.kill()


def start(spec: dict, tmp_path: Path) -> subprocess.Popen:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    return subprocess.Popen([sys.executable, "-m", "workers.batch", str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_killed_in_the_middle_it_goes_on_and_loses_and_repeats_nothing(spec, tmp_path):
    journal, answers = tmp_path / "work" / "journal.jsonl", tmp_path / "out" / "answers.jsonl"
    first = start(spec, tmp_path)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = journal.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert not answers.exists()
    journal.write_bytes(whole + b'{"row": 9999, "prompt": "cut o')  # as a power cut leaves it

    second = start(spec, tmp_path)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert journal.read_bytes().startswith(whole), "what was done is kept as it was"
    found = lines_of(answers)
    assert [entry["row"] for entry in found] == list(range(ROWS + 1)), "each row once, in order"
    plain = [entry for entry in found if entry["row"] not in (3, 5, 7, ROWS)]
    assert all(entry["answer"] == entry["prompt"] and entry["id"] == f"r{entry['row']}" for entry in plain)
    assert found[3]["answer"] == "two"
    assert "prompt" in found[5]["error"]
    assert "max_tokens is too large" in found[7]["error"]
    assert "JSON" in found[ROWS]["error"]
    done = json.loads(said.splitlines()[-1])["result"]
    assert done.items() >= {"rows": ROWS + 1, "answered": ROWS - 2, "refused": 3, "resumed_from": whole.count(b"\n")}.items()
    progress = [event for event in map(json.loads, said.splitlines()) if event["event"] == "progress"]
    assert progress[0]["progress"] > 0.1
    assert [event["progress"] for event in progress] == sorted(event["progress"] for event in progress)


def test_a_file_without_a_prompt_ends_with_a_word(spec, tmp_path):
    Path(spec["inputs"][0]).write_text("\n\n")
    child = start(spec, tmp_path)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "no prompt" in json.loads(said.splitlines()[-1])["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": " "},
        {"prompt": 3},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}]},
    ],
)
def test_a_row_that_asks_nothing_is_told_why(fields):
    with pytest.raises(BadPrompt):
        messages_of(fields)


def test_a_system_message_goes_before_those_that_bring_none(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"question": "a"}\n{"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]}\n')
    assert [prompt.messages[0]["content"] for prompt in read_prompts([file], "Be brief.")] == ["Be brief.", "own"]


def test_a_journal_forgets_only_the_line_that_was_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for row in (2, 0, 1):
            journal.write({"row": row, "answer": "é"})
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path) as again:
        assert again.done == {2, 0}
        again.write({"row": 1, "answer": "new"})
        assert [json.loads(line)["row"] for line in again.in_order()] == [0, 1, 2]
