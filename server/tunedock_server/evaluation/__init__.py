"""How good a version is, measured on the serving engine: against the base and against what production runs now."""
