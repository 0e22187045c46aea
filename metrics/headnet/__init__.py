"""The built-in head network: reads pose, identity and parts off pictures of heads."""
