"""The monitoring's configuration as tests read it: rules, and the queries Grafana would send."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
# What the dashboard's variables stand for when everything is selected, over a short run.
VARIABLES = {"$__rate_interval": "1m", "$task": ".*", "$phase": ".*"}


@dataclass(frozen=True)
class Query:
    """One query of the dashboard. `is_instant`: one moment, else a range of time."""

    where: str
    promql: str
    is_instant: bool


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def read_dashboard() -> dict[str, Any]:
    """The JSON as Grafana gets it."""
    found = json.loads((DEPLOY / "grafana" / "dashboards" / "perennial.json").read_text())
    assert isinstance(found, dict)
    return found


def read_rules(kind: str) -> list[dict[str, Any]]:
    """kind: "alert" or "record"."""
    groups = [group for path in RULES for group in read_yaml(path)["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def read_queries() -> list[Query]:
    """Every query of a panel or annotation, its variables replaced as Grafana replaces them."""
    dashboard = read_dashboard()
    queries = [
        Query(f"{panel['title']} {target['refId']}", target["expr"], target.get("instant", False))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    annotations = dashboard["annotations"]["list"]
    queries += [Query(f"annotation {a['name']}", a["expr"], False) for a in annotations]
    return [Query(q.where, fill_in(q.promql), q.is_instant) for q in queries]


def fill_in(promql: str) -> str:
    """The query with a value for every variable."""
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    assert "$" not in promql, promql
    return promql
