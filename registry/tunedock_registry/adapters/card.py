"""The model card that lies beside the weights when the author brought none."""

from __future__ import annotations

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
