"""The vLLM engine: how it is configured and started. It knows no stage; scoring uses it, and training must not."""
