"""Nothing that came from fewer than 10 people is shown, also where a file has it."""

from __future__ import annotations

from typing import Any

FEWEST = 10


def hidden(count: int | None) -> bool:
    """Whether a count is not shown: null, or 1 to 9."""
    return count is None or 0 < count < FEWEST


def suppress(findings: dict[str, Any]) -> None:
    """Put null in place of small counts and of most of what they could be worked out from; drop small groups. In place.

    A number of events is small too where the others are few: it is their total less them. A rate tells the number of
    events, so it goes with them.
    """
    cohort = findings["cohort"]
    for row in cohort["flow"]:
        row["rows"] = _shown(row["rows"])
    for row in cohort["splits"]:
        row["samples"], row["patients"] = _shown(row["samples"]), _shown(row["patients"])
    for row in cohort["labels"]:
        row["positive"] = _events(row["labelled"], row["positive"])
        row["labelled"] = _shown(row["labelled"])
    sizes = {row["split"]: row["samples"] for row in cohort["splits"]}
    for row in cohort["availability"]:
        _suppress_shares(row, sizes.get(row["split"]))
    cohort["sites"] = [row for row in cohort["sites"] if not hidden(row["samples"])]
    for row in cohort["sites"]:
        _suppress_shares(row["observed"], row["samples"])
    cohort["patterns"] = [row for row in cohort["patterns"] if not hidden(row["samples"])]
    findings["groups"] = [row for row in findings["groups"] if not hidden(row["people"])]
    for row in findings["groups"]:
        row["events"] = _events(row["samples"], row["events"])
        if row["events"] is None:
            row["rate"] = [None, None, None]
    findings["coverage"] = [row for row in findings["coverage"] if not hidden(row["people"])]
    for row in findings["coverage"]:
        row["calibration"] = _shown(row["calibration"])
    for versions in findings["calibration"].values():
        for curve in versions.values():
            kept = [k for k, n in enumerate(curve["samples"]) if not hidden(n)]
            for name in ("predicted", "observed", "low", "high", "samples"):
                curve[name] = [curve[name][k] for k in kept]


def _shown(count: int | None) -> int | None:
    return None if hidden(count) else count


def _events(total: int | None, events: int | None) -> int | None:
    if hidden(total) or hidden(events):
        return None
    assert total is not None
    assert events is not None
    return None if hidden(total - events) else events


def _suppress_shares(shares: dict[str, Any], samples: int | None) -> None:
    for name, share in shares.items():
        if isinstance(share, float) and (samples is None or hidden(round(share * samples))):
            shares[name] = None
