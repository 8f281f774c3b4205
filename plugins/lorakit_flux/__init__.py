"""FLUX.1 for lorakit."""
