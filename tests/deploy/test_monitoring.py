"""Rules, alerts, their routing and the dashboard: valid, documented, of metrics that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from monitoring import (
    DEPLOY,
    PROMETHEUS,
    RULES,
    fill_in,
    read_dashboard,
    read_queries,
    read_rules,
    read_yaml,
)
from patience import HANG_S

from agent.metric_set import PREFIX, Spec, declared
from agent.metrics import AgentMetrics, LearnerMetrics

pytestmark = pytest.mark.checks

ALERTS = {rule["alert"]: rule for rule in read_rules("alert")}
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DOCUMENT = DEPLOY.parent / "docs" / "alerts.md"
PACKAGES = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}
# Of Prometheus itself, of every scrape, and of prometheus_client.
OTHER_METRICS = {
    "up", "ALERTS", "process_start_time_seconds", "prometheus_rule_evaluation_failures_total",
}  # fmt: skip
SCRAPED_LABELS = {"job", "instance"}


def run_tool(program: str, *words: str | Path, told: str = "") -> str:
    """What it prints on being `told` something. Without it: the test is skipped, fails in CI."""
    if shutil.which(program) is None:
        message = f"no {program} on PATH; on Debian: apt-get install {PACKAGES[program]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run(
        [program, *words], input=told, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("program", PACKAGES)
def test_a_missing_tool_is_skipped_but_fails_in_ci(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        run_tool(program)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=PACKAGES[program]):
        run_tool(program)


def test_prometheus_accepts_its_configuration_with_all_rules() -> None:
    printed = run_tool("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(RULES)} rule files found" in printed
    assert "rules found" in run_tool("promtool", "check", "rules", *RULES)


def test_alertmanager_accepts_its_configuration() -> None:
    run_tool("amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    run_tool("promtool", "test", "rules", path)


@pytest.mark.parametrize("kind", [AgentMetrics, LearnerMetrics])
def test_promtool_finds_nothing_in_any_declared_metric(
    kind: type[AgentMetrics | LearnerMetrics],
) -> None:
    metrics = kind()
    for _, name, spec in declared(kind):
        if spec.label_names:  # else it has its one series already
            getattr(metrics, name).labels(*spec.label_names)
    assert run_tool("promtool", "check", "metrics", told=metrics.text().decode()) == ""


def test_every_alert_has_a_case_of_firing_and_one_of_not_firing() -> None:
    cases = [
        case
        for path in RULE_TESTS
        for test in read_yaml(path)["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_grave_it_is_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert "for" in alert
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    section = re.search(rf"^### {name}\n\n\*\*(\w+)\*\* ", DOCUMENT.read_text(), re.MULTILINE)
    assert section is not None, f"docs/alerts.md has no section {name} that begins with its gravity"
    assert section[1] == alert["labels"]["severity"]


def test_the_document_has_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE)) == set(ALERTS)


def test_inhibitions_name_alerts_that_exist() -> None:
    rules = read_yaml(DEPLOY / "alertmanager" / "alertmanager.yml")["inhibit_rules"]
    matchers = [m for rule in rules for m in (*rule["source_matchers"], *rule["target_matchers"])]
    names = {name for m in matchers for name in re.findall(r'"(.*)"', m)[0].split("|")}
    assert names
    assert names <= set(ALERTS)


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    dashboard = read_dashboard()
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queried = [*shown, *dashboard["annotations"]["list"], *dashboard["templating"]["list"]]
    assert {(q["datasource"]["type"], q["datasource"]["uid"]) for q in queried} == {
        (source["type"], source["uid"])
    }
    (provider,) = read_yaml(provisioning / "dashboards" / "perennial.yml")["providers"]
    mounts = read_yaml(DEPLOY / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_panels_are_complete_and_do_not_overlap() -> None:
    dashboard = read_dashboard()
    assert (dashboard["uid"], dashboard["schemaVersion"]) == ("perennial", 39)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        across = range(place["x"], place["x"] + place["w"])
        down = range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in across for y in down}
        assert across.stop <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            refs = [target["refId"] for target in panel["targets"]]
            assert refs
            assert len(set(refs)) == len(refs), panel["title"]


def test_variables_choose_among_the_exported_tasks_and_phases() -> None:
    for variable in read_dashboard()["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert found is not None
        assert found[2] == variable["name"]
        assert variable["name"] in catalogue()[found[1]].label_names


@pytest.mark.parametrize(
    "promql",
    [
        *(pytest.param(rule["expr"], id=rule["alert"]) for rule in read_rules("alert")),
        *(pytest.param(rule["expr"], id=rule["record"]) for rule in read_rules("record")),
        *(pytest.param(query.promql, id=query.where) for query in read_queries()),
    ],
)
def test_a_query_asks_for_series_that_exist(promql: str) -> None:
    recorded = {rule["record"] for rule in read_rules("record")}
    specs = catalogue()
    for selector in selectors(promql):
        if selector.name in recorded | OTHER_METRICS:
            continue
        assert selector.name in specs, f"{selector.name} is not in agent/metrics.py"
        for matcher in selector.matchers.matchers:
            check_label(selector.name, specs[selector.name], matcher.name, matcher.value)


def test_a_variable_that_nobody_sets_is_noticed() -> None:
    with pytest.raises(AssertionError, match="window"):
        fill_in('perennial_task_success_rate{window="$window"}')


def catalogue() -> dict[str, Spec]:
    """Every series name that the processes export -> its declaration."""
    series: dict[str, Spec] = {}
    for metrics in (AgentMetrics, LearnerMetrics):
        for _, name, spec in declared(metrics):
            ends = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
            series |= {f"{PREFIX}{name}{end}": spec for end in ends}
    return series


def selectors(promql: str) -> list[Any]:
    """Every choice of series in a query."""
    found: list[Any] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, promql_parser.VectorSelector):
            found.append(expression)
        elif isinstance(expression, promql_parser.MatrixSelector):
            found.append(expression.vector_selector)

    promql_parser.walk(promql_parser.parse(promql), visit)
    return found


def check_label(name: str, spec: Spec, label: str, value: str) -> None:
    """The metric has that label, and, if its values are a closed set, this value."""
    if label in SCRAPED_LABELS or (label == "le" and spec.kind == "histogram"):
        return
    if spec.kind == "state":
        assert label == name
        assert value in spec.states
        return
    assert label in spec.label_names, f"{name} has no label {label}"
    (closed,) = (
        values for key, _, values in (text.partition("=") for text in spec.labels) if key == label
    )
    if closed and value != ".*":
        assert set(value.split("|")) <= set(closed.split("|")), f"{name}: {label}={value}"
