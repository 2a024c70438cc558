"""Jobs as a service runs them: cancelled, resumed, over two ranks, compressed."""

import pytest

from tests.stack import recovery, statement_of, wait_for


def test_a_cancelled_training_goes_on_from_where_it_was(stack):
    job = stack.train(stack.dataset()["id"], minutes=0.4)
    saved = stack.wait_checkpoint(job)
    stack.post(f"{job['url']}cancel/")
    cancelled = stack.wait_job(job, status="cancelled", within=recovery)
    wait_for(lambda: not stack.processes("child"), within=recovery, what="the child is gone")
    assert cancelled["metrics"]["step"] > 0
    assert stack.http.post(f"{job['url']}cancel/").status_code == 409

    assert stack.http.post(f"{job['url']}resume/").status_code == 202
    done = stack.wait_job(job)
    assert stack.resumed_from(job) >= saved
    assert done["model_version"]


def test_two_ranks_that_shard_gradients_and_optimizer_make_a_version(stack):
    job = stack.wait_job(stack.train(stack.dataset()["id"], steps=12, world_size=2, zero_stage=2))
    assert job["metrics"]["loss"] > 0
    version = stack.get(f"/api/v1/model-versions/{job['model_version']}/")
    assert version["total_parameters"] > version["active_parameters"] > 0


def test_int8_is_a_quarter_of_the_bytes_answers_the_same_and_is_judged(stack):
    parent = max(
        (row for row in stack.rows("/api/v1/model-versions/") if row["kind"] == "moe" and row["evaluation"]),
        key=lambda row: row["evaluation"]["bleu"],
    )
    job = stack.wait_job(stack.post("/api/v1/compressions/", {"model_version": parent["id"], "method": "int8"}))
    child = stack.wait_evaluated(job["versions"][0])
    assert child["kind"] == "int8"
    assert child["parent"] == parent["id"]
    assert child["artifact_bytes"] < 0.26 * parent["artifact_bytes"]
    assert child["evaluation"]["evaluation_set"] == parent["evaluation"]["evaluation_set"]
    assert child["evaluation"]["bleu"] == pytest.approx(parent["evaluation"]["bleu"], abs=5)
    assert {rule["name"] for rule in stack.gate(child["id"])["rules"]} >= {"bleu", "smaller or faster"}
    assert stack.ask("What is a compass?", version=child["name"])["text"] == statement_of("Compass")
