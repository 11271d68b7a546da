"""Small networks on frozen latents: one file each."""
