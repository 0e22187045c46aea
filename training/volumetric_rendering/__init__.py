"""Rays, sampling, compositing and the renderer; sees only the Field contract."""
