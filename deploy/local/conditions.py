"""What a success rate was measured under: without it, a rate says little and compares with none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ONCE, AT_END = "once", "at_end"  # success: at any step, or at the last one
# Of runs that ended before their matrices said so: there was nothing else then.
FORMER = {"protocol": "disjoint", "success": ONCE}


@dataclass(frozen=True)
class Conditions:
    """protocol: which init states train and evaluate. temperature: of sampling; 0 is greedy."""

    protocol: str
    temperature: float
    success: str  # ONCE or AT_END

    @classmethod
    def of_matrix(cls, results: Mapping[str, Any], name: str) -> Conditions:
        """Of the matrix `name` of a learner's results: "matrix" (rollout) or "greedy"."""
        temperature = 0.0 if name == "greedy" else results["temperature"]
        known = {**FORMER, "temperature": temperature} | results[name]
        return cls(known["protocol"], known["temperature"], known["success"])

    @classmethod
    def of_learner(cls, learner: Mapping[str, Any]) -> Conditions:
        """Of the rollouts that the learner's resolved settings ask for."""
        suite = learner["suite"]
        success = ONCE if suite["stop_at_success"] else AT_END
        return cls(suite["protocol"], learner["temperature"], success)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        greedy = ", greedy" if self.temperature == 0 else ""
        success = "once" if self.success == ONCE else "at the end"
        return f"protocol {self.protocol}, T = {self.temperature:g}{greedy}, success {success}"
