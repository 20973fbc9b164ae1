"""May these two files be served on this base model? Every static check, before anything else opens them.

`prepare` needs no torch and no engine: names, shapes, ranks and values of the weights are compared with `BaseFacts`, the
config is parsed strictly and written anew. The weight bytes stay untouched, so their sha256 is the author's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from tunedock_api.errors import Rejected
from tunedock_api.manifest import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    BaseModelIdentity,
    FileEntry,
    Identity,
    Lineage,
    LoraShape,
    Manifest,
    Probe,
    ServingProfile,
    canonical_json,
)

from ..models.facts import BaseFacts
from .canonical import LoraSettings, canonical_config, parse_config, resolve, targeted
from .probe import check_probe
from .safetensors_header import Header, HeaderLimits, read_header
from .scan import Pair, scan_pair
from .tensors import pair_up

_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class ManifestParts:
    """What the author says about the version; everything that can be measured is measured instead.

    `base` is the base model the adapter was made for; None when the author does not know, as with an imported folder.
    `trained_*` describe training before the export folded the scaling into B. `readme` None writes a plain model card.
    """

    lineage: Lineage
    base: BaseModelIdentity | None = None
    serving: ServingProfile = field(default_factory=ServingProfile)
    probe: Probe | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    trained_rank: int | None = None
    trained_alpha: float | None = None
    trained_rslora: bool = False
    readme: str | None = None


@dataclass(frozen=True)
class PreparedAdapter:
    """Checked and ready to publish. `weights` is the source file, whose bytes publish hashes again while copying."""

    config: bytes
    weights: Path
    manifest: Manifest
    readme: str | None = None

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.manifest.identity.files.values())


def prepare(
    config: bytes | Path, weights: Path, base: BaseFacts, parts: ManifestParts, limits: HeaderLimits | None = None
) -> PreparedAdapter:
    """Checks config and weights against `base` and builds the manifest.

    Raises Rejected with the first reason why the adapter cannot be served. Reads `weights` twice; memory: one module.
    """
    check_base(parts.base, base.identity)
    settings = parse_config(_read_config(config))
    with open_regular(weights) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = read_header(stream, size, limits)
        pairs = _check_pairs(header, settings, base)
        norms = _scan(stream, header, pairs, settings)
        stream.seek(0)
        weights_entry = FileEntry(sha256=file_digest(stream, "sha256").hexdigest(), size_bytes=size)
    if parts.probe is not None:
        check_probe(parts.probe, base)
    canonical = canonical_config(settings, sorted(pairs), base.modules, base.identity.id)
    files = {CONFIG_FILE: _entry(canonical), WEIGHTS_FILE: weights_entry}
    identity = Identity(files=files, base_model=base.identity, serving=parts.serving)
    return PreparedAdapter(canonical, weights, _manifest(identity, pairs, norms, parts), parts.readme)


def check_base(declared: BaseModelIdentity | None, served: BaseModelIdentity) -> None:
    """Raises Rejected, with both values, when the adapter was made for another base model. Names may differ."""
    if declared is None:
        return
    for part in ("config_sha256", "tokenizer_sha256", "chat_template_sha256"):
        theirs, ours = getattr(declared, part), getattr(served, part)
        if theirs != ours:
            what = part.removesuffix("_sha256").replace("_", " ")
            raise Rejected(
                f"The adapter was made for base model {declared.id[:80]!r} whose {what} has sha256 {theirs[:80]}; this base "
                f"model, {served.id!r}, has {ours}. Tune it again on this base model.",
                param="base_model",
                details={"part": part, "adapter": theirs, "base": ours},
            )


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file, never through a symbolic link. Raises Rejected for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _O_NOFOLLOW)
    except OSError as error:
        raise Rejected(f"{path.name} cannot be opened as a regular file (missing, or a link).") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Rejected(f"{path.name} is not a regular file.")
    return os.fdopen(fd, "rb")


def _read_config(config: bytes | Path) -> bytes:
    if isinstance(config, bytes):
        return config
    with open_regular(config) as stream:
        return stream.read(2**20)


def _check_pairs(header: Header, settings: LoraSettings, base: BaseFacts) -> dict[str, Pair]:
    """Every tensor belongs to a module of the base, and its rank is what the config says."""
    pairs = pair_up(header, base)
    for module, resolved in resolve(settings, sorted(pairs)).items():
        rank = pairs[module].rank
        if rank != resolved.rank:
            raise Rejected(
                f"Module {module}: the tensors have rank {rank}, adapter_config.json says {resolved.rank}; "
                "the scaling would be wrong."
            )
    missing = targeted(settings, base.modules) - pairs.keys()
    if missing and not settings.selects_layers:
        raise Rejected(
            f"adapter_config.json targets {len(missing) + len(pairs)} modules, but {len(missing)} have no tensors, "
            f"for example {min(missing)}: the file is not whole."
        )
    return pairs


def _scan(stream: BinaryIO, header: Header, pairs: Mapping[str, Pair], settings: LoraSettings) -> dict[str, float]:
    """Norm of the change of each module, scaling included."""
    resolved = resolve(settings, sorted(pairs))
    scans = {module: scan_pair(stream, header, pair) for module, pair in sorted(pairs.items())}
    if not any(scan.effective for scan in scans.values()):
        raise Rejected("The adapter has no effect: in every module lora_A or lora_B is all zeros.")
    scaling = {module: abs(resolved[module].scaling(settings.use_rslora)) for module in scans}
    return {module: float(f"{scan.delta_norm * scaling[module]:.6g}") for module, scan in scans.items()}


def _manifest(identity: Identity, pairs: Mapping[str, Pair], norms: dict[str, float], parts: ManifestParts) -> Manifest:
    shape = LoraShape(
        rank=max(pair.rank for pair in pairs.values()),
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in pairs})),
        num_parameters=sum(pair.num_parameters for pair in pairs.values()),
        trained_rank=parts.trained_rank,
        trained_alpha=parts.trained_alpha,
        trained_rslora=parts.trained_rslora,
    )
    manifest = Manifest(
        digest=identity.digest(),
        identity=identity,
        lora=shape,
        lineage=parts.lineage,
        probe=parts.probe,
        training=dict(parts.training),
        metrics={**parts.metrics, "delta_norms": norms},
        packages=dict(parts.packages),
    )
    manifest_bytes(manifest)
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """`manifest.json`. Raises Rejected when a free-form part holds NaN, an infinity or something that is not JSON."""
    try:
        return canonical_json(manifest.model_dump(mode="python"))
    except (TypeError, ValueError) as error:
        raise Rejected(f"The manifest is not plain JSON ({error}); check training, metrics and notes.") from error


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=sha256(data).hexdigest(), size_bytes=len(data))
