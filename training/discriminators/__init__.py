"""Discriminators: one multi-input network for the published variants."""
