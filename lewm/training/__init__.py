"""The two loops that learn: of the world model, and of small networks on its frozen latents."""
