"""Fields: what a family synthesises and the renderer queries."""
