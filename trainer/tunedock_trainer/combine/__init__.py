"""New versions from adapters that exist: merged ones, and kinds of LoRA that cannot be served made plain."""
