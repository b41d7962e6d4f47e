"""Stable Diffusion in JAX: 1.x, 2.x and XL, from a folder of diffusers, without torch."""
