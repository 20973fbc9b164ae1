"""The model card: what the adapter is, what it was made from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping

from tunedock_api.manifest import Lineage

from .job import Job
from .settings import RunConfig

_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, tunedock]
---
# {adapter}

A LoRA adapter for `{base}`, tuned by TuneDock job `{job}` ({objective}).

| | |
|---|---|
| examples | {num_examples} for training, {num_validation} held out |
| epochs, batch size, step | {n_epochs}, {batch_size}, {step} |
| learning rate | {learning_rate:g}, {schedule} |
| rank, alpha as trained | {rank}, {alpha:g}{rslora} |
| seed | {seed} |
{parents}{metrics}
The files hold alpha = rank: the scaling is folded into `lora_B`. Ask for it by name:

```python
client.chat.completions.create(model="{adapter}", messages=[...])
```
"""


def model_card(job: Job, config: RunConfig, base: str, lineage: Lineage, metrics: Mapping[str, float]) -> str:
    """Markdown with the front matter that model hubs read."""
    return _CARD.format(
        base=base,
        adapter=job.record.adapter,
        job=job.record.id,
        objective=config.objective,
        num_examples=job.data.num_examples,
        num_validation=len(job.data.validation),
        n_epochs=config.n_epochs,
        batch_size=config.batch_size,
        step=lineage.step,
        learning_rate=config.optim.learning_rate,
        schedule=config.optim.schedule,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        rslora=", scaled by 1/√rank" if config.lora.rslora else "",
        seed=config.seed,
        parents="".join(f"| continues | `{parent}` |\n" for parent in lineage.parents),
        metrics="".join(
            f"| {name.replace('_', ' ')} | {value:.4g} |\n" for name, value in sorted(metrics.items()) if name != "step"
        ),
    )
