"""What is deployed beside our code: files for other programs, checked by those programs or against their schemas."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps.monitoring import names

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
KUBERNETES = DEPLOY / "kubernetes"
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


def test_rules_read_metrics_that_exist():
    asked = metrics_in((PROMETHEUS / "rules.yml").read_text())
    assert asked
    assert asked <= METRICS


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_of_a_dashboard_reads_metrics_that_exist(dashboard):
    found = expressions(json.loads(dashboard.read_text()))
    assert found
    assert not {name for expression in found for name in metrics_in(expression)} - METRICS


@pytest.mark.skipif(not KUBERNETES.exists(), reason="there are no Kubernetes manifests")
def test_kubernetes_accepts_the_manifests():
    run(tool("kubernetes-validate"), "--strict", *map(str, sorted(KUBERNETES.rglob("*.yaml"))))
