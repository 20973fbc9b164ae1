"""The contract that every part of TuneDock shares: names, model references, errors, manifests and protos. No torch."""
