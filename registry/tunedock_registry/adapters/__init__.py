"""Adapters, their immutable versions and the aliases that point to them.

Pure parts: `safetensors_header`, `canonical`, `scan`, `intake` (may this folder be served?), `aliases` (compare-and-swap,
rollback), `versions` (the state machine), `snapshot` (resolve a model reference). Durable parts: `publish`, `collect`,
`store` (the `Adapters` class that the `Registry` holds).
"""
