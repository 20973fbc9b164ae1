"""Version 1 of the gRPC contract: generated stubs, see the .proto files beside them."""
