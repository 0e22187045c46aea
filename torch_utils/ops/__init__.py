"""Operators, one a file: the public function, and the plain PyTorch reference that defines it."""
