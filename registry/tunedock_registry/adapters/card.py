"""The model card: what lies beside the weights when the author brought none, and what was measured after publishing.

A published folder never changes, and two versions of the same weights share it. So the verdict, which is made on the serving
engine once the version is there, joins the card when the card is handed out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunedock_api.manifest import Manifest

_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, tunedock]
---
# LoRA adapter for {base}

| | |
|---|---|
| base model | `{base}` (config sha256 `{config}`) |
| rank | {rank} |
| modules | {modules} |
| parameters | {parameters:,} |
| origin | {origin} |
| digest | `sha256:{digest}` |

`manifest.json` holds the lineage, the metrics and the probe that the publish gate replays.
"""


def model_card(manifest: Manifest) -> str:
    base = manifest.identity.base_model
    return _CARD.format(
        base=base.id,
        config=base.config_sha256,
        rank=manifest.lora.rank,
        modules=", ".join(manifest.lora.target_modules),
        parameters=manifest.lora.num_parameters,
        origin=manifest.lineage.origin,
        digest=manifest.digest,
    )


_EVALUATION = """
## Evaluation

Measured on the serving engine with {num_examples} examples that training did not see. Changes are this version minus the other,
with 95 % intervals (paired bootstrap).

| {columns} |
|{rule}|
{rows}

Loss on general text, far from the training data, changed by {drift:+.4f} nats a token ({num_texts} texts): what was forgotten.
"""


def evaluation_section(report: Mapping[str, Any]) -> str:
    """Markdown for the report that a version's metrics keep under `evaluation`."""
    arms = {"base": "base model"}
    if "previous_metrics" in report:
        arms["previous"] = f"`{report['previous']}`"
    changes = [f"change to {title}" for title in arms.values()]
    columns = ["", *arms.values(), "this version", *changes]
    return _EVALUATION.format(
        num_examples=report["num_examples"],
        columns=" | ".join(columns),
        rule="---|" * (len(columns) - 1) + "---",
        rows="\n".join(_row(name, report, list(arms)) for name in report["new_metrics"]),
        drift=report["forgetting"]["general_loss_change"],
        num_texts=report["forgetting"]["num_texts"],
    )


def _row(name: str, report: Mapping[str, Any], arms: list[str]) -> str:
    values = [f"{report[f'{arm}_metrics'][name]:.4g}" for arm in (*arms, "new")]
    changes = [_change(report[f"vs_{arm}"].get(name)) for arm in arms]
    return f"| {' | '.join([name.replace('_', ' '), *values, *changes])} |"


def _change(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['mean']:+.4g} ({interval['low']:+.4g} to {interval['high']:+.4g})"
