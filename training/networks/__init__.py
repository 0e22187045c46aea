"""StyleGAN2 building blocks, super-resolution and decoders."""
