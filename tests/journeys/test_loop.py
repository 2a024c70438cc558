"""The loop as another service goes it, over HTTP, with every process real."""

import json

from tests.stack import Stack, knowledge, statement_of, wait_for


def test_the_report_tells_what_became_of_every_row(stack):
    dataset = stack.dataset()
    report = stack.get(f"/api/v1/datasets/{dataset['id']}/report/")
    funnel = {entry["stage"]: entry["rows"] for entry in report["funnel"]}
    assert list(funnel) == ["raw", "cleaned", "deduplicated", "classified", "augmented", "negatives", "used"]
    assert funnel["raw"] == len(knowledge())
    assert report["duplicates"] == {"clusters": 1, "rows": 1}
    assert sum(report["reasons"].values()) == 1
    assert {"seafaring", "baking"} <= set(report["domains"])
    dropped = [row for row in stack.get(f"/api/v1/datasets/{dataset['id']}/records/", stage="deduplicated")["results"] if row["reason"]]
    assert [row["id"] for row in dropped] == ["doc-02"]


def test_a_version_leads_back_to_the_text_that_taught_it(stack):
    second = stack.get(f"/api/v1/model-versions/{stack.named('v2')['id']}/")
    first = stack.named("v1")
    assert [line["id"] for line in second["lineage"]] == [first["id"], second["id"]]
    assert second["parent"] == first["id"]
    job = stack.get(f"/api/v1/training-jobs/{second['training_job']}/")
    assert job["model_version"] == second["id"]
    assert job["dataset"] == second["dataset"] == stack.dataset()["id"]
    assert job["metrics"]["loss"] > 0
    assert job["metrics"]["tokens_per_second"] > 0
    assert job["metrics"]["expert_load_max_over_mean"] >= 1


def test_the_gate_says_why_and_holds_to_it(stack):
    first, second = stack.named("v1"), stack.named("v2")
    rule = stack.gate(second["id"])["rules"][0]
    assert rule["passed"]
    assert rule["threshold"] == 1.05 * first["evaluation"]["bleu"]
    refused = stack.http.post(f"/api/v1/model-versions/{first['id']}/promote/")
    assert refused.status_code == 409
    assert "live already" in refused.json()["detail"]


