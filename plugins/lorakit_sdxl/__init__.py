"""Stable Diffusion XL for lorakit."""
