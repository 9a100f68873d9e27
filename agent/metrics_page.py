"""docs/metrics.md, made from the declarations: python -m agent.metrics_page > docs/metrics.md"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import getdoc
from textwrap import wrap

from agent.metric_set import PREFIX, SOURCE_LIMIT_S, MetricSet, Spec, declared
from agent.metrics import LABEL_MEANINGS, AgentMetrics, LearnerMetrics

_KINDS = {"optional": "gauge", "told": "histogram", "state": "state set"}
_SUFFIXES = ("seconds", "bytes")
_WIDTH = 100
_HEAD = f"""\
# Metrics

<!-- Made from agent/metrics.py by `python -m agent.metrics_page`; change that file, not this. -->

Agent and learner each serve `/metrics`, `/healthz` and `/readyz` on one HTTP port (`http_host`,
`http_port`; `endpoints.json` names it). Beyond this machine they do so only with `http_open=true`:
nothing is encrypted there, and nothing is secret. Both also export `process_cpu_seconds_total`,
`process_resident_memory_bytes` and the other figures of prometheus_client's process collector.
Simulator workers and robots have no port: they tell the agent.

The text is made on the HTTP threads and never keeps a robot waiting. What has to be measured for it
(disks, files, readiness) is measured on threads of its own, for {SOURCE_LIMIT_S:g} s at most.
A metric that cannot be measured, or not in time, is left out and counted in
`{PREFIX}collector_errors_total`, at each scrape; the others are served. An old value is never
repeated: Prometheus would take it for one of now. A collector that hangs, on a dead network disk
say, is in the log once, and is not called again until it has come back.

Units are base units: seconds, bytes, ratios from 0 to 1. Timestamps are Unix times. A counter
starts at 0 with its process unless it says otherwise, and so does a closed set of labels: a series
that was never counted is there with 0.
"""


def make_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    parts += [_section(owner) for owner in _owners()]
    parts.append(_labels())
    return "\n".join(parts)


def _owners() -> list[type[MetricSet]]:
    """The declaring classes, the agent's first, each once; those of both processes last."""
    of_agent = [owner for owner, _, _ in declared(AgentMetrics)]
    of_learner = [owner for owner, _, _ in declared(LearnerMetrics)]
    owners = dict.fromkeys([*of_agent, *of_learner])
    shared = {owner for owner in owners if owner in of_agent and owner in of_learner}
    return sorted((o for o in owners if o is not MetricSet), key=lambda owner: owner in shared)


def _section(owner: type[MetricSet]) -> str:
    title, _, text = (getdoc(owner) or "").partition("\n")
    specs = [(name, spec) for of, name, spec in declared(owner) if of is owner]
    if owner in LearnerMetrics.__mro__ and owner in AgentMetrics.__mro__:
        process = "agent and learner"
        specs += [(name, spec) for of, name, spec in declared(owner) if of is MetricSet]
    else:
        process = "agent" if owner in AgentMetrics.__mro__ else "learner"
    lines = [f"## {title.rstrip('.')}", "", f"Exported by: {process}."]
    lines += [text.rstrip()] if text.strip() else []
    lines += ["", "| metric | type | labels | unit | what |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(name, spec) for name, spec in specs]
    buckets = [
        f"`{PREFIX}{name}`: {', '.join(f'{bound:g}' for bound in spec.buckets)}"
        for name, spec in specs
        if spec.buckets
    ]
    if buckets:
        lines += ["", *_wrapped(f"Buckets of {'; '.join(buckets)}.")]
    return "\n".join([*lines, ""])


def _row(name: str, spec: Spec) -> str:
    unit = spec.unit or next((s for s in _SUFFIXES if s in name.split("_")), "")
    labels = ", ".join(f"`{label}`" for label in _label_texts(spec))
    if spec.states:
        labels = f"`{PREFIX}{name}` = {', '.join(spec.states)}"
    cells = (f"`{PREFIX}{name}`", _KINDS.get(spec.kind, spec.kind), labels, unit, spec.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _label_texts(spec: Spec) -> Iterator[str]:
    for label in spec.labels:
        name, _, values = label.partition("=")
        yield f"{name}={values.replace('|', ',')}" if values else name


def _labels() -> str:
    rows = [f"| `{name}` | {meaning} |" for name, meaning in LABEL_MEANINGS.items()]
    return "\n".join(["## Labels", "", "| label | what |", "| --- | --- |", *rows, ""])


def _wrapped(text: str) -> Iterable[str]:
    return wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(make_page(), end="")
