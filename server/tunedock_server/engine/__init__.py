"""The serving engine: vLLM embedded as `AsyncLLM`. Nothing outside this package imports vllm."""
