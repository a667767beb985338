"""The cache of CLIP features."""
