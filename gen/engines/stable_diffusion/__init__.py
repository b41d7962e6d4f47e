"""Stable Diffusion in JAX: one code for TPUs, GPUs and CPUs, without torch."""