def test_files_of_a_version_are_what_their_checksums_say(stack):
    import hashlib

    version = stack.named("v2")
    files = stack.get(f"/api/v1/model-versions/{version['id']}/files/")["results"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file["name"] for file in files}
    for file in files:
        content = stack.http.get(file["url"]).content
        assert len(content) == file["bytes"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_promote_ask_rate_and_the_rating_is_data(stack):
    second = stack.named("v2")
    old = stack.ask("What is yeast?")
    assert stack.ask("What is yeast?")["cached"]
    promoted = stack.post(f"/api/v1/model-versions/{second['id']}/promote/")
    assert promoted["version"]["state"] == "live"
    assert stack.version("live")["id"] == second["id"]
    stack.wait_answers()

    answer = stack.ask("What is yeast?")
    assert not answer["cached"], "an answer of the version before"
    assert answer["version"] == second["id"] != old["version"]
    titles = ("Yeast", "Compass", "Sextant", "Harbour", "Anchor", "Bran")
    assert sum(stack.ask(f"What is {_article(title)}?")["text"] == statement_of(title) for title in titles) >= 3
    again = stack.ask("What is yeast?")
    assert again["cached"]
    assert again["text"] == answer["text"]

    rating = {"answer": answer["answer"], "rating": 4}
    assert stack.http.post("/api/v1/feedback/", json=rating).status_code == 201
    assert stack.http.post("/api/v1/feedback/", json=rating | {"rating": 5, "comment": "yes"}).status_code == 200
    assert [(row["rating"], row["answer"]) for row in stack.rows("/api/v1/feedback/")] == [(5, answer["answer"])]
    dataset = stack.post("/api/v1/feedback/dataset/", {"name": "what people said"})
    stack.process_dataset(dataset)
    report = stack.get(f"/api/v1/datasets/{dataset['id']}/report/")
    assert {entry["stage"]: entry["rows"] for entry in report["funnel"]}["used"] >= 1
    assert stack.http.post("/api/v1/feedback/dataset/").status_code == 409

    back = stack.post(f"/api/v1/model-versions/{second['id']}/rollback/")
    assert back["version"]["id"] == old["version"]
    assert stack.ask("What is yeast?")["version"] == old["version"]


def _article(title: str) -> str:
    """Subjects as their statements name them: "an anchor", but "yeast"."""
    return statement_of(title).split(" is ")[0].lower()


def test_charts_and_counters_count_every_request(stack):
    version = stack.version("live")["id"]
    # Charts are written once a second, the counters at once: what other tests asked is in both by then.
    wait_for(lambda: _requests(stack, version) == _counted(stack, version), what="what was asked before in the charts")
    before = _requests(stack, version), _counted(stack, version)
    for number in range(7):
        stack.ask(f"What is a keel? {number}", max_tokens=4)
    wait_for(lambda: _requests(stack, version) == before[0] + 7, what="seven more requests in the charts")
    assert _counted(stack, version) == before[1] + 7
    assert any(point["p99_ms"] for point in stack.get("/api/v1/metrics/timeseries", window=300, step=10)["points"])


def _requests(stack: Stack, version: str) -> int:
    return sum(point["requests"] for point in stack.get("/api/v1/metrics/timeseries", window=3000, step=10, version=version)["points"])


def _counted(stack: Stack, version: str) -> float:
    lines = stack.http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dsportal_requests_total{") and version in line)


def test_an_experiment_keeps_each_subject_on_its_arm_and_counts_them(stack):
    live, other = stack.named("v1"), stack.named("v2")
    experiment = stack.post("/api/v1/experiments/", {"control": live["id"], "treatment": other["id"], "split": 0.5})
    path = f"/api/v1/experiments/{experiment['id']}/"
    stack.post(f"{path}start/")
    try:
        seen = {subject: {_asked_as(stack, subject, turn)["version"] for turn in range(3)} for subject in map(str, range(16))}
        assert all(len(versions) == 1 for versions in seen.values())
        assert {version for versions in seen.values() for version in versions} == {live["id"], other["id"]}
        for subject in map(str, range(16)):
            answer = _asked_as(stack, subject, 3)
            stack.post("/api/v1/feedback/", {"answer": answer["answer"], "rating": 5 if answer["version"] == other["id"] else 2})
    finally:
        stack.post(f"{path}stop/")
    results = stack.get(f"{path}results/")
    assert sum(arm["answers"] for arm in results["arms"].values()) == 16 * 4
    assert results["arms"]["treatment"]["rating"]["value"] == 5
    assert results["arms"]["control"]["rating"]["value"] == 2
    assert results["rating_difference"] == 3
    assert results["verdict"]
    assert stack.ask("What is a knot?", max_tokens=4)["version"] == live["id"]


def _asked_as(stack: Stack, subject: str, turn: int) -> dict:
    question = {"prompt": f"What is a rudder? {turn}", "max_tokens": 4, "temperature": 0}
    return stack.read(stack.http.post("/api/v1/generate/", json=question, headers={"X-Conversation-Id": subject}))


def test_every_change_of_state_has_its_audit_row(stack):
    actions = {row["action"] for row in stack.rows("/api/v1/audit/")}
    assert {"dataset.create", "dataset.process", "training.start", "version.create", "version.evaluate", "version.promote"} <= actions


def test_the_schema_describes_what_is_there(stack):
    schema = stack.http.get("/api/schema/", headers={"Accept": "application/json"}).json()
    assert json.dumps(schema)
    assert {"/api/v1/generate/", "/api/v1/datasets/", "/api/v1/model-versions/{id}/promote/"} <= set(schema["paths"])
