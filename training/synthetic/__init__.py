"""Procedural heads with exact cameras, masks, depth and normals."""
