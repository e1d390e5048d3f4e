"""The vLLM engine: base, antiexpert and experts as one fused model inside vLLM. Nothing here imports vLLM by itself."""
