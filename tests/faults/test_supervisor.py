"""One foreground process holds everything: it starts with a clear word or not at all, and leaves nothing behind however it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.reading import READERS, endless, reading
from tests.stack import PATIENCE_SECONDS, SECOND_START_SECONDS, Stack, recovery, running_copy, shared, wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def portal(trained_home: Path, tmp_path_factory) -> Iterator[Stack]:
    """One of its own: the tests below stop and start it."""
    yield from running_copy(trained_home, tmp_path_factory.mktemp("supervisor"))


@pytest.fixture
def running(portal: Stack) -> Stack:
    if portal.process.poll() is not None:
        portal.start()
    return portal


@contextmanager
def refused(home: Path, **env: str) -> Iterator[str]:
    """What a supervisor that must not start says."""
    second = Stack(home, env=env)
    second.log = home.parent / f"refused-{second.port}.log" if home.parent.is_dir() else Path(env["LOG"])
    try:
        status = second.launch().wait(PATIENCE_SECONDS)
        said = second.tail().strip()
        assert status != 0
        assert len(said.splitlines()) == 1, said
        yield said
    finally:
        if second.process.poll() is None:
            second.destroy()  # not otherwise: on the first one's home, it would take that one's Redis for its own, and kill it
        second.http.close()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_and_the_next_start_is_quick_and_knows_everything(running, sign):
    before = (running.version("live"), running.version("candidate"), running.rows("/api/v1/datasets/"), len(running.rows("/api/v1/audit/")))
    status = running.stop(sign)
    assert status == 0
    assert running.start().start_seconds < shared(SECOND_START_SECONDS)
    assert (running.version("live"), running.version("candidate"), running.rows("/api/v1/datasets/"), len(running.rows("/api/v1/audit/"))) == before
    running.wait_answers(within=recovery)


def test_a_stop_lets_the_answers_that_are_being_written_be_finished(running):
    with reading(running, endless(running)) as readers:
        assert not all(readers.ends), "all answers were complete before the portal was stopped"
        assert running.stop(signal.SIGTERM) == 0
    assert readers.ends == ["[DONE]"] * READERS


def test_a_second_ctrl_c_does_no_harm(running):
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGINT)
    assert running.stop() == 0


def test_killing_the_supervisor_leaves_no_process(running):
    job = running.train(running.dataset()["id"], minutes=2)
    wait_for(lambda: running.processes("child"), what="the training's process")
    running.kill("supervisor")
    wait_for(lambda: not running.processes(), within=recovery, what=f"no process survives; there are {running.processes()}")
    running.process.wait()
    running.start()
    running.wait_job(job, status="running", within=recovery)
    running.post(f"/api/v1/training-jobs/{job['id']}/cancel/")
    running.wait_job(job, status="cancelled", within=recovery)


def test_two_portals_on_one_home_are_refused_and_the_first_is_not_disturbed(running):
    running.wait_answers()
    counted = _requests(running)
    assert counted > 0
    with refused(running.home) as said:
        assert "another DSPortal is running" in said
        assert str(running.home) in said
    assert _requests(running) >= counted
    running.wait_answers(within=recovery)


def _requests(portal: Stack) -> float:
    lines = portal.http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dsportal_requests_total{"))


def test_a_taken_port_is_said_in_one_line(running, tmp_path):
    with refused(tmp_path / "home", PORT=str(running.port)) as said:
        assert f"port {running.port} is taken" in said
        assert "PORT=" in said


def test_a_home_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    with refused(tmp_path / "file" / "home", LOG=str(tmp_path / "said.log")) as said:
        assert "cannot be written" in said
        assert "DSPORTAL_HOME" in said


@pytest.mark.parametrize("port", ["http", "0", "70000"])
def test_a_port_that_is_none_is_said_in_one_line(tmp_path, port):
    with refused(tmp_path / "home", PORT=port) as said:
        assert f"PORT={port} is not a port" in said


def test_all_processes_together_fit_a_small_machine(running):
    """Idle with a live model: under 1.2 GB, shared pages counted once."""
    running.wait_answers()
    # A first answer that was slow brings a second inference worker, for a minute or two.
    wait_for(lambda: len(running.processes()) >= 8 and len(running.processes("inference")) == 1, what="all processes, and one inference worker")
    used = 0
    for process in running.processes():
        with suppress(psutil.NoSuchProcess):
            used += process.memory_full_info().pss
    assert used < 1.2e9
