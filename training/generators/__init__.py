"""Generator families behind one contract (base.py)."""
