"""gRPC: the same services as `http/`, on protos."""
