"""What is deployed beside our code: files for other programs, checked by those programs or against their schemas."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from django.core.management import call_command

from apps.monitoring import names
from apps.monitoring.rules import RULES

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(path for path in KUBERNETES.glob("base/*.yaml") if path.name != "kustomization.yaml")
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
METRICS = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str) and value.startswith("dsportal_")}
SUFFIX = re.compile(r"_(bucket|count|sum)$")
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def metrics_in(expression: str) -> set[str]:
    return {SUFFIX.sub("", name) for name in re.findall(r"\bdsportal_[a-z0-9_]+", expression)}


def expressions(node: object) -> list[str]:
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "expr"] + [found for value in node.values() for found in expressions(value)]
    return [found for value in node for found in expressions(value)] if isinstance(node, list) else []


def test_the_compose_file_fits_its_schema():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@needs_promtool
def test_prometheus_accepts_its_rules_and_configuration():
    run("promtool", "check", "config", "--syntax-only", str(PROMETHEUS / "prometheus.yml"))
    run("promtool", "check", "rules", str(PROMETHEUS / "rules.yml"))


@needs_promtool
def test_the_alerts_fire_on_a_slow_down_and_on_errors():
    run("promtool", "test", "rules", str(PROMETHEUS / "rules_test.yml"))


def test_the_rules_are_those_that_the_portal_judges_by():
    said = io.StringIO()
    call_command("prometheus_rules", stdout=said)
    assert (PROMETHEUS / "rules.yml").read_text() == said.getvalue()
    assert len(yaml.safe_load(said.getvalue())["groups"][0]["rules"]) == len(RULES)


@needs_promtool
def test_what_dashboards_ask_is_promql(tmp_path):
    found = [query.replace("$version", ".*") for dashboard in DASHBOARDS for query in expressions(json.loads(dashboard.read_text()))]
    rules = {"groups": [{"name": "panels", "rules": [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(found)]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    run("promtool", "check", "rules", str(tmp_path / "rules.yml"))


def test_the_dashboard_has_a_panel_for_every_chart_of_the_portal():
    page = (REPOSITORY / "templates/monitoring/monitoring.html").read_text()
    charts = {title.removesuffix(" in ms") for title in re.findall(r'{% trans "([^"]+)" as title %}', page)}
    panels = {panel["title"] for dashboard in DASHBOARDS for panel in json.loads(dashboard.read_text())["panels"]}
    assert len(charts) >= 10
    assert charts <= panels


def test_rules_read_metrics_that_exist():
    asked = metrics_in((PROMETHEUS / "rules.yml").read_text())
    assert asked
    assert asked <= METRICS


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_of_a_dashboard_reads_metrics_that_exist(dashboard):
    found = expressions(json.loads(dashboard.read_text()))
    assert found
    assert not {name for expression in found for name in metrics_in(expression)} - METRICS


def documents(*, of: str | None = None) -> list[dict]:
    found = [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text()) if each]
    return [each for each in found if of in (None, each["kind"])]


def test_kubernetes_accepts_the_manifests():
    run(tool("kubernetes-validate"), "--strict", *map(str, MANIFESTS))


@pytest.mark.parametrize("scaled", documents(of="ScaledObject"), ids=lambda each: each["metadata"]["name"])
def test_keda_accepts_its_objects(scaled):
    jsonschema.validate(scaled, json.loads(Path(__file__).with_name("keda_scaledobject.json").read_text()))
    assert scaled["spec"]["scaleTargetRef"]["name"] in {each["metadata"]["name"] for each in documents(of="Deployment")}


@needs_promtool
def test_what_keda_asks_prometheus_is_promql_over_metrics_that_exist(tmp_path):
    queries = [trigger["metadata"]["query"] for each in documents(of="ScaledObject") for trigger in each["spec"]["triggers"]]
    rules = {"groups": [{"name": "keda", "rules": [{"record": f"keda:{number}", "expr": query} for number, query in enumerate(queries)]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    run("promtool", "check", "rules", str(tmp_path / "rules.yml"))
    assert {name for query in queries for name in metrics_in(query)} <= METRICS


def test_kustomize_finds_every_file_and_no_file_is_forgotten():
    for folder in (KUBERNETES / "base", KUBERNETES / "gpu"):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))}
        assert {name for name in named if name.endswith(".yaml")} == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


def test_every_pod_runs_as_nobody_in_particular_on_a_disk_it_cannot_write():
    pods = [each["spec"]["template"]["spec"] for each in documents() if each["kind"] in ("Deployment", "Job")]
    assert len(pods) == 5
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]
