"""Could this job's result be served here? Asked before any compute, against the live engine. Pure.

Every refusal is a BadInput with the dotted path of the field that has to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_registry.data.knobs import KNOBS_KEY, Knobs, Method

from ..pool import EngineFacts


def check(method: Method, knobs: Knobs, report: Mapping[str, Any], facts: EngineFacts) -> None:
    """`report`: of the training file, rendered with the job's template kwargs. Raises BadInput."""
    _check_kind(method, report.get("kind"))
    _check_ranks(knobs, facts)
    _check_targets(knobs, facts)
    _check_length(knobs, facts)
    _check_template(knobs, report)
    _check_longest(knobs, report, facts)


def _check_kind(method: Method, kind: str | None) -> None:
    if method.type == "dpo" and kind != "preference":
        raise BadInput(
            f"Method 'dpo' needs preference data (input, preferred_output, non_preferred_output); the training file "
            f"holds {kind or 'no'} examples.",
            "invalid_training_file",
            param="training_file",
        )
    if method.type == "supervised" and kind == "preference":
        raise BadInput(
            "The training file holds preference pairs: choose method 'dpo', or a file of chat or prompt/completion "
            "examples.",
            "invalid_training_file",
            param="training_file",
        )


def _check_ranks(knobs: Knobs, facts: EngineFacts) -> None:
    asked: list[tuple[str, int]] = []
    if knobs.lora.rank != "auto":
        asked.append(("lora.rank", knobs.lora.rank))
    asked += [(f"lora.rank_pattern.{name}", rank) for name, rank in knobs.lora.rank_pattern.items()]
    asked += [("sweep.rank", rank) for rank in (knobs.sweep.rank if knobs.sweep else ())]
    for where, rank in asked:
        if rank > facts.max_lora_rank:
            raise BadInput(
                f"Rank {rank} cannot be served: this engine's slots hold rank {facts.max_lora_rank} at most. Choose a "
                "lower rank, or start the server with a higher --max-lora-rank.",
                "unservable_lora",
                param=f"{KNOBS_KEY}.{where}",
            )


def _check_targets(knobs: Knobs, facts: EngineFacts) -> None:
    wanted = knobs.lora.target_modules
    named = () if wanted == "all-linear" else tuple(wanted)
    for name in (*named, *knobs.lora.rank_pattern, *knobs.lora.alpha_pattern):
        if not any(_ends_with(module, name) for module in facts.base.modules):
            raise BadInput(
                f"Target module {name[:80]!r} does not exist in {facts.model_id}. It has: {_endings(facts)}.",
                "unservable_lora",
                param=f"{KNOBS_KEY}.lora.target_modules",
            )
    for name in named:
        if name.rpartition(".")[2] not in facts.lora_modules:
            raise BadInput(
                f"Target module {name[:80]!r} cannot be served: this engine carries adapters on "
                f"{', '.join(facts.lora_modules)}.",
                "unservable_lora",
                param=f"{KNOBS_KEY}.lora.target_modules",
            )


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _endings(facts: EngineFacts) -> str:
    return _listed(sorted({module.rpartition(".")[2] for module in facts.base.modules}))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _check_length(knobs: Knobs, facts: EngineFacts) -> None:
    if knobs.max_length != "auto" and knobs.max_length > facts.max_model_len:
        raise BadInput(
            f"max_length {knobs.max_length} is above the {facts.max_model_len} tokens that this engine serves.",
            "unservable_lora",
            param=f"{KNOBS_KEY}.max_length",
        )


def _check_template(knobs: Knobs, report: Mapping[str, Any]) -> None:
    """Whose fault it is, the data's or the kwargs', nobody can tell: whoever brings kwargs looks there first."""
    refused = report.get("template") or {}
    if refused.get("count"):
        more = refused["count"] - 1
        first = refused["errors"][0]["message"]
        raise BadInput(
            f"{first}{f' {more} more examples are refused as well.' if more else ''}",
            "invalid_training_file",
            param=f"{KNOBS_KEY}.chat_template_kwargs" if knobs.chat_template_kwargs else "training_file",
        )


def _check_longest(knobs: Knobs, report: Mapping[str, Any], facts: EngineFacts) -> None:
    """Only where nothing else was asked: over-long examples may be dropped or cut on request."""
    longest = (report.get("tokens") or {}).get("longest", 0)
    limit = facts.max_model_len if knobs.max_length == "auto" else knobs.max_length
    if longest > limit and knobs.overlong == "error":
        raise BadInput(
            f"The longest example has {longest} tokens, but at most {limit} are taken: shorten it, or set overlong to "
            "'drop' or 'truncate'.",
            "invalid_training_file",
            param="training_file",
        )
